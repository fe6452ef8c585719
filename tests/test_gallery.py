"""The gallery: the scripts that need no data run, the others say what they need, and the notebook is up to date."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GALLERY = Path(__file__).resolve().parents[1] / "gallery"
SCRIPTS = ("digits", "lenet5", "resnet56", "minilm", "custom_game", "cluster")
NEED_DATA = ("lenet5", "resnet56", "minilm")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "TOKENIZERS_PARALLELISM": "false"}


def ran(name: str, folder: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GALLERY / f"{name}.py"), *options]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def test_the_digits_are_read_by_half_the_network(tmp_path: Path) -> None:
    told = ran("digits", tmp_path).stdout
    refitted = float(told.partition("refitted: ")[2].partition("%")[0])
    assert refitted > 90
    assert (tmp_path / "digits.png").stat().st_size > 5_000


def test_a_game_of_your_own(tmp_path: Path) -> None:
    told = ran("custom_game", tmp_path, "--quick").stdout
    assert "efficiency gap" in told
    assert "20 of 20 trees: 0.9" in told
    assert (tmp_path / "custom_game.png").exists()


@pytest.mark.parametrize("name", NEED_DATA)
def test_without_data_a_script_says_what_it_needs(name: str, tmp_path: Path) -> None:
    if name == "minilm":
        pytest.importorskip("transformers")
    assert "--quick" in ran(name, tmp_path, code=2).stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_say_what_they_do(name: str) -> None:
    text = (GALLERY / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    assert text.startswith("# %% [markdown]") or ast.get_docstring(ast.parse(text))


def test_what_is_rendered_is_small_and_of_a_script() -> None:
    for path in (GALLERY / "results").iterdir():
        assert path.stem in SCRIPTS
        assert path.suffix in (".txt", ".png", ".svg")
        assert path.stat().st_size < 100_000


def test_the_notebook_is_that_of_the_script() -> None:
    pytest.importorskip("nbformat")
    spec = importlib.util.spec_from_file_location("gallery_notebook", GALLERY / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    script = (GALLERY / "digits.py").read_text(encoding="utf-8")
    kept = (GALLERY / "digits.ipynb").read_text(encoding="utf-8")
    assert kept == module.notebook_of(script), "run python gallery/notebook.py"
    cells = json.loads(kept)["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(script))
