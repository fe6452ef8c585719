"""Promise 1: the worth of a coalition, computed with masks, is the worth of the network after surgery."""

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from testkit.networks import N_OUTPUTS, NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F

from shaprune.errors import InputError, ShapruneWarning
from shaprune.network.discovery.find_players import find_players
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.worths import Evaluate
from shaprune.network.layers.kinds import widths_of
from shaprune.network.removal.surgery import remove_players
from shaprune.players.players import Players
from shaprune.values.games.game import Game

pytestmark = pytest.mark.usefixtures("one_thread")

N_COALITIONS = 20
EACH = 6  # examples per coalition, and walks
TOLERANCE = 1e-5  # relative to the largest output, float32
Coalition = NDArray[np.bool_]


def picked(outputs: Tensor, targets: Tensor) -> Tensor:
    """A worth that hides nothing: the output that the target names, so that five targets see all five outputs."""
    return outputs.gather(1, targets[:, None])[:, 0]


def every_output(inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Every example once with every target."""
    return [(inputs, torch.full((len(inputs),), target)) for target in range(N_OUTPUTS)]


def coalitions_of(players: Players, playing: NDArray[np.int64], seed: int) -> Coalition:
    """Random rows of all densities over ``playing``, the others stay; one player of every group is always kept."""
    rng = np.random.default_rng(seed)
    rows = np.ones((N_COALITIONS, players.n), dtype=bool)
    rows[:, playing] = rng.random((N_COALITIONS, len(playing))) < np.linspace(0, 1, N_COALITIONS)[:, None]
    for group in players.groups:
        for row in rows:
            row[rng.choice(group.indices)] = True
    assert not rows[0, playing].all()
    assert rows[-1].all()
    return rows


def removed(model: nn.Module, players: Players, kept: Coalition) -> nn.Module:
    return remove_players(copy.deepcopy(model), players, kept)


def assert_close(ours: Any, theirs: Any, scale: float) -> None:
    error = np.abs(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)).max()
    assert error <= TOLERANCE * scale, f"{error} is above {TOLERANCE} of {scale}"


def assert_masked_is_removed(
    model: nn.Module, players: Players, inputs: Tensor, forward: Callable[..., Tensor] | None = None
) -> None:
    """For each group alone and all together: rows, means and walks of the game against networks after surgery."""
    data, n = every_output(inputs), N_OUTPUTS * len(inputs)
    rng = np.random.default_rng(1)
    for selection in (*(g.name for g in players.groups), None):
        playing = np.arange(players.n) if selection is None else players.group(selection).indices
        kept = coalitions_of(players, playing, seed=len(playing))
        game = NetworkGame(model, players, data, picked, selection, forward=forward)
        assert (game.n_players, game.n_examples) == (len(playing), n)
        with torch.no_grad():
            run = forward or (lambda net, x: net(x))
            outputs = np.stack([run(removed(model, players, row), inputs).T.flatten().numpy() for row in kept])
        scale = np.abs(outputs).max()
        assert outputs.std(0).max() > 20 * TOLERANCE * scale, f"the coalitions of {selection} make no difference"

        examples = np.concatenate([rng.permutation(n)[:EACH] for _ in kept])
        rows = np.repeat(np.arange(N_COALITIONS), EACH)
        shuffled = rng.permutation(len(rows))  # neighbouring rows carry different coalitions and different examples
        rows, examples = rows[shuffled], examples[shuffled]
        assert_close(game(kept[rows][:, playing], examples), outputs[rows, examples], scale)
        assert_close(game(kept[:, playing]), outputs.mean(1), scale)

        for steps in (len(playing), max(1, len(playing) // 2)):
            orders = rng.permuted(np.tile(np.arange(len(playing)), (EACH, 1)), axis=1)[:, :steps]
            who = rng.permutation(n)[:EACH]
            assert_close(game.walk(orders, who), Game.walk(game, orders, who), scale)
        assert_close(game.walk(orders[:1]), Game.walk(game, orders[:1]), scale)


def multiply_adds(model: nn.Module, inputs: Tensor) -> float:
    """Counted anew: every output takes the weights of one filter; where transposed, every input is spread by one."""
    total = 0

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        uses = args[0][0].numel() if isinstance(module, nn.ConvTranspose2d) else output[0].numel()
        total += uses * module.weight[0].numel()  # type: ignore[union-attr, operator, index]

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(hook)
    with torch.no_grad():
        model(inputs)
    return float(total)


def assert_costs_are_exact(model: nn.Module, players: Players, inputs: Tensor) -> None:
    for kept in coalitions_of(players, np.arange(players.n), seed=2):
        small = removed(model, players, kept)
        params = sum(p.numel() for p in small.parameters())
        assert (params, multiply_adds(small, inputs)) == players.cost(kept)


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_and_removal_agree_for_rows_means_and_walks(name: str) -> None:
    make, inputs = NETWORKS[name]
    model, x = make(), inputs()
    assert_masked_is_removed(model, find_players(model, x), x)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_predicted_cost_is_the_cost_after_surgery(name: str) -> None:
    make, inputs = NETWORKS[name]
    model, x = make(), inputs()
    players = find_players(model, x)
    assert_costs_are_exact(model, players, x)
    assert (players.model_params, players.model_macs) == players.cost(np.ones(players.n, dtype=bool))
    for player in range(players.n):
        alone = np.arange(players.n) != player
        dense, left = players.cost(np.ones(players.n, dtype=bool)), players.cost(alone)
        assert (dense[0] - left[0], dense[1] - left[1]) == (players.params[player], players.macs[player])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_after_surgery_says_its_true_widths_and_carries_no_hook(name: str) -> None:
    make, inputs = NETWORKS[name]
    model, x = make(), inputs()
    players = find_players(model, x)
    kept = coalitions_of(players, np.arange(players.n), seed=3)[4]
    small = removed(model, players, kept)
    for layer, widths in players.widths(kept).items():
        assert widths_of(small.get_submodule(layer)) == widths, layer
    for module in small.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.weight.shape == module.running_mean.shape == (module.num_features,)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_belongs_to_one_group_or_is_skipped_with_a_reason(name: str) -> None:
    make, inputs = NETWORKS[name]
    model = make()
    players = find_players(model, inputs())
    playing = Counter({m.module: 0 for g in players.groups for m in g.members})
    for member in (m for g in players.groups for m in g.members if m.role in ("out", "both")):
        playing[member.module] += sum(map(len, member.channels))
    reasons = {s.name: s.reason for s in players.skipped}
    skipped = {s.name: s.channels for s in players.skipped}
    for layer, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            assert playing[layer] + skipped.get(layer, 0) == module.weight.shape[0], layer
    assert all(reasons.values())
    assert len(reasons) == len(players.skipped)
    last = list(model.named_modules())[-1][0]
    assert reasons[last] == "it feeds the network's output"
    assert last in players.summary()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_channel_of_a_producer_is_owned_by_one_player(name: str) -> None:
    make, inputs = NETWORKS[name]
    players = find_players(make(), inputs())
    for group in players.groups:
        for member in group.members:
            owned = [channel for channels in member.channels for channel in channels]
            assert len(owned) == len(set(owned))
            if member.role == "out":
                skipped = sum(s.channels for s in players.skipped if s.name == member.module)
                assert len(owned) + skipped == players.layers[member.module].n_out
                assert set(owned) <= set(range(players.layers[member.module].n_out))
    assert len(set(players.names)) == players.n
    assert [i for g in players.groups for i in g.indices] == list(range(players.n))


@pytest.mark.parametrize("name", ["plain", "mlp", "residual"])
def test_an_evaluation_of_the_whole_model_is_that_of_the_network_after_surgery(name: str) -> None:
    make, inputs = NETWORKS[name]
    model, x = make(), inputs()
    players = find_players(model, x)

    def evaluate(net: nn.Module) -> float:
        with torch.no_grad():
            return float(net(x).square().mean())

    kept = coalitions_of(players, np.arange(players.n), seed=4)
    worths = NetworkGame(model, players, None, Evaluate(evaluate))(kept)
    theirs = [evaluate(removed(model, players, row)) for row in kept]
    assert np.std(theirs) > 1e-3
    assert_close(worths, theirs, np.abs(theirs).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_model_has_the_same_players(name: str) -> None:
    make, inputs = NETWORKS[name]
    frozen = make().requires_grad_(False)
    assert find_players(frozen, inputs()).to_json() == find_players(make(), inputs()).to_json()


def test_a_model_in_train_mode_or_seen_through_one_example_has_the_same_players() -> None:
    make, inputs = NETWORKS["residual"]
    expected = find_players(make(), inputs()).to_json()
    assert find_players(make().train(), inputs()).to_json() == expected
    assert find_players(make(), inputs()[:1]).to_json() == expected


# -- what masks cannot emulate is refused -------------------------------------------------------------------------


class Between(nn.Module):
    """conv1 -> something -> conv2 -> relu -> fc."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.between = between
        self.fc = nn.Linear(6, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(self.between(self.conv1(x)))).mean((2, 3)))


