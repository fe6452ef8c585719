"""Rivals: every criterion against hand-computed numbers, torch-pruning itself, and slow loops over what layers read."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
from architectures import ZOO
from numpy.typing import NDArray
from testkit.networks import N_OUTPUTS, NETWORKS
from torch import Tensor, nn

import shaprune as sp
from shaprune.criteria.gradients import differentiate_batches
from shaprune.criteria.registry import CRITERIA, criterion_scores
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.worths import resolve_row_worth
from shaprune.network.removal.masks import ConsumerInputMask, consumer_input_masks
from shaprune.players.players import Group, Players

pytestmark = pytest.mark.usefixtures("one_thread")

Data = list[tuple[Tensor, Tensor]]
OF_GRADIENTS = ["taylor", "taylor_signed", "taylor_squared", "second_order", "sensitivity", "hessian"]
OF_WEIGHTS = ["weight_norm", "weight_norm_l1", "bn_scale", "fpgm", "lamp"]
WITH_BN = ["residual", "depthwise", "grouped", "padded", "conv1d"]  # in every group


def network(name: str, examples: int = 7) -> tuple[nn.Module, Players, Data]:
    make, inputs = NETWORKS[name]
    model = make()
    x = torch.randn(examples, *inputs().shape[1:], generator=torch.Generator().manual_seed(1))
    players = sp.find_players(model, inputs())
    return model, players, [(x[:3], torch.arange(3)), (x[3:], torch.arange(examples - 3) % N_OUTPUTS)]


@contextmanager
def quiet() -> Iterator[None]:
    """A block in which ties may be warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sp.errors.ShapruneWarning)
        yield


def ranked(
    model: nn.Module, players: Players, data: Data | None, criterion: str, **options: Any
) -> NDArray[np.float64]:
    with quiet():
        values = criterion_scores(
            model, players, None if data is None else Calibration(model, data), criterion, **options
        )
    return np.concatenate([values[g.name].value for g in players.groups])


# -- the network of Ancona et al. 2020 that computes max(x1, x2) -----------------------------------------------------
#
# Hidden units A = relu((x2 - x1) / 2), B = relu(x1 - x2), C = D = relu(x1 + x2), read with weights 1, 1/2, 1/2 and d.
# With d = 0 the output is the maximum. On the inputs below A reads .5 0 .5 0, B 0 1 0 1, C and D 1 1 3 3.

MAX_INPUTS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
MAX_DATA: Data = [(MAX_INPUTS, MAX_INPUTS.amax(1))]


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs[:, 0] - targets).square()


def max_network(d: float) -> tuple[nn.Module, Players]:
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-0.5, 0.5], [1.0, -1.0], [1.0, 1.0], [1.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 0.5, 0.5, d]]))
    return model.eval(), sp.find_players(model, MAX_INPUTS)


# With d = -.1 the output misses the target by e = -.1 D = -.1 -.1 -.3 -.3. By the activation of a unit read with w, the
# worth -e^2 has the gradient -2 e w: .2 .2 .6 .6 times w. By the mask it is that times the activation: A .1 0 .3 0,
# B 0 .1 0 .3, C .1 .1 .9 .9, D -.02 -.02 -.18 -.18. By a weight of an active unit it is that times the input.
BY_HAND = {
    "weight_norm": [0.5**0.5, 2**0.5, 2**0.5, 2**0.5],
    "weight_norm_l1": [1, 2, 2, 2],
    "fpgm": [4.5**0.5 + 2 * 2.5**0.5, 4.5**0.5 + 4, 2.5**0.5 + 2, 2.5**0.5 + 2],
    "taylor": [0.1, 0.1, 0.5, 0.1],
    "taylor_signed": [0.1, 0.1, 0.5, -0.1],
    "taylor_squared": [0.025, 0.025, 0.41, 0.0164],
    "sensitivity": [0.4, 0.2, 0.2, 0.04],
    "apoz": [0.5, 0.5, 1, 1],
    "activation_mean": [0.25, 0.5, 2, 2],
    "hessian": [0.115, 0.115, 0.23, 0.0092],  # A: .25 (.2^2 1 + .6^2 5) / 4, and so on: w^2 times gradient^2
}


@pytest.mark.parametrize("criterion", BY_HAND)
def test_a_criterion_is_as_computed_by_hand(criterion: str) -> None:
    model, players = max_network(-0.1)
    values = ranked(model, players, MAX_DATA, criterion, worth=squared_error)
    assert values == pytest.approx(BY_HAND[criterion], rel=1e-5)


