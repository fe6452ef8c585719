"""The registry of architectures: what is found in each, and what is left of it after surgery."""

import copy
import io
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import shaprune as sp
from architectures import ZOO
from architectures.entry import Entry
from architectures.table import support_page, support_table
from shaprune.errors import InputError
from shaprune.network.batches import call, concatenate, main_output, tensors
from shaprune.network.discovery.unit_filters import are_heads, are_hidden, are_neurons
from shaprune.network.removal.mask_sites import mask_sites
from shaprune.network.removal.masks import masked
from shaprune.network.removal.surgery import remove_players
from shaprune.planning.plan import Plan
from shaprune.players.players import Players

pytestmark = pytest.mark.usefixtures("one_thread")

N_COALITIONS = 20
BATCH = 2
TOLERANCE = 1e-5  # relative to the largest output, float32
PAGE = Path(__file__).resolve().parents[2] / "docs" / "support.md"
Coalitions = NDArray[np.bool_]

FAILS: dict[tuple[str, str], str] = {  # what the library gets wrong: (test, architecture) -> why
    ("costs", "mixer"): "layers over the patches run once per channel, of which there are fewer",
}


def architectures(test: str, wanted: Callable[[Entry], bool] = lambda entry: bool(entry.players)) -> Any:
    """Parametrize a test with the entries that are wanted; those that the library fails are strict xfails."""

    def marks(name: str) -> tuple[Any, ...]:
        reason = FAILS.get((test, name))
        return (pytest.mark.xfail(reason=reason, strict=True, raises=(AssertionError, InputError)),) if reason else ()

    params = [pytest.param(name, marks=marks(name)) for name, entry in ZOO.items() if wanted(entry)]
    return pytest.mark.parametrize("name", params)


def made(name: str) -> nn.Module:
    if needs := ZOO[name].needs:
        pytest.importorskip(needs)
    return ZOO[name].make()


@cache
def found(name: str) -> tuple[nn.Module, Players]:
    """The network and its players, found once for all tests, none of which may change them."""
    model = made(name)
    return model, sp.find_players(model, ZOO[name].inputs(BATCH))


def trained(name: str) -> nn.Module:
    """The network after some steps that move its weights and statistics far from where they were."""
    entry, model = ZOO[name], made(name).train()
    inputs, loss_of = entry.inputs(16), F.mse_loss if entry.classes is None else F.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # of targets and dropout
        shape = main_output(call(copy.deepcopy(model), inputs)).shape
        assert entry.classes is None or shape == (16, entry.classes)
        targets = torch.randn(shape) if entry.classes is None else torch.randint(entry.classes, (16,))
        for _ in range(6):
            loss = loss_of(main_output(call(model, inputs)), targets)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return model.eval()


def coalitions_of(players: Players, n: int = N_COALITIONS) -> Coalitions:
    """Random rows of all densities; in every layer, something of each of its groups is kept."""
    rng = np.random.default_rng(players.n)
    rows = rng.random((n, players.n)) < np.linspace(0, 0.9, n)[:, None]
    for row in rows:
        for group in players.groups:
            for member in group.members:
                row[rng.choice(group.indices[member.widths > 0])] = True
    assert not rows.all(1).all()
    return rows


def half(players: Players) -> Plan:
    rng = np.random.default_rng(0)
    kept = rng.random(players.n) < 0.5
    for group in players.groups:
        for member in group.members:
            kept[rng.choice(group.indices[member.widths > 0])] = True
    assert not kept.all()
    return Plan.from_coalition(players, kept)


def layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Convolutions, linear layers and embeddings with their widths, read off their weights."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            yield name, module, module.weight.shape[1] * module.groups
        elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            yield name, module, module.weight.shape[0]
        elif isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D":
            yield name, module, module.weight.shape[1]  # type: ignore[union-attr]


def outputs_of(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [t for t in tensors(call(model, inputs)) if t.is_floating_point()]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = TOLERANCE) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@architectures("players")
def test_the_players_are_those_that_the_registry_declares(name: str) -> None:
    _, players = found(name)
    units: Counter[str] = Counter()
    for group in players.groups:
        given = group.members, players.layers
        sort = "hidden channel" if are_hidden(*given) else "head" if are_heads(*given) else None
        units[sort or ("neuron" if are_neurons(*given) else "channel")] += len(group)
    assert units == ZOO[name].players
    assert_skipped_as_declared(ZOO[name], {(s.name, s.reason) for s in players.skipped})


def assert_skipped_as_declared(entry: Entry, skipped: set[tuple[str, str]]) -> None:
    """Every skipped layer is declared with the words of its reason, and what is declared is skipped."""

    def agree(pattern: str, words: str, name: str, reason: str) -> bool:
        return fnmatchcase(name, pattern) and words in reason

    for name, reason in skipped:
        assert any(agree(p, words, name, reason) for p, words in entry.skips.items()), (name, reason)
    for pattern, words in entry.skips.items():
        assert words
        assert any(agree(pattern, words, name, reason) for name, reason in skipped), (pattern, words)