IMAGES = (4, 3, 8, 8)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def softmax_over_channels(x: Tensor) -> Tensor:
    return x.softmax(1)


def mean_over_channels(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.LayerNorm([8, 8, 8]), "LayerNorm"),
        (lambda: nn.LocalResponseNorm(3), "LocalResponseNorm"),  # mixes by a mere millionth of the output
        (lambda: nn.LocalResponseNorm(3, alpha=1e-3), "LocalResponseNorm"),
        (lambda: softmax_over_channels, "the network's code mixes them"),
        (lambda: mean_over_channels, "the network's code mixes them"),
    ],
)
def test_a_group_whose_channels_are_mixed_before_the_mask_is_refused(make: Callable[[], Any], words: str) -> None:
    model = seeded(lambda: Between(make()))
    players = find_players(model, drawn(*IMAGES))
    assert [g.name for g in players.groups] == ["conv2"]  # the other group is not punished for it
    reasons = {s.name: s.reason for s in players.skipped}
    assert set(reasons) == {"conv1", "fc"}
    assert words in reasons["conv1"]
    assert_masked_is_removed(model, players, drawn(*IMAGES))


def test_norms_over_the_channels_are_emulated() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, N_OUTPUTS)
        )
    )
    players = find_players(model, drawn(4, 6))
    assert [g.name for g in players.groups] == ["0", "3"]
    assert_masked_is_removed(model, players, drawn(4, 6))
    model = seeded(lambda: Between(nn.GroupNorm(1, 8)))
    players = find_players(model, drawn(*IMAGES))
    assert [g.name for g in players.groups] == ["conv1", "conv2"]
    assert_masked_is_removed(model, players, drawn(*IMAGES))


