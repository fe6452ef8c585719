"""Players are found whatever the layout: time first, two views in one batch, answers of any structure, keywords."""

from typing import Any, NamedTuple

import pytest
import torch
from testkit.removing import check_removal, made
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp

pytestmark = pytest.mark.usefixtures("one_thread")


class TimeFirst(nn.Module):
    """(batch, time, 4) turned to time first, through torch's own encoder layer; gives back its states time first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, 8), nn.Parameter(torch.randn(5, 1, 8))
        self.encoder, self.hidden = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0), nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states = self.encoder(self.embed(x).transpose(0, 1) + self.place)
        return self.out(self.hidden(states).relu()), states


class Twins(nn.Module):
    """Two views side by side in one batch, then apart."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(16, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        both = self.two(self.one(torch.cat([left, right])).relu()).relu().mean((2, 3))
        return self.out(torch.cat(both.chunk(2), dim=1))


class Contrast(nn.Module):
    """Every row is compared with all rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        features = self.two(self.one(x).relu())
        return features @ features.T


class Answer(NamedTuple):
    classes: Tensor
    more: list[Tensor]


class PerImage(nn.Module):
    """A list with one dict per image and, beside it, a named tuple with whole numbers and truths."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.scores = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> Any:
        scores = self.scores(self.two(self.one(images).relu()).relu()).flatten(2).transpose(1, 2)
        answer = Answer(scores.argmax(-1), [scores > 0])
        return [{"scores": s.softmax(-1)} for s in scores], answer


class Renamed(nn.Linear):
    """Takes its input under a name of its own, behind a flag."""

    def forward(self, scaled: bool, features: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(features, self.weight, self.bias) * (2 if scaled else 1)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.up, self.two = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 5, 2), nn.Conv2d(5, 8, 3)
        self.own, self.norm, self.out = Renamed(8, 7), nn.LayerNorm(3), nn.Linear(7, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.two(input=self.up(input=self.one(input=image).relu())).relu().mean((2, 3))
        return self.norm(input=self.out(input=self.own(True, features=x).relu()))


CASES = {
    "time first": (TimeFirst, torch.randn(2, 5, 4), {"encoder.linear1": 12, "hidden": 6}),
    "two views": (Twins, (torch.randn(2, 3, 7, 7), torch.randn(2, 3, 7, 7)), {"one": 6, "two": 8}),
    "rows meet": (Contrast, torch.randn(4, 4), {"one": 9}),
    "one row": (Contrast, torch.randn(1, 4), {"one": 9}),
    "per image": (PerImage, torch.randn(2, 3, 7, 7), {"one": 6, "two": 8}),
    "keywords": (Keywords, {"image": torch.randn(2, 3, 9, 9)}, {"one": 6, "up": 5, "two": 8, "own": 7}),
}


@pytest.mark.parametrize("name", CASES)
def test_players_are_found_in_any_layout(name: str) -> None:
    kind, inputs, wanted = CASES[name]

    def build() -> nn.Module:
        torch.manual_seed(1)
        return kind().eval()

    players = sp.find_players(build(), inputs)
    assert made(players) == wanted
    check_removal(build, players, inputs)


def test_examples_that_need_their_own_number_are_run_as_they_are() -> None:
    class Time(nn.Module):
        """Time first, at its inputs, too: three steps, and a weight for each."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.steps, self.out = nn.Linear(4, 6), nn.Parameter(torch.randn(3, 1, 1)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out((self.one(x).relu() * self.steps).sum(0))

    def build() -> nn.Module:
        torch.manual_seed(1)
        return Time().eval()

    x = torch.randn(3, 2, 4)
    players = sp.find_players(build(), x)
    assert made(players) == {"one": 6}
    check_removal(build, players, x)
