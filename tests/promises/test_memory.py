"""Walks take the memory they may take, and no more: nothing of the size walks x steps x players is ever made."""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from testkit.networks import NETWORKS
from torch import nn

import shaprune as sp
from shaprune.network.forward import row_batches as rows_module
from shaprune.network.forward.coalition_masks import Listed, Walked
from shaprune.values.estimators import exact
from shaprune.values.estimators.permutation import Permutation, _PlayerSubset
from shaprune.values.games import coalition_chains
from shaprune.values.games.coalition_chains import coalitions_along, parts
from shaprune.values.games.logged import LoggedGame
from shaprune.values.interactions import sampled
from shaprune.values.stopping import cut_settled

BOUNDED = """
import resource, sys
import torch
from torch import nn
import shaprune as sp

kind = sys.argv[1]
torch.manual_seed(0)
wide = [nn.Linear(4, 1500), nn.ReLU(), nn.Linear(1500, 4)]
model = nn.Sequential(*wide, nn.Linear(4, 1500), nn.ReLU(), nn.Linear(1500, 4)).eval()
options = sp.options.Scoring(together=True, max_memory=60_000_000, window=(0, 1))
if kind == "weights":
    model = nn.Sequential(nn.Linear(10, 300), nn.ReLU(), nn.Linear(300, 4)).eval()
    options = sp.options.Scoring(max_memory=60_000_000, window=(0, 1))
inputs = torch.randn(10, model[0].in_features)
unit = "weight" if kind == "weights" else "channel"
players = sp.find_players(model, inputs[:2], unit=unit, include=["0"] if kind == "weights" else None)
score = lambda walks: sp.score(model, players, [(inputs, None)], "fidelity", progress=False,
                               max_evaluations=walks * (players.n + 1), options=options)
score(1)  # what is loaded on the way is loaded now
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 120_000_000,) * 2)
assert score(20).n_evaluations == 20 * (players.n + 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a limit of the address space, as Linux has it")
@pytest.mark.parametrize("kind", ["together", "weights"])
def test_walks_of_a_network_stay_within_their_memory(kind: str) -> None:
    """The coalitions of 20 walks of 3,000 players are 180 MB, and their masks 720 MB."""
    done = subprocess.run([sys.executable, "-c", BOUNDED, kind], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


class Counting(sp.Game):
    """A game that notes the largest question."""

    def __init__(self, n: int) -> None:
        self.n_players, self.n_examples, self.largest, self.asked = n, 8, 0, 0
        self.weights = np.random.default_rng(0).random(n)

    def __call__(self, coalitions: Any, examples: Any = None) -> Any:
        self.largest, self.asked = max(self.largest, coalitions.size), self.asked + 1
        return coalitions @ self.weights + coalitions[:, 0] * coalitions[:, 1]


ESTIMATES: dict[str, Callable[[sp.Game], Any]] = {
    "walks": lambda game: sp.estimate(game, max_evaluations=20 * 41).value,
    "truncated": lambda game: sp.estimate(game, Permutation(truncate=0.2), max_evaluations=20 * 41).value,
    "antithetic": lambda game: sp.estimate(game, Permutation(antithetic=True), max_evaluations=20 * 41).value,
    "logged": lambda game: (
        sp.estimate(LoggedGame(game), Permutation(per_example=False), max_evaluations=800 * 41).value
    ),
    "leave-one-out": lambda game: sp.estimate(game, "leave-one-out").value,
    "interactions": lambda game: sampled(game, 2 * 2 * 40 * 40, 0)[0],
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_questions_are_no_larger_than_their_bound_and_say_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sliced = Counting(40), Counting(40)
    expected = ESTIMATES[name](whole)
    monkeypatch.setattr(coalition_chains, "CELLS", 1_000)
    monkeypatch.setattr(exact, "CELLS", 1_000)
    assert np.allclose(ESTIMATES[name](sliced), expected, rtol=1e-12, atol=1e-12)
    assert sliced.largest <= (2_000 if name == "interactions" else 1_000) < whole.largest  # there, a walk is whole
    assert sliced.asked > whole.asked


def test_players_near_the_cut_are_asked_in_parts_that_keep_samples_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(game: sp.Game) -> NDArray[np.float64]:
        return sp.estimate(game, stop=cut_settled(20), max_evaluations=40_000, seed=3).value

    whole, sliced = Counting(40), Counting(40)
    expected, used = found(whole), []
    kept = _PlayerSubset.of
    monkeypatch.setattr(_PlayerSubset, "of", staticmethod(lambda *given: used.append(len(given[0])) or kept(*given)))
    monkeypatch.setattr(coalition_chains, "CELLS", 4_000)
    assert np.allclose(found(sliced), expected, rtol=1e-12)
    assert used
    assert all(walks % 2 == 0 for walks in used)  # two samples of each example
    assert sliced.largest <= max(4_000, 2 * 2 * 40 * 40)


class Asking(nn.Module):
    """A model that torch.fx cannot follow, so that it is replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.network = NETWORKS["plain"][0]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x) if x.shape[0] > 0 else x


