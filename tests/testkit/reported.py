"""A small network with made-up values, curves and frontiers, for tests of reports."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

import shaprune as sp
from shaprune.planning.sensitivity_curves import Sensitivity, SensitivityCurve
from shaprune.players.players import Group, Players
from shaprune.values.result import Values


class Residual(nn.Module):
    """A stream of 6 channels through two blocks, a depthwise convolution, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 9, 3, padding=1)
        self.outer = nn.Conv2d(9, 6, 1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.wide = nn.Linear(6, 14)
        self.head = nn.Linear(14, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner(x)))
        return self.head(torch.relu(self.wide(self.deep(x).mean((2, 3)))))  # type: ignore[no-any-return]


def made_up(players: sp.Players, seed: int = 0) -> sp.Scores:
    """Values that nobody computed."""
    rng = np.random.default_rng(seed)
    by_group = {}
    for group in players.groups:
        n = len(group)
        value = rng.normal(0.4, 1, n)
        by_group[group.name] = Values(
            value, np.full(n, 0.2), 100, "permutation", 0.0, "max_evaluations", 1.0, 0.0, np.full(n, 9)
        )
    return sp.Scores(players, by_group, "fidelity")


FRONTIER = {
    "schema": 1,
    "kind": "frontier",
    "by": "macs",
    "points": [
        {"asked": s, "cost": {}, "shares": {"macs": s, "params": s, "players": s}, "quality": q, "kept": {}}
        for s, q in ((0.8, 0.9), (0.5, 0.8), (0.2, 0.4))
    ],
}


def curves_of(scores: sp.Scores) -> Sensitivity:
    return Sensitivity(
        {
            name: SensitivityCurve(v.ranking(), np.array([0, v.n // 2, v.n]), np.array([0.9, 0.8, 0.3]))
            for name, v in scores.items()
        },
        "fidelity",
        20,
    )


def renamed(players: Players, name: str) -> Players:
    first, *rest = players.groups
    labels = tuple(f"{name}[{i}]" for i in range(len(first)))
    return replace(players, groups=(Group(name, first.indices, first.members, labels), *rest))


def many(players: Players, n: int) -> Players:
    """The same first group ``n`` times, under names that differ in numbers, and under ones that do not."""
    first = players.groups[0]
    groups = [
        Group(f"block{i}.conv" if i % 2 else f"{'abc'[i % 3]}{'x' * i}", first.indices + i * len(first), first.members)
        for i in range(n)
    ]
    return replace(players, groups=tuple(groups))