def test_the_standard_error_is_that_of_the_mean_over_examples() -> None:
    model, players = max_network(-0.1)
    (values,) = criterion_scores(model, players, Calibration(model, MAX_DATA), "taylor", worth=squared_error).values()
    spread = [np.std(x, ddof=1) / 2 for x in ([0.1, 0, 0.3, 0], [0, 0.1, 0, 0.3], [0.1, 0.1, 0.9, 0.9])]
    assert values.stderr[:3] == pytest.approx(spread, rel=1e-5)
    assert values.counts.tolist() == [4] * 4
    assert values.n_evaluations == 4


def test_shapley_and_the_second_order_rank_the_max_network_where_others_cannot() -> None:
    # A player adds c to an example's output; the worth -(what is missing)^2 then has the Shapley values c sum(c):
    # A .5 0 1 0, B 0 .5 0 1, C .5 .5 3 3, D 0. It is quadratic in the masks, so its expansion is exact.
    model, players = max_network(0.0)
    by_hand = [0.375, 0.375, 1.75, 0.0]
    exact = sp.estimate(sp.NetworkGame(model, players, MAX_DATA, squared_error), "exact").value
    assert exact == pytest.approx(by_hand, abs=1e-6)
    assert ranked(model, players, MAX_DATA, "second_order", worth=squared_error) == pytest.approx(by_hand, abs=1e-6)
    for criterion in ("weight_norm", "weight_norm_l1", "apoz", "activation_mean", "fpgm", "lamp"):
        values = ranked(model, players, MAX_DATA, criterion, worth=squared_error)
        assert values.argmin() != 3 or np.isclose(values, values[3]).sum() > 1, criterion  # D does nothing, A something
    for criterion in ("taylor", "sensitivity", "hessian"):
        assert np.ptp(ranked(model, players, MAX_DATA, criterion, worth=squared_error)) == 0


def test_players_that_cannot_be_told_apart_are_warned_of() -> None:
    model, players = max_network(0.0)
    with pytest.warns(sp.errors.ShapruneWarning, match="taylor gives all 4 players of 0 the score 0: it cannot rank"):
        criterion_scores(model, players, Calibration(model, MAX_DATA), "taylor", worth=squared_error)


# -- all of them on all networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_criterion_scores_every_player_and_leaves_the_model_alone(name: str, criterion: str, untouched: Any) -> None:
    model, players, data = network(name)
    for position, (module, parameter) in enumerate(zip(model.modules(), model.parameters(), strict=False)):
        module.training = position % 2 == 0
        parameter.requires_grad_(position % 3 > 0)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    calibration = Calibration(model, data)
    with untouched(model), quiet():
        if criterion == "bn_scale" and name not in WITH_BN:
            with pytest.raises(sp.InputError, match=r"group '\w+': \w+\[0\] passes no batch-norm"):
                criterion_scores(model, players, calibration, criterion)
            return
        values, again = (criterion_scores(model, players, calibration, criterion, seed=3) for _ in range(2))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert list(values) == [g.name for g in players.groups]
    for group in players.groups:
        v = values[group.name]
        assert v.n == len(group)
        assert np.isfinite(v.value).all()
        assert v.value.tolist() == again[group.name].value.tolist()
        assert (v.method, v.efficient, v.efficiency_gap) == (criterion, False, None)
        assert v.n_evaluations == (7 if CRITERIA[criterion].examples else 0)
        if criterion != "apoz":  # behind a pool or without a ReLU, channels are zero always or never
            assert np.ptp(v.value) > 0
            assert (v.stderr > 0).any() == CRITERIA[criterion].examples
    assert sp.plan(sp.Scores(players, values), sp.Budget(macs=0.5)).cost["macs"] <= 0.5 * players.model_macs


