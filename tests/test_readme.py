"""The README's Python and its commands run as written, in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.usefixtures("one_thread")
def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "macs:" in printed
    assert "[0.66666667 0.16666667 0.16666667]" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "values.json"]
    small, again = names["small"], names["again"]
    images = names["images"]
    assert (small.eval()(images) == again(images)).all()  # type: ignore[attr-defined,operator]


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    commands = re.findall(r"^    (shaprune .*)$", README.read_text(), flags=re.MULTILINE)
    assert [c.split()[1] for c in commands] == ["demo", "score", "plan", "prune", "evaluate", "report"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    for command in commands:
        done = subprocess.run(command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "small" / "manifest.json").exists()
