"""Draws the dashboard without Grafana: its own panels and queries, on a worker with failures.

    python -m deploy.grafana.draw [--minutes 3] [docs/dashboard.png]

The example services run under load in a namespace of their own, on the broker of RABBITFLOW_URL,
and a Prometheus beside them. Meanwhile the mail server is full for a while, the process of driver
is killed three times, rating is paused twice, and some cards are declined.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from rabbitflow import Publisher, control
from rabbitflow.settings import Settings, load_settings
from tests.harness.broker import Probe, remove_namespace
from tests.harness.node import free_port
from tests.harness.prometheus import Panel, Prometheus, panels
from tests.harness.shop import EVENT_TYPES, SERVICES, TOO_EXPENSIVE, Shop, order, ride
from tests.harness.workers import Worker

PER_SECOND = 12
STEP_S = 2.0
GREEN, ORANGE, RED = "#2f7d3b", "#d9822b", "#b3261e"
HEADING = "#4a5568"
SHOWN_SERIES = 10
STYLES = ("-", "--", ":", "-.")
COLOURS = {name: f"C{number}" for number, name in enumerate(SERVICES)}

History = Sequence[tuple[Mapping[str, str], list[tuple[float, float]]]]


async def load(shop: Shop, settings: Settings, seconds: float) -> None:
    """Announce orders and rides, and let things go wrong on the way."""
    shop.mailbox.is_full = False
    mishaps: list[tuple[float, Callable[[], Coroutine[Any, Any, object]]]] = [
        (0.25, lambda: _fill_mailbox(shop, is_full=True)),
        (0.40, lambda: _kill_driver(shop)),
        (0.43, lambda: _kill_driver(shop)),
        (0.46, lambda: _kill_driver(shop)),
        (0.50, lambda: _fill_mailbox(shop, is_full=False)),
        (0.55, lambda: control.pause("rating", settings)),
        (0.75, lambda: control.resume("rating", settings)),
        (0.90, lambda: control.pause("rating", settings)),
    ]
    began, number = time.monotonic(), 0
    async with Publisher(settings=settings) as publisher:
        while (elapsed_s := time.monotonic() - began) < seconds:
            while mishaps and elapsed_s > mishaps[0][0] * seconds:
                await mishaps.pop(0)[1]()
            number += 1
            amount = TOO_EXPENSIVE if number % 40 == 0 else 5
            await publisher.publish(order(number, amount) if number % 3 else ride(number))
            await asyncio.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))


async def _fill_mailbox(shop: Shop, *, is_full: bool) -> None:
    shop.mailbox.is_full = is_full


async def _kill_driver(shop: Shop) -> None:
    shop.worker.child("driver").kill()


def draw(prometheus: Prometheus, seconds: float, picture: Path) -> None:
    """Draw what Prometheus has of the last seconds."""
    end = time.time()
    drawn = panels("15s")
    width, height = 24, max(y + h for _, y, _, h in (panel.place for panel in drawn))
    mpl.rcParams.update({"font.size": 7, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(width * 0.68, height * 0.34), dpi=110)
    row = ""
    for panel in drawn:
        x, y, w, h = panel.place
        if panel.row != row:
            row = panel.row
            figure.text(0.01, 1 - (y - 0.3) / height, row, fontsize=11, color=HEADING)
        # Room for the title above, the time below and the legend, in units of the grid.
        legend = 2.4 if panel.kind == "timeseries" else 0
        axes = figure.add_axes(
            (
                (x + 0.8) / width,
                1 - (y + h - 1.1) / height,
                (w - 1.2 - legend) / width,
                (h - 2.3) / height,
            )
        )
        axes.set_title(panel.title, loc="left", fontsize=8, fontweight="bold")
        if panel.kind == "timeseries":
            _lines(axes, panel, _history(prometheus, panel, end - seconds, end), end - seconds)
            axes.set_xlim(0, seconds)
        else:
            _tiles(axes, panel, prometheus)
    figure.savefig(picture)


def _history(prometheus: Prometheus, panel: Panel, start: float, end: float) -> History:
    return [
        series
        for query, _ in panel.queries
        for series in prometheus.history(query, start, end, STEP_S)
    ]


def _lines(axes: Axes, panel: Panel, found: History, start: float) -> None:
    """Lines over the time, the highest named first, as Grafana's legend has them."""
    ordered = sorted(found, key=lambda series: -_highest(series[1]))
    legend = panel.queries[0][1]
    drawn: Counter[str] = Counter()
    for position, (labels, points) in enumerate(ordered):
        at = [moment - start for moment, _ in points]
        name = _named(legend, labels) if position < SHOWN_SERIES else None
        consumer = labels.get("consumer", "")
        style = STYLES[drawn[consumer] % len(STYLES)]
        values = [value for _, value in points]
        axes.plot(at, values, style, linewidth=1.2, label=name, color=COLOURS.get(consumer))
        drawn[consumer] += 1
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_formatter(EngFormatter("s", sep=""))
    units = {"s": "s", "ops": "/s"}
    axes.yaxis.set_major_formatter(EngFormatter(units.get(panel.unit, ""), sep=""))
    if ordered:
        axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.05), frameon=False)


