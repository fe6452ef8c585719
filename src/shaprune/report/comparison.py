"""Networks side by side: the same numbers for terminals, reports and machines. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shaprune.deploy.measure import Measurement

Row = tuple[str, ...]


def to_json(measurement: Measurement) -> dict[str, Any]:
    """A measurement as a JSON-ready dictionary; the spread is the 10th and 90th percentile."""
    return {
        "accuracy": measurement.accuracy,
        "parameters": measurement.parameters,
        "macs": measurement.macs,
        "latency_ms": measurement.latency.median_ms,
        "latency_spread_ms": [measurement.latency.low_ms, measurement.latency.high_ms],
        "latency_on": {
            "device": measurement.latency.device,
            "threads": measurement.latency.threads,
            "examples": measurement.latency.examples,
            "compiled": measurement.latency.compiled,
        },
        "bytes": measurement.bytes,
    }


def compared(measurements: Mapping[str, Measurement], setting: str) -> list[Row]:
    """A header, then one row per quantity, one column per network; the last column is the change, first to last.

    Args:
        measurements: name -> measurement, the dense network first.
        setting: how latency was measured, see `latency_setting`.
    """
    networks = list(measurements.values())
    change = ("change",) if len(networks) > 1 else ()
    rows: list[Row] = [("", *measurements, *change)]

    def add(name: str, cells: list[str], changed: str) -> None:
        rows.append((name, *cells, *([changed] if change else [])))

    first, last = networks[0], networks[-1]
    if first.accuracy is not None and last.accuracy is not None:
        cells = ["-" if n.accuracy is None else f"{n.accuracy:.2%}" for n in networks]
        add("test accuracy", cells, points(first.accuracy, last.accuracy))
    counts: list[tuple[str, Callable[[Measurement], int]]] = [
        ("parameters", lambda n: n.parameters),
        ("multiply-adds", lambda n: n.macs),
    ]
    for name, count in counts:
        add(name, [f"{count(n):,}" for n in networks], percent(count(first), count(last)))
    times = [n.latency for n in networks]
    add(
        f"latency, {setting}",
        [f"{t.median_ms:.2f} ms" for t in times],
        percent(times[0].median_ms, times[-1].median_ms),
    )
    add("its 10 to 90 % range", [f"{t.low_ms:.2f} to {t.high_ms:.2f}" for t in times], "")
    add("bytes on disk", [f"{n.bytes:,}" for n in networks], percent(first.bytes, last.bytes))
    return rows


def latency_setting(images: int, device: str, threads: int) -> str:
    """Words for what a latency was measured on."""
    where = f"{threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else device
    return f"{images} image{'s' if images > 1 else ''}, {where}"


def points(before: float, after: float) -> str:
    """A change of accuracy in percentage points."""
    return f"{100 * (after - before):+.2f} points"


def percent(before: float, after: float) -> str:
    """A relative change."""
    return f"{100 * (after / before - 1):+.1f} %" if before else "-"
