"""Watching a run: the board, the table on a terminal, the logs, and the page on 127.0.0.1."""

import http.client
import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import save_file
from typer.testing import CliRunner

import shaprune as sp
from shaprune.builtin.models import build_model
from shaprune.cli.app import app
from shaprune.cli.live_table import live_table
from shaprune.errors import InputError
from shaprune.logs.progress import RunProgress
from shaprune.logs.sinks import PROGRESS_FILE, JsonLines, check_sink, open_sink
from shaprune.report.live_page import Page, latest_progress, server, status_page
from shaprune.values.games.game import Question
from shaprune.values.games.observers import GameObserver, ReportingGame
from shaprune.values.rescoring import estimate_in_rounds
from shaprune.values.result import Values

WEIGHTS = np.array([4.0, 3.0, 2.0, 1.0])


class Kept:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, dict[str, float]]] = []

    def write(self, group: str, step: int, numbers: dict[str, float]) -> None:
        self.lines.append((group, step, dict(numbers)))

    def close(self) -> None:
        pass


def additive() -> sp.Game:
    return sp.Game.from_function(lambda kept: kept @ WEIGHTS, n_players=4)


def play(watcher: GameObserver, name: str = "conv1", budget: int = 100) -> Values:
    """Score one game under the eyes of a watcher, as `sp.score` does."""
    watcher.begins(name, 4)
    seen = ReportingGame(additive(), lambda *answer: watcher.answered(name, *answer))
    values = sp.estimate(seen, "permutation", max_evaluations=budget, seed=0)
    watcher.ends(name, values)
    return values


# --- the board ---


def test_a_watched_game_answers_as_it_would_alone() -> None:
    assert play(RunProgress()).value.tolist() == sp.estimate(additive(), max_evaluations=100, seed=0).value.tolist()
    heard: list[int] = []
    seen = ReportingGame(additive(), lambda question, worths, evaluations: heard.append(evaluations))
    values = estimate_in_rounds(seen, "iterated", "exact")
    assert sum(heard) == values.n_evaluations


def test_the_board_follows_walks_and_ends_with_the_estimate() -> None:
    board = RunProgress()
    board.opens({"conv1": 100})
    board.begins("conv1", 4)
    orders = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    question = Question(orders, walks=True)
    board.answered("conv1", question, question.of(additive()), 10)
    (row,) = board.rows()
    assert (row["group"], row["step"], row["players"], row["done"]) == ("conv1", 10, 4, 0.0)
    assert (row["least"], row["mean"], row["most"], row["cut"]) == (1.0, 2.5, 4.0, 2.5)
    assert row["undecided"] == 0
    values = play(board)
    (row,) = board.rows()
    assert row["done"] == 1.0
    assert row["mean"] == values.value.mean()
    assert row["step"] == values.n_evaluations == board.evaluations


def test_players_whose_interval_holds_the_cut_are_undecided() -> None:
    board = RunProgress(share=0.5)
    board.begins("a", 4)
    errors = np.array([0.1, 0.3, 0.1, 0.1])
    board.ends("a", Values(WEIGHTS, errors, 10, "exact", 0.0, "done", 10.0, 0.0, np.ones(4, dtype=np.int64)))
    assert board.rows()[0]["undecided"] == 1  # 3 +- 0.6 holds 2.5, 2 +- 0.2 does not


def test_values_that_are_not_known_yet_are_left_out() -> None:
    board = RunProgress(follow=False)
    board.begins("a", 4)
    question = Question(np.array([[0, 1, 2, 3]]), walks=True)
    board.answered("a", question, question.of(additive()), 5)
    assert set(board.rows()[0]) == {"group", "step", "players", "done"}
    board = RunProgress()
    board.begins("a", 4)
    board.answered("a", question, question.of(additive()), 5)
    assert "stderr" not in board.rows()[0]  # one walk has none, and it is not infinite


def test_the_remaining_time_is_told_by_the_pace() -> None:
    clock = [0.0]
    board = RunProgress(now=lambda: clock[0])
    board.opens({"a": 10, "b": 20})
    board.begins("a", 4)
    assert board.remaining() is None
    question = Question(np.ones((10, 4), dtype=bool))
    clock[0] = 5.0
    board.answered("a", question, question.of(additive()), 10)
    assert board.remaining() == pytest.approx(10.0)
    board.opens({"a": 10, "b": None})
    assert board.remaining() is None


def test_logs_are_told_at_most_once_a_second_and_at_the_end() -> None:
    clock, kept = [0.0], Kept()
    board = RunProgress([kept], now=lambda: clock[0])
    board.begins("a", 4)
    question = Question(np.ones((1, 4), dtype=bool))
    for second in (0.0, 0.5, 0.9, 1.5):
        clock[0] = second
        board.answered("a", question, question.of(additive()), 1)
    assert [step for _, step, _ in kept.lines] == [1, 4]
    board.ends("a", sp.estimate(additive(), "exact"))
    assert kept.lines[-1][2]["done"] == 1.0


# --- the table and the logs ---


