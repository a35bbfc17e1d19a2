"""``rabbitflow dlq``: look at dead letters, replay, mend, export and purge them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from rabbitflow.cli import dlq_files
from rabbitflow.cli.dlq_options import (
    consumer_argument,
    json_option,
    no_such,
    report,
    selection_options,
    yes_option,
)
from rabbitflow.cli.letters import print_table, survey_as_json, table_of, text_of
from rabbitflow.cli.options import (
    EXIT_FAILED,
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
from rabbitflow.deadletters.look import NoDeadLetterQueue
from rabbitflow.deadletters.ndjson import described
from rabbitflow.deadletters.survey import Survey, find, survey
from rabbitflow.errors import BrokerError
from rabbitflow.project import consumer_names
from rabbitflow.settings import Settings


@click.group()
def dlq() -> None:
    """Look at the dead letters of consumers, replay, mend, export and purge them.

    Looking leaves every dead letter in place and in order.
    """


for command in (dlq_files.edit, dlq_files.export, dlq_files.import_):
    dlq.add_command(command)


@dlq.command("list")
@click.argument("consumers", nargs=-1, metavar="[CONSUMER]...")
@json_option
@broker_options
@errors_in_one_line
def list_(
    consumers: tuple[str, ...], as_json: bool, url: str | None, namespace: str | None
) -> None:
    """Count the dead letters of each CONSUMER, grouped by what went wrong.

    Without CONSUMER: of all in the modules that [tool.rabbitflow] of pyproject.toml names.
    """
    settings = settings_from(url, namespace)
    surveys: list[Survey] = []
    missing: list[str] = []
    for consumer in run(consumer_names(consumers)):
        try:
            surveys.append(_surveyed(consumer, settings, Selection(), quiet=as_json))
        except NoDeadLetterQueue:
            if consumers:
                raise
            missing.append(consumer)
    if as_json:
        click.echo(json.dumps([survey_as_json(found) for found in surveys], indent=2))
    else:
        print_table(table_of(surveys, missing))


@dlq.command()
@consumer_argument
@selection_options
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, help="The oldest.")
@json_option
@broker_options
@errors_in_one_line
def show(
    consumer: str,
    selection: Selection,
    limit: int,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Show dead letters of CONSUMER: cause, traceback and body."""
    settings = settings_from(url, namespace)
    letters = run(find(consumer, settings, selection, limit))
    if not letters and selection.ids:
        fail(no_such(consumer), EXIT_USAGE)
    if as_json:
        click.echo(json.dumps([described(letter) for letter in letters], indent=2))
        return
    click.echo("\n\n".join(map(text_of, letters)) or f"no dead letter of {consumer} matches")


@dlq.command()
@consumer_argument
@selection_options
@click.option("--dry-run", is_flag=True, help="Only say what would be replayed.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="So many a second.")
@yes_option
@json_option
@broker_options
@errors_in_one_line
def replay(
    consumer: str,
    selection: Selection,
    dry_run: bool,
    rate: float | None,
    yes: bool,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Put dead letters of CONSUMER back into its queue, and into no other.

    Those that are there when it begins; killed in the middle it loses none.
    """
    settings = settings_from(url, namespace)
    found = _agreed(consumer, settings, selection, "replay", dry_run, yes, as_json)
    if found is None:
        return
    done = _moved(
        "replayed",
        found,
        as_json,
        lambda note: moves.replay(
            consumer, settings, selection, at_most=found.total, rate=rate, on_moved=note
        ),
    )
    report(
        as_json,
        f"{done} dead letters of {consumer} are in its queue again",
        consumer=consumer,
        replayed=done,
    )


@dlq.command()
@consumer_argument
@selection_options
@yes_option
@json_option
@broker_options
@errors_in_one_line
def purge(
    consumer: str,
    selection: Selection,
    yes: bool,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Delete dead letters of CONSUMER for good."""
    settings = settings_from(url, namespace)
    found = _agreed(consumer, settings, selection, "delete for good", False, yes, as_json)
    if found is None:
        return
    done = _moved(
        "purged",
        found,
        as_json,
        lambda note: moves.purge(consumer, settings, selection, at_most=found.total, on_moved=note),
    )
    report(
        as_json, f"{done} dead letters of {consumer} are deleted", consumer=consumer, purged=done
    )


def _surveyed(consumer: str, settings: Settings, selection: Selection, *, quiet: bool) -> Survey:
    with counting(consumer, None, quiet=quiet) as advance:
        return run(survey(consumer, settings, selection, lambda seen, total: advance()))


def _agreed(
    consumer: str,
    settings: Settings,
    selection: Selection,
    what: str,
    is_dry_run: bool,
    yes: bool,
    as_json: bool,
) -> Survey | None:
    """Say what would be moved, and ask; return it, or None where there is nothing to be done."""
    found = _surveyed(consumer, settings, selection, quiet=as_json)
    if not found.matching and selection.ids:
        fail(no_such(consumer), EXIT_USAGE)
    if is_dry_run and as_json:
        click.echo(json.dumps(survey_as_json(found), indent=2))
    elif found.matching and not as_json:
        print_table(table_of([found]), to_stderr=not is_dry_run)
    if is_dry_run:
        return None
    if not found.matching:
        report(as_json, f"no dead letter of {consumer} matches", consumer=consumer, matching=0)
        return None
    if not yes:
        question = f"{what} {found.matching} of {found.total} dead letters of {consumer}?"
        click.confirm(question, abort=True, err=True)
    return found


def _moved(
    what: str,
    found: Survey,
    as_json: bool,
    work: Callable[[Callable[[Letter], None]], Any],
) -> int:
    done = 0
    try:
        with counting(what, found.matching, quiet=as_json) as advance:

            def note(letter: Letter) -> None:
                nonlocal done
                done += 1
                advance()

            return int(run(work(note)))
    except BrokerError as error:
        fail(f"{error}; {done} were {what} before that, the rest is where it was", EXIT_FAILED)
