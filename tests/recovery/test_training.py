"""Training in place: it learns, it is reproducible, and it gives everything back."""

import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Untouched
from testkit.networks import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F

from shaprune.deploy.measure import accuracy
from shaprune.errors import InputError
from shaprune.recovery.lightning_trainer import interruptible
from shaprune.recovery.training import Training, fit
from shaprune.recovery.training_data import mean_loss

Batches = list[tuple[Tensor, Tensor]]


def blobs(n: int = 240, batch: int = 50) -> Batches:
    """Three well separated classes in four dimensions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    x = 3 * torch.eye(4)[y] + torch.randn(n, 4, generator=generator)
    return list(zip(x.split(batch), y.split(batch), strict=True))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# --- it learns ---


def test_it_learns_classes_and_lends_the_model_back(untouched: Untouched) -> None:
    model = network()
    model[1].eval()  # mixed flags
    before = accuracy(model, blobs())
    with untouched(model):
        fit(model, blobs(), epochs=25, lr=0.02)
    assert accuracy(model, blobs()) > max(0.95, before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_it_learns_numbers() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0])  # (200,), where the model returns (200, 1)
    model = nn.Linear(4, 1)
    fit(model, [(x, y)], epochs=40, lr=0.1, loss="mse", batch_size=50)
    assert torch.allclose(model.weight, torch.tensor([[1.0, -2.0, 0.5, 0.0]]), atol=0.05)


def test_distillation_needs_no_labels_and_leaves_the_teacher_alone(untouched: Untouched) -> None:
    teacher, student = network(1), network(2)
    fit(teacher, blobs(), epochs=8, lr=0.02)
    kept = weights(teacher)
    with untouched(teacher, student):
        fit(student, [x for x, _ in blobs()], epochs=15, lr=0.02, loss="distill", teacher=teacher)
    assert same(weights(teacher), kept)
    x = torch.cat([x for x, _ in blobs()])
    with torch.no_grad():
        agree = (student.eval()(x).argmax(1) == teacher.eval()(x).argmax(1)).float().mean()
    assert agree > 0.97


def test_distillation_is_kl_at_temperature_two_for_classes_and_squared_error_for_numbers() -> None:
    x, y = torch.eye(4), torch.arange(4) % 3
    for targets, outputs in ((y, 3), (torch.randn(4), 1), (torch.randn(4, 3), 3)):
        torch.manual_seed(0)
        teacher, student = nn.Linear(4, outputs), nn.Linear(4, outputs)
        by_hand = nn.Linear(4, outputs)
        by_hand.load_state_dict(student.state_dict())
        aim, made = teacher(x).detach(), by_hand(x)
        if targets.is_floating_point():
            loss = ((made - aim) ** 2).mean()
        else:
            p, q = (aim / 2).softmax(1), (made / 2).softmax(1)
            loss = 4 * (p * (p / q).log()).sum(1).mean()
        loss.backward()
        optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.1, weight_decay=0.3)
        optimizer.step()
        fit(
            student,
            [(x, targets)],
            epochs=1,
            lr=0.1,
            loss="distill",
            teacher=teacher,
            options=Training(weight_decay=0.3),
        )
        assert torch.allclose(student.weight, by_hand.weight, atol=1e-6)


def test_the_distillation_loss_by_hand() -> None:
    # teacher 2 ln 3, 0 at temperature 2 is 3/4, 1/4; the student says 1/2, 1/2
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]] * 2), torch.zeros(2, 2)
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert mean_loss("kl", student, teacher).item() == pytest.approx(4 * kl)
    assert mean_loss("kl", teacher, teacher).item() == pytest.approx(0)


def test_a_batch_may_be_a_dict() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            return {"logits": self.fc(pixels)}

    model = Named()
    batches = [{"pixels": x, "labels": y} for x, y in blobs()]
    fit(model, batches, epochs=20, lr=0.05)
    assert accuracy(model, batches) > 0.9


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = weights(model)
    fit(model, blobs(), epochs=2, lr=0.05)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[4].weight, before["4.weight"])
    assert not model[0].weight.requires_grad


# --- same seed, same bits ---


def test_the_seed_decides_and_nothing_else() -> None:
    results = []
    for state, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(state)
        model = network()
        fit(model, blobs(), epochs=2, lr=0.05, seed=seed)
        results.append(weights(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_rows_are_shuffled_every_epoch_and_each_is_seen_once() -> None:
    seen: list[list[float]] = []

    class Watch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x.flatten().tolist())
            return self.fc(x)

    x = torch.arange(12.0)[:, None]
    fit(Watch(), [(x, x[:, 0].long() % 2)], epochs=3, lr=0.01, batch_size=5)
    assert [len(batch) for batch in seen] == [5, 5, 2] * 3
    epochs = [list(chain(*seen[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_one_left_over_row_does_not_reach_batch_norm() -> None:
    model = network()
    fit(model, blobs(n=21, batch=21), epochs=2, lr=0.01, batch_size=10)
    assert all(torch.isfinite(p).all() for p in model.parameters())


# --- validation ---


def test_the_epoch_that_validates_best_is_kept() -> None:
    x, y = torch.cat([x for x, _ in blobs()]), torch.cat([y for _, y in blobs()])
    wrong = [(x, (y + 1) % 3)]  # training on x -> y makes this worse with every epoch
    losses = {}
    for name, validation in (("kept", wrong), ("last", None)):
        model = network()
        fit(model, [(x, y)], epochs=6, lr=0.05, validation=validation)
        with torch.no_grad():
            losses[name] = float(F.cross_entropy(model.eval()(x), wrong[0][1]))
    first = network()
    fit(first, [(x, y)], epochs=6, lr=0.05, validation=[(x, y)])
    assert losses["kept"] < losses["last"]
    assert accuracy(first, [(x, y)]) > 0.9


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"options": Training(weight_decay=-1.0)}, "weight_decay is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"loss": "cross_entrpy"}, "unknown loss 'cross_entrpy'; did you mean 'cross_entropy'"),
        ({"loss": "distill"}, "needs teacher"),
        ({"teacher": nn.Identity()}, "needs teacher"),
        ({"options": Training(device="gpu7")}, "device 'gpu7' cannot be used"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(network(), blobs(), **{"epochs": 1, "lr": 0.1, **options})


@pytest.mark.parametrize(
    ("batches", "loss", "message"),
    [
        ([], "cross_entropy", "no example"),
        ([torch.zeros(4, 4)], "cross_entropy", "needs targets"),
        ([(torch.zeros(4, 4), torch.zeros(4))], "cross_entropy", "loss='mse' takes them"),
        ([(torch.zeros(4, 4), torch.tensor([0, 1, 2, 3]))], "cross_entropy", "labels run from 0 to 3 .* 3 outputs"),
        ([(torch.zeros(4, 4), torch.tensor([0, 1, 2, -1]))], "cross_entropy", "labels run from -1 to 2"),
        ([(torch.zeros(4, 4), torch.zeros(4, 2))], "mse", r"\(2,\) per example and the model's outputs \(3,\)"),
    ],
)
def test_data_that_does_not_fit_is_refused(batches: list[object], loss: Any, message: str) -> None:
    model = network()
    before = weights(model)
    with pytest.raises(InputError, match=message):
        fit(model, batches, epochs=1, lr=0.1, loss=loss)
    assert same(weights(model), before)


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(InputError, match="no trainable parameter"):
        fit(network().requires_grad_(False), blobs(), epochs=1, lr=0.1)


# --- on any failure the model is as before ---


def test_a_loss_that_is_not_finite_names_the_epoch(untouched: Untouched) -> None:
    class Bursts(nn.Module):
        """Finite for three steps in training, which is one epoch of 60 rows."""

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.steps = nn.Linear(4, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.steps += self.training
            return self.fc(x) * (float("inf") if self.steps > 3 else 1)

    model = Bursts()
    before = weights(model)
    with untouched(model), pytest.raises(InputError, match=r"the loss is nan in epoch 2; lower lr \(now 0.1\)"):
        fit(model, blobs(n=60), epochs=3, lr=0.1, batch_size=20)
    assert same(weights(model), before)


def test_the_users_interrupt_stays_one_and_the_model_comes_back(untouched: Untouched, interrupts: None) -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.steps = nn.Linear(4, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.steps += self.training
            if self.steps == 5:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            return self.fc(x)

    model = Interrupted()
    before = weights(model)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with untouched(model), pytest.raises(KeyboardInterrupt):
        fit(model, blobs(), epochs=9, lr=0.1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert same(weights(model), before)


def test_an_interrupt_before_lightning_is_ready_does_not_leave_the_signal_ignored() -> None:
    handler = signal.getsignal(signal.SIGINT)

    def lightning() -> None:  # what it does with an interrupt
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise SystemExit(1)  # noqa: B904  # it has no "from" either

    with pytest.raises(KeyboardInterrupt), interruptible():
        lightning()
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(SystemExit), interruptible():
        raise SystemExit(3)  # an exit that is no interrupt stays an exit


@pytest.fixture
def interrupts() -> Iterator[None]:
    """The signal is heard as on a terminal; a shell that starts tests in the background has it ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


