"""The gallery: the scripts that need no data run, the others say what they need, and the notebook is up to date."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

GALLERY = Path(__file__).resolve().parents[2] / "gallery"
SCRIPTS = ("digits", "lenet5", "resnet56", "minilm", "custom_game", "cluster")
NEED_DATA = ("lenet5", "resnet56", "minilm")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "TOKENIZERS_PARALLELISM": "false"}


def ran(name: str, folder: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GALLERY / f"{name}.py"), *options]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", GALLERY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
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


@pytest.mark.slow
def test_workers_give_the_same_bits_and_are_well_used(tmp_path: Path) -> None:
    told = ran("cluster", tmp_path, "--quick").stdout
    assert "the same bits: with workers True, from the journal True" in told
    assert told.count("256: ") == 2
    assert (tmp_path / "cluster.png").stat().st_size > 5_000


def test_efficiency_counts_the_driver_the_slow_and_the_lost() -> None:
    efficiency = loaded("cluster").efficiency
    assert efficiency([1.0] * 8, 0.0, 4, trouble=False) == 1.0
    assert efficiency([1.0] * 8, 0.0, 3, trouble=False) == pytest.approx(8 / 9)  # the last round is not full
    assert efficiency([1.0] * 100, 1.0, 1, trouble=False) == pytest.approx(0.5)
    assert efficiency([1.0] * 5_000, 1.0, 100, trouble=False) == pytest.approx(0.01, rel=0.01)  # the driver's pace
    chunks = [1.0] * 10_000
    assert efficiency(chunks, 0.0, 19, trouble=True) == pytest.approx(1 / 1.01, abs=0.005)
    assert efficiency(chunks, 0.0, 20, trouble=True) == pytest.approx(19.5 / 20 / 1.01, abs=0.005)


@pytest.mark.parametrize("name", NEED_DATA)
def test_without_data_a_script_says_what_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "minilm":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit) as stopped:
        loaded(name).main()
    assert stopped.value.code == 2
    assert "--quick" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_short_and_say_what_they_do(name: str) -> None:
    text = (GALLERY / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    assert text.startswith("# %% [markdown]") or ast.get_docstring(ast.parse(text))


def test_what_is_rendered_is_small_and_of_a_script() -> None:
    for path in (GALLERY / "results").iterdir():
        assert path.stem in SCRIPTS
        assert path.suffix in (".txt", ".png", ".svg")
        assert path.stat().st_size < 100_000


def test_the_notebook_is_that_of_the_script() -> None:
    pytest.importorskip("nbformat")
    module = loaded("notebook")
    script = (GALLERY / "digits.py").read_text(encoding="utf-8")
    kept = (GALLERY / "digits.ipynb").read_text(encoding="utf-8")
    assert kept == module.notebook_of(script), "run python gallery/notebook.py"
    cells = json.loads(kept)["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(script))
