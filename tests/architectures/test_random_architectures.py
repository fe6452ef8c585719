"""Random architectures: what is masked is what is removed, all channels are accounted for, or the refusal says why.

A program is a list of steps, each of which makes a feature map from earlier ones; a step that does not fit is left out,
so that every list is a program and shrinks well. `Interpreted` runs it.
"""

import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import shaprune as sp
from shaprune.deploy.measure import count
from shaprune.errors import ShapruneWarning
from shaprune.network.batches import tensors
from shaprune.network.borrow import copied
from shaprune.network.layers.kinds import kind_of, widths_of
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players
from shaprune.network.tolerance import relative_difference
from shaprune.players.players import Group

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 6  # pixels of the input
WIDEST = 24
PROGRAMS = 200
ALONE = ("act", "pool", "up")  # steps without layer that read one feature map
# Why channels may stay: the programs hold no sizes, so that removal breaks only what the input is a part of.
REASONS = (
    "it feeds the network's output",
    "it has one channel",
    "its channels are those of the network's input",
    "its channels meet those of the network's input",
    "its output reaches no other layer",
    "its channels stand on another axis than those of ",
    "they reach no other layer",
    "all its channels can only leave together: ",
    "without it too little would be left of layer ",
)
ACTIVATIONS = (torch.relu, torch.tanh, torch.sigmoid, F.silu, F.hardswish, F.leaky_relu)


@dataclass(frozen=True)
class Step:
    """One step: it reads the feature maps ``a`` and ``b`` (how many steps back, 0 = the last); ``n`` chooses a size."""

    op: str
    a: int
    b: int
    n: int


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class OwnNorm(nn.Module):
    """A norm over the channels of maps, of a class of its own: centred or not."""

    def __init__(self, width: int, centred: bool) -> None:
        super().__init__()
        self.centred, self.gain = centred, nn.Parameter(0.5 + torch.rand(width))

    def forward(self, input: Tensor) -> Tensor:
        x = input - input.mean(1, keepdim=True) if self.centred else input
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * self.gain[:, None, None]


