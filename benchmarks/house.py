"""How easy the source is to find one's way in: counts by the syntax, beside the goals. ``make house`` prints them.

Exit code 1 where a goal is missed. Nothing is imported but the standard library, so that it runs without torch.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules_of(source: Path) -> dict[str, Path]:
    """Every module that can be imported by its name without ``shaprune.``; the package itself is ``""``."""
    package = source / "shaprune"
    files = sorted(file for file in package.rglob("*.py") if file.stem != "__main__")
    assert files, f"no source below {package}"
    parts = {file: file.relative_to(package).with_suffix("").parts for file in files}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in parts.items()}


def imports_of(file: Path, *, running: bool = False) -> Iterator[str]:
    """Full names of all that a file imports, anywhere in it: ``import a.b`` is a.b, ``from a.b import c`` is a.b.c.

    ``running``: without those that only type checkers see.
    """
    for level, name in _imports_in(file.read_text(encoding="utf-8"), running):
        assert level == 0, f"{file}: a relative import"
        yield name


@cache  # a file is read for many questions
def _imports_in(text: str, running: bool) -> tuple[tuple[int, str], ...]:
    """(0, or the dots of a relative import; the full name) of all that is imported."""
    tree, found = ast.parse(text), []
    unseen: set[ast.AST] = set()
    for node in ast.walk(tree):
        if running and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            unseen |= {inner for part in node.body for inner in ast.walk(part)}
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, f"{node.module}.{alias.name}") for alias in node.names]
    return tuple(found)


def cycles(source: Path) -> list[list[str]]:
    """Sets of modules that import each other, lazily or not; names are those of `modules_of`."""
    modules = modules_of(source)
    graph: dict[str, set[str]] = {}
    for name, file in modules.items():
        heads = [imported.removeprefix("shaprune.") for imported in imports_of(file, running=True)]
        found = {next((h for h in (head, head.rpartition(".")[0]) if h in modules), "") for head in heads}
        graph[name] = found - {"", name}
    reached = {name: _reachable(graph, name) for name in graph}
    together = [frozenset(other for other in reached[name] if name in reached[other]) for name in graph]
    return sorted(sorted(part) for part in set(together) if part)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    stack = [*graph[start]]
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack += graph[name]
    return found


def functions_of(tree: ast.Module) -> Iterator[Function]:
    """All functions and methods, nested ones, too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def code_lines(function: Function, lines: list[str]) -> int:
    """Lines of code: without decorators, docstring, comments and blank lines."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    first = [*range(function.lineno, function.body[0].lineno)]
    rows = [*first, *(range(body[0].lineno, (body[-1].end_lineno or 0) + 1) if body else ())]
    texts = (lines[row - 1].strip() for row in dict.fromkeys(rows))
    return sum(bool(text) and not text.startswith("#") for text in texts)


def arguments(function: Function) -> int:
    """How many a caller can give."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return sum(name not in ("self", "cls") for name in names)


def public_names(source: Path) -> dict[str, ast.AST]:
    """What stands in ``shaprune.__all__``, by name, as defined where `_HOMES` says."""
    modules = modules_of(source)
    (homes,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(modules[""].read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"
    )
    found: dict[str, ast.AST] = {}
    for name, home in homes.items():
        tree = ast.parse(modules[home.removeprefix("shaprune.")].read_text(encoding="utf-8"))
        found[name] = next(node for node in tree.body if getattr(node, "name", None) == name)
    return found


def documented(node: ast.AST, section: str) -> bool | None:
    """Whether a docstring has a section (``"Args"``, ``"Returns"``, ``"Raises"``); None where none is needed."""
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    text = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        own = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name in ("__init__", "__post_init__")]
        fields = any(isinstance(n, ast.AnnAssign) for n in node.body)
        needed = {
            "Args": fields or any(arguments(n) for n in own),
            "Returns": False,
            "Raises": any(isinstance(inner, ast.Raise) for n in own for inner in ast.walk(n)),
        }[section]
        names = ("Args", "Attributes") if section == "Args" else (section,)
    else:
        needed = {
            "Args": arguments(node) > 0,
            "Returns": node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn"),
            "Raises": any(isinstance(inner, ast.Raise) for inner in ast.walk(node)),
        }[section]
        names = (section, "Yields") if section == "Returns" else (section,)
    return any(f"{name}:" in text.splitlines() for name in names) if needed else None


@dataclass(frozen=True)
class Number:
    """A row of the table; ``most`` = the goal is at most this, else at least ``least``."""

    name: str
    value: float
    goal: float
    where: str = ""
    least: bool = False

    @property
    def reached(self) -> bool:
        return self.value >= self.goal if self.least else self.value <= self.goal


def measured(source: Path) -> list[Number]:
    """The numbers, in the order of the table."""
    modules = modules_of(source)
    texts = {name: file.read_text(encoding="utf-8") for name, file in modules.items()}
    lines = {name: text.splitlines() for name, text in texts.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    package = source / "shaprune"
    flat = Counter(f.parent.relative_to(package).as_posix() for f in modules.values() if f.stem != "__init__")
    functions = {
        f"{name}.{function.name}": (code_lines(function, lines[name]), arguments(function))
        for name, tree in trees.items()
        for function in functions_of(tree)
    }
    longest = max(functions, key=lambda name: functions[name][0])
    widest = max(functions, key=lambda name: functions[name][1])
    folder, most = flat.most_common(1)[0]
    circles = cycles(source)
    sizes = {name: len(rows) for name, rows in lines.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    written = [size for name, size in sizes.items() if modules[name].stem != "__init__"]
    public = public_names(source)
    found = [
        Number("modules loose at the top", flat["."], 5),
        Number("biggest flat folder", most, 16, folder),
        Number("longest function, lines of code", functions[longest][0], 80, longest),
        Number("most arguments", functions[widest][1], 12, widest),
        Number("import cycles", len(circles), 0, "; ".join(" <-> ".join(part) for part in circles)),
        Number("files above 400 lines", sum(size > 400 for size in sizes.values()), 0, f"{largest}: {sizes[largest]}"),
        Number("median file, lines", median(written), 150),
        Number("names in __all__", len(public), 25),
    ]
    for section in ("Args", "Returns", "Raises"):
        has = {name: documented(node, section) for name, node in public.items()}
        needed = [name for name, state in has.items() if state is not None]
        missing = [name for name in needed if not has[name]]
        share = 100 * (len(needed) - len(missing)) / max(1, len(needed))
        found.append(Number(f"of these with {section}, %", round(share), 100, ", ".join(missing), least=True))
    return [*found, Number("lines of src", sum(sizes.values()), 32_000)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, default=ROOT / "src", help="the folder that holds shaprune/")
    numbers = measured(parser.parse_args().source)
    show: Callable[[float], str] = "{:,.10g}".format
    for row in numbers:
        goal = ("at least " if row.least else "at most ") + show(row.goal)
        mark = "ok" if row.reached else "MISSED"
        where = row.where if len(row.where) <= 80 else row.where[:77] + "..."
        print(f"{row.name:34}{show(row.value):>8}   {goal:17}{mark:8}{where}".rstrip())
    return int(not all(row.reached for row in numbers))


if __name__ == "__main__":
    raise SystemExit(main())
