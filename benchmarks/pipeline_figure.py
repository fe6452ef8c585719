"""Draw the pipeline of the README: ``python benchmarks/pipeline_figure.py`` writes docs/img/pipeline.svg.

The same text always gives the same bytes; a test compares the committed file with what this makes.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "docs" / "img" / "pipeline.svg"
STAGES = (  # function, what it does, what it returns
    ("find_players", "units that can leave,", "each verified", "Players"),
    ("score", "values with", "standard errors", "Scores"),
    ("plan", "the least valuable,", "within a budget", "Plan"),
    ("prune", "remove them,", "masked = removed", "nn.Module"),
    ("recover", "refit in closed form,", "or train", "nn.Module"),
)
VALUES = ((0.9, 0.25, 0.7, 0.1, 0.55, 0.8), (0.2, 0.75, 0.95, 0.4, 0.15, 0.6))  # of the units of two drawn layers
CUT = 0.3  # units below leave
WIDTH, HEIGHT = 940, 236
BOX, GAP, TOP = 148, 32, 44
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #24292f }
.name { font: 600 14px ui-monospace, monospace; fill: #1a56a8 }
.type { font: 11px ui-monospace, monospace; fill: #57606a }
.box { fill: #f6f8fa; stroke: #d0d7de }
.line { stroke: #8c959f; stroke-width: 1; fill: none }
.arrow { stroke: #57606a; stroke-width: 1.5; fill: none }
.unit { stroke: #1a56a8; fill: #1a56a8 }
.gone { stroke: #c25b13; fill: none; stroke-dasharray: 2 2 }
"""


def pipeline_svg() -> str:
    """The picture as SVG text."""
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>']
    parts.append(_text(16, 26, "a trained network and some batches", ""))
    parts.append(_text(WIDTH - 16, 26, "a smaller nn.Module", "", anchor="end"))
    for i, stage in enumerate(STAGES):
        x = 16 + i * (BOX + GAP + 8)
        parts += _stage(x, *stage)
        parts += _units(x, i)
        if i:
            parts.append(f'<path class="arrow" d="M{x - GAP - 4} {TOP + 30} h{GAP - 4} m-6 -4 l6 4 l-6 4"/>')
    parts.append(_text(16, HEIGHT - 14, "sp.compress(model, data, budget) and shaprune compress do all of it", "type"))
    label = "find_players, score, plan, prune, recover: units of a network are found, valued, chosen, removed, refitted"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _stage(x: int, name: str, first: str, second: str, result: str) -> list[str]:
    return [
        f'<rect class="box" x="{x}" y="{TOP}" width="{BOX}" height="152" rx="6"/>',
        _text(x + 10, TOP + 22, name, "name"),
        _text(x + 10, TOP + 42, first, ""),
        _text(x + 10, TOP + 58, second, ""),
        _text(x + BOX - 8, TOP + 145, f"-> {result}", "type", anchor="end"),
    ]


def _units(x: int, stage: int) -> list[str]:
    """Two layers of units, drawn as they are after a stage: found, shaded by value, crossed out, gone, refitted."""
    drawn: list[str] = []
    kept: list[list[tuple[int, int]]] = []
    for layer, values in enumerate(VALUES):
        left = [value for value in values if stage < 3 or value >= CUT]
        start = x + BOX // 2 - 11 * len(left) + 11
        spots = [(start + 22 * k, TOP + 82 + 36 * layer) for k in range(len(left))]
        kept.append([spot for spot, value in zip(spots, left, strict=True) if stage < 2 or value >= CUT])
        for (cx, cy), value in zip(spots, left, strict=True):
            if stage == 2 and value < CUT:
                drawn.append(f'<circle class="gone" cx="{cx}" cy="{cy}" r="6"/>')
                continue
            opacity = 0 if stage == 0 else value
            drawn.append(f'<circle class="unit" cx="{cx}" cy="{cy}" r="6" fill-opacity="{opacity:g}"/>')
    lines = [
        f'<path class="line" stroke-opacity="{0.9 if stage == 4 else 0.35}" d="M{a} {b + 6} L{c} {d - 6}"/>'
        for a, b in kept[0]
        for c, d in kept[1]
    ]
    return lines + drawn


def _text(x: int, y: int, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    FILE.write_text(pipeline_svg(), encoding="utf-8")
