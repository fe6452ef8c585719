"""The documentation: what its pages say runs, its numbers are measured, its links hold, it builds without warnings."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testkit.snippets import blocks_of, run_page
from torch import nn

import shaprune as sp
from shaprune.builtin.demo_recipes import RECIPES
from shaprune.deploy import measure
from shaprune.deploy.measure import Latency
from shaprune.pipeline import search

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MEASURED = re.compile(r"^<!-- measured: ([\w., -]+) -->\n\n((?:\|.*\n)+)", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])(\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)( %)?")
SHORT = 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the whole model is run for every coalition")  # models of transformers, forward=
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_shows_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in (measure, search):
        monkeypatch.setattr(module, "latency", _by_work)
    monkeypatch.setitem(RECIPES, "digits", replace(RECIPES["digits"], epochs=1))  # of the demo
    if "transformers" in page.name:
        pytest.importorskip("transformers")
    before = set(sys.modules)
    try:
        run_page(page, tmp_path)
    finally:
        for name in set(sys.modules) - before:
            if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
                del sys.modules[name]  # another page may have a file of that name


def _by_work(models: Mapping[str, nn.Module], inputs: Any, **_: Any) -> dict[str, Latency]:
    """Latency as 1 ns per multiply-add: whether a page's budget holds does not depend on how busy the machine is."""
    times = {name: measure.count(model, inputs)[1] / 1e6 for name, model in models.items()}
    return {name: Latency(t, t, t, examples=len(inputs)) for name, t in times.items()}


def _leaves(tree: object) -> Iterator[float]:
    """Numbers of a result; long lists (curves, values of every player) are left out, they hold nearly any number."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from (float(number) for number in re.findall(r"\d+(?:\.\d+)?", key))
            yield from _leaves(value)
    elif isinstance(tree, list) and len(tree) <= SHORT:
        for value in tree:
            yield from _leaves(value)
    elif isinstance(tree, (int, float)):
        yield float(tree)


def _under(tree: object, key: str) -> Iterator[object]:
    """What stands under a key, wherever it occurs."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from [value] if name == key else _under(value, key)


def _tables() -> list[tuple[str, str, str]]:
    return [(str(p.relative_to(DOCS)), m[1], m[2]) for p in PAGES for m in MEASURED.finditer(p.read_text())]


@pytest.mark.parametrize(("page", "files", "table"), _tables())
def test_numbers_of_measured_tables_stand_in_the_results(page: str, files: str, table: str) -> None:
    """Where the first column is a name in the results (an estimator, a layer), only what stands under it counts."""
    results = [
        json.loads((ROOT / "benchmarks" / "results" / name).read_text())["results"] for name in files.split(", ")
    ]
    for row in table.splitlines()[2:]:
        name, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        about = [part for result in results for part in _under(result, name.strip("`*"))] or results
        found = np.array([number for part in about for number in _leaves(part)])
        for cell in cells:
            for text, percent in NUMBER.findall(cell):
                number, digits = float(text.replace(",", "")), len(text.partition(".")[2])
                distance = np.abs(found * (100 if percent else 1) - number).min()
                assert distance <= 0.5001 * 10**-digits, f"{page}: {text} in {row!r} stands in none of {files}"


def test_all_measured_tables_are_checked() -> None:
    """A marker with a typing error would leave its table unchecked."""
    pages = [page for page, _, _ in _tables()]
    assert {page: pages.count(page) for page in pages} == {
        "benchmarks.md": 27,
        "concepts/game.md": 1,
        "how-to/low-data.md": 2,
        "how-to/transformers.md": 1,
        "methods.md": 5,
    }


def _not_public(paths: Iterable[str]) -> set[str]:
    """Of dotted paths below shaprune those that are neither a public name nor in a public namespace."""
    names = {*sp.__all__, "__version__", "__all__"}
    spaces = {name: {*getattr(sp, name).__all__} for name in dir(sp) if name not in sp.__all__}

    def public(path: str) -> bool:
        head, _, rest = path.partition(".")
        return head in names if head in names or not rest else rest.partition(".")[0] in spaces.get(head, ())

    return {path for path in paths if not public(path) and path not in spaces}


def _named_in(page: Path) -> set[str]:
    """What a page imports from shaprune, reads from ``sp``, or shows in the reference, without ``shaprune.``."""
    text = page.read_text(encoding="utf-8")
    found = set(re.findall(r"^::: shaprune\.([\w.]+)$", text, re.MULTILINE))
    found |= set(re.findall(r"\bsp\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?)", text))
    for block in blocks_of(page):
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "shaprune":
                    found |= {f"{node.module}.{alias.name}".partition(".")[2] for alias in node.names}
                elif isinstance(node, ast.Import):
                    heads = (alias.name.partition(".") for alias in node.names)
                    found |= {rest for head, _, rest in heads if head == "shaprune" and rest}
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_pages_name_only_what_is_public(page: Path) -> None:
    if page.name != "changelog.md":
        assert _not_public(_named_in(page)) == set()


def test_what_is_not_public_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "::: shaprune.values.concepts\n`sp.metrics.nothing`, `sp.Budget.limits`\n```python\nimport shaprune.pipeline\n"
        "from shaprune.values.stopping import seconds\nfrom shaprune.stopping import seconds\n```\n"
    )
    assert _not_public(_named_in(page)) == {
        "values.concepts",
        "metrics.nothing",
        "pipeline",
        "values.stopping.seconds",
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; warnings (broken links, anchors, pages outside the navigation) are errors."""
    for module, package in (("mkdocs", "mkdocs-material"), ("mkdocstrings", "mkdocstrings")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{package} is not installed (pip install 'shaprune[docs]')")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_every_page_and_fetches_nothing(site: Path) -> None:
    for page in PAGES:
        html = (site / page.relative_to(DOCS).with_suffix(".html")).read_text()
        fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=\"(https?:[^\"]+)", html)
        fetched += re.findall(r"<link[^>]+rel=\"(?:stylesheet|preconnect|icon)\"[^>]+href=\"(https?:[^\"]+)", html)
        assert fetched == []


@pytest.mark.parametrize("name", sp.__all__)
def test_every_public_name_is_in_the_reference(site: Path, name: str) -> None:
    anchor = f'id="shaprune.{name}"'
    assert any(anchor in page.read_text() for page in (site / "api").glob("*.html"))
