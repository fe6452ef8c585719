"""The network as a diagram: a bar for every group, from the first layer that it touches to the last.

Columns are the layers in order of execution, so that what is coupled over many layers (a residual stream) is a long bar
above the short ones inside its blocks. A network of too many groups is folded: groups whose names differ only in
numbers share a bar. The script fills the bars by what stays; a line below a bar says what its group costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from shaprune.players.layer_costs import PER_CHANNEL
from shaprune.players.players import Group, Players

MAX_BARS = 80  # bars; above, groups are folded, and the remainder is stated
_ROW, _BAR, _TOP = 46, 34, 6  # pixels
_WIDTH, _LEAST, _LARGEST = 960, 40, 150  # of the diagram; of a column
_LETTER = 6.2  # width of a character


@dataclass(frozen=True)
class Bar:
    """One bar: which groups it stands for, and the columns it spans."""

    label: str
    groups: tuple[int, ...]
    first: int
    last: int


def bars(players: Players) -> list[Bar]:
    """One bar per group, or per family of groups where there are many."""
    columns = {name: i for i, name in enumerate(_columns(players))}
    found = [_bar(i, group, columns) for i, group in enumerate(players.groups)]
    if len(found) <= MAX_BARS:
        return found
    families: dict[tuple[str, int], list[Bar]] = {}
    for bar, group in zip(found, players.groups, strict=True):
        families.setdefault((re.sub(r"\d+", "*", group.name), len(group)), []).append(bar)
    folded = []
    for place, ((pattern, _), own) in enumerate(families.items()):
        label = own[0].label if len(own) == 1 else f"{pattern} \u00d7 {len(own)}"
        folded.append(Bar(label, tuple(i for bar in own for i in bar.groups), place, place))
    return folded


def network_diagram(players: Players) -> str:
    """The diagram as an ``<svg>``; bars are buttons that carry their groups."""
    every = bars(players)
    shown, hidden = every[:MAX_BARS], every[MAX_BARS:]
    n_columns = 1 + max(bar.last for bar in shown)
    each = min(max(_WIDTH / n_columns, _LEAST), _LARGEST)
    rows = _rows(shown)
    width, height = n_columns * each + 2, _TOP + (1 + max(rows)) * _ROW
    largest = max(_macs(players, bar) for bar in shown) or 1.0
    body = "".join(
        _drawn(players, bar, row, each, i, _macs(players, bar) / largest)
        for i, (bar, row) in enumerate(zip(shown, rows, strict=True))
    )
    more = f'<p class="note">{len(hidden)} more are in the table of groups.</p>' if hidden else ""
    return (
        '<div class="scroll" role="group" aria-label="The network: one bar per group; arrow keys go from bar to bar, '
        f'Enter shows its values"><svg id="diagram" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}">{body}</svg></div>{more}'
    )


def _columns(players: Players) -> list[str]:
    """Layers with a place of their own, in order of execution: norms and the like stand where their layer does."""
    names = [name for name, layer in players.layers.items() if layer.kind not in PER_CHANNEL]
    return names or list(players.layers)


def _bar(index: int, group: Group, columns: dict[str, int]) -> Bar:
    places = [columns[m.module] for m in group.members if m.module in columns] or [0]
    return Bar(group.name, (index,), min(places), max(places))


def _rows(shown: Sequence[Bar]) -> list[int]:
    """A row for every bar, so that no two overlap; the longest on top."""
    taken: list[list[Bar]] = []
    found = [0] * len(shown)
    for i in sorted(range(len(shown)), key=lambda i: shown[i].first - shown[i].last):
        bar = shown[i]
        free = (r for r, own in enumerate(taken) if all(bar.last < o.first or bar.first > o.last for o in own))
        row = next(free, len(taken))
        if row == len(taken):
            taken.append([])
        taken[row].append(bar)
        found[i] = row
    return found


def _macs(players: Players, bar: Bar) -> float:
    """What the groups of a bar cost in multiply-adds, player by player."""
    return float(sum(players.macs[players.groups[i].indices].sum() for i in bar.groups))


def _drawn(players: Players, bar: Bar, row: int, each: float, place: int, cost: float) -> str:
    x, y = 1 + bar.first * each, _TOP + row * _ROW
    width = (bar.last - bar.first + 1) * each - 4
    own = [players.groups[i] for i in bar.groups]
    indices = [i for group in own for i in group.indices.tolist()]
    macs, params = _macs(players, bar), int(players.params[indices].sum())
    letters = max(int((width - 8) / _LETTER), 2)
    label = bar.label if len(bar.label) <= letters else "\u2026" + bar.label[1 - letters :]
    told = "; ".join(_bar_text(bar, own, macs, params, players))
    return (
        f'<g class="bar" role="button" tabindex="{0 if place == 0 else -1}" aria-pressed="false" '
        f'aria-label="{escape(told)}" data-groups="{",".join(map(str, bar.groups))}">'
        f"<title>{escape(told)}</title>"
        f'<rect class="back" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="4"/>'
        f'<rect class="fill" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="4" data-width="{width:.1f}"/>'
        f'<rect class="cost" x="{x:.1f}" y="{y + _BAR + 2}" width="{cost * width:.1f}" height="3"/>'
        f'<text x="{x + 5:.1f}" y="{y + 14}">{escape(label)}</text>'
        f'<text class="count" x="{x + 5:.1f}" y="{y + 28}">{len(indices):,}</text></g>'
    )


def _bar_text(bar: Bar, own: Sequence[Group], macs: float, params: int, players: Players) -> Iterator[str]:
    n = sum(len(group) for group in own)
    yield f"{bar.label}: {n:,} players" + (f" in {len(own)} groups" if len(own) > 1 else "")
    if players.model_macs:
        yield f"one after the other {macs / players.model_macs:.1%} of the multiply-adds"
    yield f"{params / players.model_params:.1%} of the parameters"
    if len(own) == 1:
        yield "layers " + ", ".join(f"{m.module} ({m.role})" for m in own[0].members)