# --- it leaves no trace ---


def test_it_is_silent_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    caplog.set_level(logging.INFO)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(network(), blobs(), epochs=1, lr=0.1)
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not list(tmp_path.iterdir())
    assert dict(os.environ) == environment


def test_it_runs_beside_the_main_thread() -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            fit(network(), blobs(), epochs=1, lr=0.1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


@pytest.mark.parametrize("name", NETWORKS)
def test_every_registered_network_can_be_trained(name: str) -> None:
    make, inputs = NETWORKS[name]
    model, x = make(), inputs()
    before = weights(model)
    fit(model, [(x, torch.tensor([0, 1, 2, 3]))], epochs=2, lr=0.01)
    assert not same(weights(model), before)
    assert not model.training


@pytest.fixture(autouse=True)
def _states_of_its_own() -> None:
    """Every test starts from states of its own, so that one that leaks cannot hide behind another."""
    np.random.seed(3)
    torch.manual_seed(4)


@pytest.mark.parametrize("augmented", [False, True])
def test_forward_passes_in_bfloat16_train_weights_in_float32(augmented: bool) -> None:
    model, teacher, seen = network(), network(1), set[tuple[str, torch.dtype]]()

    def forward(net: nn.Module, inputs: Any) -> Any:
        outputs = net(inputs)
        seen.add(("teacher" if net is teacher else "model", outputs.dtype))
        return outputs

    how: dict[str, Any] = {"epochs": 4, "lr": 1e-2, "loss": "distill", "teacher": teacher, "forward": forward}
    how["validation"] = blobs()
    own = Training(augment=(lambda inputs: inputs + 0.01) if augmented else None)
    exact = network()
    fit(exact, blobs(), options=own, **how)
    assert {dtype for _, dtype in seen} == {torch.float32}
    seen.clear()
    start = weights(model)
    trained = fit(model, blobs(), options=replace(own, precision="bfloat16"), **how)
    assert seen == {("teacher", torch.bfloat16), ("model", torch.bfloat16)}
    assert trained.losses[-1] < trained.losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not same(weights(model), start)
    assert not same(weights(model), weights(exact))


def test_bfloat16_is_for_networks_in_float32() -> None:
    doubles = [(x.double(), y) for x, y in blobs()]
    with pytest.raises(InputError, match="this one has float64 weights"):
        fit(network().double(), doubles, epochs=1, lr=1e-2, options=Training(precision="bfloat16"))
    with pytest.raises(InputError, match="precision 'half'"):
        fit(network(), blobs(), epochs=1, lr=1e-2, options=Training(precision="half"))  # type: ignore[arg-type]
