"""Bad input for `find_players` and `NetworkGame`: every message names the thing and the next step."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from testkit.networks import N_OUTPUTS, NETWORKS
from torch import Tensor, nn
from torch.nn import functional as F

from shaprune.errors import GameError, InputError, ShapruneWarning
from shaprune.network.discovery.find_players import find_players
from shaprune.network.forward.calibration import Calibration
from shaprune.network.game.network_game import NetworkGame
from shaprune.network.game.worths import Evaluate
from shaprune.players.players import Players
from shaprune.values.estimate import estimate

pytestmark = pytest.mark.usefixtures("one_thread")

Worth = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def plain() -> tuple[nn.Module, Players, Tensor]:
    make, inputs = NETWORKS["plain"]
    model, x = make(), inputs()
    return model, find_players(model, x), x


def labels(n: int) -> Tensor:
    return torch.arange(n) % N_OUTPUTS


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


# -- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda x: [], "the data holds no example; check the loader"),
        (lambda x: iter([]), "the data holds no example; check the loader"),
        (lambda x: [(x[:0], labels(0))], "the data holds no example"),
        (lambda x: None, "data is None"),
        (lambda x: x, r"data is a Tensor, which would be one batch; put it in a list, \[batch\]"),
        (lambda x: "images", "data is a str; it must be an iterable of batches"),
        (lambda x: 3, "data cannot be read as batches"),
        (lambda x: [(x, labels(4), labels(4))], r"a batch is a tuple of 3; each batch must be \(inputs, targets\)"),
        (lambda x: [["cat", "dog"]], r"a batch is a list of 2; each batch must be \(inputs, targets\)"),
        (lambda x: [["cat", "dog", "cow"]], "a batch is a list of 3"),
        (lambda x: [7], "a batch is a int"),
        (lambda x: [(x, labels(3))], "a batch has 4 inputs and 3 targets; they must agree"),
        (lambda x: [(x, labels(4)), (x[:2], labels(1))], "a batch has 2 inputs and 1 targets"),
        (lambda x: [({"a": x, "b": x[:2]}, labels(4))], r"first dimensions \[2, 4\]"),
        (lambda x: [(x, labels(4)), x], "some batches have targets and some have none"),
        (lambda x: [(x, labels(4)), (x[:, :, :4], labels(4))], "the batches do not fit together"),
        (lambda x: [(x[:, :2], labels(4))], "the model does not run on a batch of the data"),
        (lambda x: [(x, ["a", "b", "c", "d"])], "a batch is a tuple of 2; each batch must be"),
        (lambda x: [(x, torch.tensor(1))], "targets"),
        (lambda x: [{"x": x, "labels": ["a", "b", "c", "d"]}], "labels"),
    ],
)
def test_data_that_cannot_be_used_is_refused_by_name(
    plain: tuple[nn.Module, Players, Tensor], data: Callable[[Tensor], Any], words: str
) -> None:
    model, players, x = plain
    with pytest.raises(InputError, match=words):
        NetworkGame(model, players, data(x))


def test_an_iterator_that_has_been_read_is_an_empty_loader(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    once = iter([(x, labels(4))])
    assert NetworkGame(model, players, once).n_examples == 4
    with pytest.raises(InputError, match="an iterator can be read only once"):
        NetworkGame(model, players, once)


def test_an_error_inside_the_loader_is_the_loaders_own(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain

    def broken() -> Any:
        yield x, labels(4)
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="disk on fire"):
        NetworkGame(model, players, broken())


# -- targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.tensor([0, 1, 2, 5]), r"labels run from 0 to 5 and the model has 5 outputs; labels must lie in 0\.\.4"),
        (torch.tensor([0, 1, -1, 4]), "labels run from -1 to 4"),
        (torch.rand(4), r"needs one class index per example, the targets are torch.float32 of shape \(4,\)"),
        (torch.ones(4, dtype=torch.bool), "the targets are torch.bool"),
        (
            F.one_hot(labels(4), N_OUTPUTS).roll(1, 0) | F.one_hot(labels(4), N_OUTPUTS),
            "several classes are set, or none",
        ),
        (None, "needs targets and the batches have none; use worth='fidelity'"),
    ],
)
@pytest.mark.parametrize("worth", ["accuracy", "cross_entropy"])
def test_targets_that_a_worth_cannot_use_are_refused_by_name(
    plain: tuple[nn.Module, Players, Tensor], worth: str, targets: Tensor | None, words: str
) -> None:
    model, players, x = plain
    with pytest.raises(InputError, match=words) as caught:
        NetworkGame(model, players, [(x, targets)], worth)
    assert targets is None or f"worth '{worth}'" in str(caught.value) or "labels" in str(caught.value)


def test_fidelity_needs_no_labels_and_is_best_for_the_dense_network(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    worths = NetworkGame(model, players, [x], "fidelity")(np.eye(players.n, dtype=bool) | [[True]] * players.n)
    assert np.abs(worths).max() < 1e-9
    assert NetworkGame(model, players, [(x, None)], "fidelity")(np.zeros((1, players.n), dtype=bool))[0] < -1e-4


@pytest.mark.parametrize("worth", ["accuracy", "cross_entropy"])
def test_outputs_that_are_no_classes_are_refused(worth: str) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)))
    x = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(1))
    players = find_players(model, x)
    with pytest.raises(InputError, match=r"of shape \(4,\), the model's outputs \(4, 7, 5\)"):
        NetworkGame(model, players, [(x, labels(4))], worth)


# -- options ------------------------------------------------------------------------------------------------------


def test_an_unknown_worth_is_refused_with_the_nearest(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    with pytest.raises(InputError, match="unknown worth 'acuracy'; did you mean 'accuracy'"):
        NetworkGame(model, players, [(x, labels(4))], "acuracy")
    with pytest.raises(InputError, match="worth is a int; give a name, a callable"):
        NetworkGame(model, players, [(x, labels(4))], 3)  # type: ignore[arg-type]


def test_an_unknown_group_is_refused_with_the_nearest(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    for group in ("conv9", ["conv1", "conv9"]):
        with pytest.raises(InputError, match=r"no group 'conv9'; did you mean 'conv[123]'"):
            NetworkGame(model, players, [(x, labels(4))], group=group)


@pytest.mark.parametrize("groups", [[], ["conv1", "conv1"]])
def test_no_group_or_one_twice_is_refused(plain: tuple[nn.Module, Players, Tensor], groups: list[str]) -> None:
    model, players, x = plain
    with pytest.raises(InputError, match="group"):
        NetworkGame(model, players, [(x, labels(4))], group=groups)


@pytest.mark.parametrize("max_memory", [0, -1])
def test_no_memory_is_refused(plain: tuple[nn.Module, Players, Tensor], max_memory: int) -> None:
    model, players, x = plain
    with pytest.raises(InputError, match=f"max_memory is {max_memory}; give a number of bytes"):
        NetworkGame(model, players, [(x, labels(4))], max_memory=max_memory)


def test_memory_for_less_than_one_row_is_refused(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    with pytest.raises(InputError, match="max_memory is 1,535 bytes and one row of the network takes 1,536; give at"):
        NetworkGame(model, players, [(x, labels(4))], max_memory=1_535)
    NetworkGame(model, players, [(x, labels(4))], max_memory=1_536)


def test_an_unknown_unit_is_refused() -> None:
    make, inputs = NETWORKS["plain"]
    with pytest.raises(InputError, match="unknown unit 'chanel'; did you mean 'channel'"):
        find_players(make(), inputs(), unit="chanel")


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("conv22", "='conv22' matches no prunable layer; did you mean 'conv2'"),
        ("layer*", r"='layer\*' matches no prunable layer"),
        ("fc", "='fc' matches no prunable layer"),
        (nn.ConvTranspose2d, "='ConvTranspose2d' matches no prunable layer"),
        (["conv1", "conv9"], "='conv9' matches no prunable layer"),
    ],
)
def test_a_filter_that_matches_nothing_is_refused_by_name(option: str, pattern: Any, words: str) -> None:
    make, inputs = NETWORKS["plain"]
    with pytest.raises(InputError, match=option + words):
        find_players(make(), inputs(), **{option: pattern})


def test_filters_choose_groups_by_name_glob_and_type_and_say_what_they_left_out() -> None:
    make, inputs = NETWORKS["flattened"]

    def groups(**options: Any) -> list[str]:
        players = find_players(make(), inputs(), **options)
        left_out = {s.name for s in players.skipped if s.reason == "not in include" or "excluded by" in s.reason}
        assert left_out == {"conv1", "conv2", "fc1"} - {g.name for g in players.groups}
        return [g.name for g in players.groups]

    assert groups() == ["conv1", "conv2", "fc1"]
    assert groups(include="conv*") == ["conv1", "conv2"]
    assert groups(include=nn.Linear) == ["fc1"]
    assert groups(include=["conv1", nn.Linear]) == ["conv1", "fc1"]
    assert groups(exclude="conv2") == ["conv1", "fc1"]
    assert groups(include="conv*", exclude="*1") == ["conv2"]
    assert groups(exclude=nn.Conv2d) == ["fc1"]


# -- models -------------------------------------------------------------------------------------------------------


def test_a_model_without_prunable_groups_says_why() -> None:
    with pytest.raises(InputError, match=r"nothing in this model can be pruned:\n  0: it feeds the network's output"):
        find_players(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4))
    with pytest.raises(InputError, match="it has no convolution or linear layer"):
        find_players(nn.Sequential(nn.ReLU()), torch.randn(2, 4))


def test_a_group_of_one_channel_is_skipped_with_the_reason() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 5)))
    players = find_players(model, torch.randn(2, 4))
    assert (players.skipped[0].name, players.skipped[0].reason) == ("0", "it has one channel")
    assert [g.name for g in players.groups] == ["2"]


@pytest.mark.parametrize("model", [None, "resnet18", lambda x: x])
def test_something_that_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"it must be a torch\.nn\.Module"):
        find_players(model, torch.randn(2, 4))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(2, 9, 8, 8), r"does not run on example_inputs of shape \[\(2, 9, 8, 8\)\]"),
        ("image", "example_inputs is a str without a tensor"),
        (None, "example_inputs is a NoneType without a tensor"),
        ((), "example_inputs is a tuple without a tensor"),
        ({"nothing": torch.zeros(2, 3, 8, 8)}, "does not run on example_inputs"),
        ((torch.zeros(2, 3, 8, 8), torch.zeros(3)), r"first dimensions \[2, 3\]"),
        (torch.zeros(0, 3, 8, 8), "example_inputs"),
        (torch.full((2, 3, 8, 8), math.nan), "the model's output on example_inputs is NaN or infinite"),
    ],
)
def test_example_inputs_that_cannot_be_used_are_refused_by_name(inputs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_players(NETWORKS["plain"][0](), inputs)


def test_a_model_that_draws_in_eval_mode_is_refused() -> None:
    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    with pytest.raises(InputError, match="not deterministic in eval mode"):
        find_players(Noisy(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)), torch.randn(2, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(bad: float, plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = bad
    with pytest.raises(InputError, match="NaN or infinite; check the weights"):
        find_players(model, x)
    with pytest.raises(
        GameError, match="the dense network's output is NaN or infinite on example 0; check the weights"
    ):
        NetworkGame(model, players, [(x, labels(4))])


def test_one_bad_example_is_named(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    x[2, 0, 0, 0] = math.nan
    with pytest.raises(GameError, match="NaN or infinite on example 2"):
        NetworkGame(model, players, [(x, labels(4))])


def test_players_of_another_model_are_refused_by_the_first_layer_that_differs(
    plain: tuple[nn.Module, Players, Tensor],
) -> None:
    _, players, x = plain
    other = NETWORKS["mlp"][0]()
    with pytest.raises(InputError, match=r"another model: layer 'conv1' is missing here; find_players again"):
        NetworkGame(other, players, [(x, labels(4))])
    wider = NETWORKS["plain"][0]()
    wider.conv2 = nn.Conv2d(8, 13, 3, padding=1)
    with pytest.raises(InputError, match=r"layer 'conv2' has 8 inputs and 13 outputs.* 8 and 12"):
        NetworkGame(wider, players, [(x, labels(4))])


def test_examples_gathered_on_another_model_are_refused(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    calibration = Calibration(model, [(x, labels(4))])
    assert NetworkGame(model, players, calibration).n_examples == 4
    with pytest.raises(InputError, match="another model"):
        NetworkGame(NETWORKS["plain"][0](), players, calibration)


def test_an_input_without_dimensions_is_an_input() -> None:
    class Scaled(nn.Sequential):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x * scale)

    model = seeded(lambda: Scaled(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)))
    assert find_players(model, (torch.randn(2, 4), torch.tensor(2.0))).n == 6


def test_outputs_that_lose_the_batch_are_refused(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    with pytest.raises(
        InputError, match=r"returned shape \(5,\) for 4 examples; the first dimension must be the batch"
    ):
        NetworkGame(model, players, [(x, labels(4))], forward=lambda net, images: net(images).mean(0))
    with pytest.raises(InputError, match="the model returned a str without a tensor; give forward="):
        NetworkGame(model, players, [(x, labels(4))], forward=lambda net, images: "cat")


# -- worths and coalitions ----------------------------------------------------------------------------------------


class Normalised(nn.Module):
    """Divides by the sum of what is left: 0 / 0 where nothing is."""

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 8, bias=False)
        self.share, self.last = Share(), nn.Linear(8, 5)
        self.traceable = traceable

    def forward(self, x: Tensor) -> Tensor:
        if not self.traceable and float(x.abs().max()) > 1e9:
            x = x / 2
        return self.last(self.share(self.second(torch.sigmoid(self.first(x)))))


class Share(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("way", ["rows", "mean", "walk", "mean walk", "estimate"])
def test_a_coalition_whose_output_is_nan_is_named_with_the_layer(traceable: bool, way: str) -> None:
    model = seeded(lambda: Normalised(traceable))
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    players = find_players(model, x)
    assert players.groups[0].name == "first"
    game = NetworkGame(model, players, [(x, labels(4))], group="first")
    orders = np.array([[3, 1, 0, 2, 5, 4]])
    only_two = np.isin(np.arange(6), [1, 2])[None]
    assert np.isfinite(game(only_two)).all()
    ask = {
        "rows": lambda: game(np.concatenate([only_two, np.zeros((1, 6), dtype=bool)]), np.array([3, 2])),
        "mean": lambda: game(np.concatenate([only_two, np.zeros((1, 6), dtype=bool)])),
        "walk": lambda: game.walk(orders, np.array([2])),
        "mean walk": lambda: game.walk(orders),
        "estimate": lambda: estimate(game),
    }[way]
    example = "2" if way in ("rows", "walk") else r"\d"
    words = rf"not finite for the empty coalition of first on example {example}.*first layer .* is '.*share.*'"
    with pytest.raises(GameError, match=words):
        ask()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("way", ["rows", "mean", "walk"])
def test_a_worth_that_is_not_finite_is_named_with_its_coalition(
    plain: tuple[nn.Module, Players, Tensor], way: str, bad: float
) -> None:
    model, players, x = plain

    kept = np.ones((1, 12), dtype=bool)
    kept[0, [0, 2]] = False  # both are seen in the output
    seen: list[Tensor] = []
    NetworkGame(model, players, [(x[:1], labels(1))], lambda o, t: seen.append(o) or o[:, 0], "conv2")(kept)

    def fragile(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.where(outputs.isclose(seen[0], rtol=0, atol=1e-6).all(1), bad, outputs[:, 0])

    game = NetworkGame(model, players, [(x[:1], labels(1))], fragile, "conv2")
    order = np.array([[2, 0, 1, *range(3, 12)]])
    ask = {
        "rows": lambda: game(np.concatenate([~kept, kept]), np.zeros(2, dtype=np.int64)),
        "mean": lambda: game(np.concatenate([~kept, kept])),
        "walk": lambda: game.walk(order, np.zeros(1, dtype=np.int64)),
    }[way]
    with pytest.raises(
        GameError, match=r"not finite for the coalition without players 0, 2 of conv2 on example 0; worth 'fragile'"
    ):
        ask()


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_an_evaluation_that_is_not_finite_is_named_with_its_coalition(
    plain: tuple[nn.Module, Players, Tensor], bad: float
) -> None:
    model, players, _ = plain
    game = NetworkGame(model, players, None, Evaluate(lambda net: bad), "conv2")
    kept = np.ones((1, 12), dtype=bool)
    kept[0, 5] = False
    with pytest.raises(GameError, match=rf"evaluate\(model\) returned {bad} for the coalition without player 5"):
        game(kept)


@pytest.mark.parametrize(
    ("worth", "words"),
    [
        (lambda outputs, targets: outputs, r"returned \(\d+, 5\) for \d+ rows"),
        (lambda outputs, targets: outputs.mean(), r"returned \(\) for"),
        (lambda outputs, targets: outputs[:-1, 0], r"returned \(\d+,\) for"),
        (lambda outputs, targets: 0.5, "returned float for"),
        (lambda outputs, targets: outputs[:, 0].tolist(), "returned list for"),
        (lambda outputs, targets: None, "returned NoneType for"),
    ],
)
@pytest.mark.parametrize("way", ["rows", "mean", "walk"])
def test_a_worth_that_is_not_one_number_per_row_is_refused(
    plain: tuple[nn.Module, Players, Tensor], way: str, worth: Worth, words: str
) -> None:
    model, players, x = plain
    game = NetworkGame(model, players, [(x, labels(4))], worth, "conv2")
    everyone = np.ones((3, 12), dtype=bool)
    ask = {
        "rows": lambda: game(everyone, np.arange(3)),
        "mean": lambda: game(everyone),
        "walk": lambda: game.walk(np.arange(12)[None], np.zeros(1, dtype=np.int64)),
    }[way]
    with pytest.raises(GameError, match=words + r".*it must return shape|" + words):
        ask()


def test_a_worth_of_whole_numbers_or_booleans_is_a_worth(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    expected = NetworkGame(model, players, [(x, labels(4))], "accuracy")
    coalitions = np.random.default_rng(0).random((20, players.n)) < 0.7
    assert 0 < expected(coalitions).mean() < 1
    for kind in (torch.bool, torch.int64, torch.float64):
        game = NetworkGame(model, players, [(x, labels(4))], lambda o, t, kind=kind: (o.argmax(1) == t).to(kind))
        assert game(coalitions).tolist() == expected(coalitions).tolist()
        assert game(coalitions, np.arange(20) % 4).tolist() == expected(coalitions, np.arange(20) % 4).tolist()


@pytest.mark.parametrize("shape", [(3, 29), (3, 31), (30,), (2, 3, 30)])
def test_coalitions_of_another_game_are_refused(
    plain: tuple[nn.Module, Players, Tensor], shape: tuple[int, ...]
) -> None:
    model, players, x = plain
    game = NetworkGame(model, players, [(x, labels(4))])
    with pytest.raises(InputError, match=r"coalitions have shape .* this game needs \(R, 30\)"):
        game(np.ones(shape, dtype=bool))


@pytest.mark.parametrize("examples", [np.array([0, 1, 4]), np.array([0, -1, 2]), np.array([0, 1])])
def test_examples_that_there_are_not_are_refused(plain: tuple[nn.Module, Players, Tensor], examples: Any) -> None:
    model, players, x = plain
    game = NetworkGame(model, players, [(x, labels(4))])
    with pytest.raises((InputError, IndexError), match=r"example|index"):
        game(np.ones((3, 30), dtype=bool), examples)


# -- memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", [None, lambda net, x: net(x)])
@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("plain", "conv1"),
        ("plain", "conv3"),
        ("flattened", None),
        ("flattened", "conv2"),
        ("flattened", "fc1"),
        ("residual", None),
        ("residual", "conv2b"),
    ],
)
def test_worths_do_not_depend_on_the_memory_they_may_take(name: str, group: str | None, forward: Any) -> None:
    make, inputs = NETWORKS[name]
    model, x = make(), torch.cat([inputs(), -inputs(), inputs().flip(0) * 0.5])
    players = find_players(model, x)
    rng, games = np.random.default_rng(0), []
    for max_memory in (1 << 30, 20_000, None):
        memory = games[0].evaluator.rows.row_bytes if max_memory is None else max_memory  # the least: one row
        options = {"worth": "cross_entropy", "group": group, "forward": forward, "max_memory": memory}
        if forward is None:
            games.append(NetworkGame(model, players, [(x, labels(12))], **options))
        else:
            with pytest.warns(ShapruneWarning):
                games.append(NetworkGame(model, players, [(x, labels(12))], **options))
    n = games[0].n_players
    coalitions, examples = rng.random((12, n)) < 0.6, rng.integers(0, 12, 12)
    orders = rng.permuted(np.tile(np.arange(n), (3, 1)), axis=1)
    for ask in (
        lambda game: game(coalitions, examples),
        lambda game: game(coalitions),
        lambda game: game.walk(orders, examples[:3]),
        lambda game: game.walk(orders[:1]),
    ):
        large, small, tiny = map(ask, games)
        assert np.std(large) > 1e-4
        for worths in (tiny, small):
            np.testing.assert_allclose(worths, large, rtol=1e-5, atol=1e-6)


def test_little_memory_means_small_batches(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    largest: list[int] = []

    def watching(outputs: Tensor, targets: Tensor) -> Tensor:
        largest[-1] = max(largest[-1], len(outputs))
        return outputs[:, 0]

    for max_memory in (1_536, 100_000, 1 << 30):
        game = NetworkGame(model, players, [(x, labels(4))], watching, max_memory=max_memory)
        largest.append(0)
        game(np.ones((200, players.n), dtype=bool), np.zeros(200, dtype=np.int64))
    assert largest[0] == 1
    assert largest[0] < largest[1] < largest[2] == 200


def test_what_lies_before_the_mask_is_run_once(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    seen = {"conv1": 0, "conv3": 0}
    for name in seen:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: seen[name] + len(output)})
        )
    rows = np.ones((50, 12), dtype=bool), np.arange(50) % 4
    for max_memory in (1 << 30, 928):  # little memory: the values at the cut lie in a file
        game = NetworkGame(model, players, [(x, labels(4))], group="conv2", max_memory=max_memory)
        seen.update(conv1=0, conv3=0)
        game(*rows)
        game(*rows)
        assert seen == {"conv1": 4, "conv3": 100}


def test_no_rows_have_no_worths(plain: tuple[nn.Module, Players, Tensor]) -> None:
    model, players, x = plain
    game = NetworkGame(model, players, [(x, labels(4))])
    nobody = np.ones((0, players.n), dtype=bool)
    assert game(nobody).shape == game(nobody, np.zeros(0, dtype=np.int64)).shape == (0,)