@architectures("refusing", lambda entry: not entry.players)
def test_what_cannot_be_pruned_is_refused_with_the_reasons(name: str) -> None:
    with pytest.raises(InputError, match="nothing in this model can be pruned") as refusal:
        found(name)
    lines = [line.strip().partition(": ") for line in str(refusal.value).splitlines()[1:]]
    assert_skipped_as_declared(ZOO[name], {(layer, reason) for layer, _, reason in lines})
    model = made(name)
    assert {layer for layer, _, _ in lines} >= {layer for layer, _, _ in layers_of(model)}


@architectures("pruning")
def test_every_channel_is_a_player_or_skipped_with_a_reason(name: str) -> None:
    model, players = found(name)
    accounted: Counter[str] = Counter()
    for group in players.groups:
        for member in group.members:
            if member.role == "out" or players.layers[member.module].kind == "depthwise":
                assert len(set(np.concatenate(member.channels))) == member.widths.sum()
                accounted[member.module] += int(member.widths.sum())
    for skipped in players.skipped:
        assert skipped.reason.strip()
        accounted[skipped.name] += skipped.channels
    for layer, _, width in layers_of(model):
        assert accounted[layer] == width, layer


@pytest.mark.parametrize("weights", ["random", "trained"])
@architectures("pruning")
def test_masked_is_removed(name: str, weights: str) -> None:
    model, players = found(name)
    if weights == "trained":
        before, model = dict(model.state_dict()), trained(name)
        moved = [k for k, v in model.state_dict().items() if v.is_floating_point() and not torch.equal(v, before[k])]
        assert len(moved) > len(before) / 2
        assert all("running_mean" not in k or k in moved for k in before)
    inputs, kept = ZOO[name].inputs(BATCH), coalitions_of(players)
    mask = torch.from_numpy(np.repeat(kept, BATCH, axis=0)).float()  # (coalitions * BATCH, n)
    with masked(model, mask_sites(players, players.groups, torch.device("cpu")), mask):
        by_mask = outputs_of(model, concatenate([inputs] * N_COALITIONS))
    for i, row in enumerate(kept):
        by_removal = outputs_of(remove_players(copy.deepcopy(model), players, row), inputs)
        assert_close([t[BATCH * i : BATCH * (i + 1)] for t in by_mask], by_removal)
    apart = by_mask[0].unflatten(0, (N_COALITIONS, BATCH)).std(0).max()
    assert apart > 1000 * TOLERANCE * by_mask[0].abs().max(), "the coalitions make no difference"


@architectures("costs")
def test_parameters_and_multiply_adds_are_as_predicted(name: str) -> None:
    model, players = found(name)
    inputs = ZOO[name].inputs(BATCH)
    everyone = np.ones((1, players.n), dtype=bool)
    for kept in (*everyone, *coalitions_of(players, 4)):
        small = remove_players(copy.deepcopy(model), players, kept)
        params = sum(p.numel() for p in small.parameters())
        assert (params, multiply_adds(small, inputs)) == players.cost(kept)


def multiply_adds(model: nn.Module, inputs: Any) -> float:
    """Counted anew, per example: each output takes one filter; where transposed, each input is spread by one."""
    total = 0

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Embedding):
            return
        if module in compound:  # every step meets each matrix once
            matrices = sum(p.numel() for p in module.parameters() if p.ndim == 2)
            total += args[0].numel() // args[0].shape[-1] * matrices
            return
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        filter_size = module.weight[:, 0].numel() if type(module).__name__ == "Conv1D" else module.weight[0].numel()
        total += (args[0] if transposed else output).numel() * filter_size

    compound = [m for m in model.modules() if isinstance(m, nn.RNNBase) or type(m) is nn.MultiheadAttention]
    for module in (*(module for _, module, _ in layers_of(model)), *compound):
        module.register_forward_hook(hook)
    outputs_of(model, inputs)
    return total / BATCH


@architectures("pruning")
def test_the_pruned_network_runs_backwards(name: str) -> None:
    model, players = found(name)
    inputs = ZOO[name].inputs(BATCH)
    small = sp.prune(model, half(players), inputs)
    dense = copy.deepcopy(model)
    for network in (dense, small):
        sum(t.square().sum() for t in tensors(call(network, inputs)) if t.is_floating_point()).backward()  # type: ignore[union-attr]
    reached = {k for k, p in dense.named_parameters() if p.grad is not None}
    grads = {k: p.grad for k, p in small.named_parameters() if p.grad is not None}
    assert set(grads) == reached
    assert all(torch.isfinite(g).all() for g in grads.values())
    assert sum(float(g.abs().sum()) for g in grads.values()) > 0


