"""The support table: ``PYTHONPATH=tests:benchmarks python -m architectures.table > docs/support.md``."""

from __future__ import annotations

from collections import defaultdict

from architectures import ZOO
from architectures.entry import OUTPUT, Entry
from architectures.real_models import real_models

INTRODUCTION = """\
# What is supported

Every row is an architecture in miniature, written in the style of the original, from `tests/architectures`. Tests
prune each of them: masks and removal agree over random coalitions on random and on trained weights, parameters and
multiply-adds are as predicted, and the pruned network runs backwards, is saved, loaded and exported to ONNX. The
numbers are those of the miniatures.

*Supported*: all channels, neurons and heads are players, but for the layer that makes the output. *Partly*: what the
last column names stays whole, the rest is pruned. *Refused*: nothing can leave, and `find_players` says why before
any work is done.
"""
HEADER = ("Architecture", "What is special", "Status", "Players", "What stays, besides the output layer, and why")


def support_table() -> str:
    """The page of the documentation, in Markdown, as the registry declares it."""
    rows = [HEADER, tuple("---" for _ in HEADER), *(_row(entry) for entry in ZOO.values())]
    return INTRODUCTION + "\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def support_page() -> str:
    """The whole page: the architectures in miniature, and the real models."""
    return f"{support_table()}\n\n{real_models()}"


def _row(entry: Entry) -> tuple[str, ...]:
    found = ", ".join(f"{n} {unit}s" for unit, n in entry.players.items())
    return entry.family, entry.note, entry.status, found or "none", _staying(entry) or "-"


def _staying(entry: Entry) -> str:
    layers: dict[str, list[str]] = defaultdict(list)
    for pattern, reason in entry.skips.items():
        layers[reason].append(f"`{pattern}`")
    if entry.status == "supported":
        layers.pop(OUTPUT, None)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in layers.items())


if __name__ == "__main__":
    print(support_page())
