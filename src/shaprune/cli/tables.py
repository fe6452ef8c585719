"""Tables on a terminal, as rich renderables. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from shaprune.report.comparison import compared
from shaprune.report.skipped import by_reason

if TYPE_CHECKING:
    from shaprune.deploy.measure import Measurement
    from shaprune.planning.plan import Plan
    from shaprune.planning.scores import Scores
    from shaprune.players.players import Players
    from shaprune.storage.tables import Table as Tabulated


def comparison_table(measurements: Mapping[str, Measurement], setting: str) -> Table:
    """Networks side by side."""
    header, *rows = compared(measurements, setting)
    return text_table(header, rows)


def rich_table(table: Tabulated) -> Table:
    """A table of a result on the terminal; its notes are printed beside it."""
    return text_table(tuple(table.columns), [tuple(cells) for cells in table.cells()])


def score_rows(scores: Scores) -> list[dict[str, Any]]:
    """What there is to say about each group's values; ``stderr`` is the mean over its players."""
    rows = []
    for group in scores.players.groups:
        values = scores[group.name]
        least, most = (int(values.ranking()[i]) for i in (0, -1))
        stderr = float(values.stderr.mean())
        rows.append(
            {
                "name": group.name,
                "players": len(group),
                "mean": float(values.value.mean()),
                "most_valuable": {"name": group.names[most], "value": float(values.value[most])},
                "least_valuable": {"name": group.names[least], "value": float(values.value[least])},
                "stderr": stderr if np.isfinite(stderr) else None,
                "n_evaluations": values.n_evaluations,
                "efficiency_gap": values.efficiency_gap,
                "stopped_by": values.stopped_by,
            }
        )
    return rows


def plan_rows(plan: Plan) -> list[dict[str, Any]]:
    """How many players of each group stay."""
    return [
        {"name": group.name, "players": len(group), "kept": int(plan.kept[group.indices].sum())}
        for group in plan.players.groups
    ]


def group_rows(players: Players) -> list[dict[str, Any]]:
    """Each group: its players, what one of them alone costs, and the layers that it is coupled to."""
    return [
        {
            "name": group.name,
            "players": len(group),
            "params_per_player": _span(players.params[group.indices].tolist()),
            "macs_per_player": _span(players.macs[group.indices].tolist()),
            "layers": [
                {"name": m.module, "role": m.role, "channels_per_player": _span(m.widths.tolist())}
                for m in group.members
            ],
        }
        for group in players.groups
    ]


def _span(numbers: list[float]) -> list[float]:
    return [min(numbers), max(numbers)]


def skipped_text(players: Players) -> str:
    """What cannot leave, and why."""
    if not players.skipped:
        return "Every layer can be pruned."
    return "Not prunable:\n" + "\n".join(f"  {', '.join(names)}: {why}" for why, names in by_reason(players).items())


def skipped_rows(players: Players) -> list[dict[str, Any]]:
    """The same for machines."""
    return [{"name": s.name, "channels": s.channels, "reason": s.reason} for s in players.skipped]


def text_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """The first column to the left, numbers to the right; cells are text, never markup."""
    table = Table(header_style="bold")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
