"""Draw the import order from the code: ``python benchmarks/import_order.py`` writes it into docs/architecture.md.

A room is a package of ``src/shaprune`` (of ``network`` each folder), or a module at the top. What a room imports,
lazily or not, is read from the syntax; rooms are listed so that each imports only rooms above it. The picture is the
matrix of these imports: all dots lie below the diagonal, or there would be a circle.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

from house import ROOT, imports_of, modules_of

PAGE = ROOT / "docs" / "architecture.md"
FIGURE = ROOT / "docs" / "img" / "imports.svg"
BEGIN, END = "<!-- imports: python benchmarks/import_order.py -->\n", "<!-- end of imports -->\n"
SPLIT = "network"  # the one package whose folders are rooms
APART = ("options.fields",)  # modules that stand lower than the rest of their package
CELL, LEFT, TOP = 17, 138, 10
STYLE = """
text { font: 11px ui-monospace, monospace; fill: #24292f }
.dot { fill: #1a56a8 }
.own { fill: #d0d7de }
.grid { stroke: #eaeef2 }
"""


def room_of(module: str, packages: set[str]) -> str:
    """The room of a module, both without ``shaprune.``."""
    first, *rest = module.split(".")
    inner = f"{first}.{rest[0]}" if rest else first
    return inner if inner in APART or (first == SPLIT and inner in packages) else first


def rooms_of(source: Path) -> dict[str, set[str]]:
    """{room: rooms that it imports}, each room after all that it imports; ties: those without torch first, by name.

    Raises:
        ValueError: rooms that import each other.
    """
    modules = modules_of(source)
    packages = {name for name, file in modules.items() if file.stem == "__init__"}
    found: dict[str, set[str]] = {room_of(name, packages): set() for name in modules if name}
    with_torch = {room_of(n, packages) for n, f in modules.items() if any(i.startswith("torch") for i in imports_of(f))}
    for name, file in modules.items():
        for imported in imports_of(file, running=True) if name else ():
            head, _, rest = imported.partition(".")
            if head == "shaprune" and rest.partition(".")[0] in found:
                found[room_of(name, packages)].add(room_of(rest, packages))
    for room, imported_rooms in found.items():
        imported_rooms.discard(room)
    ordered: dict[str, set[str]] = {}
    while len(ordered) < len(found):
        ready = [room for room in found if room not in ordered and found[room] <= ordered.keys()]
        if not ready:
            raise ValueError(f"these import each other: {sorted(found.keys() - ordered.keys())}")
        first = min(ready, key=lambda room: (room in with_torch, room))
        ordered[first] = found[first]
    return ordered


def table_of(rooms: dict[str, set[str]], source: Path) -> str:
    """The rooms in import order, with the first line of each one's docstring, as Markdown."""
    modules = modules_of(source)
    order = [*rooms]
    rows = ["| room | what it is | imports directly |", "|---|---|---|"]
    for room, imported in rooms.items():
        text = (ast.get_docstring(ast.parse(modules[room].read_text(encoding="utf-8"))) or "").partition("\n")[0]
        names = ", ".join(f"`{name}`" for name in sorted(imported, key=order.index)) or "-"
        rows.append(f"| `{room}` | {text.replace('|', chr(92) + '|')} | {names} |")
    return "\n".join(rows) + "\n"


def figure_of(rooms: dict[str, set[str]]) -> str:
    """The matrix of imports as SVG: a dot in row a and column b where a imports b."""
    order = [*rooms]
    size = CELL * len(order)
    parts = []
    for i, room in enumerate(order):
        y = TOP + CELL * i
        parts.append(f'<text x="{LEFT - 6}" y="{y + 12}" text-anchor="end">{escape(room)}</text>')
        parts.append(f'<path class="grid" d="M{LEFT} {y + CELL} h{size}"/>')
        parts.append(
            f'<rect class="own" x="{LEFT + CELL * i + 3}" y="{y + 3}" width="{CELL - 6}" height="{CELL - 6}"/>'
        )
        parts += [
            f'<circle class="dot" cx="{LEFT + CELL * j + CELL / 2:g}" cy="{y + CELL / 2:g}" r="4">'
            f"<title>{escape(room)} imports {escape(other)}</title></circle>"
            for j, other in enumerate(order)
            if other in rooms[room]
        ]
    width, height = LEFT + size + 10, TOP + size + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="which part of the package imports which: all dots are below the diagonal">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def page_with(table: str, page: str) -> str:
    """The text of the page with this table between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + table + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    found_rooms = rooms_of(ROOT / "src")
    FIGURE.write_text(figure_of(found_rooms), encoding="utf-8")
    PAGE.write_text(page_with(table_of(found_rooms, ROOT / "src"), PAGE.read_text(encoding="utf-8")), encoding="utf-8")
