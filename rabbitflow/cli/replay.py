"""``rabbitflow replay``: past events once more, to one consumer alone."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from rabbitflow.cli.log_options import event_types_of, from_option, until_option
from rabbitflow.cli.options import broker_options, errors_in_one_line, run, settings_from
from rabbitflow.errors import ConfigurationError, EventError
from rabbitflow.log.replay import Replay, ReplayState, Tally, run_replay
from rabbitflow.log.span import FIRST, NEXT, Span, parse_moment, parse_start
from rabbitflow.rate import Rate
from rabbitflow.settings import Settings
from rabbitflow.topology import check_consumer_name


@click.command()
@click.option("--consumer", required=True, metavar="NAME", help="Who gets the events.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="May be given many times.")
@from_option(FIRST)
@until_option
@click.option("--dry-run", is_flag=True, help="Count what would be replayed, and replay nothing.")
@click.option("--rate", metavar="N", help="At most so many a second, or 600/m.")
@click.option("--resume", is_flag=True, help="Go on with the replay that was interrupted.")
@click.option("--restart", is_flag=True, help="Forget the replay that was interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@broker_options
@errors_in_one_line
def replay(
    consumer: str,
    types: tuple[str, ...],
    start: str,
    until: str | None,
    dry_run: bool,
    rate: str | None,
    resume: bool,
    restart: bool,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Put past events from the event log into one consumer's queue, and into nobody else's.

    Their handlers see ctx.is_replay. Without --type: all that this consumer of the project reacts
    to. It ends with what was in the log when it began. The progress is kept in a file of this
    machine; after a kill, --resume goes on, and repeats half a second's copies at most.
    """
    settings = settings_from(url, namespace)
    state = ReplayState(check_consumer_name(consumer), settings)
    kept = None if restart or dry_run else state.load()
    if resume:
        if kept is None:
            raise ConfigurationError(f"no replay to {consumer} was interrupted on this machine")
        wanted, tally = kept
    elif kept is not None:
        raise ConfigurationError(
            f"a replay to {consumer} was interrupted after {kept[1].copied} events; go on with it"
            " by --resume, or begin anew by --restart"
        )
    else:
        wanted, tally = _wanted(consumer, types, start, until), Tally()
    done = run(_run(wanted, settings, dry_run, _rate(rate), tally, as_json))
    if as_json:
        said = {"copied": done.copied, "left_out": done.left_out, "unreadable": done.unreadable}
        click.echo(json.dumps({"consumer": consumer, "dry_run": dry_run, **said}))
        return
    verb = "would be replayed" if dry_run else "replayed"
    click.echo(
        f"{done.copied} events {verb} to {consumer}, {done.left_out} left out,"
        f" {done.unreadable} are no events"
    )


async def _run(
    wanted: Replay,
    settings: Settings,
    dry_run: bool,
    rate: Rate | None,
    tally: Tally,
    as_json: bool,
) -> Tally:
    progress = Progress(
        TextColumn("{task.description} {task.completed:,.0f} events"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=as_json or not sys.stderr.isatty(),
    )
    with progress:
        task = progress.add_task(f"{wanted.consumer}:", total=None)

        def show(so_far: Tally) -> None:
            progress.update(task, completed=so_far.copied)

        return await run_replay(
            wanted, settings, dry_run=dry_run, rate=rate, tally=tally, on_progress=show
        )


def _wanted(consumer: str, types: tuple[str, ...], start: str, until: str | None) -> Replay:
    event_types = event_types_of(types, consumer)
    begin: Any = parse_start(start)
    if begin == NEXT:
        raise EventError("a replay is of the past: --from next holds nothing of it")
    if isinstance(begin, int) and len(event_types) > 1:
        raise EventError("an offset is a place in one log: give one --type, or a moment for --from")
    return Replay(
        consumer, event_types, Span(begin, None if until is None else parse_moment(until))
    )


def _rate(text: str | None) -> Rate | None:
    if text is None:
        return None
    try:
        return Rate.parse(text if "/" in text else f"{text}/s")
    except ValueError as error:
        raise EventError(f"--rate: {error}") from error
