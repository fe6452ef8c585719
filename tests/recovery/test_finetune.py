"""Fine-tuning: early stopping, divergence, the user's optimiser and the user's own function; models come back."""

import os
import signal
import time
import warnings

import numpy as np
import pytest
import torch
from conftest import Untouched
from testkit.networks import NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from shaprune.network.removal.surgery import removals
from shaprune.recovery import lightning_trainer
from shaprune.recovery.finetune import Finetune, finetune
from shaprune.recovery.optimizer_state import carry_over_optimizer
from shaprune.recovery.steps import Refit

pytestmark = pytest.mark.usefixtures("one_thread")

Case = tuple[nn.Module, nn.Module, sp.Plan, Tensor, Tensor]


def case(name: str = "mlp", n: int = 220) -> Case:
    """A dense network, its pruned version, the plan, and n examples with labels that follow from the dense outputs."""
    make, example = NETWORKS[name]
    model = make()
    inputs = torch.randn(n, *example().shape[1:], generator=torch.Generator().manual_seed(1))
    players = sp.find_players(model, inputs[:2])
    kept = np.ones(players.n, dtype=bool)
    for group in players.groups:
        kept[group.indices[1::2]] = False
    plan = sp.Plan.from_coalition(players, kept)
    with torch.no_grad():
        outputs = model(inputs)
        labels = (outputs - outputs.mean(0)).argmax(1)  # every class occurs
    return model, sp.prune(model, plan, inputs[:2]), plan, inputs, labels


def weights(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model(x), y))


# --- early stopping on a part of the training data ---


def test_a_tenth_is_set_aside_and_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, small, plan, x, y = case()
    seen: dict[str, set[tuple[float, ...]]] = {"train": set(), "watched": set()}

    class Noted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small

        def forward(self, x: Tensor) -> Tensor:
            seen["train" if self.training else "watched"].update(tuple(row) for row in x.tolist())
            return self.inner(x)

    finetune(Noted(), model, plan, x, y, Finetune(epochs=2), seed=3)
    assert len(seen["train"]) == 198
    aside = seen["watched"] - seen["train"]
    assert len(aside) == 22
    assert {tuple(row) for row in x.tolist()} == seen["train"] | aside


def test_training_stops_when_the_loss_on_the_part_set_aside_no_longer_falls() -> None:
    model, small, plan, x, _ = case()
    noise = torch.randint(5, (len(x),), generator=torch.Generator().manual_seed(0))  # nothing to learn but by heart
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sp.errors.ShapruneWarning)  # that no epoch helped, where none did
        went = finetune(small, model, plan, x, noise, Finetune(epochs=200, lr=0.02, validation=0.3, patience=4))
    assert went.kept is not None
    assert len(went.losses) - 1 == went.kept + 4
    assert went.losses[went.kept] == min(went.losses)
    assert went.diverged is None


def test_the_weights_of_the_best_epoch_are_those_that_come_back() -> None:
    model, small, plan, x, y = case(n=40)  # few examples: the training loss is watched, so it can be checked by hand
    went = finetune(small, model, plan, x, y, Finetune(epochs=15, lr=0.02))
    assert went.kept
    assert loss_of(small.eval(), x, y) == pytest.approx(went.losses[went.kept], rel=1e-5)
    assert went.losses[went.kept] < 0.9 * went.losses[0]


@pytest.mark.parametrize("labelled", [True, False])
def test_augmented_inputs_are_trained_on_and_the_teacher_answers_to_them(labelled: bool) -> None:
    model, small, plan, x, y = case()
    learnt: list[Tensor] = []
    asked: list[Tensor] = []

    def forward(network: nn.Module, inputs: Tensor) -> Tensor:
        if network is model:
            asked.append(inputs)
        elif network.training:
            learnt.append(inputs)
        return network(inputs)  # type: ignore[no-any-return]

    step = Finetune(epochs=2, augment=lambda inputs: inputs + 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sp.errors.ShapruneWarning)  # that it did not help
        finetune(small, model, plan, x, y if labelled else None, step, forward=forward)
    assert learnt
    assert all((inputs > 50).all() for inputs in learnt)  # and what is set aside stays as it is: see forward
    answered = [inputs for inputs in asked if (inputs > 50).all()]
    assert len(answered) == (0 if labelled else len(learnt))
    assert all(torch.equal(a, b) for a, b in zip(answered, learnt, strict=False))