def test_layers_that_share_a_weight_with_one_that_reads_the_input_are_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 6)
            self.second.weight = self.first.weight
            self.last = nn.Linear(6, N_OUTPUTS)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.relu(self.third(F.relu(self.second(F.relu(self.first(x)))))))

    model = seeded(Tied)
    players = find_players(model, drawn(4, 8))
    assert [g.name for g in players.groups] == ["third"]
    reasons = {s.name: s.reason for s in players.skipped}
    why = "first shares its weight with second, and reads the network's input, which stays"
    assert reasons["first"] == reasons["second"] == why


def test_what_cannot_be_cut_because_the_code_knows_the_width_is_refused() -> None:
    class Fixed(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv2(F.relu(self.conv1(x))))
            return self.fc(x.reshape(-1, 6, 64).mean(2))

    players = find_players(seeded(lambda: Fixed(F.relu)), drawn(*IMAGES))
    assert [g.name for g in players.groups] == ["conv1"]
    assert "removal breaks the network" in {s.name: s.reason for s in players.skipped}["conv2"]


# -- harder networks: whatever is accepted keeps the promise ------------------------------------------------------


class SqueezeExcite(Between):
    """Channels are scaled by gates that are computed from them."""

    def __init__(self) -> None:
        super().__init__(F.relu)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        gates = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return self.fc(F.relu(self.conv2(F.relu(x) * gates[:, :, None, None])).mean((2, 3)))


