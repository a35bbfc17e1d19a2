"""Dead letters as files: ``dlq edit`` in an editor, ``dlq export`` and ``dlq import`` as NDJSON."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import click

from rabbitflow.cli.dlq_options import (
    consumer_argument,
    json_option,
    no_such,
    report,
    selection_options,
    yes_option,
)
from rabbitflow.cli.letters import editable
from rabbitflow.cli.options import (
    EXIT_USAGE,
    broker_options,
    errors_in_one_line,
    fail,
    run,
    settings_from,
)
from rabbitflow.cli.progress import counting
from rabbitflow.deadletters import moves
from rabbitflow.deadletters.letter import Letter, Selection
from rabbitflow.deadletters.ndjson import letters_of, line_of
from rabbitflow.deadletters.survey import each, find
from rabbitflow.errors import EventError
from rabbitflow.topology import Names


@click.command()
@consumer_argument
@click.option("--id", "event_id", required=True, help="Of the event.")
@click.option("--keep", is_flag=True, help="Leave it among the dead letters, do not replay it.")
@yes_option
@json_option
@broker_options
@errors_in_one_line
def edit(
    consumer: str,
    event_id: str,
    keep: bool,
    yes: bool,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Mend the body of a dead letter of CONSUMER in $EDITOR, then replay it."""
    settings = settings_from(url, namespace)
    found = run(find(consumer, settings, Selection(ids=frozenset({event_id})), 1))
    if not found:
        fail(no_such(consumer), EXIT_USAGE)
    letter = found[0]
    body = _edited(letter)
    if body is None:
        report(as_json, f"{event_id} is as it was", consumer=consumer, id=event_id, edited=False)
        return
    if letter.signed_by and settings.signing_key_file is None:
        click.echo(
            f"rabbitflow: {event_id} was signed with key {letter.signed_by!r}, and what you changed"
            " is not: a consumer that trusts certain keys only will refuse it; set"
            " RABBITFLOW_SIGNING_KEY_FILE to a key that it trusts",
            err=True,
        )
    is_replayed = not keep and (
        yes or click.confirm(f"replay it to {consumer} now?", default=True, err=True)
    )
    run(moves.mend(letter, body, consumer, settings, is_replayed=is_replayed))
    where = f"in the queue of {consumer}" if is_replayed else "among the dead letters"
    report(
        as_json,
        f"{event_id} is {where}, mended",
        consumer=consumer,
        id=event_id,
        edited=True,
        replayed=is_replayed,
    )


@click.command()
@consumer_argument
@selection_options
@click.option("--output", "-o", default="-", metavar="FILE|-", help="Standard output by default.")
@json_option
@broker_options
@errors_in_one_line
def export(
    consumer: str,
    selection: Selection,
    output: str,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Write dead letters of CONSUMER as lines of JSON; they stay where they are."""
    settings = settings_from(url, namespace)
    with (
        _written(output) as stream,
        counting("exported", None, quiet=as_json or output == "-") as advance,
    ):

        def write(letter: Letter, total: int) -> None:
            stream.write(line_of(letter, consumer) + "\n")
            advance()

        count = run(each(consumer, settings, write, selection))
    if output != "-":
        report(
            as_json,
            f"{count} dead letters of {consumer} are in {output}",
            consumer=consumer,
            exported=count,
        )


@click.command("import")
@consumer_argument
@click.argument("source", metavar="FILE|-")
@json_option
@broker_options
@errors_in_one_line
def import_(
    consumer: str, source: str, as_json: bool, url: str | None, namespace: str | None
) -> None:
    """Put exported dead letters of CONSUMER back among its dead letters.

    From there they are replayed like any other. What is there already is there twice then.
    """
    settings = settings_from(url, namespace)
    names = Names(settings.namespace)
    total: int | None = None
    if source != "-":
        # Read through once before, so that a fault in the last line does not leave half of it.
        with _read(source) as stream:
            total = sum(1 for _ in letters_of(stream, consumer, names, source))
    with _read(source) as stream, counting("imported", total, quiet=as_json) as advance:
        letters = letters_of(stream, consumer, names, source)
        count = run(moves.put_back(letters, consumer, settings, lambda letter: advance()))
    report(
        as_json,
        f"{count} dead letters of {consumer} are back; go on with:"
        f" rabbitflow dlq replay {consumer}",
        consumer=consumer,
        imported=count,
    )


def _edited(letter: Letter) -> bytes | None:
    """Let the user edit until it is an event; return the body, None where nothing was changed."""
    text: str | None = editable(letter)
    while True:
        text = click.edit(text, extension=".json")
        if text is None:
            return None
        body = text.strip().encode()
        try:
            moves.check_mended(letter, body)
        except EventError as error:
            again = f"{error}; edit it again?"
            if sys.stdin.isatty() and click.confirm(again, default=True, err=True):
                continue
            with tempfile.NamedTemporaryFile("wb", suffix=".json", delete=False) as kept:
                kept.write(body)
            raise EventError(f"{error}; nothing was changed, your text is in {kept.name}") from None
        return body


@contextmanager
def _written(output: str) -> Iterator[TextIO]:
    """Open a file that is there whole or not at all."""
    if output == "-":
        yield sys.stdout
        return
    path = Path(output)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            yield stream
        part.replace(path)
    except OSError as error:
        raise EventError(f"{output} can't be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _read(source: str) -> Iterator[TextIO]:
    if source == "-":
        yield sys.stdin
        return
    try:
        with Path(source).open(encoding="utf-8") as stream:
            yield stream
    except (OSError, UnicodeDecodeError) as error:
        raise EventError(f"{source} can't be read: {error}") from error
