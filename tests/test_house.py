"""The house: imports run one way, `import shaprune` is light, files are small, public names say what they do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from types import ModuleType

import pytest

import shaprune

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
MAX_LINES = 400

# What each part may import of shaprune, besides itself; the longest matching name counts. A part may be absent, but
# every file must belong to one.
_DATA = {
    "errors",
    "typed",
    "network.config",
    "network.layers",
    "network.players",
    "network.written",
    "values",
}  # no torch
_DECIDING = _DATA | {"atomic", "documents", "budget", "limits", "knapsack", "sensitivities"}
_PLANS = _DECIDING | {"lanes", "allocation", "planning", "scores", "frontiers", "swaps"}
_CORE = (
    _PLANS
    | {"network", "run", "backwards", "scoring", "scoring_notes", "costing", "pruning", "files", "measure", "recovery"}
    | {"sensing", "search", "deciding", "rescoring"}
)
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "exchange": set(),
    "ours": set(),
    "atomic": {"errors", "exchange", "ours"},
    "typed": {"errors"},
    "values": {"errors", "atomic", "typed"},
    "logs": {"errors", "values"},
    "run": {"errors", "atomic", "values"},
    "network.config": set(),
    "network.layers": set(),
    "network.written": {"errors", "typed", "network.layers"},
    "network.players": {"errors", "network.config", "network.layers", "network.written"},
    "network": _DATA,
    "limits": _DATA,
    "documents": {"errors"},
    "budget": _DATA,
    "knapsack": set(),
    "sensitivities": _DATA | {"atomic", "documents"},
    "lanes": _DECIDING,
    "allocation": _DECIDING,
    "planning": _DECIDING | {"lanes", "allocation"},
    "scores": _DATA | {"atomic", "documents"},
    "frontiers": _DECIDING | {"planning"},
    "swaps": _DECIDING | {"lanes", "planning"},
    "descent": _DECIDING | {"lanes", "planning"},
    "scoring_notes": _PLANS | {"network", "run"},
    "scoring": _PLANS | {"network", "pruning", "backwards", "run", "scoring_notes"},
    "costing": _PLANS | {"network"},
    "backwards": _PLANS | {"network", "pruning"},
    "pruning": _PLANS | {"network"},
    "files": _PLANS | {"network"},
    "search": _PLANS | {"network", "pruning", "measure"},
    "sensing": _PLANS | {"network", "search"},
    "deciding": _PLANS | {"network", "sensing"},
    "rescoring": _PLANS | {"network", "pruning"},
    "looking": _PLANS | {"network"},
    "speed": {"network"},
    "measure": {"errors", "network", "speed"},
    "exporting": {"errors", "atomic", "ours", "network"},
    "recovery": _PLANS | {"network"},
    "compression": _CORE,
    "run_config": _PLANS | {"network", "recovery", "rescoring"},
    "bench": _CORE | {"compression"},
    "report": _CORE | {"ours", "logs", "compression", "bench", "descent", "looking", "speed"},
    "demo": _CORE | {"compression", "bench", "report"},
    "cli": _CORE | {"logs", "looking", "compression", "run_config", "bench", "report", "demo"},
}
WITHOUT_TORCH = (
    "errors",
    "exchange",
    "ours",
    "atomic",
    "values",
    "run",
    "network.config",
    "network.layers",
    "network.players",
    "network.written",
    "typed",
    "limits",
    "documents",
    "budget",
    "knapsack",
    "sensitivities",
    "lanes",
    "allocation",
    "planning",
    "scores",
    "frontiers",
    "swaps",
    "descent",
)
AT_HOME = {  # third party -> the only files that may import it
    "torch_pruning": {"network/peers.py", "network/surgery.py"},
    "shapiq": {"values/interplay.py"},
    "yaml": {"run_config.py"},
}
PROCESS_WIDE = {  # what changes something for all threads -> the only files that may use it; commands own their process
    "umask": set(),
    "chdir": set(),
    "catch_warnings": {"network/recipe.py"},  # in a worker
    "simplefilter": {"network/recipe.py"},
    "set_num_threads": {"network/recipe.py", "network/threads.py"},
    "sdpa_kernel": set(),
    "Tracer": {"network/tracing.py"},
    "symbolic_trace": set(),
    "manual_seed": {"network/proof.py", "recovery/finetune.py", "recovery/fit.py", "recovery/objective.py"},
    "set_rng_state": {"network/borrow.py"},
    "setLevel": set(),
}
ONE_FILE_EACH = ("lightning", "ray", "plotly", "transformers", "timm", "torchvision", "onnx", "tensorboard")
ONE_FILE_EACH += ("mlflow", "packaging")


def _attributes(file: Path) -> set[str]:
    """Names and attributes that a file uses or imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
    return found


