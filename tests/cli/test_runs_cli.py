"""Runs on the command line: dry run, resume, shards and merge, the list of runs, values as files."""

import csv
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.torch import save_file
from typer.testing import CliRunner

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.cli import heartbeat
from shaprune.cli.app import app
from shaprune.logs.progress import RunProgress
from shaprune.runs.journal import Journal
from shaprune.runs.merge_shards import find_runs
from shaprune.values.games.game import Question

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a small network, untrained, and few data."""
    weights = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(build_model("digits").state_dict(), weights)
    few = ["--examples", "20", "--include", "conv1", "--include", "fc*", "--max-evaluations", "2000"]
    return ["--model", "digits", "--weights", str(weights), "--data", "digits", *few]


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="shaprune")
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def loaded(*arguments: object) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def values(path: Path) -> dict[str, list[float]]:
    return {name: v.value.tolist() for name, v in sp.Scores.load(path).items()}


def test_a_dry_run_tells_the_cost_and_writes_nothing(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cost = loaded("score", *named, "--dry-run", "--run", "r")
    assert list(tmp_path.iterdir()) == []
    paid = loaded("score", *named, "--out", "s")
    assert paid["n_evaluations"] <= cost["evaluations"] <= 4_000
    assert cost["seconds"] > 0
    assert [group["name"] for group in cost["groups"]] == [group["name"] for group in paid["groups"]]
    assert "evaluations, about" in run("score", *named, "--dry-run").stdout
    told = run("score", *named, "--method", "exact", "--dry-run", code=1).stderr
    assert "2^" in told or "players" in told
    assert "plays no game" in run("score", *named, "--method", "taylor", "--dry-run", code=2).stderr


def test_a_run_is_listed_resumed_and_exported(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = loaded("score", *named, "--out", "s")
    first = run("score", *named, "--run", "runs/a")
    assert "expected: " in first.stderr
    assert values(tmp_path / "runs/a/values.json") == values(tmp_path / "s/values.json")
    (tmp_path / "runs/a/values.json").unlink()
    assert "the run has not finished" in run("export-values", "runs/a", "--out", "v.csv", code=1).stderr
    assert "runs/b is no folder of a run" in run("export-values", "runs/b", "--out", "v.csv", code=1).stderr
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the paths of the command are kept whole
    again = loaded("resume", "../runs/a")
    assert again["n_evaluations"] == plain["n_evaluations"]
    monkeypatch.chdir(tmp_path)
    assert values(tmp_path / "runs/a/values.json") == values(tmp_path / "s/values.json")
    (listed,) = loaded("runs")["runs"]
    assert (listed["run"], listed["state"], listed["failures"]) == ("runs/a", "finished", [])
    assert listed["evaluations"] == plain["n_evaluations"]
    run("export-values", "runs/a", "--out", "v.csv")
    with (tmp_path / "v.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows if row["group"] == "conv1"] == values(tmp_path / "s/values.json")[
        "conv1"
    ]
    run("export-values", "runs/a", "--out", "v.json")
    assert values(tmp_path / "v.json") == values(tmp_path / "s/values.json")
    assert "exists" in run("export-values", "runs/a", "--out", "v.json", code=2).stderr
    assert "no known ending" in run("export-values", "runs/a", "--out", "v.txt", code=2).stderr
    assert "differs in seed (0 there, 4 here)" in run("score", *named, "--seed", 4, "--run", "runs/a", code=1).stderr
    assert "finished" in run("runs").stdout


def test_shards_are_merged_to_the_values_of_the_whole(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("score", *named, "--out", "s")
    run("score", *named, "--run", "r", "--shard", "1/2")
    assert "2/2 of r is missing" in run("merge", "r", code=1).stderr
    assert "shaprune merge r" in run("score", *named, "--run", "r", "--shard", "2/2").stdout
    assert [row["part"] for row in loaded("runs", "r")["runs"]] == ["1-of-2", "2-of-2"]
    run("merge", "r")
    assert values(tmp_path / "r/values.json") == values(tmp_path / "s/values.json")


def test_what_cannot_be_used_is_refused(named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--out or --run" in run("score", *named, code=2).stderr
    assert "write i/n" in run("score", *named, "--run", "r", "--shard", "0/2", code=2).stderr
    assert "leaves its answers" in run("score", *named, "--out", "s", "--shard", "1/2", code=2).stderr
    assert "make the same call" in run("resume", tmp_path, code=1).stderr
    assert "no folder" in run("runs", code=1).stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--run r --shard 1/2 --stop stderr_below(1)", "drop mode and stop"),
        ("--run r --shard 1/2 --precision auto", "name one instead of 'auto'"),
        ("--run r --worth-log w", "a run keeps all worths"),
        ("--workers 2 --out s --layers output-to-input", "a run keeps all worths"),
        ("--run file", "is a file; name a folder"),
        ("--out s --precision bfloat", "did you mean 'bfloat16'"),
        ("--out s --method taylor --precision auto", "drop --precision"),
        ("--run r --method taylor", "drop --run"),
        ("--out s --method taylor --concept banzhaf", "drop --concept"),
        ("--out s --method taylor --together", "drop --together"),
        ("--out s --method taylor --window 0,1", "drop --window"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("shaprune.cli.inputs.read_model", None)
    (tmp_path / "file").touch()
    assert message in run("score", *named[:-2], *options.split(), code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_people_are_told_what_the_values_note(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--budget", "players=0.8", "--recover", "none", *named]
    for options in (["score", *named, "--out", "s"], ["compress", *small, "--out", "c"]):
        assert "rows were run in bfloat16\n" in run(*options, "--precision", "bfloat16").stdout


def interrupted_after(calls: int, patched: Any) -> Any:
    """A method that works so often, and then is interrupted."""
    left = [calls]

    def method(*given: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return patched(*given, **options)

    return method


@pytest.mark.parametrize("part", [[], ["--shard", "1/2"]], ids=str)
def test_an_interrupt_says_what_is_kept_and_how_to_go_on(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: list[str]
) -> None:
    whole = run("score", *named, "--out", tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "put", interrupted_after(1, Journal.put))
        told = run("score", *named, "--run", "r", *part, code=1).stderr
    paid = find_runs(tmp_path / "r")[0]
    assert (paid.answers, paid.finished) == (1, False)
    assert f"interrupted; 1 answers ({paid.evaluations:,} evaluations) are kept in r; " in told
    assert "nothing was written" not in told
    if part:
        assert told.endswith("the same command goes on there\n")
        return
    assert told.endswith("`shaprune resume r` goes on there\n")
    run("resume", "r")
    assert values(tmp_path / "r" / "values.json") == values(tmp_path / "s" / "values.json")
    assert whole.exit_code == 0


def test_an_interrupt_before_any_answer_and_without_a_run(
    named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "put", interrupted_after(0, Journal.put))
        told = run("score", *named, "--run", "r", code=1).stderr
        assert told.endswith("interrupted; nothing was computed yet for r; the same command begins again\n")
    asks = ["score", *named, "--method", "leave-one-out", "--out", "s"]
    with monkeypatch.context() as patched:
        patched.setattr(sp.NetworkGame, "__call__", interrupted_after(1, sp.NetworkGame.__call__))
        told = run(*asks, "--worth-log", "w", code=1).stderr
        assert told.endswith("interrupted; worths that were paid are kept in w; the same command goes on with them\n")
        told = run(*asks, code=1).stderr
        assert told.endswith("interrupted; nothing was written\n")
    assert not (tmp_path / "s").exists()


class Heard(io.StringIO):
    """A stream that is no terminal, and tells when a line of the heartbeat has come."""

    def __init__(self) -> None:
        super().__init__()
        self.beat = threading.Event()

    def write(self, text: str) -> int:
        if text.startswith("[0:"):
            self.beat.set()
        return super().write(text)


def test_lines_say_how_far_it_is_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    board = RunProgress()
    board.opens({"conv1": 100, "fc": 300})
    board.begins("conv1", 3)
    board.answered("conv1", Question(np.zeros((50, 3), dtype=bool)), np.zeros(50), 50)
    assert board.line().startswith("50 of 400 evaluations, 0:0")
    assert board.line().endswith(" left; 0 of 2 games done, now conv1")
    heard = Heard()
    monkeypatch.setattr("sys.stderr", heard)
    monkeypatch.setattr(heartbeat, "EVERY", 0.0)
    with heartbeat.beating():
        heartbeat.say("measuring ...")
        heard.beat.wait()
        with heartbeat.detailed(board.line):
            assert "50 of 400 evaluations" in heartbeat.line(75)
    assert heartbeat.line(75) == "[1:15] measuring"
    assert not [thread for thread in threading.enumerate() if thread.name == "shaprune-heartbeat"]
    heard.isatty = lambda: True  # type: ignore[method-assign]
    written = heard.getvalue()
    with heartbeat.beating():
        assert not [thread for thread in threading.enumerate() if thread.name == "shaprune-heartbeat"]
    assert heard.getvalue() == written
