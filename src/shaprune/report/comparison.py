"""Networks side by side: the same numbers for terminals, reports and machines. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shaprune.measure import Measurement

Row = tuple[str, ...]


def to_json(measurement: Measurement) -> dict[str, Any]:
    """A measurement as a JSON-ready dictionary; the spread is the 10th and 90th percentile."""
    return {
        "accuracy": measurement.accuracy,
        "parameters": measurement.parameters,
        "macs": measurement.macs,
        "latency_ms": measurement.latency.median_ms,
        "latency_spread_ms": [measurement.latency.low_ms, measurement.latency.high_ms],
        "bytes": measurement.bytes,
    }


def compared(measurements: Mapping[str, Measurement], batch_size: int) -> list[Row]:
    """A header, then one row per quantity, one column per network; the last column is the change, first to last.

    Args:
        measurements: name -> measurement, the dense network first.
        batch_size: images per forward pass of the latency measurement.
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
    times = [f"{n.latency.median_ms:.2f} ms ({n.latency.low_ms:.2f} to {n.latency.high_ms:.2f})" for n in networks]
    images = f"{batch_size} image{'s' if batch_size > 1 else ''}"
    add(f"latency, {images}", times, percent(first.latency.median_ms, last.latency.median_ms))
    add("bytes on disk", [f"{n.bytes:,}" for n in networks], percent(first.bytes, last.bytes))
    return rows


def points(before: float, after: float) -> str:
    """A change of accuracy in percentage points."""
    return f"{100 * (after - before):+.2f} points"


def percent(before: float, after: float) -> str:
    """A relative change."""
    return f"{100 * (after / before - 1):+.1f} %" if before else "-"
