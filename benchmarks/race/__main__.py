"""The race: rabbitflow and its peers, interleaved, medians, in one run.

    python -m benchmarks.race [--rounds 3] [--scale 1] [--only consume …] [--results FILE]

Scenarios: publish, consume, fan-out, latency, start-up, payloads; backlog and crowd take minutes of
their own and run when they are named. The figures are kept in a JSON file, which later runs add to,
and the page with its plots is written from it: docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.race import crowd, scenarios
from benchmarks.race.contestants import (
    AIO_PIKA,
    AIORMQ,
    C_CLIENT,
    CELERY,
    DRAMATIQ,
    EVERYBODY,
    FASTSTREAM,
    IN_THREADS,
    OURS,
    PIKA,
    PUBLIC_PATH,
    TASKIQ,
    Contestant,
    c_client,
)
from benchmarks.race.page import write_page

CONSUMED = {
    OURS: 60_000, IN_THREADS: 12_000, PUBLIC_PATH: 12_000, AIO_PIKA: 12_000, AIORMQ: 16_000,
    PIKA: 20_000, FASTSTREAM: 8_000, CELERY: 5_000, DRAMATIQ: 6_000, TASKIQ: 5_000,
    C_CLIENT: 100_000,
}  # fmt: skip
PIPELINED = {OURS: 30_000, PUBLIC_PATH: 6_000, AIO_PIKA: 8_000, AIORMQ: 8_000, FASTSTREAM: 6_000,
             TASKIQ: 5_000, C_CLIENT: 60_000}  # fmt: skip
PAYLOADS = {300: 1.0, 10_000: 0.25, 200_000: 0.02}
REGULAR = ("publish", "consume", "fan-out", "latency", "start-up", "payloads")
SPECIAL = ("backlog", "crowd")

console = Console(width=120)
Result = dict[str, Any]
Trial = tuple[Contestant, str, Callable[[], scenarios.Figures]]


def publish(scale: float) -> Iterator[Trial]:
    for one in EVERYBODY:
        if "awaited" in one.modes and one is not IN_THREADS:
            count = int(1_500 * scale)
            yield (
                one,
                "awaited",
                partial(scenarios.publish, one, "awaited", count),
            )
    for one, most in PIPELINED.items():
        count = int(most * scale)
        yield (
            one,
            "pipelined",
            partial(scenarios.publish, one, "pipelined", count),
        )


def consume(scale: float) -> Iterator[Trial]:
    for one in EVERYBODY:
        count = int(CONSUMED[one] * scale)
        yield one, "1 process", partial(scenarios.consume, one, count)
    for one in (OURS, AIO_PIKA, PIKA, FASTSTREAM, CELERY, DRAMATIQ, TASKIQ):
        count = int(CONSUMED[one] * scale)
        yield (
            one,
            "2 processes",
            partial(scenarios.consume, one, count, processes=2),
        )


def fan_out(scale: float) -> Iterator[Trial]:
    for one in (OURS, FASTSTREAM):
        count = int(CONSUMED[one] * scale / 3)
        yield one, "4 consumers", partial(scenarios.fan_out, one, count)


def latency(scale: float) -> Iterator[Trial]:
    def at_capacity(one: Contestant) -> scenarios.Figures:
        most = scenarios.capacity(one, int(PIPELINED[one] * scale))["rate"]
        return {**scenarios.latency(one, 0.7 * most, 4 * scale), "capacity": most}

    for one in (OURS, PUBLIC_PATH, AIO_PIKA, PIKA, FASTSTREAM, CELERY, DRAMATIQ, TASKIQ):
        yield one, "50/s", partial(scenarios.latency, one, 50, 8 * scale)
    for one in (OURS, AIO_PIKA, FASTSTREAM):
        yield one, "70 % of capacity", partial(at_capacity, one)


def start_up(scale: float) -> Iterator[Trial]:
    for one in (OURS, AIO_PIKA, FASTSTREAM, CELERY, DRAMATIQ, TASKIQ):
        count = int(CONSUMED[one] * scale)
        yield one, "", partial(scenarios.start_up, one, 6 * scale)
        yield one, "loaded", partial(scenarios.memory, one, count)


def payloads(scale: float) -> Iterator[Trial]:
    for size, share in PAYLOADS.items():
        for one in (OURS, AIO_PIKA, FASTSTREAM):
            count = max(100, int(CONSUMED[one] * scale * share * (0.5 if one is OURS else 1)))
            yield (
                one,
                f"consume {size}",
                partial(scenarios.consume, one, count, size_bytes=size),
            )
            count = max(100, int(PIPELINED[one] * scale * share))
            yield (
                one,
                f"publish {size}",
                partial(scenarios.publish, one, "pipelined", count, size_bytes=size),
            )


TRIALS: dict[str, Callable[[float], Iterator[Trial]]] = {
    "publish": publish,
    "consume": consume,
    "fan-out": fan_out,
    "latency": latency,
    "start-up": start_up,
    "payloads": payloads,
}


def run(names: tuple[str, ...], rounds: int, scale: float, stop_at: float) -> Iterator[Result]:
    """Run the scenarios, round by round, so that a slow minute of the machine hits everybody."""
    for number in range(1, rounds + 1):
        for name in names:
            for one, variant, measure in TRIALS[name](scale):
                if one is C_CLIENT and c_client() is None:
                    continue
                if time.monotonic() > stop_at:
                    return
                try:
                    figures = measure()
                except (TimeoutError, OSError, ValueError, subprocess.SubprocessError) as error:
                    console.print(f"[red]{name} {variant} {one.name}: {error}")
                    continue
                shown = ", ".join(f"{key} {value:,.1f}" for key, value in figures.items())
                console.print(f"{number} {name} {variant}: {one.name}: {shown}")
                yield {
                    "scenario": name,
                    "variant": variant,
                    "contestant": one.name,
                    "round": number,
                    **figures,
                }


def conditions() -> dict[str, Any]:
    """Return what the figures depend on."""
    shown = {one.name: one.shown_version for one in EVERYBODY if one.environment == ()}
    return {
        "versions": shown,
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "broker": scenarios.ground.broker_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


@click.command()
@click.option("--only", multiple=True, type=click.Choice(REGULAR + SPECIAL))
@click.option("--rounds", default=3, show_default=True)
@click.option("--scale", default=1.0, show_default=True, help="Of the number of events.")
@click.option("--minutes", default=60.0, show_default=True, help="Begin no trial after so many.")
@click.option("--results", type=click.Path(path_type=Path), default="benchmarks/results.json")
@click.option("--page", type=click.Path(path_type=Path), default="docs/benchmarks.md")
@click.option("--backlog", default=1_000_000, show_default=True, help="Events of the backlog.")
@click.option("--page-only", is_flag=True, help="Measure nothing; write the page once more.")
def main(
    only: tuple[str, ...],
    rounds: int,
    scale: float,
    minutes: float,
    results: Path,
    page: Path,
    backlog: int,
    page_only: bool,
) -> None:
    """Run the race and write the page."""
    kept: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    names = () if page_only else tuple(name for name in only or REGULAR if name in REGULAR)
    if c_client() is None and not page_only:
        console.print("[yellow]without the C client; for it: apt-get install gcc librabbitmq-dev")
    if names:
        old = [one for one in kept.get("results", []) if one["scenario"] not in names]
        kept |= {"results": old, **conditions()}
        stop_at = time.monotonic() + minutes * 60
        for result in run(names, rounds, scale, stop_at):
            # Kept one by one: a race that is broken off has measured what it has measured.
            kept["results"].append(result)
            results.write_text(json.dumps(kept, indent=1) + "\n")
    if "backlog" in only:
        drained = kept["backlog"] = {}
        for one in (OURS, C_CLIENT):
            if one is not C_CLIENT or c_client() is not None:
                drained[one.name] = scenarios.drained(one, backlog)
                results.write_text(json.dumps(kept, indent=1) + "\n")
    if "crowd" in only:
        kept["crowd"] = crowd.measure(scale)
    results.write_text(json.dumps(kept, indent=1) + "\n")
    write_page(kept, page)


if __name__ == "__main__":
    main()
