"""Writes docs/benchmarks.md, its tables and its plots, from the figures of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "rabbitflow"  # the same figures draw the same file
import matplotlib.pyplot as plt

Kept = dict[str, Any]
Medians = dict[tuple[str, str, str], dict[str, float]]
OURS, RAW, FASTSTREAM, C_CLIENT = "rabbitflow", "aio-pika", "FastStream", "C client"
_NOT_A_FIGURE = {"scenario", "variant", "contestant", "round"}


def write_page(kept: Kept, page: Path) -> None:
    """Write the page, and the plots beside it in a directory of the page's name."""
    found = medians(kept["results"])
    plots = page.with_suffix("")
    plots.mkdir(exist_ok=True)
    parts = [_head(kept), *_sections(found, plots), *_special(kept, plots)]
    page.write_text("\n\n".join(part for part in parts if part) + "\n")


def medians(results: list[dict[str, Any]]) -> Medians:
    """Return the median of every figure over the rounds, by scenario, variant and contestant."""
    gathered: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for result in results:
        place = (result["scenario"], result["variant"], result["contestant"])
        for name, value in result.items():
            if name not in _NOT_A_FIGURE:
                gathered[place][name].append(value)
    return {
        place: {name: median(values) for name, values in figures.items()}
        for place, figures in gathered.items()
    }


def _head(kept: Kept) -> str:
    versions = ", ".join(kept.get("versions", {}).values())
    return f"""# Benchmarks

Written by `make bench`; run it again on your machine. rabbitflow and its peers take turns, every
figure is the median of {_rounds(kept["results"])} rounds, in one run on {kept["date"]}. A
backlog and a crowd of consumers, below, have runs of their own.

- {kept["broker"]} on the same machine, {kept["machine"]}, Python {kept["python"]}.
- {versions}.
- The event is `examples/order.json`, 300 bytes where no size is named: durable queue, persistent
  message, prefetch 100, payload validated by pydantic, acknowledged after the handler. The C
  client validates nothing and shows what the broker gives.
- rabbitflow, aio-pika, aiormq, pika, FastStream and the C client share quorum queues behind a
  fanout exchange; Celery, Dramatiq and Taskiq use the classic queues that they declare. The event
  log is off, because no peer has one.
- Celery and Dramatiq do not wait for the broker's confirm, so their publish figures are of another
  promise."""


def _rounds(results: list[dict[str, Any]]) -> str:
    """Say how often each was measured; a run that was short of time has fewer of the last ones."""
    counts = Counter(
        (result["scenario"], result["variant"], result["contestant"]) for result in results
    ).values()
    fewest, most = min(counts), max(counts)
    return str(most) if fewest == most else f"{fewest} to {most}"


def _sections(found: Medians, plots: Path) -> list[str]:
    parts = [_must_show(found)]
    for scenario, title, unit, key in (
        ("consume", "Consume", "events/s", "rate"),
        ("publish", "Publish", "events/s", "rate"),
        ("fan-out", "Fan-out to four consumers", "deliveries/s", "rate"),
    ):
        rows = _rows(found, scenario, key)
        if rows:
            plot = _bars(rows, plots / f"{scenario}.svg", f"{title}, {unit}")
            table = _table(
                ["", *rows],
                {name: [_number(rows[variant].get(name)) for variant in rows]
                 for name in _names(rows)},
            )  # fmt: skip
            cpu = _rows(found, scenario, "cpu_us")
            costs = {
                name: [_number(cpu[variant].get(name)) for variant in cpu] for name in _names(cpu)
            }
            parts.append(
                f"## {title}\n\n![{title}]({plots.name}/{plot.name})\n\n{unit}:\n\n{table}\n\n"
                "CPU of the Python processes, µs an event:\n\n" + _table(["", *cpu], costs)
            )
    parts += [_latency(found), _start_up(found), _payloads(found), _faster(found)]
    return parts


def _rows(found: Medians, scenario: str, key: str) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for (name, variant, contestant), figures in found.items():
        if name == scenario and key in figures:
            rows.setdefault(variant, {})[contestant] = figures[key]
    return rows


def _names(rows: dict[str, dict[str, float]]) -> list[str]:
    first = next(iter(rows.values()), {})
    everybody = {name for row in rows.values() for name in row}
    return sorted(everybody, key=lambda name: -first.get(name, 0.0))