def test_augmentation_must_keep_the_number_of_examples() -> None:
    model, small, plan, x, y = case()
    with pytest.raises(sp.InputError, match=r"augment returned 1 examples for \d+; return one for each"):
        finetune(small, model, plan, x, y, Finetune(augment=lambda inputs: inputs[:1]))  # type: ignore[index]


def test_labels_are_not_needed_and_train_data_stand_in_for_data() -> None:
    model, small, plan, x, _ = case()
    learnt: set[tuple[float, ...]] = set()

    def forward(network: nn.Module, inputs: Tensor) -> Tensor:
        if network.training:
            learnt.update(tuple(row) for row in inputs.tolist())
        return network(inputs)  # type: ignore[no-any-return]

    better = sp.recover(small, model, plan, [x[:9]], (Finetune(epochs=20, lr=0.01),), train=[x[9:]], forward=forward)
    assert len(learnt) == 189  # 211, less a tenth
    assert learnt <= {tuple(row) for row in x[9:].tolist()}
    with torch.no_grad():
        far, near = (float(F.mse_loss(m(x), model(x))) for m in (small, better))
    assert near < 0.5 * far


def test_forward_is_used_by_fine_tuning_too() -> None:
    model, small, plan, x, _ = case()
    calls = []

    def forward(network: nn.Module, inputs: Tensor) -> Tensor:
        calls.append(network is model)
        return network(inputs["x"])  # type: ignore[index]

    sp.recover(small, model, plan, [{"x": x}], ("finetune",), forward=forward)
    assert set(calls) == {True, False}  # the teacher's answers, and the student's


# --- divergence ---


class Bursts(nn.Module):
    """Trains well for some steps, then its outputs are no numbers."""

    def __init__(self, inner: nn.Module, good: int) -> None:
        super().__init__()
        self.inner, self.left = inner, good

    def forward(self, x: Tensor) -> Tensor:
        self.left -= self.training
        return self.inner(x) * (torch.nan if self.training and self.left < 0 else 1)


def test_after_a_divergence_the_best_earlier_epoch_is_kept_and_said(untouched: Untouched) -> None:
    model, small, plan, x, y = case()
    before = loss_of(small, x, y)
    network = Bursts(small, good=5)
    with (
        untouched(network, model),
        pytest.warns(
            sp.errors.ShapruneWarning, match=r"diverged: the loss is nan in epoch 3.* after epoch \d are kept"
        ),
    ):
        went = finetune(network, model, plan, x, y, Finetune(epochs=9, lr=0.02))
    assert went.kept in (1, 2)
    assert went.diverged is not None
    assert all(torch.isfinite(t).all() for t in weights(small))
    assert loss_of(small, x, y) < before


def test_a_rate_that_blows_up_gives_the_network_back_as_it_was() -> None:
    model, small, plan, x, y = case()
    with pytest.warns(sp.errors.ShapruneWarning, match=r"weights before it are kept.*lower lr"):
        kept = sp.recover(small, model, plan, [(x, y)], (Finetune(epochs=2, lr=1e9),))
    assert same(weights(kept), weights(small))


def test_a_network_that_is_broken_before_the_training_is_refused() -> None:
    model, small, plan, x, y = case()
    with torch.no_grad():
        small.fc3.bias.fill_(torch.nan)
    with pytest.raises(sp.InputError, match=r"validation loss is nan before the first epoch"):
        sp.recover(small, model, plan, [(x, y)], ("finetune",))


# --- the user's optimiser ---


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int = 3) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.eval()


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda ps: torch.optim.Adam(ps, lr=2e-3, betas=(0.8, 0.99), amsgrad=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=2e-3, weight_decay=0.2),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["concatenated", "depthwise", "grouped", "flattened"])
def test_momenta_are_cut_along_the_channels_of_their_parameters(kind: str, name: str) -> None:
    """By hand, from the indices of the dense network: what leaves a layer leaves the axis of its weights."""
    model, _, plan, x, y = case(name, n=30)
    optimizer = OPTIMIZERS[kind](model.parameters())
    stepped(model, optimizer, x, y)
    small = sp.prune(model, plan, x[:2])
    carried = carry_over_optimizer(optimizer, model, small, plan)
    assert type(carried) is type(optimizer)
    gone = {(module, role): channels for module, role, channels in removals(plan.players.groups, plan.kept)}
    dense, compared = dict(model.named_parameters()), 0
    for parameter_name, parameter in small.named_parameters():
        module, _, leaf = parameter_name.rpartition(".")
        layer = model.get_submodule(module)
        state, ours = optimizer.state[dense[parameter_name]], carried.state[parameter]
        assert set(ours) == set(state)
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                assert ours[key] == value
                continue
            outs = [*gone.get((module, "out"), []), *gone.get((module, "both"), [])]
            expected = np.delete(value.numpy(), outs, axis=0)
            lost = gone.get((module, "in"), [])
            if lost and leaf == "weight" and getattr(layer, "groups", 1) == 1:
                expected = np.delete(expected, lost, axis=1)
            if expected.shape == ours[key].shape:
                np.testing.assert_array_equal(ours[key].numpy(), expected)
                compared += 1
            assert ours[key].shape == parameter.shape
    assert compared >= 8