class Twice(Between):
    """One convolution reads two different inputs, the second its own output."""

    def __init__(self) -> None:
        super().__init__(F.relu)
        self.again = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.again(F.relu(self.conv1(x))))
        return self.fc(F.relu(self.conv2(F.relu(self.again(x)))).mean((2, 3)))


class Siamese(Between):
    """The same two layers see an image and its mirror image."""

    def __init__(self) -> None:
        super().__init__(torch.tanh)

    def forward(self, x: Tensor) -> Tensor:
        sides = [F.relu(self.conv2(self.between(self.conv1(y)))).mean((2, 3)) for y in (x, x.flip(3))]
        return self.fc(sides[0] - 0.5 * sides[1])


class Split(Between):
    """The channels of a convolution are split in two halves, and one gates the other."""

    def __init__(self) -> None:
        super().__init__(F.relu)
        self.wide = nn.Conv2d(3, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.wide(x).chunk(2, dim=1)
        return self.fc(F.relu(self.conv2(value * torch.sigmoid(gate))).mean((2, 3)))


class Tokens(nn.Module):
    """Linear layers on three-dimensional inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 10), nn.Linear(10, 6), nn.Linear(6, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class Upsampled(Between):
    """A transposed convolution, instance norm and PReLU with one slope per channel."""

    def __init__(self) -> None:
        super().__init__(F.relu)
        self.up, self.act = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.PReLU(8)
        self.norm = nn.InstanceNorm2d(8, affine=True)
        nn.init.uniform_(self.act.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.up(torch.sigmoid(self.conv1(x)))))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


class Biased(nn.Module):
    """A depthwise convolution with a bias, and one that makes two channels of each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.depth = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.conv2, self.both = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 12, 3, groups=6)
        self.fc = nn.Linear(12, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depth(F.relu(self.conv1(x))))
        return self.fc(F.relu(self.both(F.relu(self.conv2(x)))).mean((2, 3)))


