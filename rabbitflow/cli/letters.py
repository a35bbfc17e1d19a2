"""How dead letters are shown in a terminal, and made fit for an editor."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rabbitflow.deadletters.letter import Letter
from rabbitflow.deadletters.survey import Survey
from rabbitflow.errors import EventError

WIDTH_ELSEWHERE = 160


def table_of(surveys: Sequence[Survey], missing: Sequence[str] = ()) -> Table:
    """Return the groups of every consumer; one without any has a row of its own."""
    table = Table()
    for name in ("consumer", "count", "reason", "exception", "event type", "first", "last"):
        table.add_column(name, overflow="fold")
    for survey in surveys:
        if not survey.groups:
            table.add_row(survey.consumer, "0")
        for group in survey.groups:
            table.add_row(
                survey.consumer,
                f"{group.count:,}",
                _cell(group.reason),
                _cell(group.exception_type),
                _cell(group.event_type),
                _when(group.first_failed_at),
                _when(group.last_failed_at),
            )
    for consumer in missing:
        table.add_row(consumer, "", "no dead-letter queue yet")
    return table


def print_table(table: Table, *, to_stderr: bool = False) -> None:
    """Print a table, as wide as a terminal is; wide enough where there is none."""
    is_terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    Console(stderr=to_stderr, width=None if is_terminal else WIDTH_ELSEWHERE).print(table)


def survey_as_json(survey: Survey) -> dict[str, Any]:
    """Return a survey as JSON."""
    written = asdict(survey)
    for group in written["groups"]:
        for name in ("first_failed_at", "last_failed_at"):
            if group[name] is not None:
                group[name] = group[name].isoformat()
    return written


def text_of(letter: Letter) -> str:
    """Return one letter to be read: what it is, why it is here, its traceback, its body."""
    tried = f" at attempt {letter.attempt}" if letter.attempt else ""
    replayed = f", replayed {letter.replays} times before" if letter.replays else ""
    lines = [f"{letter.event_type or 'of unknown type'}  {letter.id}"]
    lines.append(f"  reason     {letter.reason}{tried}{replayed}")
    if letter.exception_type:
        message = f": {letter.exception_message}" if letter.exception_message else ""
        lines.append(f"  exception  {letter.exception_type}{message}")
    if letter.failed_at:
        lines.append(
            f"  failed     {_when(letter.failed_at)}, first {_when(letter.first_failed_at)}"
        )
    if letter.host:
        lines.append(f"  on         {letter.host}, rabbitflow {letter.version or 'unknown'}")
    if letter.exchange:
        lines.append(f"  exchange   {letter.exchange}")
    if letter.traceback:
        lines += ["", *(f"  {line}" for line in letter.traceback.rstrip().splitlines())]
    lines += ["", *(f"  {line}" for line in _readable_body(letter.body).splitlines())]
    return _printable("\n".join(lines))


def editable(letter: Letter) -> str:
    """Return the body for an editor: indented where that changes nothing but white space.

    Raises:
        EventError: it is no text.
    """
    try:
        text = letter.body.decode()
    except UnicodeDecodeError as error:
        raise EventError(f"the body of {letter.id} is no text, so it can't be edited") from error
    indented = _indented(text)
    return indented if indented is not None else text


def _readable_body(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return repr(body)
    indented = _indented(text)
    return indented if indented is not None else text


def _indented(text: str) -> str | None:
    """Return JSON indented, or None where reading it loses anything: digits, a doubled name."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for escapes in (False, True):
        for separators in ((",", ":"), (", ", ": ")):
            if json.dumps(value, ensure_ascii=escapes, separators=separators) == text.strip():
                return json.dumps(value, ensure_ascii=escapes, indent=2)
    return None


def _printable(text: str) -> str:
    """Return text that a terminal only shows: control characters, which are orders, as escapes."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def _cell(text: str | None) -> Text:
    return Text(_printable(text or ""))


def _when(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}Z"
