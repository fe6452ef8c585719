"""The log of worths: paid once, kept within its memory, and refused where it belongs to something else."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from testkit.games import TableGame, by_all_orders, game_of, random_worth
from testkit.networks import NETWORKS
from torch import nn

import shaprune as sp
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.games.arrays import Coalitions
from shaprune.values.games.game import CountingGame, Game
from shaprune.values.games.logged import LoggedGame

N = 5


class Known(TableGame):
    """A table with a fingerprint, as a network game has one."""

    name: str | None = "table"

    @property
    def fingerprint(self) -> str | None:
        return self.name


def every(n: int) -> Coalitions:
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worths.npz"


def test_a_coalition_is_paid_once_also_within_one_question() -> None:
    game = CountingGame(TableGame(N, 3, seed=0))
    logged = LoggedGame(game)
    rows = every(N)[[3, 7, 3, 0, 7, 3]]
    first, again = logged(rows), logged(rows[::-1])
    assert first.tolist() == again[::-1].tolist() == game.game(rows).tolist()
    assert game.evaluations == 3 * 3
    assert (len(logged), logged.answered) == (3, 3 * (3 + 6))
    assert logged.coalitions.tolist() == rows[[0, 1, 3]].tolist()
    assert logged.worths.tolist() == game.game(rows[[0, 1, 3]]).tolist()


def test_walks_over_all_examples_are_logged_and_those_of_single_examples_pass_through() -> None:
    game = CountingGame(TableGame(N, 3, seed=0))
    logged = LoggedGame(game)
    orders = np.array([[1, 0, 4], [1, 0, 2]])
    assert logged.walk(orders).tolist() == game.game.walk(orders).tolist()
    assert (game.evaluations, len(logged)) == (3 * 5, 5)  # three of eight coalitions are met twice
    one = logged.walk(orders, np.array([2, 0]))
    assert one.tolist() == game.game.walk(orders, np.array([2, 0])).tolist()
    assert logged(every(N)[:2], np.array([1, 1])).tolist() == game.game.tables[1, :2].tolist()
    assert (game.evaluations, len(logged)) == (3 * 5 + 8 + 2, 5)
    start = np.array([True, True, False, False, True])
    assert logged.walk(orders[:1], None, start).tolist() == game.game.walk(orders[:1], None, start).tolist()


def test_a_game_of_one_example_is_logged_whoever_is_asked() -> None:
    game = CountingGame(TableGame(N, 1, seed=0))
    logged = LoggedGame(game)
    rows = every(N)
    assert logged(rows, np.zeros(len(rows), dtype=np.int64)).tolist() == logged(rows).tolist()
    assert game.evaluations == len(logged) == 2**N


def test_a_second_estimator_starts_from_what_is_paid() -> None:
    game = CountingGame(TableGame(N, 3, seed=0))
    logged = LoggedGame(game)
    first = sp.estimate(logged, Permutation(per_example=False), 3 * 6 * 4, seed=1)
    assert first.n_evaluations == game.evaluations == 3 * len(logged)
    assert 6 < len(logged) < 2**N
    paid, known = game.evaluations, len(logged)
    second = sp.estimate(logged, "exact")
    assert second.n_evaluations == game.evaluations - paid == 3 * (2**N - known)
    assert second.diagnostics["evaluations_from_log"] == 3 * known
    assert second.value == pytest.approx(game.game.truth())
    third = sp.estimate(logged, "leave-one-out")
    assert third.n_evaluations == 0
    assert game.evaluations == 3 * 2**N


def test_a_full_log_keeps_what_it_has_and_pays_for_the_rest() -> None:
    game = CountingGame(TableGame(N, 1, seed=0))
    logged = LoggedGame(game, max_memory=10 * 161)  # room for ten of 32
    for _ in range(2):
        assert logged(every(N)).tolist() == game.game(every(N)).tolist()
    assert len(logged) == 10
    assert game.evaluations == 32 + 22
    assert len(LoggedGame(game, max_memory=1)) == 0
    assert sp.estimate(LoggedGame(game, max_memory=1), "exact").value == pytest.approx(game.game.truth())


@pytest.mark.parametrize("n", [1, 3, 8, 9, 20])
def test_a_saved_log_comes_back(path: Path, n: int) -> None:
    rows = np.random.default_rng(n).random((12, n)) < 0.5
    game = Game.from_function(lambda kept: kept @ np.arange(1.0, n + 1), n)
    logged = LoggedGame(game)
    logged(rows)
    logged.save(path)
    counted = CountingGame(game)
    counted.repeatable = True
    back = LoggedGame.load(path, counted)
    assert (back.coalitions.tolist(), back.worths.tolist()) == (logged.coalitions.tolist(), logged.worths.tolist())
    asked = counted.evaluations
    assert back(rows).tolist() == logged(rows).tolist()
    assert counted.evaluations == asked
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_log_without_any_worth_is_saved_and_loaded(path: Path) -> None:
    game = TableGame(N, 3, seed=0)
    logged = LoggedGame(game)
    sp.estimate(logged, "permutation")  # one order per example: nothing to log
    logged.save(path)
    assert len(LoggedGame.load(path, game)) == 0


def test_a_loaded_log_spares_its_evaluations(path: Path) -> None:
    game = Known(N, 3, seed=0)
    logged = LoggedGame(game)
    exact = sp.estimate(logged, "exact")
    logged.save(path)
    counted = CountingGame(game)
    again = sp.estimate(LoggedGame.load(path, counted), "exact")
    assert again.n_evaluations == 0
    assert counted.evaluations == 3 * 3  # three coalitions, to compare
    assert again.value.tolist() == exact.value.tolist()


def _saved(path: Path, game: Game) -> None:
    logged = LoggedGame(game)
    logged(every(N)[::-1])
    logged.save(path)


def test_a_log_of_another_model_data_or_metric_is_refused_by_fingerprint(path: Path) -> None:
    game = Known(N, 3, seed=0)
    _saved(path, game)
    game.name = "another"
    with pytest.raises(
        sp.InputError, match=r"log of another game: the model, the data, the metric or the precision differ.*own file"
    ):
        LoggedGame.load(path, game)


def test_without_a_fingerprint_one_worth_is_asked_for_again(path: Path) -> None:
    _saved(path, Known(N, 3, seed=0))
    for other in (TableGame(N, 3, seed=1), Known(N, 3, seed=1)):
        other.name = None  # type: ignore[union-attr, attr-defined]
        with pytest.raises(sp.InputError, match=r"the coalition without player 0 is worth .* there and .* here"):
            LoggedGame.load(path, other)
    unknown = CountingGame(TableGame(N, 3, seed=0))
    assert len(LoggedGame.load(path, unknown)) == 2**N
    assert unknown.evaluations == 3 * 3


@pytest.mark.parametrize("repeatable", [True, False])
def test_logged_worths_are_asked_again_despite_the_fingerprint(path: Path, repeatable: bool) -> None:
    game = Known(N, 3, seed=0)
    game.repeatable = repeatable
    _saved(path, game)
    game.tables[:, :-1] += 1.0  # not that of the full coalition
    with pytest.raises(sp.InputError, match="log of another game: the coalition without player 0 is worth"):
        LoggedGame.load(path, game)
    game.tables[:, :-1] -= 1.0 - 1e-9  # rounding is no change
    assert len(LoggedGame.load(path, game)) == 2**N


@pytest.mark.parametrize(
    ("n", "examples", "what"), [(N + 1, 3, "n_players=5"), (N - 1, 3, "n_players=5"), (N, 4, "n_examples=3")]
)
def test_a_log_of_other_players_or_examples_is_refused(path: Path, n: int, examples: int, what: str) -> None:
    _saved(path, TableGame(N, 3, seed=0))
    with pytest.raises(sp.InputError, match=f"{what}, this one has {n if n != N else examples}"):
        LoggedGame.load(path, TableGame(n, examples, seed=0))


def test_a_missing_log_is_refused(path: Path) -> None:
    with pytest.raises(sp.InputError, match="does not exist"):
        LoggedGame.load(path, TableGame(N, 3, seed=0))


def _written(path: Path, about: object, packed: NDArray[np.uint8], worths: NDArray[np.float64]) -> None:
    file = io.BytesIO()
    np.savez(file, about=json.dumps(about), coalitions=packed, worths=worths)
    path.write_bytes(file.getvalue())


def test_another_kind_of_file_and_a_newer_schema_are_refused(path: Path) -> None:
    game = TableGame(N, 1, seed=0)
    about = {"schema": 1, "kind": "worths", "n_players": N, "n_examples": 1, "fingerprint": None}
    packed, worths = np.packbits(every(N), axis=1), game(every(N))
    _written(path, about, packed, worths)
    assert len(LoggedGame.load(path, game)) == 2**N
    for changed, reason in (
        ({"kind": "values"}, "it holds values"),
        ({"schema": 2}, "schema 2 is newer than 1; update shaprune"),
    ):
        _written(path, {**about, **changed}, packed, worths)
        with pytest.raises(sp.InputError, match=f"no complete log of worths.*{reason}"):
            LoggedGame.load(path, game)
    for wrong in (worths[1:], np.where(worths == worths[3], np.nan, worths), worths[:, None]):
        _written(path, about, packed, wrong)
        with pytest.raises(sp.InputError, match="do not fit each other, or a worth is not finite"):
            LoggedGame.load(path, game)
    for broken in ([about], {**about, "kind": None}, {"kind": "worths"}):
        _written(path, broken, packed, worths)
        with pytest.raises(sp.InputError, match="no complete log of worths"):
            LoggedGame.load(path, game)


def test_whatever_happens_to_a_file_it_is_whole_or_refused(path: Path) -> None:
    game = Game.from_function(lambda kept: kept @ np.arange(10.0), 10)
    logged = LoggedGame(game)
    logged(every(10))
    logged.save(path)
    whole, worths, rng, refused = path.read_bytes(), logged.worths.tolist(), np.random.default_rng(0), 0
    for trial in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged[: int(rng.integers(len(whole)))] if trial % 3 == 0 else damaged)
        try:
            assert LoggedGame.load(path, game).worths.tolist() == worths
        except sp.InputError:
            refused += 1
    assert refused > 200


def test_a_log_is_not_half_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    game = TableGame(N, 3, seed=0)
    _saved(path, game)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(sp.InputError, match="cannot be written"):
        LoggedGame(game).save(path)
    assert path.read_bytes() == before


# -- networks --------------------------------------------------------------------------------------------------------


def _network(factor: float = 1.0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    make, example = NETWORKS["flattened"]
    model = make().eval()
    with torch.no_grad():
        model.fc2.weight.mul_(factor)
    inputs = torch.randn(16, *example().shape[1:], generator=torch.Generator().manual_seed(3))
    return model, inputs, torch.arange(16) % 5


def _score(
    folder: Path, worth: str = "margin", factor: float = 1.0, shift: float = 0.0, method: str = "exact"
) -> sp.Scores:
    model, inputs, targets = _network(factor)
    players = sp.find_players(model, inputs[:2], include=["conv1"])
    every = sp.options.Scoring(window=(0.0, 1.0))
    return sp.score(
        model, players, [(inputs + shift, targets)], worth, method, log=folder, progress=False, options=every
    )


def test_scores_with_a_folder_of_logs_are_not_paid_again(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "new"
    first = _score(folder)
    assert first.n_evaluations == 16 * 2**6
    assert [p.name for p in folder.iterdir()] == ["conv1.npz"]
    again = _score(folder)
    assert again.n_evaluations == 0
    assert again["conv1"].value.tolist() == first["conv1"].value.tolist()
    assert _score(folder, method="leave-one-out").n_evaluations == 0
    assert _score(folder, method="permutation")["conv1"].n_evaluations > 0  # one order per example: not from the log


@pytest.mark.parametrize("other", [{"worth": "cross_entropy"}, {"factor": 1.01}, {"shift": 0.01}])
def test_a_log_of_another_network_data_or_worth_is_refused(tmp_path: Path, other: dict) -> None:  # type: ignore[type-arg]
    _score(tmp_path)
    before = (tmp_path / "conv1.npz").read_bytes()
    with pytest.raises(sp.InputError, match=r"^conv1: .*the model, the data, the metric or the precision differ"):
        _score(tmp_path, **other)
    assert (tmp_path / "conv1.npz").read_bytes() == before


def test_what_was_paid_before_a_failure_is_kept(path: Path) -> None:
    worth, paid = random_worth(3, 0), []

    def failing(kept: Coalitions) -> list[float]:
        if paid:
            raise KeyboardInterrupt
        paid.append(len(kept))
        return [worth(frozenset(np.flatnonzero(row).tolist())) for row in kept]

    logged = LoggedGame(Game.from_function(failing, 3))
    logged(every(3)[:4])
    with pytest.raises(KeyboardInterrupt):
        sp.estimate(logged, "exact")
    logged.save(path)
    whole = CountingGame(game_of(worth, 3))
    values = sp.estimate(LoggedGame.load(path, whole), "exact")
    assert values.value == pytest.approx(by_all_orders(worth, 3))
    assert values.n_evaluations == 4


def test_a_game_that_changes_its_answer_is_noticed_through_the_log() -> None:
    game = TableGame(N, 3, seed=0)
    game.repeatable = False
    logged = LoggedGame(game)
    sp.estimate(logged, "leave-one-out")
    sp.estimate(logged, "leave-one-out")  # asked once more, and the same
    fresh = LoggedGame(game)
    fresh(every(N)[5:9])
    game.tables += 1.0
    with pytest.raises(
        sp.errors.GameError, match=r"the coalition with only players 0, 2 is worth .* switch off what is random"
    ):
        fresh(every(N)[5:6])
