"""The house: imports run one way, folders are small, `import shaprune` is light, tests stand where the code stands."""

import ast
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest
from house import cycles, imports_of, modules_of

import shaprune

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
TESTS = ROOT / "tests"

# Bottom to top: a part may import itself and the parts above it in this list. The longest matching name counts; every
# file must belong to a part.
ORDER = (
    "errors",
    "names",
    "options.fields",
    "storage",
    "players",
    # values: NumPy only
    "values.concepts",
    "values.intervals",
    "values.certificate",
    "values.result",
    "values.rounding_error",
    "values.games",
    "values.stopping",
    "values.aggregation",
    "values.estimators",
    "values.estimate",
    "values",
    # planning: NumPy only
    "planning.resources",
    "planning.budget",
    "planning.limits",
    "planning.scores",
    "planning.sensitivity_curves",
    "planning.removal_sequences",
    "planning.knapsack",
    "planning.allocation",
    "planning.curve_allocation",
    "planning.cut_certificate",
    "planning.plan",
    "planning",
    "runs",
    "options",
    # from here on torch
    "logs",
    "network",
    "network.layers",
    "network.removal",
    "network.discovery",
    "network.forward",
    "network.game",
    "criteria",
    "recovery",
    "deploy",
    "pipeline.prune",
    "pipeline.sensitivity",
    "pipeline.planner",
    "pipeline.quality",
    "pipeline.search",
    "pipeline.cycles",
    "pipeline.output_to_input",
    "pipeline.cost_estimate",
    "pipeline.feature_maps",
    "pipeline.preflight",
    "pipeline.score_notes",
    "pipeline.score",
    "pipeline.recipe",
    "pipeline.compress",
    "pipeline",
    "builtin",
    "experiments",
    "report",
    # the public face: namespaces, and the command line on top
    "estimators",
    "stopping",
    "worths",
    "metrics",
    "cli",
)
WITHOUT_TORCH = ORDER[: ORDER.index("logs")]
NUMPY_ONLY = ("values", "planning")
AT_HOME = {  # third party -> the only files that may import it
    "torch_pruning": {"criteria/torch_pruning_scores.py", "network/removal/surgery.py"},
    "shapiq": {"values/games/shapiq_bridge.py"},
    "yaml": {"pipeline/run_config.py"},
}
ONE_FILE_EACH = ("lightning", "ray", "plotly", "transformers", "timm", "torchvision", "onnx", "tensorboard")
ONE_FILE_EACH += ("mlflow", "packaging", "pandas")
MAX_LINES = 400  # of a file
MAX_MEDIAN = 150
MAX_TOP = 5  # modules beside the packages
MAX_FLAT = 16  # modules of a folder
BESIDE_THE_PACKAGE = {"architectures", "benchmarks", "documents", "promises", "testkit", "typing"}  # folders of tests


def _part(name: str) -> str | None:
    """The part that a module (or a name inside a module) belongs to."""
    parts = name.split(".")
    heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((head for head in heads if head in ORDER), None)


def _wrong_imports(source: Path) -> list[str]:
    """Every import that runs against the direction of flow."""
    wrong = []
    for name, file in modules_of(source).items():
        if not name:
            continue  # the package itself only says where names live
        part = _part(name)
        if part is None:
            wrong.append(f"{name} belongs to no part of the house")
            continue
        for imported in imports_of(file):
            head, _, rest = imported.partition(".")
            if head != "shaprune" or (imported == "shaprune" and part == "cli"):
                continue  # commands stand on the public names, like every user
            target = _part(rest)
            if target is None or ORDER.index(target) > ORDER.index(part):
                wrong.append(f"{name} imports {imported}")
    return wrong


def _importers(source: Path, third_party: str) -> set[str]:
    return {
        file.relative_to(source / "shaprune").as_posix()
        for file in modules_of(source).values()
        if any(name.partition(".")[0] == third_party for name in imports_of(file))
    }


def _loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running ``code``."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split())


def test_imports_run_one_way() -> None:
    assert _wrong_imports(SOURCE) == []


def test_no_modules_import_each_other() -> None:
    assert cycles(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        (
            "values/new.py",
            "from shaprune.network.game import worths",
            "values.new imports shaprune.network.game.worths",
        ),
        (
            "values/games/new.py",
            "from shaprune.values.estimate import estimate",
            "values.games.new imports shaprune.val",
        ),
        ("players/new.py", "def f():\n    import shaprune.network.removal.masks", "players.new imports"),
        (
            "network/game/new.py",
            "from shaprune.pipeline.score import score",
            "network.game.new imports shaprune.pipeline",
        ),
        ("network/forward/new.py", "from shaprune.network.game import worths", "network.forward.new imports"),
        ("planning/plan.py", "import shaprune.network.batches", "planning.plan imports shaprune.network.batches"),
        ("recovery/new.py", "from shaprune.builtin import models", "recovery.new imports shaprune.builtin.models"),
        ("report/page.py", "from shaprune.cli.app import app", "report.page imports shaprune.cli.app.app"),
        ("report/new.py", "import shaprune as sp", "report.new imports shaprune"),
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
        ("values/new.py", "from shaprune.values.games import game"),
        ("network/game/new.py", "from shaprune.values.games.game import Game"),
        ("planning/plan.py", "from shaprune.players.players import Players"),
        ("cli/app.py", "import torch\nimport shaprune as sp\nimport shaprune.builtin.models"),
    ],
)
def test_an_import_with_the_flow_is_no_offence(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / "shaprune" / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert _wrong_imports(tmp_path) == []


def test_a_lazy_cycle_is_seen(tmp_path: Path) -> None:
    (tmp_path / "shaprune").mkdir()
    (tmp_path / "shaprune" / "a.py").write_text("from shaprune.b import f\n")
    (tmp_path / "shaprune" / "b.py").write_text("def f():\n    import shaprune.a\n")
    (tmp_path / "shaprune" / "c.py").write_text("if TYPE_CHECKING:\n    import shaprune.d\n")
    (tmp_path / "shaprune" / "d.py").write_text("import shaprune.c\n")
    assert cycles(tmp_path) == [["a", "b"]]


@pytest.mark.parametrize("third_party", AT_HOME)
def test_a_third_party_is_imported_only_at_its_home(third_party: str) -> None:
    assert _importers(SOURCE, third_party) == AT_HOME[third_party]


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
        for name, file in modules_of(SOURCE).items()
        if _part(name) in WITHOUT_TORCH and any(i.partition(".")[0] == "torch" for i in imports_of(file))
    }
    assert named == set()


