"""Workers: the same bits for any number of them, losses are made good, what a user's code raises is final."""

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testkit.games import game_of, random_worth
from testkit.networks import NETWORKS
from testkit.options import scoring
from torch import Tensor, nn

import shaprune as sp
from shaprune.runs.executed_games import ExecutedGame, GameInPieces
from shaprune.runs.executor import Answer, InProcess, Journaled
from shaprune.runs.journal import Journal
from shaprune.runs.merge_shards import find_runs
from shaprune.runs.ray_workers import connect_ray
from shaprune.runs.work_queue import WorkQueue
from shaprune.runs.worker_pool import MAX_ATTEMPTS, WorkerLost, WorkerPool, versions
from shaprune.values.games.arrays import Worths
from shaprune.values.games.game import CountingGame, Game, ObservedGame, Question
from shaprune.values.games.repeatability import RepeatabilityCheck
from shaprune.values.games.subgame import Subgame
from shaprune.values.stopping import evaluations

MAKE, EXAMPLE = NETWORKS["plain"]
pytestmark = pytest.mark.usefixtures("one_thread")


def build() -> nn.Module:
    """Importable, as workers need it."""
    return MAKE()


def slow(outputs: Tensor, targets: Tensor) -> Tensor:
    """A worth that takes its time, so that a worker can be killed at it."""
    time.sleep(0.02)
    return -torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


def broken(outputs: Tensor, targets: Tensor) -> Tensor:
    """A worth that fails on rows of a chunk."""
    if len(outputs) > 500:
        raise ZeroDivisionError("a mistake of mine")
    return outputs[:, 0]


def score(model: nn.Module, **options: Any) -> sp.Scores:
    inputs = torch.randn(500, *EXAMPLE().shape[1:], generator=torch.Generator().manual_seed(0))
    players = sp.find_players(model, EXAMPLE(), include="conv[12]")
    options = {"worth": "cross_entropy", "max_evaluations": 15_000, "progress": False} | options
    return sp.score(model, players, [(inputs, torch.arange(500) % 5)], **scoring(**options))


def bits(scores: sp.Scores) -> list[Any]:
    return [(v.value.tolist(), v.stderr.tolist(), v.n_evaluations) for v in scores.values()]


# --- spawned processes ---


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bits_also_when_one_is_killed(tmp_path: Path) -> None:
    """The network cannot be pickled here, so ``build`` makes it."""
    model = build()
    model.note = lambda: None
    plain = score(build(), worth=slow)
    with pytest.raises(sp.InputError, match=r"cannot be sent to workers: .*; give build=.*build=nets.network\)"):
        score(model, worth=slow, workers=2)
    killed = []

    def kill_one() -> None:
        while not killed:
            found = find_runs(tmp_path) if (tmp_path / "journal.sqlite").exists() else []
            if found and found[0].answers >= 2:
                victim = multiprocessing.active_children()[0]
                victim.kill()
                killed.append(victim)
            time.sleep(0.005)

    thread = threading.Thread(target=kill_one)
    thread.start()
    scores = score(model, worth=slow, workers=2, run=tmp_path, build=build)
    thread.join()
    assert killed
    assert bits(scores) == bits(plain)
    assert not multiprocessing.active_children()
    assert bits(score(build(), worth=slow, run=tmp_path)) == bits(plain)  # one process, the journal of two


def test_an_error_of_the_user_is_final_and_recorded_once(tmp_path: Path) -> None:
    with pytest.raises(sp.errors.GameError, match=r"(conv1|conv2): on worker .*: ZeroDivisionError: a mistake of mine"):
        score(build(), worth=broken, workers=2, run=tmp_path)
    (found,) = find_runs(tmp_path)
    assert len(found.failures) == 1
    assert "a mistake of mine" in found.failures[0][2]
    assert not found.finished
    assert not multiprocessing.active_children()


# --- who takes what ---


def test_a_worker_keeps_to_its_game_and_then_goes_where_the_fewest_are() -> None:
    """What lies before the masks of a game is computed once by each worker that comes to it."""
    queue: WorkQueue[str] = WorkQueue()
    for piece in ("a1", "a2", "a3", "b1", "b2", "c1"):
        queue.add(piece[0], piece)
    assert [queue.take("")[1] for _ in range(3)] == ["a1", "b1", "c1"]  # three workers, three games
    assert queue.take("b") == ("b", "b2")
    assert queue.take("c") == ("a", "a2")  # c has nothing left, and there is one worker at each
    queue.add("b", "b3")
    queue.add("b", "b2", first=True)  # its worker was lost
    assert queue.take("") == ("b", "b2")  # two are at a by now
    queue.left("a")
    queue.left("a")
    assert queue.take("") == ("a", "a3")
    assert list(queue) == ["b3"]
    assert queue.take("z") == ("b", "b3")
    assert not queue
    with pytest.raises(IndexError, match="nothing waits"):
        queue.take("a")