class Dense(nn.Module):
    """Batch-norm and activation behind a concatenation, as in DenseNet: every layer reads all earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1)
        self.bn3, self.fc = nn.BatchNorm2d(14), nn.Linear(14, N_OUTPUTS)
        for bn in (self.bn1, self.bn2, self.bn3):
            nn.init.normal_(bn.bias)
            nn.init.normal_(bn.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.bn1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.bn2(x)))], 1)
        return self.fc(F.relu(self.bn3(x)).mean((2, 3)))


class Shuffled(nn.Module):
    """Grouped convolutions with a channel shuffle between them, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.shuffle, self.conv3 = nn.ChannelShuffle(2), nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.fc = nn.Linear(6, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return self.fc(F.relu(self.conv3(x)).mean((2, 3)))


class Carried(nn.Module):
    """A hidden layer whose width the batch norm before it decides, flattened in the other memory order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.fc1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6 * 4, 8)
        self.fc2 = nn.Linear(8, N_OUTPUTS)
        nn.init.normal_(self.bn.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(torch.sigmoid(self.bn(self.conv1(x))), 2)
        return self.fc2(torch.tanh(self.fc1(x.permute(0, 2, 3, 1).flatten(1))))


class Positions(nn.Module):
    """A value that does not depend on the example is as long as there are examples: 20 tokens, 20 examples."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.place = nn.Linear(6, 10), nn.Linear(10, 6), nn.Embedding(20, 6)
        self.head = nn.Linear(120, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        places = self.place(torch.arange(x.shape[1]))
        return self.head((self.down(F.gelu(self.up(x))) * torch.sigmoid(places)).flatten(1))


class InPlace(Between):
    """In-place operations whose results are not taken up, and which change what was read before."""

    def __init__(self) -> None:
        super().__init__(F.relu)
        self.other = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        y.sigmoid_()
        z = self.conv2(y)
        y.sub_(0.5)
        z += self.other(y)
        F.relu(z, inplace=True)
        return self.fc(z.mean((2, 3)))


class Largest(Between):
    """The largest of all channels scales them all."""

    def __init__(self) -> None:
        super().__init__(F.relu)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.conv1(x))
        return self.fc(F.relu(self.conv2(y) * y.amax(1, keepdim=True)).mean((2, 3)))


class Unfolded(nn.Module):
    """Channels become positions and back (pixel shuffle)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(2, 6, 1), nn.Linear(6, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.pixel_shuffle(F.relu(self.conv1(x)), 2))).mean((2, 3)))


# name -> network, shape of its input, groups that must be found
HARD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "squeeze and excite": (SqueezeExcite, IMAGES, {"conv1", "squeeze", "conv2"}),
    "one layer twice in a row": (Twice, IMAGES, {"conv2"}),
    "two layers on two inputs": (Siamese, IMAGES, {"conv1", "conv2"}),
    "split and gate": (Split, IMAGES, {"conv2"}),
    "tokens": (Tokens, (4, 7, 6), {"up"}),
    "transposed, instance norm and PReLU": (Upsampled, IMAGES, {"conv1", "conv2"}),
    "depthwise with biases": (Biased, IMAGES, {"conv1"}),
    "densely connected": (Dense, IMAGES, {"stem", "conv1", "conv2"}),
    "channel shuffle": (Shuffled, IMAGES, {"conv1"}),
    "flattened in another order": (Carried, IMAGES, {"fc1"}),
    "a table as long as there are examples": (Positions, (4, 20, 6), {"up"}),
    "in place": (InPlace, IMAGES, {"conv1"}),
    "pixel shuffle": (Unfolded, IMAGES, {"conv2"}),
}


@pytest.mark.parametrize("name", HARD)
def test_whatever_is_accepted_in_a_harder_network_keeps_the_promise(name: str) -> None:
    make, shape, expected = HARD[name]
    model, x = seeded(make), drawn(*shape)
    players = find_players(model, x)
    assert expected <= {g.name for g in players.groups}, players.summary()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShapruneWarning)  # it may have to be run whole
        assert_masked_is_removed(model, players, x)
    assert_costs_are_exact(model, players, x)
    named = {m.module for g in players.groups for m in g.members if m.role != "in"} | {s.name for s in players.skipped}
    layers = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))}
    assert layers <= named


def test_channels_that_meet_all_others_are_refused() -> None:
    with pytest.raises(InputError, match=r"nothing in this model can be pruned:\n  conv1: .+\n  conv2: .+\n  fc: "):
        find_players(seeded(Largest), drawn(*IMAGES))


def test_a_layer_whose_weight_is_used_without_calling_it_is_refused() -> None:
    class Functional(Between):
        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(F.relu(self.conv1(x)), self.conv2.weight, self.conv2.bias)
            return self.fc(F.relu(x).mean((2, 3)))

    with pytest.raises(InputError, match=r"conv2: its weight is used without calling it"):
        find_players(seeded(lambda: Functional(F.relu)), drawn(*IMAGES))


# -- models that are run whole ------------------------------------------------------------------------------------


class Untraceable(Between):
    """Python control flow on values, which torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.abs().max()) > 1e6:
            x = x / x.abs().max()
        return super().forward(x)


def test_a_model_that_cannot_be_traced_keeps_the_promise() -> None:
    model, x = seeded(lambda: Untraceable(torch.sigmoid)), drawn(*IMAGES)
    players = find_players(model, x)
    assert [g.name for g in players.groups] == ["conv1", "conv2"]
    assert_masked_is_removed(model, players, x)


def test_a_model_that_cannot_be_traced_has_the_worths_of_the_same_model_taken_apart() -> None:
    called, apart, x = (
        seeded(lambda: Untraceable(torch.sigmoid)),
        seeded(lambda: Between(torch.sigmoid)),
        drawn(*IMAGES),
    )
    players = find_players(apart, x)
    games = [NetworkGame(model, players, every_output(x), picked, "conv1") for model in (called, apart)]
    kept = coalitions_of(players, players.group("conv1").indices, seed=6)[:, :8]
    assert_close(games[0](kept), games[1](kept), np.abs(games[1](kept)).max())


