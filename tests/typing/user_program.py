"""A user's program, checked by mypy --strict against the installed wheel (tests/test_package.py); it is never run.

``assert_type`` says what a user's editor must show; an ignored error says what must be refused (an ignore that is not
needed is an error itself).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import assert_type

import shaprune as sp


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    yield torch.randn(8, 3, 16, 16), torch.zeros(8, dtype=torch.int64)


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float()


model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))
images = torch.randn(2, 3, 16, 16)

players = sp.find_players(model, images, unit="channel", exclude="3")
assert_type(players, sp.Players)
assert_type(players.n, int)
print(players.summary().upper(), players.names[0].upper())

scores = sp.score(model, players, batches(), worth=correct, seed=1, options=sp.options.Scoring(window=(0.5, 1.0)))
assert_type(scores, sp.Scores)
values = scores["0"]
assert_type(values, sp.Values)
assert_type(values.value, NDArray[np.float64])
assert_type(values.n_evaluations, int)

plan = sp.plan(scores, sp.Budget(macs=0.5), allocation="global")
assert_type(plan, sp.Plan)
small = sp.prune(model, plan, images)
assert_type(small, nn.Module)
small = sp.recover(small, teacher=model, plan=plan, data=batches(), steps=("refit", "batchnorm"))
sp.save(small, plan, "out", overwrite=True)
again = sp.load(Path("out"), build=lambda: model)
assert_type(again, nn.Module)

result = sp.compress(model, batches(), sp.Budget(params=0.5), example_inputs=images)
assert_type(result.model, nn.Module)
assert_type(result.plan, sp.Plan)
assert_type(result.values, sp.Scores)


def majority(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(kept.sum(1) >= 2)


game = sp.Game.from_function(majority, n_players=3)
assert_type(sp.estimate(game, "exact").ranking(), NDArray[np.int64])
try:
    sp.plan(scores, sp.Budget(macs=2.0))
except sp.InputError as error:
    print(error)

sp.plan(sp.Scores(players, 0.5), sp.Budget(macs=0.5))  # type: ignore[arg-type]
sp.Budget(mac=0.5)  # type: ignore[call-arg]
sp.score(model, players, batches(), metod="exact")  # type: ignore[call-arg]
sp.find_player(model, images)  # type: ignore[attr-defined]
scores.worth = "accuracy"  # type: ignore[misc]
