"""The shelf: sdist and wheel are built, and a stranger's clean environment gets all of it from the wheel.

The environment borrows the packages that shaprune depends on from this one, through a .pth file; this one's editable
shaprune does not come along, because .pth files of borrowed folders are not read.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}


def ran(command: Sequence[object], cwd: Path = ROOT, code: int = 0) -> str:
    """What a command prints on stdout."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == code, (command, done.stdout, done.stderr)
    return done.stdout


@dataclass(frozen=True)
class Built:
    """The files of a build, and a second wheel that was built without the sdist."""

    sdist: Path
    wheel: Path
    direct: Path


@dataclass(frozen=True)
class Clean:
    """An environment with the wheel in it."""

    bin: Path
    work: Path  # an empty folder to run in

    def python(self, code: str) -> str:
        return ran([self.bin / "python", "-c", code], cwd=self.work).strip()

    def shaprune(self, *arguments: object) -> str:
        return ran([self.bin / "shaprune", *arguments], cwd=self.work)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    both, direct = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("direct")
    build = [sys.executable, "-m", "build", "--no-isolation"]
    ran([*build, "--outdir", both])  # the sdist, and the wheel from it
    ran([*build, "--wheel", "--outdir", direct])
    (sdist,), (wheel,), (other,) = both.glob("*.tar.gz"), both.glob("*.whl"), direct.glob("*.whl")
    return Built(sdist, wheel, other)


@pytest.fixture(scope="module")
def clean(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    folder, work = tmp_path_factory.mktemp("clean") / "env", tmp_path_factory.mktemp("work")
    ran([sys.executable, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"
    site = Path(ran([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    ran([python, "-c", "import torch"], cwd=work)
    ran([python, "-c", "import shaprune"], cwd=work, code=1)  # it is not borrowed
    ran([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", built.wheel])
    return Clean(python.parent, work)


def test_the_sdist_builds_the_wheel_that_the_tree_builds(built: Built) -> None:
    assert built.wheel.name == built.direct.name
    assert built.wheel.read_bytes() == built.direct.read_bytes()


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    there = {p.relative_to(source).as_posix() for p in (source / "shaprune").rglob("*") if p.is_file()}
    assert packed == {name for name in there if "__pycache__" not in name}
    assert {"shaprune/py.typed", "shaprune/report/style.css", "shaprune/report/assets/main.js"} <= packed


def test_the_sdist_holds_what_tests_and_citations_need(built: Built) -> None:
    with tarfile.open(built.sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt"}
    assert wanted <= names
    assert "tests/conftest.py" in names


def test_the_package_comes_from_the_wheel(clean: Clean) -> None:
    where = Path(clean.python("import shaprune; print(shaprune.__file__)"))
    assert clean.bin.parent in where.parents
    assert clean.shaprune("--version") == f"shaprune {clean.python('import shaprune; print(shaprune.__version__)')}\n"


@pytest.mark.slow
def test_doctor_finds_nothing_wrong(clean: Clean) -> None:
    found = json.loads(clean.shaprune("doctor", "--json"))
    assert found["problems"] == []
    assert found["extras"]["plotly"]["state"] == "present"


SHORT_DEMO = """
import sys
from dataclasses import replace
from shaprune.builtin.demo_recipes import RECIPES
from shaprune.cli import main

RECIPES["digits"] = replace(RECIPES["digits"], epochs=1)
sys.argv[1:] = ["demo", "--json"]
main()
"""


@pytest.mark.slow
def test_the_demo_and_its_report_run(clean: Clean) -> None:
    """With one epoch; `tests/cli` has the whole demo."""
    found = json.loads(clean.python(SHORT_DEMO))
    assert found["pruned"]["macs"] <= 0.5 * found["dense"]["macs"]
    assert 'id="budget"' in (clean.work / "demo" / "report.html").read_text(encoding="utf-8")
    clean.shaprune("report", "demo/values.json", "--plan", "demo/plan.json", "--out", "again.html")
    assert "Plotly" in (clean.work / "again.html").read_text(encoding="utf-8")
    code = "import shaprune as sp; print(len(sp.Scores.load('demo/values.json')) > 0)"
    assert clean.python(code) == "True"


@pytest.mark.slow
def test_a_type_checker_sees_the_public_names(clean: Clean, tmp_path: Path) -> None:
    """With the wheel's own annotations: without py.typed in it, mypy would refuse the import."""
    cache = ROOT / ".mypy_cache" / "outside"  # of torch, above all
    options = ["--strict", "--config-file=", "--cache-dir", cache, "--python-executable", clean.bin / "python"]
    told = ran([sys.executable, "-m", "mypy", *options, ROOT / "tests/typing/user_program.py"], cwd=tmp_path)
    assert told == "Success: no issues found in 1 source file\n"
