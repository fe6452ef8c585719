"""Pages that commands write or serve, in a real Chromium: the demo's report, and a run that is watched."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testkit.browsing import NEEDS_A_BROWSER, chromium, pages
from testkit.reported import Residual, curves_of, made_up

import shaprune as sp
from shaprune.builtin.demo_recipes import RECIPES
from shaprune.cli.demo_run import ARTIFACTS, run_demo
from shaprune.runs.journal import JOURNAL_FILE, Journal

pytestmark = [NEEDS_A_BROWSER, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@contextmanager
def watching(run: Path) -> Iterator[str]:
    """The address at which ``shaprune report --watch`` shows a run."""
    command = [
        sys.executable,
        "-c",
        "from shaprune.cli import main; main()",
        "report",
        str(run),
        "--watch",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.match(r"(http://127\.0\.0\.1:\d+/) ", process.stderr.readline())
            assert found is not None
            yield found[1]
        finally:
            process.terminate()


def test_the_demo_writes_a_report_with_a_slider(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "digits", replace(RECIPES["digits"], epochs=1))
    told: list[str] = []
    done = run_demo(out=tmp_path / "demo", say=told.append)
    file = done.artifacts["report"]
    assert file.stat().st_size < 8e6
    assert not [line for line in told if "plotly" in line]
    with pages(browser) as open_page:
        seen = open_page(file.as_uri())
        seen.drawn()
        assert seen.page.title() == "digits on digits, pruned"
        for name in ("values", "frontier", "sensitivity", "removal", "error"):
            assert seen.page.locator(f"#plot-{name} svg.main-svg").count() > 0, name
        plan = sp.Plan.load(done.artifacts["plan"])
        assert seen.saved()["kept"] == plan.to_json()["kept"]  # it opens with the demo's own plan
        predicted = "document.getElementById('plot-frontier').data.find((t) => t.name === 'predicted').x.length"
        assert seen.page.evaluate(predicted) > 20  # of all sizes, not of the plan alone
        before = float(seen.text("quality"))
        assert before == pytest.approx(done.measurements["pruned"].accuracy, abs=0.1)
        assert seen.text("n-macs").startswith(f"{done.measurements['pruned'].macs:,} (")
        seen.slide(250)
        scores = sp.Scores.load(done.artifacts["values"])
        theirs = sp.plan(scores, sp.Budget(macs=0.25))
        assert seen.exported() == theirs.to_json()
        assert float(seen.text("quality")) < before
    assert set(json.loads((tmp_path / "demo" / ARTIFACTS["curves"]).read_text())["curves"]) == set(scores)


def test_a_page_follows_the_journal_of_a_run_and_ends_with_its_report(browser: Any, tmp_path: Path) -> None:
    run = tmp_path / "run <b>1"
    run.mkdir()
    with torch.random.fork_rng(devices=[]):
        scores = made_up(sp.find_players(Residual().eval(), torch.randn(2, 1, 8, 8)))
    with watching(run) as url, pages(browser, url) as open_page:
        seen = open_page(url)
        seen.page.get_by_text("Nothing has been computed yet.").wait_for()
        seen.page.get_by_role("heading", name="run <b>1: scoring").wait_for()
        journal = Journal.open(run / JOURNAL_FILE, {"weights": "none"})
        for answer in (1, 2):
            journal.put("conv1", bytes([answer]), np.zeros(3), evaluations=100, seconds=1.0)
            told = f"not finished, {answer} answers, {100 * answer} evaluations"
            seen.page.get_by_text(told).wait_for()  # nobody pressed anything
        journal.note("finished", True)
        journal.close()
        curves_of(scores).save(run / "curves.json")
        scores.save(run / "values.json")
        seen.page.locator("#budget").wait_for()
        seen.drawn()
        seen.slide(500)
        assert seen.exported() == sp.plan(scores, sp.Budget(macs=0.5)).to_json()
        assert seen.asked.count(url) > 3