def _number(value: float | None) -> str:
    if value is None or isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _table(columns: list[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"| --- {'| ---: ' * (len(columns) - 1)}|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def _must_show(found: Medians) -> str:
    def rate(scenario: str, variant: str, name: str, key: str = "rate") -> float:
        return found.get((scenario, variant, name), {}).get(key, float("nan"))

    def row(what: str, ours: float, theirs: float, goal: str) -> str:
        ratio = ours / theirs
        return f"| {what} | {'not measured' if isnan(ratio) else f'{ratio:.2f}'} | {goal} |"

    one, piped = "1 process", "pipelined"
    lines = ["## In short", "", "| rabbitflow against | ratio | wanted |", "| --- | ---: | ---: |"]
    for name, goal in ((RAW, "≥ 2.5"), (FASTSTREAM, "≥ 4"), (C_CLIENT, "≥ 0.35")):
        ours, theirs = rate("consume", one, OURS), rate("consume", one, name)
        lines.append(row(f"{name}, consume, one process", ours, theirs, goal))
    for name, goal in ((RAW, "≥ 1.5"), (FASTSTREAM, "≥ 2")):
        ours, theirs = rate("publish", piped, OURS), rate("publish", piped, name)
        lines.append(row(f"{name}, publish, pipelined", ours, theirs, goal))
    ours, theirs = rate("publish", "awaited", OURS), rate("publish", "awaited", RAW)
    lines.append(row("aio-pika, publish, awaited one by one", ours, theirs, "≥ 1"))
    ours, theirs = rate("fan-out", "4 consumers", OURS), rate("fan-out", "4 consumers", FASTSTREAM)
    lines.append(row("FastStream, fan-out to four consumers", ours, theirs, "≥ 3"))
    late = rate("latency", "50/s", OURS, "p50_ms") - rate("latency", "50/s", RAW, "p50_ms")
    start = found.get(("start-up", "", OURS), {})
    lines += [
        "",
        f"At 50 events/s the median latency is {late:+.2f} ms against aio-pika's. A worker with one"
        f" consumer handles its first event {start.get('first_s', float('nan')):.2f} s after the"
        f" command; idle, its two processes hold"
        f" {start.get('idle_distinct_mib', float('nan')):.0f} MiB together"
        f" ({start.get('idle_mib', float('nan')):.0f} where what they share is counted twice)"
        f" and use {start.get('idle_cpu_percent', float('nan')):.1f} % of one core.",
    ]
    return "\n".join(lines)


def _latency(found: Medians) -> str:
    lines = []
    for (scenario, variant, name), figures in found.items():
        if scenario == "latency":
            lines.append(
                f"| {variant} | {name} | {_number(figures['rate'])} | {figures['p50_ms']:.2f} |"
                f" {figures['p99_ms']:.2f} |"
            )
    if not lines:
        return ""
    return (
        "## Latency\n\nFrom before the publish to within the handler, in milliseconds; the second"
        " part at 70 % of what each one's publisher and consumer reach together.\n\n"
        "| pace | framework | events/s | p50 | p99 |\n| --- | --- | ---: | ---: | ---: |\n"
        + "\n".join(lines)
    )


def _start_up(found: Medians) -> str:
    rows = {
        name: [
            f"{figures['first_s']:.2f}",
            f"{figures.get('idle_distinct_mib', float('nan')):.0f}",
            f"{figures['idle_mib']:.0f}",
            f"{found.get(('start-up', 'loaded', name), {}).get('loaded_mib', float('nan')):.0f}",
            f"{figures['idle_cpu_percent']:.1f}",
        ]
        for (scenario, variant, name), figures in found.items()
        if scenario == "start-up" and not variant
    }
    if not rows:
        return ""
    columns = [
        "",
        "first event, s",
        "idle, MiB",
        "idle, MiB added up",
        "loaded, MiB added up",
        "idle, % of a core",
    ]
    return (
        "## Start-up and footprint\n\nFrom the command to the first handled event; resident memory"
        " of all processes, each page counted once, and added up, which counts what they share as"
        " often as there are processes.\n\n" + _table(columns, rows)
    )


def _payloads(found: Medians) -> str:
    rates = _rows(found, "payloads", "rate")
    if not rates:
        return ""
    rows = {
        name: [_number(rates[variant].get(name)) for variant in rates] for name in _names(rates)
    }
    columns = ["events/s", *(f"{variant} B" for variant in rates)]
    return "## Payload sizes\n\n" + _table(columns, rows)


def _faster(found: Medians) -> str:
    """Say where a peer is faster."""
    said = []
    for (scenario, variant, name), figures in found.items():
        ours = found.get((scenario, variant, OURS), {})
        if name.startswith(OURS):
            continue
        for key, word, is_more_better in (
            ("rate", "events/s", True), ("p50_ms", "ms", False), ("p99_ms", "ms", False),
            ("first_s", "s to the first event", False), ("idle_mib", "MiB idle", False),
            ("loaded_mib", "MiB loaded", False),
        ):  # fmt: skip
            if key not in figures or key not in ours or (scenario == "latency" and key == "rate"):
                continue
            mine, theirs = ours[key], figures[key]
            if (theirs > mine * 1.02) if is_more_better else (theirs < mine / 1.02):
                what = " ".join(filter(None, (scenario, variant)))
                label = f"{key.removesuffix('_ms')} " if key in ("p50_ms", "p99_ms") else ""
                said.append(f"- {what}: {name}, {label}{theirs:,.2f} against {mine:,.2f} {word}")
    if not said:
        return ""
    return "## Where a peer is better\n\n" + "\n".join(sorted(said))


def _special(kept: Kept, plots: Path) -> list[str]:
    parts = []
    if "backlog" in kept:
        parts.append(_backlog(kept["backlog"], plots))
    if "crowd" in kept:
        rows = {
            f"{one['consumers']:,} consumers, {one['types']} event types"
            + (", everyone hears every type" if one["all"] else "")
            + f", {one['deliveries'] // one['consumers']:,} deliveries each": [
                f"{one['ready_s']:.1f}",
                _number(one["rate"]),
                _number(one["cpu_us"]),
                f"{one['idle_percent']:.1f}",
            ]
            for one in kept["crowd"]
        }
        columns = [
            "one process",
            "ready after, s",
            "deliveries/s",
            "CPU, µs a delivery",
            "idle, % of a core",
        ]
        parts.append(
            "## Many consumers, many event types\n\nAll of them in one process"
            " (`--single-process`), so that what grows is the number and not the memory. Where each"
            " gets few deliveries, few of them share a read, an ack or a turn of the event loop."
            " Idle, each looks every 10 s whether the broker still knows it.\n\n"
            + _table(columns, rows)
        )
    return parts


def _backlog(drained: dict[str, list[tuple[float, int]]], plots: Path) -> str:
    figure, axes = plt.subplots(figsize=(8, 3))
    rows = {}
    for name, samples in drained.items():
        times, counts = zip(*samples, strict=True)
        axes.plot(times, [counts[-1] - done for done in counts], label=name)
        rows[name] = [_number(rate) for rate in (counts[-1] / times[-1], *_by_tenths(samples))]
    total = max(samples[-1][1] for samples in drained.values())
    axes.set_xlabel("seconds")
    axes.set_ylabel("events waiting")
    axes.set_title(f"A backlog of {total:,} events, one process")
    axes.legend()
    _save(figure, plots / "backlog.svg")
    columns = ["events/s", "all", *(f"{tenth}0 %" for tenth in range(1, 11))]
    return (
        f"## A backlog of {total:,} events\n\n![backlog]({plots.name}/backlog.svg)\n\nDrained by"
        " one process, from the first tenth to the last. The C client validates nothing and shows"
        " what the broker itself gives while its queue is that long.\n\n" + _table(columns, rows)
    )


def _by_tenths(samples: list[tuple[float, int]]) -> list[float]:
    """Return the rate in each tenth of what was drained."""
    total = samples[-1][1]
    samples = [(0.0, 0), *samples]
    rates = []
    for tenth in range(10):
        inside = [one for one in samples if tenth <= one[1] / total * 10 <= tenth + 1]
        (began, first), (ended, last) = inside[0], inside[-1]
        rates.append((last - first) / (ended - began) if ended > began else float("nan"))
    return rates


def _bars(rows: dict[str, dict[str, float]], path: Path, title: str) -> Path:
    names = _names(rows)
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(names) * max(1, len(rows) * 0.7) + 1))
    height = 0.8 / len(rows)
    for place, (variant, row) in enumerate(rows.items()):
        at = [number + place * height for number in range(len(names))]
        axes.barh(at, [row.get(name, 0) for name in names], height, label=variant)
    axes.set_yticks([number + 0.4 - height / 2 for number in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_title(title)
    if len(rows) > 1:
        axes.legend()
    _save(figure, path)
    return path


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    # No date in the file: the same figures make the same picture.
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
