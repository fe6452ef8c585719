"""Lists of images in, lists of structures out: each image is an example, and rows of such lists are never cut."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.errors import InputError
from shaprune.network.batches import apart, examples_in

pytestmark = pytest.mark.usefixtures("one_thread")


class Detector(nn.Module):
    """Keeps the places whose score is above a threshold, image by image."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.scores, self.boxes = nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        x = F.relu(self.two(F.relu(self.one(torch.stack(images)))))
        found = zip(self.scores(x).flatten(2).mT, self.boxes(x).flatten(2).mT, strict=True)
        return [{"boxes": boxes[scores[:, 0] > 0.1], "scores": scores[scores[:, 0] > 0.1]} for scores, boxes in found]


def made(n: int) -> tuple[nn.Module, tuple[list[Tensor]]]:
    torch.manual_seed(1)
    return Detector().eval(), ([torch.randn(3, 6, 6) for _ in range(n)],)


@pytest.mark.parametrize("n", [2, 3])
def test_multiply_adds_are_those_of_one_image(n: int) -> None:
    model, images = made(n)
    players = sp.find_players(model, images)
    assert {g.name: len(g) for g in players.groups} == {"one": 6, "two": 8}
    assert players.model_macs == 36 * (3 * 6 * 9 + 6 * 8 * 9 + 8 * 2 + 8 * 4)


@pytest.mark.parametrize("n", [2, 3])  # 3 is the number of channels of an image, too
def test_rows_of_lists_are_refused_with_the_way_round(n: int) -> None:
    model, images = made(n)
    players = sp.find_players(model, images)
    with pytest.raises(InputError, match=r"rows cannot be separated.*Evaluate"):
        sp.NetworkGame(model, players, [(images, None)], "fidelity")


def test_evaluate_asks_the_network_that_removal_leaves() -> None:
    model, images = made(2)
    players = sp.find_players(model, images)

    def total(network: nn.Module) -> float:
        with torch.no_grad():
            return float(sum(found["scores"].sum() for found in network(*images)))

    kept = np.arange(players.n) % 3 > 0
    game = sp.NetworkGame(model, players, None, sp.worths.Evaluate(total))
    small = sp.prune(model, sp.Plan.from_coalition(players, kept), images)
    assert game(kept[None]).item() == pytest.approx(total(small), rel=1e-5)


@pytest.mark.parametrize(
    ("answer", "n"),
    [([{"a": torch.ones(1)}] * 2, 2), ([torch.ones(4, 1)] * 2, 4), (torch.ones(4, 1), 4), ([{"a": 1}], 4)],
)
def test_maps_of_several_sizes_are_batches(answer: Any, n: int) -> None:
    maps = ([torch.ones(4, 3), torch.ones(4, 5)],)
    assert examples_in(maps, answer) == n
    assert apart(maps, answer) is (n == 2)