# --- the pool, with workers of this process ---


class Fake:
    """A worker that answers from a game here, and fails as it is told."""

    def __init__(self, game: Game, failures: list[Exception | None], said: Mapping[str, str] | None = None) -> None:
        self.game, self.failures, self.said = game, failures, said or versions()
        self.asked, self.starts = 0, 0

    def start(self) -> Mapping[str, str]:
        self.starts += 1
        return self.said

    def ask(self, game: str, question: Question) -> Answer:
        self.asked += 1
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        time.sleep(0.001 * (len(question.rows) % 3))
        return Answer(question.of(self.game), 0.0, "fake")

    def stop(self) -> None:
        pass


@pytest.fixture
def game() -> Game:
    return game_of(random_worth(6, 1), 6)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaprune.runs.worker_pool.RESTART_SECONDS", 0.01)


def questions(number: int = 30) -> Iterator[Question]:
    rng = np.random.default_rng(0)
    for size in range(1, number + 1):
        yield Question(rng.random((size, 6)) < 0.5)


def through(pool: WorkerPool, game: Game) -> list[list[float]]:
    pool.start()
    try:
        return [worths.tolist() for worths in ExecutedGame(game, "g", pool).stream(questions())]
    finally:
        pool.close()


def test_answers_come_in_the_order_of_the_questions(game: Game) -> None:
    pool = WorkerPool([Fake(game, []) for _ in range(3)])
    assert through(pool, game) == [q.of(game).tolist() for q in questions()]


def test_a_lost_worker_is_started_again_and_its_question_answered(game: Game) -> None:
    lost = Fake(game, [WorkerLost("killed"), None, WorkerLost("out of memory")])
    pool = WorkerPool([lost, Fake(game, [])])
    assert through(pool, game) == [q.of(game).tolist() for q in questions()]
    assert lost.starts == 1 + (lost.asked > 0) + (lost.asked > 2)


def test_a_question_that_ends_every_worker_is_given_up_by_name(game: Game) -> None:
    pool = WorkerPool([Fake(game, [WorkerLost("killed")] * 20), Fake(game, [WorkerLost("killed")] * 20)])
    with pytest.raises(sp.errors.GameError, match=f"g: {MAX_ATTEMPTS} workers were lost .*smaller max_memory"):
        through(pool, game)


def test_an_error_of_the_game_is_not_tried_again(game: Game) -> None:
    workers = [Fake(game, [ValueError("final")]) for _ in range(2)]
    with pytest.raises(ValueError, match="final"):
        through(WorkerPool(workers), game)
    assert [worker.starts for worker in workers] == [1, 1]


def test_other_versions_are_refused_by_name(game: Game) -> None:
    theirs = {**versions(), "torch": "1.0"}
    with pytest.raises(sp.InputError, match=r"other versions: torch 1.0 there, .* here; install the same"):
        through(WorkerPool([Fake(game, []), Fake(game, [], theirs)]), game)


def test_a_worker_that_ends_at_once_is_explained(game: Game) -> None:
    class Stillborn(Fake):
        def start(self) -> Mapping[str, str]:
            raise WorkerLost("process 1 ended")

    with pytest.raises(sp.InputError, match="__main__"):
        through(WorkerPool([Stillborn(game, [])]), game)


def test_questions_that_nobody_waits_for_are_dropped(game: Game) -> None:
    drawn = []

    def endless() -> Iterator[Question]:
        while True:
            drawn.append(1)
            yield Question(np.ones((1, 6), dtype=bool))

    pool = WorkerPool([Fake(game, []) for _ in range(2)])
    pool.start()
    answers = ExecutedGame(game, "g", pool).stream(endless())
    assert next(answers).tolist() == game(np.ones((1, 6), dtype=bool)).tolist()
    answers.close()
    pool.close()
    assert len(drawn) <= pool.width


def test_an_answer_is_committed_before_anybody_sees_it(game: Game, tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.sqlite", {})
    pool = WorkerPool([Fake(game, []) for _ in range(2)])
    executor = Journaled(pool, journal, lambda name: 1)
    executor.start()
    for done, _ in enumerate(ExecutedGame(game, "g", executor).stream(questions())):
        assert len(journal) > done
    executor.close()
    answered = Journaled(
        InProcess({}.__getitem__), journal, lambda name: 1
    )  # knows no game: all comes from the journal
    for question in questions():
        assert answered.submit("g", question).result().worths.tolist() == question.of(game).tolist()
    journal.close()


# --- pieces ---


class Sizes(Game):
    """Notes how much is asked at once."""

    n_players, n_examples = 6, 10

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, coalitions: Any, examples: Any = None) -> Worths:
        self.sizes.append(len(coalitions))
        return coalitions.sum(1) + (0.0 if examples is None else np.asarray(examples))


