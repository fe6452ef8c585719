"""`shaprune doctor` tells what is wrong and the next step; shells complete commands and options."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from shaprune.cli import environment
from shaprune.cli.app import app
from shaprune.cli.environment import about_threads, checked, cores, gpus, requirements

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = {"": [Requirement("numpy>=2.0"), Requirement("rich>=13")], "plotly": [Requirement("plotly>=5")]}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few packages, so that little is imported; test_package.py looks at all of them."""
    monkeypatch.setattr(environment, "requirements", lambda: {extra: list(some) for extra, some in FEW.items()})


def diagnosis(code: int) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["doctor", "--json"], prog_name="shaprune")
    assert result.exit_code == code, (result.stdout, result.stderr)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_sound_environment() -> None:
    found = diagnosis(0)
    assert found["problems"] == []
    assert found["shaprune"]
    assert found["python"] == sys.version.split()[0]
    assert found["threads"] == 1
    assert found["cores"] >= 1
    assert [p["name"] for p in found["dependencies"]] == ["numpy", "rich"]
    assert all(p["installed"] for p in found["dependencies"])
    assert found["extras"]["plotly"]["state"] == "present"
    shown = CliRunner().invoke(app, ["doctor"], prog_name="shaprune").stdout
    assert "numpy" in shown
    assert "plotly" in shown


def test_an_absent_extra_is_no_problem_and_a_missing_dependency_is(monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment.version_of
    monkeypatch.setattr(environment, "version_of", lambda name: None if name == "plotly" else real(name))
    found = diagnosis(0)
    assert found["extras"]["plotly"]["state"] == "absent"
    assert found["extras"]["plotly"]["install"] == "pip install 'shaprune[plotly]'"
    monkeypatch.setattr(environment, "version_of", lambda name: None if name == "rich" else real(name))
    (problem,) = diagnosis(1)["problems"]
    assert problem == {"what": "rich: missing, and >=13 is needed", "next": "pip install --upgrade 'rich>=13'"}


def test_what_is_too_old_or_cannot_be_imported_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "version_of", lambda name: "1.26.4" if name == "numpy" else "99.0")
    monkeypatch.setitem(sys.modules, "plotly", None)
    old, broken = diagnosis(1)["problems"]
    assert old == {
        "what": "numpy: version 1.26.4, and >=2.0 is needed",
        "next": "pip install --upgrade 'numpy>=2.0'",
    }
    assert "plotly: installed, and cannot be imported (ModuleNotFoundError" in broken["what"]
    assert broken["next"] == "pip install --upgrade 'shaprune[plotly]'"
    shown = CliRunner().invoke(app, ["doctor"], prog_name="shaprune").stdout
    assert "wrong: numpy" in shown
    assert "next: pip install" in shown


def test_a_build_for_a_device_is_the_version_that_it_says() -> None:
    assert checked(Requirement("torch>=2.4")).usable  # 2.x+cpu, 2.x+cu126


def test_the_requirements_are_those_of_the_package() -> None:
    found = requirements()
    assert {need.name for need in found[""]} >= {"torch", "torch-pruning", "numpy", "typer"}
    assert {need.name for need in found["onnx"]} == {"onnx", "onnxscript", "onnxruntime"}
    assert "dev" not in found


def test_threads_that_wait_for_each_other_are_told() -> None:
    assert about_threads(1, 2, busy=5.0) is None
    assert about_threads(4, 8, busy=0.5) is None
    many = about_threads(16, 2, busy=0.0)
    assert many is not None
    assert many.next == "export OMP_NUM_THREADS=2"
    busy = about_threads(2, 2, busy=1.7)
    assert busy is not None
    assert "OMP_NUM_THREADS=1" in busy.next
    assert 1 <= cores() <= (os.cpu_count() or 1)


def pretended(available: bool, cuda: str | None) -> Any:
    gpu = SimpleNamespace(name="H1", total_memory=80 * 2**30)
    device = SimpleNamespace(
        is_available=lambda: available, device_count=lambda: 2, get_device_properties=lambda i: gpu
    )
    return SimpleNamespace(cuda=device, version=SimpleNamespace(cuda=cuda), __version__="2.9.0")


def test_a_gpu_that_torch_cannot_use_is_told() -> None:
    found, trouble = gpus(pretended(True, "12.6"))
    assert [gpu.name for gpu in found] == ["H1", "H1"]
    assert trouble is None
    assert gpus(pretended(False, None), driver=False) == ([], None)
    _, trouble = gpus(pretended(False, None), driver=True)
    assert trouble is not None
    assert "built without CUDA" in trouble.what
    _, trouble = gpus(pretended(False, "12.6"), driver=True)
    assert trouble is not None
    assert "cannot use the GPU" in trouble.what


# --- completion ---


def completed(line: str, shell: str = "bash") -> list[str]:
    """What a shell offers at the end of a line."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
    done = subprocess.run(
        [sys.executable, "-c", "from shaprune.cli import main; main()"],
        env=os.environ | asked | {"_SHAPRUNE_COMPLETE": f"complete_{shell}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_shells_complete_commands_options_and_names() -> None:
    assert {"score", "sensitivity"} <= set(completed("shaprune s"))
    assert "--max-evaluations" in completed("shaprune score --max")
    assert {"curves", "oracle"} <= set(completed("shaprune bench "))
    assert set(completed("shaprune score --worth cross")) == {"cross_entropy"}
    assert "reconstruction" in completed("shaprune score --method re")


def test_the_script_for_a_shell_is_printed_and_bash_takes_it(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    shown = subprocess.run(
        [sys.executable, "-c", "from shaprune.cli import main; main()", "--show-completion", "bash"],
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    script = tmp_path / "completion.sh"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    script.write_text(
        shown.stdout + 'COMP_WORDS=(shaprune dem); COMP_CWORD=1; _shaprune_completion shaprune; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run([bash, script], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["demo"]


def test_completion_is_installed_into_the_home_of_the_user(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from shaprune.cli import main; main()", "--install-completion", "bash"],
        env=os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "shaprune" in (tmp_path / ".bashrc").read_text()
    assert (tmp_path / ".bash_completions" / "shaprune.sh").exists()