@pytest.mark.parametrize("package", NUMPY_ONLY)
def test_values_and_planning_compute_with_numpy_alone(package: str) -> None:
    files = [file for name, file in modules_of(SOURCE).items() if name.partition(".")[0] == package]
    heads = {name.partition(".")[0] for file in files for name in imports_of(file)}
    on_use = {"shapiq", "sklearn"}  # of one function each
    assert heads - set(sys.stdlib_module_names) <= {"shaprune", "numpy", "pydantic", *on_use}


def test_importing_shaprune_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "matplotlib", "lightning", "sklearn", "rich", "typer", "pydantic", "safetensors"}
    assert not _loaded_by("import shaprune") & heavy


def test_importing_the_parts_without_torch_does_not_load_it() -> None:
    names = [f"shaprune.{name}" for name in modules_of(SOURCE) if _part(name) in WITHOUT_TORCH]
    assert {"shaprune.values.estimate", "shaprune.planning.plan", "shaprune.players.players"} <= set(names)
    loaded = _loaded_by("import " + ", ".join(names))
    assert "numpy" in loaded
    assert not loaded & {"torch", "torch_pruning", "lightning"}


def test_an_estimate_runs_without_torch() -> None:
    code = "import shaprune as sp; sp.estimate(sp.Game.from_function(lambda rows: rows.sum(1), 3), 'exact')"
    assert "torch" not in _loaded_by(code)


def test_no_file_is_long() -> None:
    lengths = {name: len(file.read_text().splitlines()) for name, file in modules_of(SOURCE).items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
    assert (
        median(length for name, length in lengths.items() if modules_of(SOURCE)[name].stem != "__init__") <= MAX_MEDIAN
    )


def test_no_folder_is_large() -> None:
    package = SOURCE / "shaprune"
    files = [file for file in modules_of(SOURCE).values() if file.stem != "__init__"]
    flat = Counter(file.parent.relative_to(package).as_posix() for file in files)
    assert flat.pop(".") <= MAX_TOP
    assert {folder: n for folder, n in flat.items() if n > MAX_FLAT} == {}


def test_tests_stand_in_folders_named_like_those_of_the_package() -> None:
    package = SOURCE / "shaprune"
    folders = {p.parent.relative_to(TESTS).as_posix() for p in TESTS.rglob("*.py")} - {"."}
    assert {f for f in folders if f not in BESIDE_THE_PACKAGE and not (package / f / "__init__.py").is_file()} == set()
    stages = {name.partition(".")[0] for name in modules_of(SOURCE) if (package / name.partition(".")[0]).is_dir()}
    assert stages - {""} - {folder.partition("/")[0] for folder in folders} <= {
        "players",
        "storage",
    }  # which all tests use


def test_every_module_says_what_it_is() -> None:
    silent = {name for name, file in modules_of(SOURCE).items() if not ast.get_docstring(ast.parse(file.read_text()))}
    assert silent == set()


_QUESTION = re.compile(r"(What|Who|How|Where|Which|Whether|When|From)\b")
_PEOPLE = re.compile(r"\b(nobody|somebody|whoever|tells?|told|hands? out|handed|hand in|lends?|lent)\b", re.IGNORECASE)


def _prose(file: Path) -> Iterator[tuple[int, str]]:
    """Comments and texts of a file by line, without names in backticks and without what f-strings insert."""
    with file.open(encoding="utf-8") as lines:
        for token in tokenize.generate_tokens(lines.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                for number, line in enumerate(token.string.split("\n"), token.start[0]):
                    yield number, re.sub(r"\{[^{}]*\}|`\w+`|[\w-]+=\"\w+\"", "", line)


def test_modules_open_with_what_they_are_or_do() -> None:
    first = {
        n: (ast.get_docstring(ast.parse(f.read_text())) or "").partition("\n")[0] for n, f in modules_of(SOURCE).items()
    }
    assert {name: line for name, line in first.items() if _QUESTION.match(line)} == {}


def test_prose_speaks_of_code_and_not_of_people() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, file in modules_of(SOURCE).items()
        for number, line in _prose(file)
        if _PEOPLE.search(line)
    ]
    assert found == []


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
    seen = (imported.rpartition(".") for imported in imports_of(modules_of(SOURCE)[""]))
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
        for name, file in modules_of(SOURCE).items()
        for function in _public_functions(ast.parse(file.read_text()))
        if function.args.kwarg is not None and function.name != "forward"  # of a module: it takes what its place takes
    ]
    assert swallowing == []
