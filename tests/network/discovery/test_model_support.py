"""Models and example inputs that cannot be pruned: each is refused before any work, with its name and the next step."""

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import shaprune as sp
from shaprune.network.discovery.model_support import check_model

pytestmark = pytest.mark.usefixtures("one_thread")


def plain() -> nn.Sequential:
    """Two convolutions and a linear layer, for images of 3 x 6 x 6."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)]
    return nn.Sequential(*layers).eval()


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def refused(model: nn.Module, inputs: Any = None) -> str:
    """Why `find_players` refuses; the model's training flags are as before."""
    flags = [m.training for m in model.modules()]
    with pytest.raises(sp.InputError) as refusal:
        sp.find_players(model, images() if inputs is None else inputs)
    assert [m.training for m in model.modules()] == flags
    return str(refusal.value)


# --- wrappers and unusual weights: refused without running anything ---


def compiled() -> nn.Module:
    return torch.compile(plain())  # type: ignore[return-value]


def compiled_in_place() -> nn.Module:
    model = plain()
    model.compile()
    return model


def part_compiled() -> nn.Module:
    model = plain()
    model[2] = torch.compile(model[2])  # type: ignore[assignment]
    return model


def scripted() -> nn.Module:
    """Without attributes that are lists: torch.jit takes one for a function that has had its id, now and then."""
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.ReLU(), nn.Linear(6, 5)).eval())


def quantised() -> nn.Module:
    model = plain()
    model[5] = torch.ao.nn.quantized.dynamic.Linear(64, 5)
    return model


def quantised_by_torchs_function() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear})


def sparse() -> nn.Module:
    model = plain()
    model[5].weight = nn.Parameter(model[5].weight.detach().to_sparse())
    return model


def on_meta() -> nn.Module:
    return plain().to("meta")


def lazy() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.LazyLinear(5))


def with_masks() -> nn.Module:
    model = plain()
    prune.l1_unstructured(model[2], "weight", amount=0.5)
    return model


def with_masks_in_turn() -> nn.Module:
    model = plain()
    prune.random_unstructured(model[0], "bias", amount=0.5)
    prune.random_unstructured(model[0], "bias", amount=0.5)
    return model


def with_a_norm_hook() -> nn.Module:
    model = plain()
    nn.utils.weight_norm(model[2])
    return model


def with_spectral_norm_hook() -> nn.Module:
    model = plain()
    nn.utils.spectral_norm(model[2])
    return model


UNUSABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled": (compiled, "the model is a wrapper of torch.compile; pass its ._orig_mod"),
    "part compiled": (part_compiled, "layer '2' is a wrapper of torch.compile; pass its ._orig_mod"),
    "compiled in place": (
        compiled_in_place,
        "the model was compiled in place by .compile(); pass copy.deepcopy(model)",
    ),
    "parallel": (lambda: nn.DataParallel(plain()), "the model is a wrapper of DataParallel; pass its .module"),
    "scripted": (scripted, "the model is compiled by TorchScript; pass the Python module"),
    "quantised": (quantised, "layer '5' is quantised (torch.ao.nn.quantized.dynamic"),
    "quantised by torch": (quantised_by_torchs_function, "layer '5' is quantised (torch.ao.nn.quantized.dynamic"),
    "sparse": (sparse, "'weight' of layer '5' has the sparse layout torch.sparse_coo; call .to_dense()"),
    "meta": (on_meta, "'weight' of layer '0' is on the meta device and has no values; call model.to_empty"),
    "lazy": (lazy, "'weight' of layer '2' has no shape yet; run the model once"),
    "masks": (with_masks, "layer '2' carries a mask of torch.nn.utils.prune on its weight; call torch.nn.utils.prune"),
    "masks in turn": (with_masks_in_turn, "layer '0' carries a mask of torch.nn.utils.prune on its bias"),
    "weight norm": (with_a_norm_hook, "layer '2' carries a WeightNorm hook; call torch.nn.utils.remove_weight_norm"),
    "spectral norm": (
        with_spectral_norm_hook,
        "layer '2' carries a SpectralNorm hook; call torch.nn.utils.remove_spec",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_wrappers_and_unusual_weights_are_refused_by_name(name: str) -> None:
    make, message = UNUSABLE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # much of this is deprecated in torch itself
        model = make()
    _, players = found()
    assert message in refused(model)
    with pytest.raises(sp.InputError, match=re.escape(message)):
        sp.NetworkGame(model, players, [(images(), torch.tensor([0, 1]))])
    with pytest.raises(sp.InputError, match=re.escape(message)):
        sp.prune(model, without_one(players), images())


def found() -> tuple[nn.Module, sp.Players]:
    model = plain()
    return model, sp.find_players(model, images())


def without_one(players: sp.Players) -> sp.Plan:
    return sp.Plan.from_coalition(players, np.arange(players.n) > 0)


@pytest.fixture
def alone() -> Iterator[None]:
    """This process as the only one of a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_models_of_several_processes_are_refused() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = dist.init_device_mesh("cpu", (1,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = {
            "a wrapper of DistributedDataParallel; pass its .module": nn.parallel.DistributedDataParallel(plain()),
            "sharded by FSDP": FullyShardedDataParallel(plain(), device_id=torch.device("cpu")),
            "the model is sharded by FSDP, so": fully_shard(plain(), mesh=mesh),
            "'bias' of layer '5' is a DTensor": plain(),
        }
        last = wrapped["'bias' of layer '5' is a DTensor"][5]
        last.bias = nn.Parameter(distribute_tensor(last.bias.detach(), mesh, [Replicate()]))
    for message, model in wrapped.items():
        with pytest.raises(sp.InputError, match=message):
            check_model(model)


# --- parametrised weights: the group stays, the others can leave ---


def test_a_parametrised_layer_stays_and_says_so() -> None:
    model = plain()
    parametrizations.weight_norm(model[2])
    assert "2 is parametrized; call torch.nn.utils.parametrize.remove_parametrizations" in refused(model)
    model[2] = nn.Conv2d(6, 4, 3)
    parametrizations.weight_norm(model[5])
    players = sp.find_players(model, images())
    assert [g.name for g in players.groups] == ["0"]
    assert {s.name: s.reason.partition(";")[0] for s in players.skipped} == {
        "2": "5 is parametrized",
        "5": "it feeds the network's output",
    }


# --- example inputs that do not fit ---


class Two(nn.Module):
    """Takes an image, and a mask by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, image: Tensor, *, mask: Tensor) -> Tensor:
        return self.body(image) * mask


WRONG_ARGUMENTS = {
    "too few": (
        (images(),),
        r"forward takes (image: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor, and they "
        "give 1 positional: missing a required argument: 'mask'; give a tuple",
    ),
    "too many": ((images(), torch.ones(2, 1)), "give 2 positional: too many positional arguments"),
    "unknown": ({"image": images(), "musk": torch.ones(2, 1)}, "give the keywords image, musk: missing a required"),
}


@pytest.mark.parametrize("name", WRONG_ARGUMENTS)
def test_a_forward_that_takes_other_arguments(name: str) -> None:
    inputs, message = WRONG_ARGUMENTS[name]
    assert message in refused(Two().eval(), inputs)
    assert sp.find_players(Two().eval(), {"image": images(), "mask": torch.ones(2, 1)}).n == 10


def words() -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 5)).eval()


WRONG_INPUTS: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "channels": (plain, torch.zeros(2, 1, 6, 6), "layer '0' (Conv2d) takes 3 channels and is given 1 in (2, 1, 6, 6)"),
    "size": (plain, torch.zeros(2, 3, 7, 7), "layer '5' (Linear) takes 64 channels and is given 100 in (2, 100)"),
    "axes": (plain, torch.zeros(2, 6), "layer '0' (Conv2d) fails on an input of shape (2, 6): Expected 3D"),
    "type": (plain, images().double(), "layer '0' (Conv2d) computes in torch.float32 and is given torch.float64; conv"),
    "whole": (plain, torch.zeros(2, 3, 6, 6, dtype=torch.int64), "computes in torch.float32 and is given torch.int64"),
    "words": (
        words,
        torch.tensor([[1, 2, 9]]),
        "(Embedding) takes whole numbers from 0 to 8 and is given torch.int64 up to 9",
    ),
    "no words": (words, torch.zeros(1, 3), "(Embedding) takes whole numbers from 0 to 8 and is given torch.float32"),
    "meta": (plain, images().to("meta"), "example_inputs is on the meta device and has no values; move it to cpu"),
    "empty": (plain, images(0), "example_inputs holds no example"),
    "none": (plain, (), "example_inputs is a tuple without a tensor"),
    "batches": (Two, {"image": images(), "mask": torch.ones(3, 1)}, "first dimensions [2, 3]"),
    "nan": (plain, images() / 0, "output on example_inputs is NaN or infinite; check the weights and the inputs"),
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_example_inputs_that_do_not_fit_name_what_is_expected_and_given(name: str) -> None:
    make, inputs, message = WRONG_INPUTS[name]
    assert message in refused(make(), inputs)