def test_groups_keep_their_options_and_a_step_is_that_of_the_cut_state() -> None:
    model, _, plan, x, y = case(n=30)
    optimizer = torch.optim.SGD(
        [{"params": [model.fc1.weight], "lr": 0.3}, {"params": [model.fc3.weight]}], lr=0.1, momentum=0.5
    )
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    stepped(model, optimizer, x, y)
    optimizer.param_groups[0]["lr"] = 0.03  # as a scheduler does; its starting rate must not come back
    small = sp.prune(model, plan, x[:2])
    carried = carry_over_optimizer(optimizer, model, small, plan)
    assert [g["lr"] for g in carried.param_groups] == [0.03, 0.1]
    assert not any("initial_lr" in g for g in carried.param_groups)
    assert [
        g["params"][0] is p for g, p in zip(carried.param_groups, (small.fc1.weight, small.fc3.weight), strict=True)
    ]
    buffer, weight = carried.state[small.fc3.weight]["momentum_buffer"].clone(), small.fc3.weight.detach().clone()
    small.fc3.weight.grad = torch.ones_like(weight)
    small.fc1.weight.grad = torch.zeros_like(small.fc1.weight)
    carried.step()
    torch.testing.assert_close(small.fc3.weight, weight - 0.1 * (0.5 * buffer + 1))


def test_fine_tuning_goes_on_with_the_users_optimizer(untouched: Untouched) -> None:
    model, _, plan, x, y = case()
    optimizer = torch.optim.SGD([model.fc3.weight], lr=0.05, momentum=0.9)
    stepped(model, optimizer, x, y)
    small = sp.prune(model, plan, x[:2])
    state = {key: value.clone() for key, value in optimizer.state[model.fc3.weight].items()}
    with untouched(model, small):
        tuned = sp.recover(small, model, plan, [(x, y)], ("refit", Finetune(epochs=3, optimizer=optimizer)))
        refitted = sp.recover(small, model, plan, [(x, y)], ("refit",))
    assert torch.equal(optimizer.state[model.fc3.weight]["momentum_buffer"], state["momentum_buffer"])
    assert not torch.equal(tuned.fc3.weight, refitted.fc3.weight)
    assert torch.equal(tuned.fc1.weight, refitted.fc1.weight)  # not among the optimizer's parameters
    assert loss_of(tuned, x, y) < loss_of(refitted, x, y)