@pytest.mark.parametrize("make", [NETWORKS["plain"][0], Asking])
def test_thirty_games_on_one_model_leave_nothing_behind(make: Callable[[], nn.Module]) -> None:
    """Counted are objects, not bytes: the system decides when memory that is free is given back."""
    model, example = make().eval(), NETWORKS["plain"][1]
    players = sp.find_players(model, example())
    group = players.groups[0].name

    def alive(games: int) -> tuple[int, int]:
        for _ in range(games):
            game = sp.NetworkGame(model, players, [(example(), None)], "fidelity", group)
            game(np.ones((2, game.n_players), dtype=bool))
            game.walk(np.arange(game.n_players)[None], np.zeros(1, dtype=np.int64))
        del game
        gc.collect()
        objects = gc.get_objects()
        return sum(issubclass(type(one), torch.Tensor) for one in objects), len(objects)

    alive(3)
    tensors, objects = alive(3)
    later = alive(30)
    assert later[0] == tensors
    assert later[1] < objects + 30  # less than one for each game


@pytest.mark.parametrize("make", [NETWORKS["plain"][0], Asking])
@pytest.mark.parametrize("worth", ["fidelity", "cross_entropy"])
def test_a_game_gives_its_memory_back_at_once(make: Callable[[], nn.Module], worth: str) -> None:
    """Python looks for cycles by numbers of objects, not by their bytes: a gigabyte in a cycle may stay for long."""
    model, example = make().eval(), NETWORKS["plain"][1]
    players = sp.find_players(model, example())
    inputs = torch.cat([example()] * 5)
    data = [(inputs, torch.arange(len(inputs)) % 5)]

    def play() -> list[weakref.ref[Any]]:
        game = sp.NetworkGame(model, players, data, worth, players.groups[0].name)
        game(np.ones((2, game.n_players), dtype=bool))
        game.walk(np.arange(game.n_players)[None], np.zeros(1, dtype=np.int64))
        game.derivatives(np.ones((2, game.n_players), dtype=bool), np.zeros(2, dtype=np.int64))
        rows = game.evaluator.rows
        kept = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and len(one.shape) > 1]
        return [weakref.ref(one) for one in (game, rows, rows.runner, *(t for t in kept if len(t) == len(inputs)))]

    play()
    gc.collect()
    gc.disable()
    try:
        left = [one for seen in play() if (one := seen()) is not None]
    finally:
        gc.enable()
    assert all(one is inputs for one in left), [type(one) for one in left]


LOOP = """
import gc, resource
from pathlib import Path
import torch
from testkit.networks import NETWORKS
import shaprune as sp


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


torch.set_num_threads(1)
make, example = NETWORKS["plain"]
model = make().eval()
inputs = torch.cat([example()] * 500)
players = sp.find_players(model, inputs[:2])
gc.disable()  # as good as that, where a program has millions of objects


def play():
    sp.score(model, players, [(inputs, None)], "fidelity", max_evaluations=400, progress=False)


for _ in range(3):
    play()
before = resident()
for _ in range(15):
    play()
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process, as Linux tells it")
def test_a_loop_of_games_takes_no_more_memory_than_a_few() -> None:
    """Each score plays 4 games that record some 4 MB for every one of them; all 15 scores may take 20 MB more."""
    where = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(sp.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", LOOP], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000_000


def test_a_question_keeps_nothing_for_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that is kept for every block holds the memory around it, which no later block can use."""
    alive: list[int] = []

    def worth(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        alive.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))
        return outputs[:, 0]

    model, example = NETWORKS["plain"][0]().eval(), NETWORKS["plain"][1]()
    players = sp.find_players(model, example)
    monkeypatch.setattr(rows_module, "BATCH_BYTES", 1)
    game = sp.NetworkGame(model, players, [(example, torch.zeros(len(example)))], worth, "conv1")
    alive.clear()
    game(np.ones((16, game.n_players), dtype=bool), np.zeros(16, dtype=np.int64))
    assert len(alive) >= 16
    assert max(alive[8:]) <= max(alive[:8])


def test_parts_cover_everything_once() -> None:
    for count, cells, together in ((10, 1 << 25, 1), (7, 1 << 30, 1), (9, 1 << 23, 4), (3, 1, 1), (0, 5, 1)):
        found = list(parts(count, cells, together))
        assert [i for part in found for i in range(part.start, part.stop)] == list(range(count))
        assert all((part.stop - part.start) % together == 0 for part in found[:-1])
        assert all((part.stop - part.start) * cells <= max(coalition_chains.CELLS, cells * together) for part in found)


@pytest.mark.parametrize("length", [1, 4, 6])
@pytest.mark.parametrize("begun", [False, True])
def test_masks_along_walks_are_those_of_the_chain(length: int, begun: bool) -> None:
    rng = np.random.default_rng(0)
    orders = np.ascontiguousarray(rng.permuted(np.tile(np.arange(6), (5, 1)), axis=1)[:, :length])
    start = np.array([True] * 6 + [False, True]) if begun else None
    expected = torch.from_numpy(coalitions_along(orders, 8, start).reshape(-1, 8))
    given = None if start is None else torch.from_numpy(start)
    walked, listed = Walked.of(torch.from_numpy(orders), 8, given), Listed(expected)
    for masks in (walked, listed):
        assert len(masks) == len(expected)
        for part in (slice(0, 3), slice(2, len(expected)), slice(4, 5)):
            assert torch.equal(masks[part], expected[part].float())
            assert torch.equal(masks.part(part)[0:1], expected[part][:1].float())
            assert len(masks.part(part)) == part.stop - part.start
    assert (walked.grid(4), listed.grid(4)) == (None, None)