@pytest.mark.parametrize("criterion", OF_GRADIENTS)
def test_the_model_comes_back_after_an_exception(criterion: str, untouched: Any) -> None:
    model, players, data = network("plain")
    model.train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    calibration, calls = Calibration(model, data), []

    def interrupted(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(outputs))
        raise KeyboardInterrupt

    with untouched(model), pytest.raises(KeyboardInterrupt):
        criterion_scores(model, players, calibration, criterion, worth=interrupted)
    assert calls
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if CRITERIA[c].examples])
def test_a_model_run_whole_and_in_small_batches_has_the_same_scores(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, players, data = network("residual")
    expected = ranked(model, players, data, criterion)
    monkeypatch.setattr("shaprune.criteria.activations.FORWARD_BATCH", 4)
    monkeypatch.setattr("shaprune.criteria.gradients.FORWARD_BATCH", 8)
    with quiet():
        whole = Calibration(model, data, forward=lambda model, x: model(x))
        values = criterion_scores(model, players, whole, criterion)
    assert np.concatenate([v.value for v in values.values()]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


# -- what torch-pruning says -----------------------------------------------------------------------------------------


def by_torch_pruning(model: nn.Module, players: Players, importance: Any) -> dict[str, NDArray[np.float64]]:
    """torch-pruning's importance of its own group behind the first producer of each of ours."""
    example = torch.randn(2, *next(x for make, x in NETWORKS.values() if type(make()) is type(model))().shape[1:])
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=(example,))
    result = {}
    for group in players.groups:
        root = model.get_submodule(group.name)
        pruner = graph.get_pruner_of_module(root)
        channels = list(range(players.layers[group.name].n_out))
        result[group.name] = importance(graph.get_pruning_group(root, pruner.prune_out_channels, channels)).numpy()
    return result


@pytest.mark.parametrize("name", ["plain", "flattened", "conv1d", "mlp"])
@pytest.mark.parametrize(
    ("criterion", "importance", "power"),
    [
        ("weight_norm", tp.importance.MagnitudeImportance(p=2, group_reduction="first", normalizer=None), 2),
        ("weight_norm_l1", tp.importance.MagnitudeImportance(p=1, group_reduction="first", normalizer=None), 1),
        ("lamp", tp.importance.LAMPImportance(p=2, group_reduction="first"), 1),
    ],
)
def test_weights_are_scored_as_torch_pruning_scores_the_first_layer(
    name: str, criterion: str, importance: Any, power: int
) -> None:
    model, players, _ = network(name)
    values = criterion_scores(model, players, criterion=criterion)
    for group, expected in by_torch_pruning(NETWORKS[name][0](), players, importance).items():
        assert values[group].value ** power == pytest.approx(expected, rel=1e-5)
        assert values[group].ranking().tolist() == np.argsort(expected, kind="stable").tolist()


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise"])
def test_batch_norm_scales_are_those_of_torch_pruning(name: str) -> None:
    model, players, _ = network(name)
    if name == "plain":
        players = sp.find_players(model, NETWORKS[name][1](), exclude="conv3")
    values = criterion_scores(model, players, criterion="bn_scale")
    importance = tp.importance.BNScaleImportance(normalizer=None)
    for group, expected in by_torch_pruning(NETWORKS[name][0](), players, importance).items():
        assert values[group].value == pytest.approx(expected, rel=1e-5)


# -- coupled layers, by slow loops -----------------------------------------------------------------------------------


def filters(model: nn.Module, group: Group) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(player, filter, all filters of the group in that layer) for every filter of every producer."""
    for member in group.producers:
        weight = model.get_submodule(member.module).weight
        owned = weight[sorted(channel for channels in member.channels for channel in channels)]
        for player, channels in enumerate(member.channels):
            for channel in channels:
                yield player, weight[channel], owned


@pytest.mark.parametrize("name", ["residual", "grouped", "padded", "concatenated"])
def test_coupled_filters_are_added_up(name: str) -> None:
    model, players, _ = network(name)
    lone, squares, medians = (np.zeros(players.n) for _ in range(3))
    for group in players.groups:
        for player, one, weight in filters(model, group):
            lone[group.indices[player]] += one.abs().sum().item()
            squares[group.indices[player]] += one.double().square().sum().item()
            medians[group.indices[player]] += sum((one - other).double().norm().item() for other in weight)
    assert ranked(model, players, None, "weight_norm_l1") == pytest.approx(lone, rel=1e-5)
    assert ranked(model, players, None, "weight_norm") == pytest.approx(np.sqrt(squares), rel=1e-5)
    assert ranked(model, players, None, "fpgm") == pytest.approx(medians, rel=1e-4)
    lamp = ranked(model, players, None, "lamp")
    for group in players.groups:
        own = squares[group.indices]
        expected = [one / own[own >= one].sum() for one in own]
        assert lamp[group.indices] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["residual", "grouped", "flattened"])
def test_the_hessian_is_weight_squared_times_gradient_squared(name: str) -> None:
    model, players, data = network(name, examples=4)
    expected = np.zeros(players.n)
    for x, y in zip(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]), strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        for group in players.groups:
            for member in group.producers:
                weight = model.get_submodule(member.module).weight
                product = (weight.detach() * weight.grad).square()
                for player, channels in enumerate(member.channels):
                    expected[group.indices[player]] += product[list(channels)].sum().item() / 4
    assert ranked(model, players, data, "hessian") == pytest.approx(expected, rel=1e-4)


def reads(model: nn.Module, players: Players, x: Tensor, y: Tensor) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """For one example: all elements that each player owns at its consumers' inputs, with the worth's gradient."""
    seen: dict[str, list[Tensor]] = {}

    def hook_of(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            own = args[0].clone() if args[0].requires_grad else args[0].clone().requires_grad_()
            own.retain_grad()
            seen.setdefault(name, []).append(own)
            return (own,)

        return hook

    names = {m.module for g in players.groups for m in g.consumers}
    handles = [model.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in names]
    (-nn.functional.cross_entropy(model(x[None]), y[None])).backward()
    for handle in handles:
        handle.remove()
    result: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for group in players.groups:
        for member in group.consumers:
            for own in seen[member.module]:
                for player, channels in zip(group.indices, member.channels, strict=True):
                    for channel in channels:
                        dim = -1 if players.layers[member.module].kind == "linear" else 0
                        elements = (t[0].select(dim, channel).flatten() for t in (own, own.grad))
                        result.setdefault(int(player), []).append(tuple(elements))
    return result


class Tokens(nn.Module):
    """Linear layers over sequences: channels come last, and one of the readers runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.out(x).mean(1) + self.out(x[:, :2]).amax(1)


def tokens(examples: int) -> tuple[nn.Module, Players, Data]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model, x = Tokens().eval(), torch.randn(examples, 6, 3)
    return model, sp.find_players(model, x), [(x, torch.arange(examples) % N_OUTPUTS)]


@pytest.mark.parametrize("name", ["flattened", "residual", "concatenated", "grouped", "mlp", "padded", "tokens"])
def test_activations_are_averaged_over_all_that_a_player_owns(name: str) -> None:
    model, players, data = tokens(4) if name == "tokens" else network(name, examples=4)
    expected = np.zeros((3, players.n))
    for x, y in zip(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]), strict=True):
        for player, parts in reads(model, players, x, y).items():
            own, gradient = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            means = gradient.abs().mean().item(), (own != 0).double().mean().item(), own.abs().mean().item()
            expected[:, player] += np.array(means) / 4
    for row, criterion in zip(expected, ("sensitivity", "apoz", "activation_mean"), strict=True):
        assert ranked(model, players, data, criterion) == pytest.approx(row, rel=1e-4, abs=1e-9), criterion


