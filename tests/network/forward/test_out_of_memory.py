"""Where the device has no memory for a batch: halves of it, smaller batches later, the same worths."""

from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import NETWORKS, labelled
from torch import Tensor

import shaprune as sp
from shaprune.network.forward.incremental_linear import IncrementalLinear

MAKE, EXAMPLE = NETWORKS["plain"]
pytestmark = pytest.mark.usefixtures("one_thread")


def game_on(examples: int) -> sp.NetworkGame:
    model = MAKE().eval()
    players = sp.find_players(model, EXAMPLE(), include="conv2")
    return sp.NetworkGame(model, players, [(labelled(EXAMPLE(), examples)[0], None)], "fidelity")


@pytest.fixture
def game() -> sp.NetworkGame:
    return game_on(40)


class Small:
    """Has room for so many rows at once, and counts how often that was not enough."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, game: sp.NetworkGame, most: int, error: Exception) -> None:
        self.failed, self.sizes = 0, list[int]()
        run, finish = game.runner.run, IncrementalLinear.finish

        def check(rows: int) -> None:
            if rows > most:
                self.failed += 1
                raise error
            self.sizes.append(rows)

        def limited_run(state: Any, mask: Tensor) -> Tensor:
            check(len(mask))
            return run(state, mask)

        def limited_finish(first: IncrementalLinear, leftover: Any, output: Tensor) -> Tensor:
            check(len(output))
            return finish(first, leftover, output)

        monkeypatch.setattr(game.runner, "run", limited_run)
        monkeypatch.setattr(IncrementalLinear, "finish", limited_finish)


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ...")


@pytest.mark.parametrize("error", [OUT, CPU], ids=["cuda", "cpu"])
@pytest.mark.parametrize("ask", ["pairs", "walks", "everyone", "grid", "one"])
def test_batches_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch, ask: str, error: Exception) -> None:
    rng, game = np.random.default_rng(0), game_on(6 if ask == "grid" else 40)  # a grid is of all coalitions
    n, examples = game.n_players, np.arange(40)
    coalitions = rng.random((40, n)) < 0.5
    codes = np.arange(1 << n)[:, None] >> np.arange(n) & 1
    orders = rng.permuted(np.tile(np.arange(n), (40, 1)), axis=1)

    def answer() -> Any:
        if ask == "walks":
            return game.walk(orders, examples)
        asked = {"one": coalitions[:1], "grid": codes.astype(bool)}.get(ask, coalitions)
        return game(asked, examples if ask == "pairs" else None)

    expected = answer()
    # every question as a whole takes more rows than there is room for; a walk is one row more than it has players
    device = Small(monkeypatch, game, 16, error)
    assert np.allclose(answer(), expected, rtol=1e-4, atol=1e-7)
    assert device.failed > 0
    first = device.failed
    answer()
    assert device.failed == first  # later batches are small from the start


def test_a_row_that_does_not_fit_stays_an_error(game: sp.NetworkGame, monkeypatch: pytest.MonkeyPatch) -> None:
    Small(monkeypatch, game, 0, OUT)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        game(np.ones((4, game.n_players), dtype=bool), np.arange(4))


def test_other_errors_are_not_tried_again(game: sp.NetworkGame, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Small(monkeypatch, game, 0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        game(np.ones((4, game.n_players), dtype=bool), np.arange(4))
    assert device.failed == 1
