"""The journal: what is in it counts, what is damaged does not, and a killed run goes on with the same bits."""

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS, labelled
from testkit.options import scoring
from torch import Tensor, nn

import shaprune as sp
from shaprune.runs.journal import Journal, digest
from shaprune.runs.lock import hold_run
from shaprune.runs.merge_shards import find_runs, merge
from shaprune.values.games.game import Question
from shaprune.values.games.witness import ROWS
from shaprune.values.stopping import evaluations, seconds

MAKE, EXAMPLE = NETWORKS["plain"]
Data = list[tuple[Tensor, Tensor]]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> nn.Module:
    return MAKE().eval()


def batches(n: int = 300, seed: int = 0) -> Data:
    return [labelled(EXAMPLE(), n, seed)]


def score(model: nn.Module, data: Data | None = None, method: str = "permutation", **options: Any) -> sp.Scores:
    players = sp.find_players(model, EXAMPLE(), include="conv[12]")
    options = {"worth": "cross_entropy", "progress": False} | options
    return sp.score(model, players, batches() if data is None else data, method=method, **scoring(**options))


def bits(scores: sp.Scores) -> list[Any]:
    return [(v.value.tolist(), v.stderr.tolist(), v.n_evaluations, v.stopped_by) for v in scores.values()]


def named(part: Any) -> str:
    """The name of a test: without addresses of functions, which differ between the processes that run tests."""
    return ",".join(part) if isinstance(part, dict) else str(part)