@architectures("saving")
def test_the_pruned_network_survives_a_file(name: str, tmp_path: Path) -> None:
    model, players = found(name)
    inputs, plan = ZOO[name].inputs(BATCH), half(players)
    small = sp.prune(model, plan, inputs)
    sp.save(small, plan, tmp_path / "saved")
    loaded = sp.load(tmp_path / "saved", build=lambda: without_weights(ZOO[name].make()))
    for ours, theirs in zip(outputs_of(loaded, inputs), outputs_of(small, inputs), strict=True):
        assert torch.equal(ours, theirs)
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}


def without_weights(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


@architectures("pruning", lambda entry: "head" in entry.players)
def test_modules_know_how_many_heads_they_have(name: str) -> None:
    model, players = found(name)
    plan = half(players)
    small = sp.prune(model, plan, ZOO[name].inputs(BATCH))
    told = 0
    for group in (g for g in players.groups if are_heads(g.members, players.layers)):
        owner = group.producers[0].module.rpartition(".")[0]
        before, after = model.get_submodule(owner), small.get_submodule(owner)
        for number in ("num_heads", "num_attention_heads", "all_head_size"):
            if hasattr(before, number):
                assert getattr(after, number) * len(group) == getattr(before, number) * plan.kept[group.indices].sum()
                told += 1
    assert told > 0 or name in ("llama", "phi3", "glm", "modernbert")  # by the width of a head, or the configuration


@pytest.mark.filterwarnings("ignore")  # torch's exporter warns of itself and of what it traces
@architectures("pruning")
def test_the_pruned_network_is_exported(name: str) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model, players = found(name)
    inputs = ZOO[name].inputs(BATCH)
    small = remove_players(copy.deepcopy(model), players, half(players).kept)
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    keywords = inputs if isinstance(inputs, dict) else None
    if ZOO[name].onnx == "dynamo":
        program = torch.onnx.export(small, args, kwargs=keywords, dynamo=True, optimize=False, verbose=False)
        data = program.model_proto.SerializeToString()
    else:
        file = io.BytesIO()
        torch.onnx.export(small, args, file, kwargs=keywords, dynamo=False)
        data = file.getvalue()
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    fed = {given.name: t.numpy() for given, t in zip(session.get_inputs(), tensors(inputs), strict=True)}
    exported = [torch.from_numpy(a) for a in session.run(None, fed)]
    assert_close(exported, outputs_of(small, inputs), tolerance=1e-4)


@architectures("pruning")
def test_the_dense_network_stays_as_it_was(name: str) -> None:
    model, players = found(name)
    fresh = made(name)
    sp.prune(model, half(players), ZOO[name].inputs(BATCH))
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in model.state_dict().items())
    for ours, theirs in zip(model.modules(), fresh.modules(), strict=True):
        assert type(ours) is type(theirs)
        assert sorted(vars(ours)) == sorted(vars(theirs))
        assert simple(ours) == simple(theirs)  # the training flag among them
        assert not any((ours._forward_hooks, ours._forward_pre_hooks, ours._backward_hooks))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def simple(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, tuple))}


@pytest.mark.parametrize("name", ZOO)
def test_factories_are_deterministic_and_lively(name: str) -> None:
    state = torch.get_rng_state()
    one, two = made(name), made(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert not any(m.training for m in one.modules())
    for key, value in one.state_dict().items():
        if "running" in key:
            assert value.std() > 0.05
    with torch.no_grad():
        inputs = ZOO[name].inputs(BATCH)
        assert all(a.shape[0] == BATCH for a in tensors(inputs))
        first, second = (t[:1] for t in (outputs_of(one, inputs)[0], outputs_of(one, inputs)[0].flip(0)))
        assert not torch.allclose(first, second), "the output does not depend on the input"


def test_the_committed_support_page_is_what_the_registry_and_the_zoo_say() -> None:
    assert PAGE.read_text() == support_page() + "\n", (
        "PYTHONPATH=tests:benchmarks python -m architectures.table > docs/support.md"
    )


def test_the_table_has_a_row_for_every_architecture() -> None:
    rows = [line for line in support_table().splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(ZOO)
    for row, entry in zip(rows, ZOO.values(), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:3] == [entry.family, entry.note, entry.status]
        assert (cells[3] == "none") is (entry.status == "refused")
        assert (cells[4] == "-") is (entry.status == "supported")
    titles = {(entry.family, entry.note) for entry in ZOO.values()}
    assert len(titles) == len(ZOO)


def test_every_failure_of_the_library_names_an_architecture() -> None:
    assert {name for _, name in FAILS} <= ZOO.keys()