def test_a_layer_on_another_device_than_its_input() -> None:
    """Without a second device, a module in between moves the input."""

    class Moves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to("meta")

    model = nn.Sequential(nn.Linear(4, 4), Moves(), nn.Linear(4, 3))
    message = refused(model, torch.zeros(2, 4))
    assert "layer '2' (Linear) is on cpu and its input on meta; move example_inputs to cpu" in message


# --- the same inputs, another answer ---


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(len(x), 1, 1, 1)


class Counting(nn.Module):
    """Its answers depend on how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return x * self.asked


class Shuffled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, torch.randperm(3)])


@pytest.mark.parametrize("kind", [Noisy, Counting])
def test_the_first_module_that_is_not_deterministic_is_named(kind: type[nn.Module]) -> None:
    model = plain()
    model[1] = nn.Sequential(nn.ReLU(), kind())
    assert f"two runs on the same inputs differ, first in '1.1' ({kind.__name__})" in refused(model)
    assert "first in the model's own forward (Shuffled)" in refused(Shuffled(*plain()).eval())


def test_dropout_that_is_always_on_is_named() -> None:
    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    model = plain()
    model.insert(2, Always())
    assert "first in '2' (Always)" in refused(model)


# --- a way through the network that depends on values ---


class Asking(nn.Module):
    """Goes one of two ways by what ``question`` says about the output of its first layer."""

    def __init__(self, question: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last, self.question = nn.Linear(6, 3), question

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(self.left(x) if self.question(x) else self.right(x))


QUESTIONS: dict[str, Callable[[Tensor], Any]] = {
    "if": lambda x: (x.mean() > 0) and True,
    "item": lambda x: x.sum().item() > 1,
    "float": lambda x: float(x.flatten()[0]) > 0,
    "list": lambda x: x.tolist()[0][0] > 0,
    "compared": lambda x: torch.allclose(x, x.flip(0)),
    "int": lambda x: int(x.max() * 3) % 2,
    "stored": lambda x: _stored(x)[0, 0].item() > 0,
}


def _stored(x: Tensor) -> Tensor:
    table = torch.zeros(2, 2)
    table[0, 0] = x.mean()
    return table


@pytest.mark.parametrize("name", QUESTIONS)
def test_control_flow_that_depends_on_values_is_refused(name: str) -> None:
    message = refused(Asking(QUESTIONS[name]).eval(), torch.randn(2, 4))
    assert "the way through the model depends on values: the model's own forward (Asking) asks for a number" in message
    nested = nn.Sequential(nn.Linear(4, 4), Asking(QUESTIONS[name])).eval()
    assert "depends on values: '1' (Asking) asks" in refused(nested, torch.randn(2, 4))


HARMLESS: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda x: x.ndim == 2,
    "constant": lambda x: bool(torch.ones(1).all()),
    "index": lambda x: int(x.argmax(1).max()) >= 0,  # how experts are chosen
}


@pytest.mark.filterwarnings("ignore:layers that do not run")
@pytest.mark.parametrize("name", HARMLESS)
def test_questions_that_values_do_not_answer_are_allowed(name: str) -> None:
    players = sp.find_players(Asking(HARMLESS[name]).eval(), torch.randn(2, 4))
    assert [g.name for g in players.groups] == ["first", "left"]


# --- operations in place ---


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.end = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 5)

    def head(self, x: Tensor) -> Tensor:
        return self.end(torch.tanh(x).mean((2, 3)))


class AddsInPlace(Images):
    """What b reads is changed by what b gives, and again by what c gives."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x += self.b(x)
        x += self.c(x)
        return self.head(x)


class ChangesWhatWasRead(Images):
    """What b has read is changed before c reads it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x)
        x.add_(1)
        return self.head(y + self.c(x))


class ChangesItsInput(Images):
    """The caller's tensor is another one after every run."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return self.head(self.b(torch.relu(self.a(x))))