# -- second order ----------------------------------------------------------------------------------------------------


def test_the_second_order_is_exact_for_a_group_whose_worth_is_quadratic() -> None:
    # fc2 is read by the last layer, so outputs are linear in its masks and the squared distance is quadratic, although
    # another group (fc1) stands before it: groups play alone
    model, players, data = network("mlp")
    values = criterion_scores(model, players, Calibration(model, data), "second_order", worth="fidelity")
    exact = sp.score(model, players, data, "fidelity", "exact", options=sp.options.Scoring(window=(0.0, 1.0)))
    assert values["fc2"].value == pytest.approx(exact["fc2"].value, rel=1e-4, abs=1e-6)
    assert values["fc2"].value.sum() == pytest.approx(exact["fc2"].worth_all - exact["fc2"].worth_none, rel=1e-4)


def test_the_second_order_is_the_derivative_it_says_by_finite_differences() -> None:
    model, players, data = network("mlp")
    model, x, y = model.double(), torch.cat([x for x, _ in data]).double(), torch.cat([y for _, y in data])
    group, step = players.groups[0], 1e-3
    (consumer,) = group.consumers
    layer = model.get_submodule(consumer.module)
    dense = layer.weight.detach().clone()

    def worth(mask: NDArray[np.float64]) -> float:
        with torch.no_grad():
            layer.weight.copy_(dense)
            for player, channels in enumerate(consumer.channels):
                layer.weight[:, list(channels)] *= mask[player]
            result = -nn.functional.cross_entropy(model(x), y).item()
            layer.weight.copy_(dense)
        return result

    n = len(group)

    def slope(around: float, player: int) -> float:
        up, down = np.full(n, around), np.full(n, around)
        up[player] += step
        down[player] -= step
        return (worth(up) - worth(down)) / (2 * step)

    g = [slope(1.0, i) for i in range(n)]
    along_ones = [(slope(1 + step, i) - slope(1 - step, i)) / (2 * step) for i in range(n)]
    expected = np.array(g) - np.array(along_ones) / 2
    values = criterion_scores(model, players, Calibration(model, [(x, y)]), "second_order")
    assert values[group.name].value == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_layer_that_reads_one_group_does_not_depend_on_the_masks_of_others() -> None:
    # results are the same without it, but every second derivative would pass the whole network
    model, players, data = network("plain")
    seen: list[Tensor] = []

    class Recorded(ConsumerInputMask):
        def apply(self, x: Tensor, mask: Tensor) -> Tensor:
            seen.append(super().apply(x, mask))
            return seen[-1]

    def derive(worths: Tensor, masks: list[Tensor], examples: Tensor) -> Tensor:
        first = next(x for x in seen if x.requires_grad)  # the others are of a trial run
        seen.clear()
        reached = torch.autograd.grad(first.sum(), masks, retain_graph=True, allow_unused=True)
        assert [g is not None for g in reached] == [True, False, False]
        return torch.cat(masks, 1)

    edges = [
        Recorded(e.module, e.n_players, e.owners, e.last) for e in consumer_input_masks(players, players.groups, "cpu")
    ]
    assert differentiate_batches(
        Calibration(model, data), players, edges, resolve_row_worth("cross_entropy"), derive, rows=4
    ).all()