ROWS = np.random.default_rng(0).random((50, 6)) < 0.5


@pytest.mark.parametrize(
    ("question", "sizes"),
    [
        (Question(ROWS[:10]), [4, 4, 2]),
        (Question(ROWS, np.arange(50) % 10), [32, 18]),
        (Question(np.tile(np.arange(6), (3, 1)), walks=True), [7, 7, 7]),
        (Question(np.tile(np.arange(6), (9, 1)), np.arange(9), walks=True), [63]),
        (Question(np.ones((0, 6), dtype=bool)), [0]),
    ],
)
def test_large_questions_are_asked_in_pieces_and_chunks_stay_whole(question: Question, sizes: list[int]) -> None:
    game, whole = Sizes(), Sizes()
    assert question.of(GameInPieces(game, 40)).tolist() == question.of(whole).tolist()
    assert game.sizes == sizes


@pytest.mark.parametrize(
    "question",
    [
        Question(ROWS[:, :3]),
        Question(ROWS[:, :3], np.arange(50) % 10),
        Question(np.array([[2, 0], [1, 2]]), walks=True),
        Question(np.array([[2, 0], [1, 2]]), np.array([4, 5]), True),
        Question(np.array([[2], [1]]), np.array([4, 5]), True, np.array([False, True, True])),
    ],
)
def test_wrappers_say_the_same_in_a_stream(question: Question) -> None:
    def wrapped() -> CountingGame:
        base = np.array([True, False, True, False, True, False])
        return CountingGame(
            RepeatabilityCheck(ObservedGame(Subgame(Sizes(), np.array([1, 2, 5]), base), lambda rows: None))
        )

    streamed, asked = wrapped(), wrapped()
    assert [w.tolist() for w in streamed.stream([question, question])] == [question.of(asked).tolist()] * 2
    question.of(asked)
    assert streamed.evaluations == asked.evaluations > 0


def test_a_game_that_changes_its_answer_is_noticed_in_a_stream() -> None:
    class Moody(Sizes):
        def __call__(self, coalitions: Any, examples: Any = None) -> Worths:
            return super().__call__(coalitions, examples) + len(self.sizes)

    with pytest.raises(sp.errors.GameError, match="changes its answer"):
        list(RepeatabilityCheck(Moody()).stream([Question(np.ones((1, 6), dtype=bool))] * 2))


def test_a_stopping_rule_ends_at_the_same_place_however_far_workers_look_ahead(game: Game) -> None:
    ended = []
    for workers in (1, 2, 4):
        pool = WorkerPool([Fake(game, []) for _ in range(workers)])
        pool.start()
        values = sp.estimate(ExecutedGame(game, "g", pool), stop=evaluations(5_000), seed=3)
        pool.close()
        ended.append((values.value.tolist(), values.n_evaluations))
    alone = sp.estimate(game, stop=evaluations(5_000), seed=3)
    assert ended == [(alone.value.tolist(), alone.n_evaluations)] * 3


def test_a_future_that_was_dropped_is_settled_without_a_word(game: Game, tmp_path: Path) -> None:
    class Late:
        width = 1

        def __init__(self) -> None:
            self.future: Future[Answer] = Future()

        def start(self) -> None: ...

        def submit(self, game: str, question: Question) -> Future[Answer]:
            self.future.set_running_or_notify_cancel()
            return self.future

        def close(self) -> None: ...

    journal, late = Journal.open(tmp_path / "journal.sqlite", {}), Late()
    waiting = Journaled(late, journal, lambda name: 1).submit("g", next(questions()))
    assert waiting.cancel()
    late.future.set_result(Answer(np.zeros(1), 0.0, "late"))
    assert len(journal) == 1  # it was paid for
    journal.close()


