"""The README's Python runs as written, in order, in an empty folder."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.usefixtures("one_thread")
def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
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
