"""Block-wise reconstruction: every block nearer to the dense one, never worse, the same bits again, within its time."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from recovery.test_finetune import same, weights
from torch import Tensor, nn

import shaprune as sp
from shaprune.recovery import step_training
from shaprune.recovery.blocks import Blocks, reconstruct_blocks

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = Blocks(steps=30, lr=1e-2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(6, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


def case() -> tuple[nn.Module, nn.Module, sp.Plan, Tensor]:
    """A residual network with half of the channels inside its blocks removed."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Sequential(Block(), Block()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()
    x = torch.randn(300, 3, 10, 10)
    players = sp.find_players(model, x[:2], include="*.conv1")
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        kept[group.indices[1::2]] = False
    plan = sp.Plan.from_coalition(players, kept)
    return model, sp.prune(model, plan, x[:2]), plan, x


def gap(model: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - teacher(x)).square().mean())


def test_the_network_comes_nearer_to_the_dense_one_and_only_its_blocks_change() -> None:
    model, small, plan, x = case()
    better = sp.recover(small, model, plan, [x], (FAST,))
    again = sp.recover(small, model, plan, [x], (FAST,))
    assert gap(better, model, x) < 0.8 * gap(small, model, x)
    assert same(weights(better), weights(again))
    changed = {
        name
        for (name, after), before in zip(better.state_dict().items(), small.state_dict().values(), strict=True)
        if not torch.equal(after, before)
    }
    assert changed
    assert all(re.fullmatch(r"1\.[01]\.(conv|norm)[12]\.(weight|bias)", name) for name in changed)


def test_a_rate_that_diverges_keeps_every_block() -> None:
    model, small, plan, x = case()
    before = weights(small)
    went = reconstruct_blocks(small, model, x, Blocks(steps=4, lr=1e6))
    assert went.losses == (1.0, 1.0)
    assert same(weights(small), before)
    assert plan.removed


def test_blocks_for_which_no_time_is_left_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, small, _, x = case()
    now, before = [0.0], weights(small[1][1])  # type: ignore[index]
    monkeypatch.setattr(step_training.time, "perf_counter", lambda: now[0])
    take = step_training._Running.take

    def slow(self: Any, rows: Tensor) -> bool:
        now[0] += 1 if now[0] < 5 else 100
        return take(self, rows)

    monkeypatch.setattr(step_training._Running, "take", slow)
    went = reconstruct_blocks(small, model, x, Blocks(steps=30, lr=1e-2, max_seconds=10))
    assert went.notes == ("1 blocks", "the time ended after 1 of 2 blocks")
    assert same(weights(small[1][1]), before)  # type: ignore[index]


def test_few_examples_train_scales_and_biases_only() -> None:
    model, small, _, x = case()
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    went = reconstruct_blocks(small, model, x[:40], FAST)
    changed = {name for name, p in small.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(before[name].ndim == 1 for name in changed)
    assert went.notes == ("2 blocks", "40 examples are few: only scales and biases were trained")


def test_a_network_without_blocks_is_refused_with_the_step_that_fits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    small = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with pytest.raises(sp.InputError, match=r"no block to reconstruct.*use 'distill'"):
        reconstruct_blocks(small, model, torch.randn(220, 4), FAST)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"lr": 0.0}, {"examples": 1.5}, {"max_seconds": -1}, {"batch_size": "a"}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match=next(iter(wrong))):
        Blocks(**wrong)
