"""The architecture page: its import order and its picture are read from the code."""

from pathlib import Path

import pytest
from house import ROOT
from import_order import FIGURE, PAGE, figure_of, page_with, rooms_of, table_of

RUN = "run python benchmarks/import_order.py"


def test_the_page_and_its_picture_are_what_the_script_makes() -> None:
    rooms = rooms_of(ROOT / "src")
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_with(table_of(rooms, ROOT / "src"), page), RUN
    assert FIGURE.read_text(encoding="utf-8") == figure_of(rooms), RUN


def test_every_room_imports_only_rooms_before_it() -> None:
    rooms = rooms_of(ROOT / "src")
    order = [*rooms]
    assert {"values", "planning", "network.removal", "pipeline", "cli"} <= set(order)
    for room, imported in rooms.items():
        assert all(order.index(other) < order.index(room) for other in imported)


def _package(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / "shaprune" / f"{name.replace('_in_', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    (folder / "shaprune" / "__init__.py").touch()
    return folder


def test_the_order_is_that_of_imports_and_those_without_torch_come_first(tmp_path: Path) -> None:
    source = _package(
        tmp_path,
        b_in_x="import torch",
        a_in_x="from shaprune.c.x import f",
        c_in_x="def f():\n    import shaprune.b.x",
        d_in_x='"""D."""',
    )
    assert rooms_of(source) == {"d": set(), "b": set(), "c": {"b"}, "a": {"c"}}
    assert [*rooms_of(source)] == ["d", "b", "c", "a"]
    assert "| `a` |  | `c` |" in table_of(rooms_of(source), source)
    assert figure_of(rooms_of(source)).count("<circle") == 2


def test_rooms_that_import_each_other_are_refused(tmp_path: Path) -> None:
    source = _package(tmp_path, a_in_x="import shaprune.b.x", b_in_x="import shaprune.a.y", a_in_y="")
    with pytest.raises(ValueError, match=r"these import each other: \['a', 'b'\]"):
        rooms_of(source)