def test_a_forward_of_ones_own_is_run_whole_says_so_and_keeps_the_promise() -> None:
    model, x = seeded(lambda: Between(torch.sigmoid)), drawn(*IMAGES)
    players = find_players(model, x)

    def twice_as_bright(net: nn.Module, images: Tensor) -> Tensor:
        return net(2 * images) + 1

    with pytest.warns(ShapruneWarning, match="forward=... is given"):
        assert_masked_is_removed(model, players, x, twice_as_bright)


# -- inputs of any form -------------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    """Reads an image and a scale per example."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.side = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(2, 6)
        self.fc = nn.Linear(6, N_OUTPUTS)

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        x = F.relu(self.conv2(torch.sigmoid(self.conv1(image)))).mean((2, 3))
        return self.fc(x * torch.sigmoid(self.side(scale)))


def test_inputs_may_be_a_tuple_a_list_or_a_dict() -> None:
    model, image, scale = seeded(TwoInputs), drawn(*IMAGES), drawn(4, 2)
    forms: list[Any] = [(image, scale), [image, scale], {"image": image, "scale": scale}]
    found = [find_players(model, form) for form in forms]
    assert [g.name for g in found[0].groups] == ["conv1", "conv2"]
    assert found[0].to_json() == found[1].to_json() == found[2].to_json()
    targets = torch.arange(4)
    batches: list[Any] = [
        ((image, scale), targets),
        ([image, scale], targets),
        ({"image": image, "scale": scale}, targets),
        {"scale": scale, "labels": targets, "image": image},
    ]
    kept = coalitions_of(found[0], np.arange(found[0].n), seed=7)
    with torch.no_grad():
        theirs = [picked(removed(model, found[0], row)(image, scale), targets).numpy() for row in kept]
    for batch in batches:
        game = NetworkGame(model, found[0], [batch], picked)
        for row, worths in zip(kept, theirs, strict=True):
            ours = game(np.tile(row, (4, 1)), np.arange(4))
            assert_close(ours, worths, np.abs(theirs).max())


def test_inputs_in_several_batches_are_the_same_examples_in_the_same_order() -> None:
    make, inputs = NETWORKS["plain"]
    model, x, targets = make(), inputs(), torch.arange(4)
    players = find_players(model, x)
    kept = coalitions_of(players, np.arange(players.n), seed=8)
    whole = NetworkGame(model, players, [(x, targets)], "cross_entropy")
    parts = NetworkGame(model, players, ((x[i : i + 3], targets[i : i + 3]) for i in (0, 3)), "cross_entropy")
    examples = np.arange(N_COALITIONS) % 4
    assert_close(parts(kept, examples), whole(kept, examples), np.abs(whole(kept, examples)).max())


@pytest.mark.usefixtures("one_thread")
def test_a_relu_is_written_in_place_only_where_nothing_else_reads_the_layer() -> None:
    class Twice(nn.Module):
        """`b`'s output is read by a ReLU and again as it is; `c`'s by a ReLU alone."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.b(self.a(x).relu())
            hidden = torch.relu(hidden) + 2 * hidden
            return self.d(torch.relu(self.c(hidden)))

    model, inputs = Twice().eval(), torch.randn(6, 4)
    players = find_players(model, inputs)
    game = NetworkGame(model, players, [(inputs, torch.zeros(6, dtype=torch.long))], "fidelity", "a")
    assert [str(n.target) for n in game.runner.suffix.overwritten.values()] == ["c"]
    kept = np.ones(players.n, dtype=bool)
    kept[players.group("a").indices[:3]] = False
    small = remove_players(copy.deepcopy(model), players, kept)
    truth = -(small(inputs) - model(inputs)).square().sum(1).mean()
    assert game(kept[None, players.group("a").indices])[0] == pytest.approx(float(truth.detach()), rel=1e-5)