def count_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the evaluations that are really asked of the network from now on."""
    asked: list[int] = []
    walk, call = sp.NetworkGame.walk, sp.NetworkGame.__call__

    def walked(self: Any, *args: Any) -> Any:
        asked.append(len(args[0]))
        return walk(self, *args)

    def called(self: Any, *args: Any) -> Any:
        asked.append(len(args[0]))
        return call(self, *args)

    monkeypatch.setattr(sp.NetworkGame, "walk", walked)
    monkeypatch.setattr(sp.NetworkGame, "__call__", called)
    return asked


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "exact"},
        {"method": "msr", "concept": "banzhaf"},
        {"stop": evaluations(9_000)},
        {"mode": "iterated", "per_round": 3},
        {"together": True},
        {"aggregate": "mean+2std"},
    ],
    ids=named,
)
def test_a_journal_changes_no_bit_and_answers_everything_the_second_time(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    plain = score(model, **options)
    first = score(model, run=tmp_path / "run", **options)
    asked = count_asked(monkeypatch)
    second = score(model, run=tmp_path / "run", **options)
    assert bits(first) == bits(plain)
    assert bits(second) == bits(plain)
    assert 0 < sum(asked) <= 2 * ROWS  # a few of every game, to compare
    assert sp.Scores.load(tmp_path / "run" / "values.json")["conv1"].value.tolist() == plain["conv1"].value.tolist()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, r"seed \(0 there, 1 here\)"),
        ({"method": "msr"}, "method"),
        ({"data": batches(seed=1)}, "data"),
        ({"worth": "margin"}, "worth"),
        ({"concept": "banzhaf"}, "concept"),
        ({"max_evaluations": 3_000}, r"max_evaluations \(None there, 3000 here\)"),
        ({"stop": evaluations(100)}, "stop"),
        ({"max_memory": 1 << 20}, "max_memory"),
    ],
    ids=named,
)
def test_another_run_in_the_folder_is_refused_by_what_differs(
    model: nn.Module, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    first = score(model, run=tmp_path)
    with pytest.raises(sp.InputError, match=f"differs in {named}"):
        score(model, **{"run": tmp_path, **change})
    assert bits(score(model, run=tmp_path)) == bits(first)


def test_another_model_is_refused(model: nn.Module, tmp_path: Path) -> None:
    score(model, run=tmp_path)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(sp.InputError, match="differs in model"):
        score(model, run=tmp_path)


def damage_header(path: Path) -> None:
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def turn_a_bit(path: Path) -> None:
    """Inside a stored answer, where SQLite itself notices nothing."""
    content = bytearray(path.read_bytes())
    connection = sqlite3.connect(path)
    (worths,) = connection.execute("SELECT worths FROM answers LIMIT 1").fetchone()
    connection.close()
    content[content.index(worths[64:128]) + 5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_header, cut_in_half, empty, turn_a_bit])
def test_a_damaged_journal_is_set_aside_and_never_used(
    model: nn.Module, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    plain = score(model, run=tmp_path)
    damage(tmp_path / "journal.sqlite")
    damaged = (tmp_path / "journal.sqlite").read_bytes()
    with pytest.warns(sp.errors.ShapruneWarning, match=r"is damaged \(.*set aside as journal.sqlite.damaged-1"):
        again = score(model, run=tmp_path)
    assert bits(again) == bits(plain)
    assert (tmp_path / "journal.sqlite.damaged-1").read_bytes() == damaged


def test_another_programs_database_is_left_alone(model: nn.Module, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "journal.sqlite")
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    before = (tmp_path / "journal.sqlite").read_bytes()
    with pytest.raises(sp.InputError, match="another program's database"):
        score(model, run=tmp_path)
    assert (tmp_path / "journal.sqlite").read_bytes() == before


ODD = [
    "UPDATE answers SET worths = NULL",
    "UPDATE answers SET worths = 'text'",
    "UPDATE answers SET shape = '[1'",
    "UPDATE answers SET shape = '[-1, -1]'",
    "UPDATE answers SET shape = '[true]'",
    "UPDATE answers SET shape = '[1, 10000000000]'",
    "UPDATE answers SET kind = '|O8'",
    "UPDATE answers SET kind = replace(kind, '<', '>')",
    "UPDATE answers SET kind = 'nonsense'",
    "UPDATE answers SET checksum = 'x'",
    "UPDATE answers SET evaluations = 9e999",
    "UPDATE answers SET seconds = NULL",
    "UPDATE answers SET question = NULL WHERE rowid = 1",
    "UPDATE answers SET game = x'ff'",
    "UPDATE answers SET worker = 3.5",
    "UPDATE about SET value = '[' WHERE name = 'note:finished'",
    "UPDATE about SET value = x'00' WHERE name = 'seed'",
    "UPDATE about SET value = CAST(x'ff' AS TEXT) WHERE name = 'note:finished'",
    "INSERT INTO failures VALUES (1, 2, NULL, 'x')",
    "CREATE TRIGGER mine AFTER INSERT ON answers BEGIN DELETE FROM answers; END",
    "CREATE VIEW mine AS SELECT * FROM answers",
    "CREATE TABLE mine (x)",
    "DROP TABLE failures",
    "ALTER TABLE answers RENAME COLUMN worths TO mine",
    "ALTER TABLE answers ADD COLUMN mine",
]


@pytest.mark.parametrize("change", ODD)
def test_what_no_journal_holds_is_never_used(model: nn.Module, tmp_path: Path, change: str) -> None:
    plain = score(model, run=tmp_path)
    relaxed = (
        [change]
        if not change.startswith("UPDATE answers")
        else [
            "ALTER TABLE answers RENAME TO strict",
            "CREATE TABLE answers AS SELECT * FROM strict",
            "DROP TABLE strict",
            change,
        ]
    )
    for statements in ([change], relaxed):
        connection = sqlite3.connect(tmp_path / "journal.sqlite")
        with suppress(sqlite3.IntegrityError), connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
        for part in find_runs(tmp_path):
            assert part.trouble is None or "damaged" in part.trouble
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sp.errors.ShapruneWarning)
            assert bits(score(model, run=tmp_path)) == bits(plain)
    (found,) = [part for part in find_runs(tmp_path) if part.journal.name == "journal.sqlite"]
    assert found.finished
    assert found.trouble is None


def test_a_journal_that_cannot_be_opened_just_now_is_not_damaged(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = score(model, run=tmp_path)
    opened, connected = Path.open, sqlite3.connect

    def no_more_files(self: Path, *args: Any, **options: Any) -> Any:
        if self.name == "journal.sqlite":
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(self, *args, **options)

    def refused(name: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        if "journal.sqlite" in str(name):
            raise sqlite3.OperationalError(reason)
        return connected(name, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", no_more_files)
        with pytest.raises(sp.InputError, match="Too many open files"):
            score(model, run=tmp_path)
    for reason in ("unable to open database file", "disk I/O error", "database is locked", "out of memory"):
        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", refused)
            with pytest.raises(sp.InputError, match=reason):
                score(model, run=tmp_path)
            assert find_runs(tmp_path)[0].trouble is not None
    assert not list(tmp_path.glob("*.damaged*"))
    asked = count_asked(monkeypatch)
    assert bits(score(model, run=tmp_path)) == bits(plain)
    assert sum(asked) <= 2 * ROWS


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_a_journal_that_is_no_file_is_left_alone(
    model: nn.Module, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "journal.sqlite")
    with pytest.raises(sp.InputError, match="is no file"):
        score(model, run=tmp_path)


def test_a_journal_with_a_byte_changed_anywhere_gives_the_same_bits_or_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal.open(path, {"seed": 0})
    rng = np.random.default_rng(0)
    answers = {bytes([i]): rng.random((3, 4)) for i in range(6)}
    for question, worths in answers.items():
        journal.put("g", question, worths, evaluations=12, seconds=0.1)
    journal.note("finished", True)
    journal.close()
    good = path.read_bytes()
    used = np.flatnonzero(np.frombuffer(good, np.uint8))  # most of a page is empty
    for _ in range(40):
        content = bytearray(good)
        content[rng.choice(used)] ^= 1 << int(rng.integers(8))
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sp.errors.ShapruneWarning)
                journal = Journal.open(path, {"seed": 0})
        except sp.InputError:
            continue
        for question, worths in answers.items():
            found = journal.get("g", question)
            assert found is None or found.tolist() == worths.tolist()
        assert all(part.trouble or part.evaluations >= 0 for part in find_runs(tmp_path))
        journal.close()


def test_a_newer_schema_is_refused_and_kept(model: nn.Module, tmp_path: Path) -> None:
    score(model, run=tmp_path)
    connection = sqlite3.connect(tmp_path / "journal.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(sp.InputError, match="schema 99, newer than 1; update shaprune"):
        score(model, run=tmp_path)
    assert not list(tmp_path.glob("*.damaged*"))


def test_a_second_driver_is_refused_and_the_first_named(model: nn.Module, tmp_path: Path) -> None:
    with hold_run(tmp_path), pytest.raises(sp.InputError, match=f"computed by process {os.getpid()} on "):
        score(model, run=tmp_path)
    score(model, run=tmp_path)  # the lock has been released


def test_reports_read_while_a_run_goes_on_and_change_nothing(tmp_path: Path) -> None:
    writing = Journal.open(tmp_path / "journal.sqlite", {"seed": 0})
    question = Question(np.ones((2, 3), dtype=bool))
    writing.put("conv1", digest(question), np.array([1.0, 0.5]), evaluations=2, seconds=0.1)
    (found,) = find_runs(tmp_path.parent / tmp_path.name)
    assert (found.answers, found.evaluations, found.finished) == (1, 2, False)
    reading = Journal.read(tmp_path / "journal.sqlite")
    with pytest.raises(sp.InputError, match="readonly"):
        reading.put("conv1", b"", np.zeros(1), evaluations=1, seconds=0.0)
    reading.close()
    answer = writing.get("conv1", digest(Question(np.ones((2, 3), dtype=bool))))
    assert answer is not None
    assert answer.tolist() == [1.0, 0.5]
    assert writing.get("conv2", digest(question)) is None
    writing.close()


@pytest.mark.parametrize("worths", [np.array([0.5, -2.0, 0.0]), np.array([1 / 3, 1e-300]), np.zeros((0, 4)), np.eye(3)])
def test_answers_come_back_bit_for_bit(tmp_path: Path, worths: np.ndarray) -> None:  # type: ignore[type-arg]
    journal = Journal.open(tmp_path / "journal.sqlite", {})
    journal.put("g", b"q", worths, evaluations=1, seconds=0.0)
    found = journal.get("g", b"q")
    journal.close()
    assert found is not None
    assert (found.tobytes(), found.shape, found.dtype) == (worths.tobytes(), worths.shape, worths.dtype)
    found += 1  # its own memory


def test_a_question_is_found_by_all_of_its_content() -> None:
    rows, orders = np.ones((2, 8), dtype=bool), np.tile(np.arange(8), (2, 1))
    questions = [
        Question(rows),
        Question(rows[:1]),
        Question(np.ones((1, 16), dtype=bool)),
        Question(~rows),
        Question(rows, np.array([0, 1])),
        Question(rows, np.array([1, 0])),
        Question(orders, walks=True),
        Question(orders[:, :7], walks=True),
        Question(orders, None, True, np.ones(8, dtype=bool)),
    ]
    assert len({digest(question) for question in questions}) == len(questions)


def test_a_failing_worth_is_recorded_once_and_what_was_paid_is_kept(model: nn.Module, tmp_path: Path) -> None:
    failing = {"after": 4}

    def worth(outputs: Tensor, targets: Tensor) -> Tensor:
        failing["after"] -= 1
        if failing["after"] == 0:
            raise ZeroDivisionError("mine")
        return outputs[:, 0]

    with pytest.raises(Exception, match="mine"):
        score(model, run=tmp_path, worth=worth)
    (found,) = find_runs(tmp_path)
    assert [message for _, _, message in found.failures] == ["ZeroDivisionError: mine"] or "mine" in str(found.failures)
    assert len(found.failures) == 1
    assert found.answers > 0
    failing["after"] = -1
    assert bits(score(model, run=tmp_path, worth=worth)) == bits(score(model, worth=worth))


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.sqlite", {})
    journal._connection.execute(f"PRAGMA max_page_count = {journal._one('PRAGMA page_count')[0]}")
    with pytest.raises(sp.InputError, match="full; free some space, then resume"):
        journal.put("conv1", b"x", np.zeros(100_000), evaluations=1, seconds=0.0)
    assert len(journal) == 0
    journal.close()


def test_a_locked_journal_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaprune.runs.journal_database.PATIENCE", 0.05)
    journal = Journal.open(tmp_path / "journal.sqlite", {})
    other = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sp.InputError, match="locked; another program holds it"):
        journal.put("conv1", b"x", np.zeros(5), evaluations=1, seconds=0.0)
    other.close()
    journal.put("conv1", b"x", np.zeros(5), evaluations=1, seconds=0.0)
    journal.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "3/2", "run": "r"}, "write i/n"),
        ({"shard": "1/2"}, "give the folder of the run"),
        ({"shard": "1/2", "run": "r", "stop": evaluations(9_000)}, "drop mode and stop"),
        ({"shard": "1/2", "run": "r", "mode": "iterated"}, "drop mode and stop"),
        ({"run": "r", "log": "l"}, "nor log"),
        ({"run": "r", "layers": "output-to-input"}, "output-to-input"),
        ({"run": "r", "method": "taylor"}, "plays no game"),
        ({"workers": 0}, "workers is 0"),
    ],
    ids=named,
)
def test_what_does_not_go_together_is_refused(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sp.InputError, match=message):
        score(model, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_rule_that_looks_at_the_clock_is_noted(model: nn.Module, tmp_path: Path) -> None:
    scores = score(model, run=tmp_path, stop=seconds(0.01))
    assert "looks at the clock" in scores.notes[-1]


@pytest.mark.parametrize("options", [{"max_evaluations": 9_000}, {"method": "exact"}, {"method": "msr"}], ids=str)
def test_shards_merge_to_the_bits_of_the_whole(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr("shaprune.runs.executed_games.PIECE_EVALUATIONS", 1 << 14)
    monkeypatch.setattr("shaprune.runs.executed_games.GameInPieces.__init__.__defaults__", (1 << 14,))
    monkeypatch.setattr("shaprune.values.games.witness.ROWS", 1)
    monkeypatch.setattr("shaprune.values.games.witness.LEAST", 1)
    asked = count_asked(monkeypatch)
    plain = score(model, **options)
    whole = sum(asked)
    asked.clear()
    for shard in ("1/2", "2/2"):
        with pytest.raises(sp.InputError, match=r"holds no journal|2/2 of .* is missing"):
            merge(tmp_path)
        scores = score(model, run=sp.options.RunOptions(tmp_path, shard=shard), **options)
        assert len(scores) == 0
        assert "merge" in scores.notes[-1]
        asked.append(-1)
    ours, theirs = (sum(part) for part in _split(asked))
    assert 0.5 < ours / theirs < 2
    assert ours + theirs <= 1.1 * whole
    merge(tmp_path)
    asked.clear()
    assert bits(score(model, run=tmp_path, **options)) == bits(plain)
    assert sum(asked) <= 2  # one worth of every game, to compare


def _split(numbers: list[int]) -> list[list[int]]:
    end = numbers.index(-1)
    return [numbers[:end], numbers[end + 1 : -1]]


def test_a_shard_that_has_not_finished_does_not_merge(model: nn.Module, tmp_path: Path) -> None:
    score(model, run=sp.options.RunOptions(tmp_path, shard="1/2"))
    score(model, run=sp.options.RunOptions(tmp_path, shard="2/2"))
    journal = Journal.open(tmp_path / "journal-2-of-2.sqlite", Journal.read(tmp_path / "journal-2-of-2.sqlite").about())
    journal.note("finished", False)
    journal.close()
    with pytest.raises(sp.InputError, match=r"shard 2/2 of .* has not finished"):
        merge(tmp_path)


def test_shards_of_different_runs_do_not_merge(model: nn.Module, tmp_path: Path) -> None:
    score(model, run=sp.options.RunOptions(tmp_path, shard="1/2"))
    score(model, seed=1, run=sp.options.RunOptions(tmp_path, shard="2/2"))
    with pytest.raises(sp.InputError, match=r"shards 1 and 2 .* differ in seed"):
        merge(tmp_path)


KILLED = """
import sys, time
import torch
from testkit.networks import NETWORKS
import shaprune as sp
from shaprune.network.forward import row_batches