def _modules(source: Path) -> dict[str, Path]:
    """Every module below ``source``/shaprune by its name without ``shaprune.``; the package itself has no name left."""
    package = source / "shaprune"
    files = sorted(package.rglob("*.py"))
    assert files, f"no source below {package}"
    parts = {file: file.relative_to(package).with_suffix("").parts for file in files}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): file for file, p in parts.items()}


def _imports(file: Path) -> Iterator[str]:
    """Full names of all that a file imports, anywhere in it: ``import a.b`` is a.b, ``from a.b import c`` is a.b.c."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _part(name: str) -> str | None:
    """The part that a module (or a name inside a module) belongs to."""
    parts = name.split(".")
    heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((head for head in heads if head in ALLOWED), None)


def _wrong_imports(source: Path) -> list[str]:
    """Every import that runs against the direction of flow."""
    wrong = []
    for name, file in _modules(source).items():
        if not name:
            continue  # the package itself only says where names live
        part = _part(name)
        if part is None:
            wrong.append(f"{name} belongs to no part of the house")
            continue
        for imported in _imports(file):
            head, _, rest = imported.partition(".")
            target = _part(rest) if head == "shaprune" else None
            if imported == "shaprune" and part == "cli":
                continue  # commands stand on the public names, like every user
            if head == "shaprune" and (target is None or target not in ALLOWED[part] | {part}):
                wrong.append(f"{name} imports {imported}")
    return wrong


def _importers(source: Path, third_party: str) -> set[str]:
    return {
        file.relative_to(source / "shaprune").as_posix()
        for file in _modules(source).values()
        if any(name.partition(".")[0] == third_party for name in _imports(file))
    }


def _loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running ``code``."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_imports_run_one_way() -> None:
    assert _wrong_imports(SOURCE) == []


def test_the_allowed_imports_have_no_cycle() -> None:
    remaining = {part: {target for target in targets if target != part} for part, targets in ALLOWED.items()}
    while remaining:
        free = [part for part, targets in remaining.items() if not targets & set(remaining)]
        assert free, f"a cycle among {sorted(remaining)}"
        for part in free:
            del remaining[part]


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("values/exact.py", "from shaprune.network import game", "values.exact imports shaprune.network.game"),
        ("values/exact.py", "from shaprune import planning", "values.exact imports shaprune.planning"),
        ("network/players.py", "def f():\n    import shaprune.network.masks", "network.players imports"),
        ("network/game.py", "from shaprune.planning import Plan", "network.game imports shaprune.planning.Plan"),
        ("planning.py", "import shaprune.network.game", "planning imports shaprune.network.game"),
        ("recovery/fit.py", "from shaprune.bench import models", "recovery.fit imports shaprune.bench.models"),
        ("report/page.py", "from shaprune.cli.app import app", "report.page imports shaprune.cli.app.app"),
        ("demo.py", "import shaprune as sp", "demo imports shaprune"),
        ("extra.py", "import torch", "extra belongs to no part"),
    ],
)
def test_an_import_against_the_flow_is_seen(tmp_path: Path, file: str, line: str, found: str) -> None:
    path = tmp_path / "shaprune" / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    wrong = _wrong_imports(tmp_path)
    assert len(wrong) == 1
    assert wrong[0].startswith(found)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("values/exact.py", "from shaprune.values import game"),
        ("network/game.py", "from shaprune.values.game import Game"),
        ("planning.py", "from shaprune.network.players import Players"),
        ("cli/app.py", "import torch\nimport shaprune as sp\nimport shaprune.bench.models"),
    ],
)
def test_an_import_with_the_flow_is_no_offence(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / "shaprune" / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert _wrong_imports(tmp_path) == []


@pytest.mark.parametrize("third_party", AT_HOME)
def test_a_third_party_is_imported_only_at_its_home(third_party: str) -> None:
    assert _importers(SOURCE, third_party) == AT_HOME[third_party]


@pytest.mark.parametrize("name", PROCESS_WIDE)
def test_what_all_threads_of_the_process_see_is_set_only_where_it_may_be(name: str) -> None:
    files = {path.relative_to(SOURCE / "shaprune").as_posix(): path for path in (SOURCE / "shaprune").rglob("*.py")}
    assert len(files) > 100
    using = {file for file, path in files.items() if name in _attributes(path)}
    assert {file for file in using if not file.startswith(("cli/", "bench/"))} == PROCESS_WIDE[name]


@pytest.mark.parametrize("third_party", ONE_FILE_EACH)
def test_an_optional_or_heavy_package_is_imported_in_one_file_at_most(third_party: str) -> None:
    assert len(_importers(SOURCE, third_party)) <= 1


def test_every_extra_is_covered() -> None:
    extras = set(metadata("shaprune").get_all("Provides-Extra") or ())
    assert "shapiq" in extras
    assert extras - {"dev", "docs"} <= {*ONE_FILE_EACH, *AT_HOME}


def test_parts_without_torch_do_not_name_it() -> None:
    named = {
        name
        for name, file in _modules(SOURCE).items()
        if _part(name) in WITHOUT_TORCH and any(i.partition(".")[0] == "torch" for i in _imports(file))
    }
    assert named == set()


def test_importing_shaprune_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "matplotlib", "lightning", "sklearn", "rich", "typer", "pydantic", "safetensors"}
    assert not _loaded_by("import shaprune") & heavy


def test_importing_the_parts_without_torch_does_not_load_it() -> None:
    names = [f"shaprune.{name}" for name in _modules(SOURCE) if _part(name) in WITHOUT_TORCH]
    assert {"shaprune.values.estimate", "shaprune.values.permutation", "shaprune.network.players"} <= set(names)
    loaded = _loaded_by("import " + ", ".join(names))
    assert "numpy" in loaded
    assert not loaded & {"torch", "torch_pruning", "lightning"}


def test_an_estimate_runs_without_torch() -> None:
    code = "import shaprune as sp; sp.estimate(sp.Game.from_function(lambda rows: rows.sum(1), 3), 'exact')"
    assert "torch" not in _loaded_by(code)


def test_no_file_is_long() -> None:
    lengths = {name: len(file.read_text().splitlines()) for name, file in _modules(SOURCE).items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_says_what_it_is() -> None:
    silent = {name for name, file in _modules(SOURCE).items() if not ast.get_docstring(ast.parse(file.read_text()))}
    assert silent == set()


@pytest.mark.parametrize("name", shaprune.__all__)
def test_every_public_name_resolves_and_has_a_docstring_of_its_own(name: str) -> None:
    thing = getattr(shaprune, name)
    assert thing.__name__ == name
    assert not isinstance(thing, ModuleType)
    assert thing.__doc__
    assert not thing.__doc__.startswith(f"{name}(")  # what a dataclass writes for itself
    assert name in dir(shaprune)


def test_an_unknown_public_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"shaprune has no 'find_player'; did you mean 'find_players'\?"):
        shaprune.find_player  # noqa: B018


def test_type_checkers_see_the_public_names_where_they_live() -> None:
    seen = (imported.rpartition(".") for imported in _imports(_modules(SOURCE)[""]))
    assert {name: module for module, _, name in seen if name in shaprune.__all__} == shaprune._HOMES


def _public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public functions of a module, and public methods (and constructors) of its public classes."""
    bodies = [tree.body, *(n.body for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
    for node in (n for body in bodies for n in body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
            not node.name.startswith("_") or node.name in ("__init__", "__call__")
        ):
            yield node


def test_no_public_function_swallows_unknown_options() -> None:
    swallowing = [
        f"{name}.{function.name}"
        for name, file in _modules(SOURCE).items()
        for function in _public_functions(ast.parse(file.read_text()))
        if function.args.kwarg is not None and function.name != "forward"  # of a module: it takes what its place takes
    ]
    assert swallowing == []
