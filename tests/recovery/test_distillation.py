"""Distillation: never worse, the evaluated function is trained, the same bits again, also after an interruption."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recovery.test_finetune import case, same, weights
from testkit.networks import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.errors import ShapruneWarning
from shaprune.recovery import step_training
from shaprune.recovery.distillation import SQUARED, Distill, distill

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = Distill(steps=60, lr=1e-2)


def divergence(model: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        ours, theirs = (F.log_softmax(m.eval()(x), 1) for m in (model, teacher))
    return float(F.kl_div(ours, theirs, log_target=True, reduction="batchmean"))


def test_the_pruned_network_comes_nearer_to_the_dense_one_on_examples_it_has_not_seen() -> None:
    model, small, plan, x, _ = case(n=400)
    learnt, unseen = x[:300], x[300:]
    before = divergence(small, model, unseen)
    better = sp.recover(small, model, plan, [learnt], (FAST,))
    assert divergence(better, model, unseen) < 0.7 * before
    assert divergence(small, model, unseen) == before


def test_batch_norms_keep_their_statistics_and_dropout_stays_off() -> None:
    model, small, _, x, _ = case("plain")
    norm = nn.BatchNorm1d(5)
    small, model = nn.Sequential(small, norm, nn.Dropout(0.9)), nn.Sequential(model, norm)
    step = Distill(steps=3, lr=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShapruneWarning)
        went = distill(small.eval(), model.eval(), x, None, step)
    assert torch.equal(norm.running_mean, torch.zeros(5))  # type: ignore[arg-type]
    assert went.losses[1] == pytest.approx(went.losses[0], rel=1e-3)


def test_a_training_that_makes_it_worse_gives_back_the_weights_before_it() -> None:
    model, small, _, x, _ = case()
    before = weights(small)
    with pytest.warns(ShapruneWarning, match="no step of the distillation lowered the loss"):
        went = distill(small, model, x, None, Distill(steps=2, lr=30.0))
    assert went.kept == 0
    assert same(weights(small), before)


def test_a_loss_that_is_not_finite_ends_it_with_the_best_weights_until_then() -> None:
    model, small, _, x, _ = case()

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = small, 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += torch.is_grad_enabled()
            return self.inner(x) * (float("nan") if self.calls > 55 else 1.0)

    late = Late()
    with pytest.warns(ShapruneWarning, match="diverged: the loss is not finite in step 56.* after step 50 are kept"):
        went = distill(late, model, x, None, FAST)
    assert went.steps == 55
    assert went.kept == 1
    assert all(torch.isfinite(t).all() for t in weights(small))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    model, small, plan, x, _ = case()
    once, again, other = (sp.recover(small, model, plan, [x], (FAST,), seed=seed) for seed in (1, 1, 2))
    assert same(weights(once), weights(again))
    assert not same(weights(once), weights(other))


class Killed(BaseException):
    pass


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training ends without a chance to tidy up when so many steps have been taken."""
    take = step_training._Running.take

    def dying(self: Any, rows: Tensor) -> bool:
        if self.step == step:
            raise Killed
        return take(self, rows)

    monkeypatch.setattr(step_training._Running, "take", dying)


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small, plan, x, _ = case()
    path = tmp_path / "distill.safetensors"
    step = Distill(steps=120, lr=1e-2, checkpoint=path)
    whole = sp.recover(small, model, plan, [x], (Distill(steps=120, lr=1e-2),))
    with monkeypatch.context() as patch:
        killed_at(77, patch)
        with pytest.raises(Killed):
            sp.recover(small, model, plan, [x], (step,))
    assert path.exists()
    taken: list[int] = []
    take = step_training._Running.take

    def noted(self: Any, rows: Tensor) -> bool:
        taken.append(self.step)
        return take(self, rows)

    monkeypatch.setattr(step_training._Running, "take", noted)
    resumed = sp.recover(small, model, plan, [x], (step,))
    assert taken == [*range(50, 120)]  # from the checkpoint's on
    assert same(weights(resumed), weights(whole))
    with pytest.raises(sp.InputError, match="checkpoint of another training"):
        sp.recover(small, model, plan, [x], (step,), seed=5)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(sp.InputError, match="is no checkpoint of a training"):
        sp.recover(small, model, plan, [x], (step,))