@pytest.mark.parametrize("dropped", [False, True])
def test_an_interrupt_while_an_answer_is_committed_is_raised_also_where_no_caller_waits(
    game: Game, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropped: bool
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    journal = Journal.open(tmp_path / "journal.sqlite", {})
    monkeypatch.setattr(journal, "put", interrupted)
    under_way: Future[Answer] = Future()
    executor = Journaled(InProcess({"g": game}.__getitem__), journal, lambda name: 1)
    monkeypatch.setattr(executor.executor, "submit", lambda name, question: under_way)
    waiting = executor.submit("g", next(questions()))
    assert under_way.set_running_or_notify_cancel()
    assert not dropped or waiting.cancel()
    with pytest.raises(KeyboardInterrupt):
        under_way.set_result(Answer(np.zeros(1), 0.0, "driver"))
    assert waiting.cancelled() if dropped else isinstance(waiting.exception(), KeyboardInterrupt)
    journal.close()


# --- Ray ---


def test_an_address_that_does_not_answer_says_what_to_do() -> None:
    pytest.importorskip("ray")
    with pytest.raises(sp.InputError, match=r"no Ray cluster at '127.0.0.1:1': .*ray start --head"):
        connect_ray("127.0.0.1:1", 1)


def test_an_address_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("shaprune.runs.ray_workers.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(sp.InputError, match=f"at '{address}': the address does not answer within .*ray start"):
            connect_ray(address, 1)


def test_without_ray_an_address_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(sp.InputError, match=r"pip install 'shaprune\[ray\]'"):
        score(build(), workers=2, ray_address="auto")


@pytest.mark.filterwarnings("default")  # Ray's own
def test_ray_actors_give_the_same_bits_also_when_one_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, Path(__file__).parents[:2])))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    plain = score(build(), worth=slow)
    killed = []

    def kill_one() -> None:
        while not killed:
            found = find_runs(tmp_path) if (tmp_path / "journal.sqlite").exists() else []
            if found and found[0].answers >= 2:
                journal = Journal.read(tmp_path / "journal.sqlite")
                worker = journal._one("SELECT worker FROM answers")[0]
                journal.close()
                os.kill(int(worker.split(":")[1]), 9)
                killed.append(worker)
            time.sleep(0.005)

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        scores = score(build(), worth=slow, workers=2, run=tmp_path, ray_address="local")
    finally:
        killed.append("enough")
        thread.join()
        ray.shutdown()
    assert len(killed) == 2
    assert bits(scores) == bits(plain)


# --- what it will cost ---


@pytest.mark.parametrize(
    "options", [{}, {"method": "exact"}, {"together": True}, {"mode": "iterated", "per_round": 4}], ids=str
)
def test_the_expected_evaluations_are_those_that_are_paid(options: dict[str, Any]) -> None:
    model = build()
    inputs = torch.randn(40, *EXAMPLE().shape[1:], generator=torch.Generator().manual_seed(0))
    players = sp.find_players(model, EXAMPLE(), include="conv[12]")
    data = [(inputs, torch.arange(40) % 5)]
    cost = sp.metrics.expected_cost(model, players, data, "cross_entropy", **scoring(**options))
    paid = sp.score(model, players, data, "cross_entropy", progress=False, **scoring(**options))
    if options.get("mode") is None:
        assert cost.evaluations == paid.n_evaluations
    assert cost.evaluations is not None
    assert cost.evaluations >= paid.n_evaluations
    assert cost.seconds is not None
    assert cost.seconds > 0
    assert cost.memory > inputs.numel() * 4
    halved = sp.metrics.expected_cost(model, players, data, "cross_entropy", workers=2, **scoring(**options))
    assert halved.memory == 2 * cost.memory


def test_a_stopping_rule_leaves_the_cost_open() -> None:
    model = build()
    players = sp.find_players(model, EXAMPLE(), include="conv1")
    data = [(EXAMPLE(), torch.arange(4) % 5)]
    cost = sp.metrics.expected_cost(model, players, data, "cross_entropy", stop=evaluations(500))
    assert (cost.evaluations, cost.seconds) == (None, None)
    assert cost.by_game["conv1"].memory > 0


def test_the_cost_of_an_evaluate_function_is_timed_on_itself() -> None:
    model = build()
    players = sp.find_players(model, EXAMPLE(), include="conv1")
    asked = []

    def evaluate(network: nn.Module) -> float:
        asked.append(1)
        time.sleep(0.02)
        return 0.5

    cost = sp.metrics.expected_cost(model, players, None, sp.Evaluate(evaluate), "leave-one-out")
    assert cost.evaluations == len(players.groups[0]) + 1
    assert cost.seconds is not None
    assert 0.02 * cost.evaluations < cost.seconds
    assert len(asked) <= 2


LEFT = """
import os, sys, time
import torch
import shaprune as sp
from testkit.networks import NETWORKS

make, example = NETWORKS["plain"]


def stuck(outputs, targets):
    if os.getpid() != int(os.environ["DRIVER"]):
        os.write(1, f"{os.getpid()}\\n".encode())  # at once: two workers write to one pipe
        time.sleep(3600)
    return outputs[:, 0]


if __name__ == "__main__":
    os.environ["DRIVER"] = str(os.getpid())
    model = make()
    players = sp.find_players(model, example(), include="conv1")
    sp.score(model, players, [(example(), torch.arange(len(example())) % 5)], stuck,
             run=sp.options.RunOptions(workers=2))
"""


def test_workers_end_with_a_driver_that_is_killed_though_they_are_busy(tmp_path: Path) -> None:
    script = tmp_path / "left.py"
    script.write_text(LEFT)
    places = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(sp.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        worker = int(driver.stdout.readline())  # it sleeps for an hour
        driver.kill()
        assert not driver.stdout.read().replace("\n", "").strip("0123456789")  # ends once all have closed it
    assert worker != driver.pid