def test_the_first_step_with_a_carried_optimizer_uses_its_momentum() -> None:
    model, _, plan, x, y = case(n=40)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    stepped(model, optimizer, x, y)
    for state in optimizer.state.values():
        state["momentum_buffer"].fill_(5.0)  # dwarfs the gradient
    small = sp.prune(model, plan, x[:2])
    trained = []

    def note(*args: object, **kwargs: object) -> lightning_trainer.TrainingResult:
        trained.append(kwargs["optimizer"])
        return lightning_trainer.TrainingResult((1.0, 0.5), 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shaprune.recovery.training.train", note)
        sp.recover(small, model, plan, [(x, y)], (Finetune(epochs=1, optimizer=optimizer),))
    (carried,) = trained
    buffers = [s["momentum_buffer"] for s in carried.state.values()]
    assert buffers
    assert all(bool((b == 5).all()) for b in buffers)


def test_optimizers_that_cannot_be_carried_over_are_refused() -> None:
    model, small, plan, x, y = case()
    data = [(x, y)]
    with pytest.raises(sp.InputError, match=r"the optimizer is a RMSprop; the state of SGD, Adam, AdamW"):
        sp.recover(small, model, plan, data, (Finetune(optimizer=torch.optim.RMSprop(model.parameters())),))
    with pytest.raises(sp.InputError, match=r"8 of the optimizer's parameters are not the dense network's"):
        sp.recover(small, model, plan, data, (Finetune(optimizer=torch.optim.SGD(small.parameters())),))
    with pytest.raises(sp.InputError, match="not both"):
        Finetune(lr=0.1, optimizer=torch.optim.SGD(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stepped(model, optimizer, x, y)
    with pytest.raises(sp.InputError, match=r"has shape .* give the plan that made it"):
        carry_over_optimizer(optimizer, model, model, plan)


# --- the user's own function ---


def test_a_function_of_the_users_trains_in_place_or_returns_a_network(untouched: Untouched) -> None:
    model, small, plan, x, y = case()
    lent: list[nn.Module] = []

    def in_place(network: nn.Module) -> None:
        assert network is not small
        lent.append(network)
        stepped(network, torch.optim.SGD(network.parameters(), lr=0.1), x, y)
        network.train()

    def returned(network: nn.Module) -> nn.Module:
        in_place(network)
        return network

    small.train()
    small.drop.eval()  # mixed flags
    with untouched(model, small):
        one, two = (sp.recover(small, model, plan, [x], (Refit(), own)) for own in (in_place, returned))
    assert same(weights(one), weights(two))
    flags = [m.training for m in one.modules()]
    assert flags == [name != "drop" for name, _ in small.named_modules()]
    assert loss_of(one.eval(), x, y) < loss_of(sp.recover(small.eval(), model, plan, [x], ("refit",)), x, y)
    assert [m.training for m in two.modules()] == [name != "drop" for name, _ in small.named_modules()]
    assert len(lent) == 2


def test_what_a_function_of_the_users_may_not_do() -> None:
    model, small, plan, x, _ = case()

    def breaks(network: nn.Module) -> None:
        with torch.no_grad():
            network.fc1.weight.fill_(torch.inf)

    def widens(network: nn.Module) -> None:
        network.fc3 = nn.Linear(6, 7)

    def raises(network: nn.Module) -> None:
        breaks(network)
        raise OSError(28, "No space left on device")

    with pytest.warns(sp.errors.ShapruneWarning, match=r"breaks diverged: 'fc1.weight' is not finite.*kept"):
        kept = sp.recover(small, model, plan, [x], (breaks,))
    assert same(weights(kept), weights(small))
    with pytest.raises(sp.InputError, match=r"widens changed the network: 'fc3.weight' has shape \(7, 6\) and had"):
        sp.recover(small, model, plan, [x], (widens,))
    with pytest.raises(sp.InputError, match=r"changed the network: .*no wrapper"):
        sp.recover(small, model, plan, [x], (lambda network: nn.Sequential(network),))
    with pytest.raises(sp.InputError, match="returned a int"):
        sp.recover(small, model, plan, [x], (lambda network: 3,))  # type: ignore[list-item, return-value]
    with pytest.raises(sp.InputError, match=r"a recovery step is the type .*Finetune\(\)"):
        sp.recover(small, model, plan, [x], (Finetune,))
    before = weights(small)
    with pytest.raises(OSError, match="No space"):
        sp.recover(small, model, plan, [x], (raises,))
    assert same(weights(small), before)


# --- bad input, interrupts ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, "validation is 1.0; it must be a share"),
        ({"patience": 0}, "patience is 0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": -1.0}, "lr is -1"),
        ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"augment": 5}, "augment is 5; give a function"),
        ({"loss": "l1"}, "unknown loss 'l1'"),
        ({"validation": 0.999}, r"validation=0.999 leaves 0 of 220 examples"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    model, small, plan, x, y = case()
    with pytest.raises(sp.InputError, match=message):
        sp.recover(small, model, plan, [(x, y)], (Finetune(**options),))  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [torch.zeros(4, 7), torch.zeros(4, 10, dtype=torch.float64)])
def test_data_of_another_size_or_type_are_refused_before_any_work(data: Tensor) -> None:
    model, small, plan, _, _ = case()
    for step in ("refit", "batchnorm", "finetune"):
        with pytest.raises(sp.InputError, match="the dense network does not run on the data"):
            sp.recover(small, model, plan, [data], (step,))


def test_an_interrupt_in_the_middle_leaves_everything_as_it_was(untouched: Untouched) -> None:
    model, small, plan, x, y = case()

    def interrupting(network: nn.Module, inputs: Tensor) -> Tensor:
        if network.training:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return network(inputs)  # type: ignore[no-any-return]

    before = weights(small), weights(model)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with untouched(model, small), pytest.raises(KeyboardInterrupt):
            sp.recover(small, model, plan, [(x, y)], ("finetune",), forward=interrupting)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert same(weights(small), before[0])
    assert same(weights(model), before[1])