def test_a_training_with_views_of_the_users_making_goes_on_too(tmp_path: Path) -> None:
    model, small, plan, x, _ = case()
    path = tmp_path / "distill.safetensors"

    def step() -> Distill:  # another function each time, as in another process
        return Distill(steps=60, lr=1e-2, augment=lambda t: t + 0.1, checkpoint=path)

    once = sp.recover(small, model, plan, [x], (step(),))
    assert same(weights(sp.recover(small, model, plan, [x], (step(),))), weights(once))
    with pytest.raises(sp.InputError, match="checkpoint of another training"):
        sp.recover(small, model, plan, [x], (replace(step(), augment=lambda t: t + 0.2),))


def test_seconds_buy_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, small, _, x, _ = case()
    clock = iter(range(10**6))
    monkeypatch.setattr(step_training.time, "perf_counter", lambda: next(clock) * 0.5)  # half a second between looks
    went = distill(small, model, x, None, Distill(steps=1000, lr=1e-2, max_seconds=10))
    assert went.steps is not None
    assert 10 < went.steps < 60
    with pytest.raises(sp.InputError, match=r"max_seconds=0.01 is too little for one step of 64 examples"):
        distill(small, model, x, None, Distill(max_seconds=0.01))


def test_an_interrupted_training_has_only_the_seconds_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, small, _, x, _ = case()
    now = [0.0]
    monkeypatch.setattr(step_training.time, "perf_counter", lambda: now[0])
    take = step_training._Running.take

    def slow(self: Any, rows: Tensor) -> bool:
        now[0] += 1
        return take(self, rows)

    step = Distill(steps=1000, lr=1e-2, max_seconds=130, checkpoint=tmp_path / "at")
    monkeypatch.setattr(step_training._Running, "take", slow)
    with monkeypatch.context() as patch:
        killed_at(77, patch)
        with pytest.raises(Killed):
            distill(small, model, x, None, step)
    now[0] = 5000.0  # another process, another clock
    went = distill(small, model, x, None, step)
    assert went.steps == 127  # 130 less the three that were tried
    assert now[0] == 5000 + 77  # from step 50 on


def test_a_machine_that_becomes_slow_takes_fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model, small, _, x, _ = case()
    now = [0.0]
    monkeypatch.setattr(step_training.time, "perf_counter", lambda: now[0])
    take = step_training._Running.take

    def slower(self: Any, rows: Tensor) -> bool:
        now[0] += 1 if self.step < 60 else 10
        return take(self, rows)

    monkeypatch.setattr(step_training._Running, "take", slower)
    went = distill(small, model, x, None, Distill(steps=1000, lr=1e-2, max_seconds=200))
    assert went.steps is not None
    assert 60 < went.steps < 80
    assert now[0] <= 210  # one step beyond at most


def test_where_a_batch_does_not_fit_into_memory_it_is_run_in_parts_with_the_same_gradient() -> None:
    model, small, plan, x, _ = case()
    largest: list[int] = []

    def forward(network: nn.Module, inputs: Tensor) -> Any:
        if torch.is_grad_enabled():
            if len(inputs) > 16:
                raise torch.OutOfMemoryError
            largest.append(len(inputs))
        return network(inputs)

    whole = sp.recover(small, model, plan, [x], (FAST,))
    parts = sp.recover(small, model, plan, [x], (FAST,), forward=forward)
    assert max(largest) == 16
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(weights(whole), weights(parts), strict=True))


