"""Two-stage detectors: regions that are pooled where boxes say are no part of what channels flow through."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.network.discovery.channels.choices import Choices
from shaprune.network.removal.surgery import remove_players

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.library.custom_op("shaprune_test::roi_align", mutates_args=())
def roi_align(features: Tensor, boxes: Tensor) -> Tensor:
    """(1, C, H, W) and boxes (K, 2), a corner each -> (K, C, 2, 2); zeros where a box has no place."""
    made = features.new_zeros(len(boxes), features.shape[1], 2, 2)
    for pooled, corner in zip(made, boxes, strict=True):
        if corner.isfinite().all():
            x, y = (int(v) % (features.shape[2] - 1) for v in corner)
            pooled.copy_(features[0, :, x : x + 2, y : y + 2])
    return made


class TwoStages(nn.Module):
    """Proposals of two levels that one layer reads, pooled out of the first; a head behind the flattened pools."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = (nn.Conv2d(i, 6, 3, padding=1) for i in (3, 6, 6))
        self.rpn, self.scores, self.places = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 1, 1), nn.Conv2d(8, 2, 1)
        self.fc, self.classes = nn.Linear(24, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.body(x))
        large, small = self.one(x), self.two(F.max_pool2d(x, 2))
        seen = [F.relu(self.rpn(level)) for level in (large, small)]
        scores = torch.cat([self.scores(s).flatten() for s in seen])
        places = torch.cat([self.places(s)[0].flatten(1).T for s in seen])
        places = places[scores > scores.mean()]
        regions = torch.ops.shaprune_test.roi_align(large, 4 + 2 * places.tanh())
        return self.classes(F.relu(self.fc(regions.flatten(1))))


def made() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return TwoStages().eval(), torch.randn(1, 3, 12, 12)


def test_channels_are_followed_into_regions_whatever_the_marks_in_scores_and_boxes() -> None:
    model, x = made()
    players = sp.find_players(model, x)
    found = {g.name: {m.module for m in g.consumers} for g in players.groups}
    assert found["one"] == {"rpn", "fc"}
    assert {g.name: len(g) for g in players.groups} == {"body": 6, "one": 6, "rpn": 8, "fc": 10}
    kept = np.arange(players.n) % 3 > 0
    assert remove_players(made()[0], players, kept)(x).shape[1] == 4


def test_choices_of_one_run_are_those_of_another() -> None:
    with Choices() as clean:
        first = torch.tensor([1.0, 3.0, 2.0]).argmax(), torch.tensor([1.0, 3.0]).topk(1).indices
    with Choices(clean.noted):
        again = torch.tensor([float("nan"), 0, 0]).argmax(), torch.tensor([float("nan"), 0]).topk(1).indices
        assert bool(torch.isnan(torch.tensor([float("nan")])))
    assert [int(a) for a in again] == [int(a) for a in first] == [1, 1]
