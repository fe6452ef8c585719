"""The README's Python runs as written in an empty folder, its commands exist, and its links lead somewhere."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from pipeline_figure import FILE, pipeline_svg
from testkit.snippets import blocks_of, run_python

import shaprune as sp

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.usefixtures("one_thread")
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block, transformer = blocks_of(README)
    names: dict[str, object] = {}
    assert "macs:" in run_python(block, README, names)
    assert len([line for line in block.text.splitlines() if line]) <= 10
    model, result, images = names["model"], names["result"], names["images"]
    again = sp.load(tmp_path / "small", lambda: model)  # type: ignore[arg-type,return-value]
    with torch.no_grad():
        assert torch.equal(again(images), result.model.eval()(images))  # type: ignore[attr-defined]
    assert again[0].out_channels < 32  # type: ignore[index]
    pytest.importorskip("transformers")
    run_python(transformer, README, names)
    assert len([line for line in transformer.text.splitlines() if line and "import" not in line]) <= 5
    assert names["small"].num_parameters() < names["bert"].num_parameters()  # type: ignore[attr-defined]


def test_the_picture_is_what_its_script_makes() -> None:
    assert FILE.read_text(encoding="utf-8") == pipeline_svg(), "run python benchmarks/pipeline_figure.py"
    picture = ElementTree.fromstring(pipeline_svg())
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert [name for name in texts if name in sp.__all__] == ["find_players", "score", "plan", "prune", "recover"]


def test_the_table_has_a_baseline_beside_every_result() -> None:
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert head == ["", "shaprune", "baseline"]
    assert len(rows) > 5
    assert all(re.search(r"\d", ours) and re.search(r"\d", baseline) for _, ours, baseline in rows)


def test_the_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    commands = re.findall(r"^    (\S.*?)(?:\s+#.*)?$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert commands == ["make demo", "make test"]
    targets = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{command.split()[1]}:", targets, flags=re.MULTILINE) for command in commands)


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) > 10
    missing = [link for link in links if not (README.parent / link).exists()]
    assert not missing