def test_few_examples_train_scales_and_biases_only() -> None:
    model, small, _, x, _ = case(n=40)
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    went = distill(small, model, x, None, FAST)
    assert went.notes == ("40 examples are few: only scales and biases were trained",)
    changed = {name for name, p in small.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(before[name].ndim == 1 for name in changed)


@pytest.mark.parametrize(("outputs", "targets"), [(1, None), (5, torch.zeros(220)), ("unit", None)])
def test_what_is_no_logits_is_followed_by_squared_distance(outputs: Any, targets: Tensor | None) -> None:
    torch.manual_seed(0)
    teacher: nn.Module = nn.Linear(4, outputs if outputs != "unit" else 6)
    if outputs == "unit":
        teacher = nn.Sequential(teacher, Unit())
    small = nn.Linear(4, 1 if outputs == 1 else 5 if outputs == 5 else 6)
    x = torch.randn(220, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShapruneWarning)
        went = distill(small, teacher, x, targets, Distill(steps=1, lr=1e-9, validation=0.5))
    assert went.notes == (SQUARED,)
    watched = torch.randperm(220, generator=torch.Generator().manual_seed(0))[:110]
    with torch.no_grad():
        small_before = F.mse_loss(small(x[watched]), teacher(x[watched]))
    assert went.losses[0] == pytest.approx(float(small_before), rel=1e-4)


class Unit(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)


def test_images_are_mirrored_and_shifted_and_the_dense_network_answers_to_these_views() -> None:
    make, example = NETWORKS["plain"]
    model = make().eval()
    x = torch.randn(64, *example().shape[1:])
    seen: list[Tensor] = []

    def forward(network: nn.Module, inputs: Tensor) -> Any:
        if network is model:
            seen.append(inputs)
        return network(inputs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShapruneWarning)
        distill(make().eval(), model, x, None, Distill(steps=4), forward=forward)
        views = torch.cat(seen)[-128:]
        assert torch.equal(views[:64], x)
        assert not torch.equal(views[64:], x)
        seen.clear()
        distill(make().eval(), model, x, None, Distill(steps=4, augment=lambda t: t + 9), forward=forward)
    assert torch.equal(torch.cat(seen)[-64:], x + 9)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0"),
        ({"loss": "l1"}, "loss"),
        ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"batch_size": True}, "batch_size is True"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"validation": None}, "validation is None"),
        ({"max_seconds": "5"}, "max_seconds is '5'"),
        ({"augment": 5}, "augment is 5; give a function"),
        ({"checkpoint": "."}, "checkpoint is '.'; name a file"),
        ({"checkpoint": 5}, "checkpoint is '5'; name a file"),
        ({"checkpoint": "no/such/folder/x"}, "there is no folder 'no/such/folder'; make it first"),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(sp.InputError, match=says):
        Distill(**wrong)


def test_wrong_data_is_refused_and_the_weights_stay() -> None:
    model, small, _, x, _ = case()
    before = weights(small)
    with pytest.raises(sp.InputError, match="augment returned 3 examples for 220"):
        distill(small, model, x, None, Distill(augment=lambda t: t[:3]))
    with pytest.raises(sp.InputError, match=r"augment returned inputs of shape .*; return the same shapes"):
        distill(small, model, x, None, Distill(augment=lambda t: t[:, :3]))
    with pytest.raises(sp.InputError, match="is nan before the first step"):
        distill(small, model, torch.full_like(x, float("nan")), None, FAST)
    with pytest.raises(sp.InputError, match="outputs have shape"):
        distill(small, nn.Linear(x.shape[1], 3), x, None, FAST)
    for parameter in small.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(sp.InputError, match="no trainable parameter"):
        distill(small, model, x, None, FAST)
    assert same(weights(small), before)


def test_recurrent_layers_are_trained_in_eval_mode() -> None:
    torch.manual_seed(0)
    model, small = (nn.Sequential(nn.LSTM(4, 6, batch_first=True), Last(), nn.Linear(6, 3)).eval() for _ in range(2))
    went = distill(small, model, torch.randn(220, 5, 4), None, FAST)
    assert went.kept
    assert not any(module.training for module in small.modules())


class Last(nn.Module):
    def forward(self, outputs: tuple[Tensor, Any]) -> Tensor:
        return outputs[0][:, -1]