class SetsChannels(Images):
    """Some channels are overwritten: nobody reads what a makes of them."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x[:, 2:4] = 0.5
        return self.head(self.b(x))


class Doubling(nn.Conv2d):
    """A layer that changes its own input, which a mask hands over as a copy."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class ChangedByItsReader(Images):
    """Another layer reads what a `Doubling` has changed: masked, it reads the unchanged values."""

    def __init__(self) -> None:
        super().__init__()
        self.b = Doubling(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.head(self.b(x) + self.c(x))


IN_PLACE: dict[type[Images], tuple[dict[str, int], dict[str, str]]] = {
    AddsInPlace: ({"a": 6}, {}),
    ChangesWhatWasRead: ({"a": 6, "b": 6}, {}),
    ChangesItsInput: ({"a": 6, "b": 6}, {"c": "it did not run"}),
    SetsChannels: ({"b": 6}, {"a": "disagree", "c": "it did not run"}),
    ChangedByItsReader: ({"b": 6}, {"a": "masking and removing disagree"}),
}


@pytest.mark.parametrize("kind", IN_PLACE)
@pytest.mark.filterwarnings("ignore:the whole model is run", "ignore:layers that do not run")
def test_operations_in_place_are_right_or_refused(kind: type[Images]) -> None:
    """Players are who can leave; the game's worths, also of walks and asked twice, are those of the smaller network."""
    model, inputs, targets = kind().eval(), images(3), torch.tensor([0, 1, 2])
    players = sp.find_players(model, inputs)
    wanted, skipped = IN_PLACE[kind]
    assert {g.name: len(g) for g in players.groups} == wanted
    reasons = {s.name: s.reason for s in players.skipped}
    assert reasons.keys() == {*skipped, "end"}
    assert all(words in reasons[name] for name, words in skipped.items())
    game = sp.NetworkGame(model, players, [(inputs.clone(), targets)], "cross_entropy")
    kept = np.random.default_rng(0).random((8, players.n)) < 0.6
    for group in players.groups:
        kept[:, group.indices[0]] = True
    with torch.no_grad():
        small = [sp.prune(model, sp.Plan.from_coalition(players, row), inputs) for row in kept]
        worths = [-float(F.cross_entropy(s(inputs.clone()), targets)) for s in small]
    for _ in range(2):
        np.testing.assert_allclose(game(kept), worths, rtol=1e-5)
    order = np.arange(players.n)[None]
    prefixes = np.array([np.arange(players.n) >= k for k in range(players.n + 1)])
    np.testing.assert_allclose(game.walk(order)[0], game(prefixes), rtol=1e-5)
    assert torch.equal(inputs, images(3))


# --- layers that would be empty, layers that others use ---


def test_a_plan_that_empties_a_layer_is_refused_by_name() -> None:
    model, players = found()
    row = np.ones(players.n, dtype=bool)
    row[players.group("2").indices] = False
    with pytest.raises(sp.SurgeryError, match=r"layer '2' would be left with 0 channels.*keep more of its players"):
        sp.prune(model, sp.Plan.from_coalition(players, row), images())


def test_no_plan_that_is_made_empties_a_layer() -> None:
    model, players = found()
    scores = sp.score(model, players, [(images(), torch.tensor([0, 1]))], "cross_entropy", progress=False)
    smallest = sp.plan(scores, sp.Budget(players=2), limits=sp.options.Limits(min_players=0))
    sp.prune(model, smallest, images())
    with pytest.raises(sp.InputError, match=r"cannot be met: players <= 2 .*min_players=2"):
        sp.plan(scores, sp.Budget(players=2), limits=sp.options.Limits(min_players=2))


def test_a_layer_that_another_model_uses_stays_as_it_is_there() -> None:
    """That a layer is shared cannot be known; all work is done on copies, so neither model changes."""
    model = plain()
    other = nn.Sequential(model[0], nn.ReLU(), nn.Conv2d(6, 2, 1))
    answers, before = other(images()), copy.deepcopy(other.state_dict())
    players = sp.find_players(model, images())
    small = sp.prune(model, without_one(players), images())
    assert small[0].out_channels == 5
    assert model[0] is other[0]
    assert model[0].out_channels == 6
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), before.values(), strict=True))
    assert torch.equal(other(images()), answers)
    assert not {id(p) for p in small.parameters()} & {id(p) for p in other.parameters()}