row_batches.MAX_BATCH_THREADS = 1  # a chunk is one batch

def worth(outputs, targets):
    if len(outputs) > 500:  # a chunk
        time.sleep(0.03)
        with open(sys.argv[2] + ".calls", "a") as file:
            file.write(f"{outputs.double().sum().item().hex()}\\n")
        with open(sys.argv[2] + ".calls") as file:
            if len(file.readlines()) >= int(sys.argv[3]):
                time.sleep(3600)  # until the driver is killed, however late that is on a busy machine
    return -torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

if __name__ == "__main__":
    torch.set_num_threads(1)
    make, example = NETWORKS["plain"]
    inputs = torch.randn(1_000, *example().shape[1:], generator=torch.Generator().manual_seed(0))
    model = make()
    players = sp.find_players(model, example(), include="conv[12]")
    workers, run = int(sys.argv[1]), sys.argv[2]
    options = {} if workers == 0 else {"run": sp.options.RunOptions(run, workers)}
    scores = sp.score(model, players, [(inputs, torch.arange(1_000) % 5)], worth, max_evaluations=24_000,
                      progress=False, **options)
    scores.save(run + ".json")
"""


def begin(folder: Path, workers: int, name: str, most: int = 1_000) -> subprocess.Popen[bytes]:
    """Run `KILLED` until there are so many chunks; without workers it keeps no journal."""
    script = folder / "killed.py"
    script.write_text(KILLED)
    places = os.pathsep.join(map(str, [*Path(__file__).parents[:2], Path(sp.__file__).parents[1]]))
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, str(script), str(workers), str(folder / name), str(most)]
    return subprocess.Popen(line, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str]]:
    """What a run gives that nothing ends: its values, and a line for every chunk."""
    folder = tmp_path_factory.mktemp("plain")
    assert begin(folder, 0, "plain").wait() == 0
    return json.loads((folder / "plain.json").read_text())["values"], (folder / "plain.calls").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "pauses"), [(1, (0.0, 0.07)), (2, (0.04,))])
def test_killed_at_any_moment_a_run_goes_on_with_the_same_bits(
    tmp_path: Path, plain: tuple[Any, list[str]], workers: int, pauses: tuple[float, ...]
) -> None:
    values, chunks = plain
    calls = tmp_path / "run.calls"
    kills = 0
    for pause in pauses:
        before = _lines(calls)
        process = begin(tmp_path, workers, "run", most=before + 10)
        while _lines(calls) < before + 5 and process.poll() is None:
            time.sleep(0.005)
        time.sleep(pause)
        assert process.poll() is None
        kills += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.2)  # workers whose driver is gone end by themselves
    assert begin(tmp_path, workers, "run").wait() == 0
    assert json.loads((tmp_path / "run.json").read_text())["values"] == values
    paid = calls.read_text().splitlines()
    assert len(paid) - len(set(paid)) <= kills * workers
    assert set(paid) == set(chunks)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0
