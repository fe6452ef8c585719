"""The table of real models: what `benchmarks/bench_zoo.py` found in each, from its committed result."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "zoo.json"
HEADER = (
    "Model",
    "Parameters",
    "Players",
    "Can leave",
    "Left at 70 %",
    "torch-pruning",
    "Works",
    "What stays, and why",
)
TOLERANCE = 1e-4
INTRODUCTION = """\
## Real models

Models of torchvision, timm, transformers (small configurations) and ultralytics with random weights, as
`make zoo` found them. *Can leave*: the share of parameters that goes when all players go that can. *Left at 70 %*: the
share that left with 70 % of every group kept; beside it torch-pruning's at the same ratio. *Works*: worths of
coalitions are those of the smaller networks, which run, give gradients and come back from a file in another process,
and are exported to ONNX.
"""


def real_models() -> str:
    """The second part of the page, in Markdown."""
    document = json.loads(RESULT.read_text())
    models = document["results"]["models"]
    fine = sum(not _failing(found) for found in models.values())
    told = f"{len(models)} models were asked (commits {', '.join(sorted({f['commit'] for f in models.values()}))}); "
    told += f"{fine} work in everything asked.\n"
    rows = [HEADER, tuple("---" for _ in HEADER), *(_row(found) for found in models.values())]
    return f"{INTRODUCTION}\n{told}\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    name, params = f"{found['name']}", found.get("parameters")
    size = "-" if params is None else f"{params / 1e6:.1f} M" if params >= 1e5 else f"{params / 1e3:.0f} k"
    shares = (_percent(found.get(key)) for key in ("can_leave", "pruned", "torch_pruning"))
    return name, size, f"{found.get('players', '-')}", *shares, _failing(found) or "yes", _staying(found)


def _percent(share: Any) -> str:
    return f"{100 * share:.0f} %" if isinstance(share, float | int) else "-" if share is None else "fails"


def _failing(found: dict[str, Any]) -> str:
    """The first thing asked that did not go well; empty where all did."""
    if "error" in found:
        return _short(found["error"])
    for key in ("equal", "game", "reloaded"):
        told = found.get(key)
        if isinstance(told, str) or told is None or not told <= TOLERANCE:
            return f"{key}: {_short(told) if isinstance(told, str) else told}"
    for key in ("forward", "backward", "onnx"):
        if found.get(key) is not True:
            return f"{key}: {_short(str(found.get(key)))}"
    return ""


def _staying(found: dict[str, Any]) -> str:
    """The reasons of what stays, the most frequent first, each with its number of layers and one of them."""
    reasons = Counter(found.get("stays", {}).values())
    first = {reason: name for name, reason in reversed(found.get("stays", {}).items())}
    parts = (f"{n} x {_short(reason)} (`{first[reason]}`)" for reason, n in reasons.most_common(3))
    return "; ".join(parts) or "-"


def _short(text: str) -> str:
    """One line without what Markdown's tables are made of."""
    line = " ".join(text.split()).replace("|", "/").replace("<", "(").replace(">", ")")
    return line if len(line) <= 90 else f"{line[:87]}..."
