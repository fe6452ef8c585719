"""Many marked runs asked as one: the same answers as one by one, and one by one where rows meet each other."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shaprune.network.discovery.channels.nan_marking import Marking
from shaprune.network.layers.kinds import measured


class Chain(nn.Module):
    """Two linear layers whose rows meet, or do not; or are turned round."""

    def __init__(self, rows: str) -> None:
        super().__init__()
        self.rows, self.one, self.two = rows, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = {"apart": x, "meet": x - x.mean(0), "turned": x.flip(0)}[self.rows]
        out: Tensor = self.two(x)
        return out


@pytest.mark.parametrize(("rows", "together"), [("apart", True), ("meet", False), ("turned", False)])
def test_copies_answer_as_runs_of_their_own(rows: str, together: bool) -> None:
    model, x = Chain(rows).eval(), torch.randn(2, 3)
    marking = Marking(model, x, measured(model, x)[0], 60.0, 1 << 20)
    marks = [{0: np.arange(4) == channel} for channel in range(4)]
    answers = marking.runs(marks)
    assert (marking._clean.most > 1) == together
    for answer, marked in zip(answers, marks, strict=True):
        alone = marking.run(marked)
        assert answer.keys() == alone.keys()
        assert all(np.array_equal(answer[reader], alone[reader]) for reader in alone)
        assert np.array_equal(answer["two"], marked[0])