def test_a_worth_that_is_linear_in_the_masks_has_no_second_order() -> None:
    model, players = max_network(-0.1)

    def output(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0]

    by_order = [ranked(model, players, MAX_DATA, c, worth=output) for c in ("taylor_signed", "second_order")]
    assert by_order[0] == pytest.approx([0.25, 0.25, 1.0, -0.2])  # the mean contributions
    assert by_order[1] == pytest.approx(by_order[0])


def test_taylor_is_the_derivative_of_the_worth_by_what_a_consumer_reads() -> None:
    model, players, data = network("plain")
    group, player, step, worths = players.groups[1], 2, 1e-3, []
    (consumer,) = group.consumers
    for factor in (1 + step, 1 - step):  # scale what the consumer reads of one channel
        wide = NETWORKS["plain"][0]()
        with torch.no_grad():
            wide.get_submodule(consumer.module).weight[:, list(consumer.channels[player])] *= factor
            worths.append(-sum(nn.functional.cross_entropy(wide(x), y, reduction="sum").item() for x, y in data) / 7)
    signed = criterion_scores(model, players, Calibration(model, data), "taylor_signed")[group.name].value[player]
    assert signed == pytest.approx((worths[0] - worths[1]) / (2 * step), rel=2e-2, abs=1e-4)


# -- refusals --------------------------------------------------------------------------------------------------------


def test_a_group_without_batch_norm_is_named() -> None:
    model, players, _ = network("concatenated")
    with pytest.raises(sp.InputError, match=r"'bn_scale' cannot score group 'right': right\[0\] passes no batch-norm"):
        criterion_scores(model, players, criterion="bn_scale")


@pytest.mark.parametrize("criterion", OF_GRADIENTS)
def test_a_worth_without_a_gradient_is_refused(criterion: str) -> None:
    model, players, data = network("mlp")
    with pytest.raises(sp.InputError, match="'accuracy' has no gradient"):
        criterion_scores(model, players, Calibration(model, data), criterion, worth="accuracy")
    with pytest.raises(sp.InputError, match="worth per example"):
        criterion_scores(model, players, Calibration(model, data), criterion, worth=sp.Evaluate(lambda model: 0.0))


@pytest.mark.parametrize("criterion", [c for c in OF_GRADIENTS if c != "second_order"])
def test_a_worth_at_its_maximum_is_refused_where_the_gradient_ranks(criterion: str) -> None:
    model, players, data = network("mlp")
    with pytest.raises(sp.InputError, match=r"'fidelity' is at its maximum .*second_order"):
        criterion_scores(model, players, Calibration(model, data), criterion, worth="fidelity")