def layer_of(step: Step, width: int, side: int) -> nn.Module | None:
    """The layer of a step that reads ``width`` channels of ``side`` pixels; None where it has none that fits."""
    n = step.n
    if step.op == "conv":
        kernel = 3 if side >= 3 and n % 2 else 1
        return nn.Conv2d(width, 2 * n, kernel, stride=2 if n == 4 and side > 3 else 1, padding=kernel // 2, bias=n != 2)
    if step.op == "valid" and side >= 3:
        return nn.Conv2d(width, n + 1, (3, 1))
    if step.op == "transposed" and side <= SIZE:
        return nn.ConvTranspose2d(width, 2 * n, 2, stride=1 + n % 2, bias=n != 2)
    if step.op == "depthwise":
        return nn.Conv2d(width, width * (2 if n == 4 and 2 * width <= WIDEST else 1), 3, padding=1, groups=width)
    if step.op == "grouped" and width % 2 == 0:
        groups = 4 if n == 4 and width % 4 == 0 else 2
        return nn.Conv2d(width, groups * n, 1 + 2 * (n % 2), padding=n % 2, groups=groups)
    if step.op == "gate":
        return Gate(width, n)
    if step.op == "bn":
        return nn.BatchNorm2d(width, affine=n > 1)
    if step.op == "norm":
        return OwnNorm(width, n > 2)
    if step.op == "gn":
        return nn.GroupNorm(next(g for g in (4, 3, 2, 1) if width % g == 0 and g <= n), width)
    return nn.PReLU(width) if step.op == "prelu" else None


def fits(step: Step, x: Tensor, y: Tensor) -> bool:
    """Whether a step without layer can read these feature maps."""
    if step.op in ALONE:
        return step.op == "act" or (x.shape[2] >= 4 if step.op == "pool" else x.shape[2] <= SIZE // 2)
    same = x.shape[2:] == y.shape[2:]
    return same and (step.op == "concat" or (step.op in ("add", "times") and (x.shape[1] in (1, y.shape[1]))))


def joined(step: Step, x: Tensor, y: Tensor) -> Tensor:
    """What a step without layer makes of its feature maps; one channel is added to all."""
    match step.op:
        case "act":
            return ACTIVATIONS[step.n](x)
        case "pool":
            return F.max_pool2d(x, 2) if step.n % 2 else F.avg_pool2d(x, 3, 2, 1)
        case "up":
            return F.interpolate(x, scale_factor=2, mode="nearest" if step.n % 2 else "bilinear")
        case "concat":
            return torch.cat([x, y] if step.n % 2 else [y, x], 1)
    return x + y if step.op == "add" else x * torch.sigmoid(y)


class OwnConv(nn.Conv2d):
    """A layer of a class that is not torch's, with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class OwnLinear(nn.Linear):
    pass


class Wrapped(nn.Module):
    """A layer inside a module that passes its input by keyword."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(input=x)


def dressed(layer: nn.Module, dress: str) -> nn.Module:
    """The layer as it is, of a class of its own, or hidden in a module."""
    if dress == "own" and type(layer) is nn.Conv2d:
        layer.__class__ = OwnConv
    if dress == "own" and type(layer) is nn.Linear:
        layer.__class__ = OwnLinear
    return Wrapped(layer) if dress == "wrapped" and not isinstance(layer, Gate) else layer


DRESSES = ("plain", "plain", "own", "wrapped")
LAYOUTS = ("rows", "rows", "folded", "sequence", "list")


class Interpreted(nn.Module):
    """The network of a program: its last feature map, averaged or flattened, and one or two linear layers.

    Its layers may be of classes of their own, or hidden. Two views of an example may lie in one batch (``"folded"``),
    the features may become a sequence in front of the batch, or the answer a list.
    """

    def __init__(self, steps: list[Step], flat: bool, hidden: int, dress: str = "plain", layout: str = "rows") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.layers, self.layout = flat and layout != "sequence", nn.ModuleDict(), layout
        self.program: list[tuple[Step, str | None, tuple[int, int]]] = []  # with its layer, and which maps it reads
        maps = [torch.zeros(1, 3, SIZE, SIZE)]
        for step in steps:
            a, b = (max(len(maps) - 1 - back, 0) for back in (step.a, step.b))
            layer = layer_of(step, *maps[a].shape[1:3])
            if layer is None and not fits(step, maps[a], maps[b]):
                continue
            name = None if layer is None else f"{len(self.program)}_{step.op}"
            with torch.no_grad():
                made = joined(step, maps[a], maps[b]) if layer is None else layer(maps[a])
            if made.shape[1] > WIDEST:
                continue
            if layer is not None:
                self.layers[str(name)] = dressed(layer, dress)
            self.program.append((step, name, (a, b)))
            maps.append(made)
        live = {len(self.program)}  # maps that reach the last one
        for i, (step, name, reads) in reversed(list(enumerate(self.program, 1))):
            live.update(reads[: 1 if name is not None or step.op in ALONE else 2] if i in live else ())
        self.live = [i in live for i in range(1, len(maps))]
        for alive, (_, name, _) in zip(self.live, self.program, strict=True):
            if name is not None and not alive:
                del self.layers[name]
        width = maps[-1].shape[1] if layout == "sequence" else self.ended(maps[-1]).shape[1]
        self.hidden = dressed(nn.Linear(width, hidden), dress) if hidden else nn.Identity()
        self.last = nn.Linear((hidden or width) * (2 if layout == "folded" else 1), 3)
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                for values in (*module.parameters(), *module.buffers()):
                    if values.is_floating_point():
                        nn.init.uniform_(values, 0.5, 1.5)
        self.eval()

    def ended(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.flat else x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = [torch.cat([x, x.flip(-1)]) if self.layout == "folded" else x]
        for alive, (step, name, (a, b)) in zip(self.live, self.program, strict=True):
            if not alive:
                maps.append(x)
            elif name is None:
                maps.append(joined(step, maps[a], maps[b]))
            else:
                maps.append(self.layers[name](maps[a]))
        if self.layout == "sequence":
            return self.last(torch.tanh(self.hidden(maps[-1].flatten(2).permute(2, 0, 1))).mean(0))
        features = torch.tanh(self.hidden(self.ended(maps[-1])))
        if self.layout == "list":
            return [self.last(features), features]
        return self.last(torch.cat(features.chunk(2), 1)) if self.layout == "folded" else self.last(features)


OPS = ("conv", "conv", "conv", "valid", "transposed", "depthwise", "grouped", "bn", "gn", "prelu", "act", "act")
OPS += ("add", "add", "times", "concat", "concat", "pool", "up", "gate", "norm")
some_steps = st.lists(
    st.builds(Step, st.sampled_from(OPS), st.integers(0, 2), st.integers(1, 4), st.integers(1, 4)),
    min_size=2,
    max_size=14,
)


def unaccounted(model: nn.Module, players: sp.Players) -> dict[str, tuple[int, int]]:
    """Layers of which the channels of players and the skipped ones are not all channels: how many there are of each."""
    widths = {n: widths_of(m) for n, m in model.named_modules() if kind_of(m) in ("conv", "linear", "depthwise")}
    seen: Counter[str] = Counter()
    for group in players.groups:
        for member in group.members:
            if member.role == "out" or players.layers[member.module].kind == "depthwise":
                seen[member.module] += int(member.widths.sum())
    for skipped in players.skipped:
        seen[skipped.name] += skipped.channels
    return {n: (w[1], seen[n]) for n, w in widths.items() if w is not None and w[1] != seen[n]}


def some_coalition(players: sp.Players, rng: np.random.Generator) -> np.ndarray:
    """A random one that leaves every group a player and every layer a channel."""
    kept = rng.random(players.n) < rng.choice([0.3, 0.5, 0.8])
    for group in players.groups:
        kept[rng.choice(group.indices)] = True
    while players.too_narrow(kept):
        kept[rng.choice(np.flatnonzero(~kept))] = True
    return kept


def found_on(model: nn.Module, x: Tensor) -> tuple[sp.Players | None, list[str]]:
    """The players, None where none can leave; and why the others stay."""
    try:
        players = sp.find_players(model, x)
    except sp.InputError as refusal:
        first, *lines = str(refusal).splitlines()
        if first != "nothing in this model can be pruned:":
            raise
        return None, [line.partition(": ")[2] for line in lines]
    return players, [s.reason for s in players.skipped]


def close(ours: Tensor, theirs: Tensor) -> bool:
    return relative_difference(ours, theirs) <= 1e-5


def asked(model: nn.Module, x: Tensor, players: sp.Players, group: Group, rng: np.random.Generator) -> None:
    """A game of one group gives, of coalitions on single examples, what the networks after surgery answer."""
    kept, examples = rng.random((len(x), len(group))) < 0.6, np.arange(len(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShapruneWarning)  # it may have to be run whole
        worth = lambda outputs, targets: outputs.flatten(1)[:, 0]  # noqa: E731
        found = sp.NetworkGame(model, players, [(x, torch.zeros(len(x)))], worth, group.name)(kept, examples)
    with torch.no_grad():
        dense = tensors(model(x))[0].flatten(1)
        for row, example in enumerate(examples):
            every = np.ones(players.n, dtype=bool)
            every[group.indices] = kept[row]
            if not players.too_narrow(every):
                truth = tensors(remove_players(copied(model), players, every)(x))[0].flatten(1)[example, 0]
                assert abs(found[row] - float(truth)) <= 2e-5 * float(dense.abs().max())


# Branches that meet the input, norms between groups of channels, a layer of which several groups own channels, and one
# whose groups leave whole though both read the same channels.
MEETS_INPUT = [Step("conv", 0, 0, 2), Step("concat", 1, 0, 1), Step("grouped", 0, 0, 1), Step("gate", 2, 0, 3)]
NORMS = [Step("conv", 0, 0, 4), Step("gn", 0, 0, 4), Step("bn", 0, 0, 2), Step("prelu", 0, 0, 1), Step("gn", 0, 0, 2)]
IN_PARTS = [Step("conv", 0, 0, 2), Step("concat", 1, 0, 1), Step("depthwise", 0, 0, 4), Step("bn", 0, 0, 1)]
WHOLE_GROUPS = [Step("conv", 0, 0, 1), Step("concat", 0, 0, 1), Step("grouped", 0, 0, 1), Step("depthwise", 0, 0, 1)]


@pytest.mark.slow
def test_random_architectures_are_right_or_refused() -> None:
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=PROGRAMS, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @example(MEETS_INPUT, False, 0, "plain", "rows")
    @example(NORMS, True, 3, "plain", "rows")
    @example(IN_PARTS, False, 0, "plain", "rows")
    @example(WHOLE_GROUPS, False, 0, "plain", "rows")
    @given(some_steps, st.booleans(), st.integers(0, 6), st.sampled_from(DRESSES), st.sampled_from(LAYOUTS))
    def check(steps: list[Step], flat: bool, hidden: int, dress: str, layout: str) -> None:
        model = Interpreted(steps, flat, hidden, dress, layout)
        x = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        players, reasons = found_on(model, x)
        outcomes["refused" if players is None else "supported"] += 1
        assert all(reason.startswith(REASONS) for reason in reasons), reasons
        if players is None:
            return
        assert unaccounted(model, players) == {}
        rng = np.random.default_rng(0)
        for _ in range(2):
            kept = some_coalition(players, rng)
            small = remove_players(copied(model), players, kept)
            mask = torch.from_numpy(kept[None]).float()
            with torch.no_grad(), masked(model, mask_sites(players, players.groups, x.device), mask):
                expected = tensors(model(x))
            with torch.no_grad():
                assert all(map(close, tensors(small(x)), expected))
            assert count(small, x) == players.cost(kept)
        asked(model, x, players, players.groups[len(steps) % len(players.groups)], rng)

    check()
    print(dict(outcomes))
    assert outcomes.total() >= PROGRAMS
    assert outcomes["supported"] > 0.8 * PROGRAMS


def test_a_refusal_says_where_the_network_breaks_and_that_its_input_is_why() -> None:
    players, reasons = found_on(Interpreted([Step("gate", 0, 0, 3)], False, 0), torch.randn(2, 3, SIZE, SIZE))
    assert players is not None
    refused = next(reason for reason in reasons if "removal breaks" in reason)
    assert refused.startswith(
        "its channels meet those of the network's input, which stay: removal breaks the network at"
    )
    assert 'last (Linear), "return self.last(' in refused, refused


def test_channels_behind_a_group_norm_leave_in_its_groups_with_the_norms_that_follow() -> None:
    players, _ = found_on(Interpreted(NORMS, False, 0), torch.randn(2, 3, SIZE, SIZE))
    assert players is not None
    (group,) = players.groups
    assert {m.module: m.channels for m in group.members}["layers.2_bn"] == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_a_group_norm_that_nothing_reads_loses_whole_groups() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3), nn.GroupNorm(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            self.norm(x)
            return self.fc(x.mean((2, 3)))

    players, _ = found_on(Unread(), torch.randn(2, 3, SIZE, SIZE))
    assert players is not None
    assert [m.channels for m in players.group("conv").members] == [((0, 1), (2, 3), (4, 5))] * 3


def test_a_norm_that_all_heads_share_stays_whole() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
            self.norm = nn.RMSNorm(2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.out(F.scaled_dot_product_attention(self.norm(q), self.norm(k), v).transpose(1, 2).flatten(2))

    players, _ = found_on(Attention(), torch.randn(2, 5, 8))
    assert players is not None
    (heads,) = players.groups
    assert (len(heads), [m.module for m in heads.members]) == (4, ["q", "k", "v", "out"])