def test_the_table_on_a_terminal() -> None:
    told = io.StringIO()
    board = RunProgress()
    board.opens({"conv1": 100, "fc[1]": 100})
    with live_table(board, Console(file=told, force_terminal=True, width=120)):
        play(board)
        play(board, "fc[1]")
    text = told.getvalue()
    for word in ("conv1", "fc[1]", "undecided", "1 .. 4", "2.5", "evaluations, 0:00 left"):
        assert word in text


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        sink = open_sink(f"jsonl:{path}")
        sink.write("conv1", 10, {"mean": 0.5})
        sink.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 2
    assert (lines[0]["group"], lines[0]["step"], lines[0]["mean"]) == ("conv1", 10, 0.5)
    with pytest.raises(InputError, match="cannot be written"):
        JsonLines(tmp_path / "nowhere" / "log.jsonl")
    with pytest.raises(InputError, match="did you mean 'jsonl'"):
        check_sink("json:x")


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = open_sink(f"tensorboard:{tmp_path}")
    sink.write("conv1", 10, {"mean": 0.5})
    sink.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Scalars("conv1/mean")
    assert (event.step, event.value) == (10, 0.5)


def test_mlflow_has_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    sink = open_sink(f"mlflow:{tmp_path}")
    sink.write("layer[0]", 10, {"mean": 0.5})
    sink.close()
    client = tracking.MlflowClient(str(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("shaprune").experiment_id])
    assert run.info.status == "FINISHED"
    (metric,) = client.get_metric_history(run.info.run_id, "layer_0_/mean")
    assert (metric.step, metric.value) == (10, 0.5)


@pytest.mark.usefixtures("one_thread")
def test_score_writes_its_logs_and_the_progress_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(build_model("digits").state_dict(), "w.safetensors")
    command = ["score", "--model", "digits", "--weights", "w.safetensors", "--data", "digits", "--examples", "20"]
    command += ["--include", "fc1", "--max-evaluations", "2000", "--run", "run", "--log", "jsonl:log.jsonl", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    (group,) = json.loads(result.stdout)["groups"]
    (row,) = latest_progress(tmp_path / "log.jsonl")
    assert (row["group"], row["step"], row["done"]) == ("fc1", group["n_evaluations"], 1.0)
    assert row["mean"] == pytest.approx(group["mean"])
    (other,) = latest_progress(tmp_path / "run" / PROGRESS_FILE)
    assert other | {"time": 0} == row | {"time": 0}


# --- the page ---


@contextmanager
def served(page: Page) -> Iterator[int]:
    with server(page, 0) as serving:
        thread = Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield serving.server_address[1]
        finally:
            serving.shutdown()
            thread.join()


def asked(port: int, path: str = "/", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers={"Host": f"{host}:{port}"})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_the_page_follows_a_run_and_ends_with_its_report(tmp_path: Path) -> None:
    with served(Page(tmp_path, lambda: "<p>the report</p>")) as port:
        status, html = asked(port)
        assert status == 200
        assert "Nothing has been computed yet." in html
        assert '<meta http-equiv="refresh"' in html
        sink = JsonLines(tmp_path / PROGRESS_FILE)
        play(RunProgress([sink]), "layer<1>")
        sink.close()
        html = asked(port)[1]
        assert "layer&lt;1&gt;" in html
        assert "1 .. 4" in html
        assert "done" in html
        (tmp_path / "values.json").write_text("{}")
        assert asked(port) == (200, "<p>the report</p>")


def test_only_this_machine_and_only_the_page(tmp_path: Path) -> None:
    with server(Page(tmp_path, str), 0) as serving:
        assert serving.server_address[0] == "127.0.0.1"
    with served(Page(tmp_path, str)) as port:
        assert asked(port, "/favicon.ico") == (204, "")
        assert asked(port, "/favicon.ico", host="evil.example")[0] == 404
        assert asked(port, "/values.json")[0] == 404
        assert asked(port, "/../../etc/passwd")[0] == 404
        assert asked(port, host="evil.example")[0] == 404
        assert asked(port, host="localhost")[0] == 200


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} is in use; choose another"):
            server(Page(tmp_path, str), port)
        result = CliRunner().invoke(app, ["report", str(tmp_path), "--watch", "--port", str(port)])
        assert result.exit_code == 2
        assert "is in use" in result.stderr


def test_a_report_that_cannot_be_drawn_is_told_on_the_page(tmp_path: Path) -> None:
    def damaged() -> str:
        raise InputError("values.json is <damaged>")

    (tmp_path / "values.json").write_text("{")
    assert "values.json is &lt;damaged&gt;" in Page(tmp_path, damaged).html()


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    lines = ['{"group": "a", "step": 1}', '{"group": "a", "step": 2, "players": 3}', "[1]", '{"group": "b", "st']
    (tmp_path / PROGRESS_FILE).write_text("\n".join(lines))
    assert latest_progress(tmp_path / PROGRESS_FILE) == [{"group": "a", "step": 2, "players": 3}]
    assert latest_progress(tmp_path / "nowhere") == []
    (tmp_path / "journal.sqlite").write_bytes(b"no database" * 100)
    assert "journal.sqlite: unreadable" in status_page(tmp_path)
    assert f"{tmp_path.name}/journal.sqlite: unreadable" in status_page(tmp_path.parent)  # a folder of runs


def test_watching_is_refused_where_it_means_nothing(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300"})
        assert result.exit_code == 2
        return result.stderr

    (tmp_path / "values.json").write_text("{}")
    assert "--watch needs the folder of a run" in told("report", str(tmp_path / "values.json"), "--watch")
    assert "writes no file" in told("report", str(tmp_path), "--watch", "--out", "x.html")
    assert "--curves" in told("report", str(tmp_path), "--watch", "--curves", str(tmp_path / "values.json"))
    assert "name a folder or a file" in told("report", str(tmp_path))
    score = ["score", "--model", "digits", "--data", "digits", "--out", "s"]
    assert "did you mean 'jsonl'" in told(*score, "--log", "jsn")
    assert "plays no game" in told(*score, "--method", "taylor", "--log", "jsonl")