def _highest(points: Sequence[tuple[float, float]]) -> float:
    return max((value for _, value in points if not math.isnan(value)), default=0.0)


def _tiles(axes: Axes, panel: Panel, prometheus: Prometheus) -> None:
    """One tile a series: its name and its last value, red or green where that says something."""
    axes.axis("off")
    query, legend = panel.queries[0]
    samples = prometheus.query(query)
    if not samples:
        axes.text(0, 0.5, "nobody", va="center", fontsize=12)
        return
    for position, sample in enumerate(samples):
        text, colour = _tile(panel.title, sample.value)
        left, each = position / len(samples), 1 / len(samples)
        tile = plt.Rectangle((left + each * 0.03, 0), each * 0.94, 1, color=colour)
        axes.add_patch(tile)
        name = _named(legend, sample.labels)
        middle = left + each / 2
        axes.text(middle, 0.62, text, ha="center", va="center", fontsize=11, color="white")
        axes.text(middle, 0.25, name, ha="center", va="center", fontsize=6, color="white")


def _tile(title: str, value: float) -> tuple[str, str]:
    if title == "Consumers":
        return ("up", GREEN) if value else ("down", RED)
    if title == "Workers":
        return "", GREEN
    if title == "Paused":
        return "paused", ORANGE
    return f"{value:.0f}", RED if value and title != "Waiting" else GREEN


def _named(legend: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend


@click.command()
@click.argument("picture", type=click.Path(path_type=Path), default=Path("docs/dashboard.png"))
@click.option("--minutes", default=3.0)
def main(picture: Path, minutes: float) -> None:
    """Run the services under load for some minutes and draw what the dashboard shows."""
    seconds, port = minutes * 60, free_port()
    with tempfile.TemporaryDirectory(prefix="rabbitflow-dashboard-") as name:
        directory = Path(name)
        settings = load_settings(
            namespace=f"dash-{secrets.token_hex(3)}", state_dir=directory, event_log=False
        )
        probe = Probe(settings)
        probe.declare_exchange("PAYMENT_COMPLETED")
        probe.tap("PAYMENT_COMPLETED")
        probe.close()  # it answers no heartbeats
        try:
            with (
                Worker(settings, directory) as worker,
                Prometheus(directory / "prometheus", [f"127.0.0.1:{port}"]) as prometheus,
            ):
                shop = Shop(worker, probe, prometheus, port)
                with shop.running():
                    asyncio.run(worker.ready(*SERVICES))
                    asyncio.run(load(shop, settings, seconds))
                    draw(prometheus, seconds, picture)
        finally:
            remove_namespace(settings, SERVICES, EVENT_TYPES)
    click.echo(picture)


if __name__ == "__main__":
    main()