def test_a_model_without_second_derivatives_is_refused() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * 2

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(self.two(torch.relu(self.one(x))))

    model, x = Model().eval(), torch.randn(5, 4)
    players = sp.find_players(model, x)
    with quiet():
        calibration = Calibration(model, [(x, torch.arange(5) % 3)], forward=lambda model, x: model(x))
    with pytest.raises(sp.InputError, match="second derivatives"):
        criterion_scores(model, players, calibration, "second_order")


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if CRITERIA[c].examples])
def test_examples_are_needed_and_must_be_of_this_model(criterion: str) -> None:
    model, players, data = network("mlp")
    with pytest.raises(sp.InputError, match=f"{criterion!r} needs examples"):
        criterion_scores(model, players, criterion=criterion)
    with pytest.raises(sp.InputError, match="another model"):
        criterion_scores(NETWORKS["mlp"][0](), players, Calibration(model, data), criterion)


def test_an_unknown_criterion_and_another_model_are_refused() -> None:
    model, players, _ = network("mlp")
    with pytest.raises(sp.InputError, match="did you mean 'taylor'"):
        criterion_scores(model, players, criterion="tailor")
    with pytest.raises(sp.InputError, match="another model"):
        criterion_scores(NETWORKS["plain"][0](), players, criterion="weight_norm")


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c not in ("random", "bn_scale")])
def test_a_score_that_is_not_finite_is_never_a_number(criterion: str) -> None:
    model, players, data = network("mlp")
    calibration = Calibration(model, data)
    with torch.no_grad():
        model.fc1.weight[2, 1] = float("nan")
    with quiet(), pytest.raises((sp.errors.GameError, sp.InputError)):
        criterion_scores(model, players, calibration, criterion)


def test_one_example_has_no_standard_error() -> None:
    model, players, data = network("mlp")
    values = criterion_scores(model, players, Calibration(model, [(data[0][0][:1], data[0][1][:1])]), "taylor")
    assert np.isinf(values["fc1"].stderr).all()


def test_criteria_that_read_weights_only_need_no_data_and_others_say_that_they_do() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    players = sp.find_players(model, torch.randn(2, 4))
    values = sp.score(model, players, None, method="weight_norm")["0"].value
    np.testing.assert_array_equal(values, criterion_scores(model, players, criterion="weight_norm")["0"].value)
    with pytest.raises(sp.InputError, match="criterion 'taylor' needs examples"):
        sp.score(model, players, None, method="taylor")
    with pytest.raises(sp.InputError, match="data is None; give an iterable of batches"):
        sp.score(model, players, None)


@pytest.mark.filterwarnings("ignore:the whole model is run")
@pytest.mark.parametrize("criterion", ["activation_mean", "apoz", "sensitivity", "taylor"])
def test_rows_that_experts_read_are_those_of_their_examples(criterion: str) -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(4, 3)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            best, out = self.router(x).argmax(1), x.new_zeros(len(x), 2)
            for i, expert in enumerate(self.experts):
                rows = (best == i).nonzero()[:, 0]
                if len(rows):
                    out = out.index_add(0, rows, expert(x[rows]))
            return out

    torch.manual_seed(1)
    model, x = Routed().eval(), torch.randn(40, 4)
    players = sp.find_players(model, x)
    together, alone = (
        criterion_scores(model, players, Calibration(model, data), criterion, worth="squared_error")
        for data in ([(x, torch.ones(40, 2))], [(x.flip(0), torch.ones(40, 2))])
    )
    for group in players.groups:
        np.testing.assert_allclose(together[group.name].value, alone[group.name].value, rtol=1e-5)
        if criterion == "activation_mean":
            expert = model.experts[int(group.name.split(".")[1])]
            with torch.no_grad():
                rows = model.router(x).argmax(1) == int(group.name.split(".")[1])
                read = torch.where(rows[:, None], torch.relu(expert[0](x)), 0.0)  # type: ignore[index]
            np.testing.assert_allclose(together[group.name].value, read.mean(0).numpy(), rtol=1e-5)


def test_players_that_pass_only_later_layers_have_their_own_norms() -> None:
    """Behind a padded shortcut a group has more players than its first layer has filters."""
    entry = ZOO["resnet56"]
    model = entry.make()
    players = sp.find_players(model, entry.inputs(2))
    group = max(players.groups, key=lambda g: len(g) - int(g.producers[0].widths.sum()))
    assert len(group) > int(group.producers[0].widths.sum())
    weights = [(m, model.get_submodule(m.module).weight) for m in group.producers]
    squares = [
        sum(float(weight[list(m.channels[k])].detach().square().sum()) for m, weight in weights)
        for k in range(len(group))
    ]
    found = criterion_scores(model, players, criterion="weight_norm")[group.name].value
    assert found == pytest.approx(np.sqrt(squares), rel=1e-5)
