"""Drawing redundancy: a heat map as inline SVG, in the page's colours (with others to fall back on outside a page)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from shaprune.errors import InputError
from shaprune.values.redundancy import Redundancy

_INK, _MUTED, _RULE = "var(--ink,#808080)", "var(--muted,#808080)", "var(--rule,#80808040)"
_REPLACE, _NEED = "var(--kept,#1f66d1)", "var(--norm,#c2740a)"  # below and above zero
_LONGEST = 24  # characters of a name
_LETTER = 5.6  # width of a character at font size 10
_STEPS = 5  # of the key, to either side of zero
_SURE = 2.0  # standard errors
_LEAST = 1e-3  # of the largest interaction; less is not seen


def redundancy_figure(redundancy: Redundancy, names: Sequence[str] | None = None, label: str = "") -> str:
    """A heat map of all pairs: blue = can replace each other, orange = need each other, empty = neither.

    A colour's strength is the size of the interaction against the largest one, to either side of zero alike; so the
    middle is the page itself, light or dark. Squares are small where the interaction is within two standard errors of
    zero. Pointing at a square names the pair and its interaction.

    Args:
        redundancy: of up to 30 players.
        names: of the players, in player order; None = their numbers.
        label: what the figure shows, for those who cannot see it; empty = the most redundant pair.

    Returns:
        An ``<svg>`` element.

    Raises:
        InputError: not one name per player.
    """
    n = redundancy.n
    called = [str(player) for player in range(n)] if names is None else [str(name) for name in names]
    if len(called) != n:
        raise InputError(f"there are {len(called)} names for {n} players; give one per player")
    shown = [name if len(name) <= _LONGEST else "\u2026" + name[1 - _LONGEST :] for name in called]
    cell = min(40.0, max(16.0, 320 / n))
    margin = 12 + _LETTER * max(len(name) for name in shown)
    top, side = min(margin, 12 + _LETTER * _LONGEST), n * cell
    width, height = margin + max(side, 300) + 8, top + side + 56
    body = [
        f'<rect x="{margin:.1f}" y="{top:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f'style="fill:none;stroke:{_RULE}"/>',
        *_names(shown, margin, top, cell),
        *_squares(redundancy, called, margin, top, cell),
        *_key(redundancy, margin, top + side + 16),
    ]
    told = label or _pair_text(redundancy, called)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(told)}" '
        f'style="max-width:{1.5 * width:.0f}px" font-size="10">{"".join(body)}</svg>'
    )


def _names(names: Sequence[str], left: float, top: float, cell: float) -> Iterator[str]:
    yield f'<g style="fill:{_MUTED}">'
    for place, name in enumerate(names):
        middle = (place + 0.5) * cell
        x, y = left - 5, top + middle + 3.5
        yield f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>'
        x, y = left + middle + 3.5, top - 5
        yield f'<text x="{x:.1f}" y="{y:.1f}" transform="rotate(-90 {x:.1f} {y:.1f})">{escape(name)}</text>'
    yield "</g>"


def _squares(redundancy: Redundancy, names: Sequence[str], left: float, top: float, cell: float) -> Iterator[str]:
    matrix, error = redundancy.matrix, redundancy.stderr
    largest = float(np.abs(matrix).max())
    for colour, sign in ((_REPLACE, -1), (_NEED, 1)):
        yield f'<g style="fill:{colour}">'
        for i, j in np.argwhere(sign * matrix > _LEAST * largest).tolist():
            sure = error is None or abs(matrix[i, j]) > _SURE * error[i, j]
            size = (0.92 if sure else 0.45) * cell
            x, y = left + (j + 0.5) * cell - size / 2, top + (i + 0.5) * cell - size / 2
            doubt = "" if error is None or not error[i, j] else f" \u00b1 {error[i, j]:.1g}"
            yield (
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{size:.1f}" height="{size:.1f}" '
                f'fill-opacity="{abs(matrix[i, j]) / largest:.3f}">'
                f"<title>{escape(f'{names[i]}, {names[j]}: {matrix[i, j]:.3g}{doubt}')}</title></rect>"
            )
        yield "</g>"


def _key(redundancy: Redundancy, left: float, top: float) -> Iterator[str]:
    largest = float(np.abs(redundancy.matrix).max())
    size = 300 / (2 * _STEPS + 1)
    for step in range(-_STEPS, _STEPS + 1):
        colour, x = _REPLACE if step < 0 else _NEED, left + (step + _STEPS) * size
        yield (
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{size:.1f}" height="9" '
            f'style="fill:{colour};fill-opacity:{abs(step) / _STEPS:.1f};stroke:{_RULE}"/>'
        )
    ends = ((0, "start", f"{-largest:.3g}"), (150, "middle", "0"), (300, "end", f"{largest:.3g}"))
    words = ((0, "start", "can replace each other"), (300, "end", "need each other"))
    for y, texts, colour in ((top + 20, ends, _INK), (top + 33, words, _MUTED)):
        for x, anchor, text in texts:
            yield f'<text x="{left + x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{colour}">{text}</text>'


def _pair_text(redundancy: Redundancy, names: Sequence[str]) -> str:
    pairs = redundancy.pairs(1) if redundancy.n > 1 else []
    start = f"Pairwise interactions of {redundancy.n} players."
    if not pairs or pairs[0][2] >= 0:
        return f"{start} No two can replace each other."
    i, j, interaction = pairs[0]
    return f"{start} The most redundant pair: {names[i]} and {names[j]}, {interaction:.3g}."
