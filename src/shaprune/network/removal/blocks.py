"""Blocks as players: a submodule whose output has the shape of its input may be passed by.

Candidates are the parts of `nn.Sequential` and `nn.ModuleList` that have weights: transformer layers, residual blocks,
layers of a stack. A masked block still runs, and the rows without it go on with what it was given; a removed one is
replaced by `PassThrough`, so that the places of the others in their container, and their names, stay. So do their
entries of a key-value cache: `PassThrough` keeps the lengths of its own, which code reads for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shaprune.network.batches import Inputs, call, transform
from shaprune.network.hooks import hooked
from shaprune.network.layers.compound_macs import compound_macs
from shaprune.network.layers.kinds import kind_of, stored_tensors
from shaprune.network.layers.layer_inputs import input_of
from shaprune.network.removal.masks import MaskSite, each_row
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer
from shaprune.players.players import Member, Skipped

_CACHED = ("layer_idx", "layer_id")  # what attention layers call their entry of a key-value cache


class PassThrough(nn.Module):
    """What stands where a block has left: its first input passes.

    Args:
        block: the dense block; its plain settings (numbers, strings), which code around it may read, are kept, and so
            are the numbers of its entries in a key-value cache.
        returns: entries of the tuple that the block returns; None for a bare tensor.
        passes: for each entry but the first, the input (position or keyword) that it is; None, and beyond the end, for
            what the block makes itself, in whose place None is returned.
    """

    def __init__(self, block: nn.Module, returns: int | None, passes: Sequence[int | str | None] = ()) -> None:
        super().__init__()
        for name, value in vars(block).items():
            if isinstance(value, (bool, int, float, str)):
                setattr(self, name, value)
        self.returns, self.passes = returns, (*passes, *[None] * ((returns or 1) - 1 - len(passes)))
        entries = {getattr(module, name, None) for module in block.modules() for name in _CACHED}
        self.entries = tuple(sorted(n for n in entries if type(n) is int))

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The first tensor among the inputs."""
        given = (*inputs, *named.values())
        x = next(value for value in given if hasattr(value, "shape"))  # so has a proxy of torch.fx
        if self.entries:
            for cache in (value for value in given if value is not x and hasattr(value, "get_seq_length")):
                _fill(cache, self.entries, x)
        sources: dict[int | str, Any] = dict([*enumerate(inputs), *named.items()])
        return x if self.returns is None else (x, *(None if key is None else sources[key] for key in self.passes))


def _fill(cache: Any, entries: Sequence[int], x: Tensor) -> None:
    """Write zeros for the words of ``x`` (examples, words, features) into entries of a key-value cache.

    Nothing attends to them. Some entries say for all layers how many words were seen (the first, the first with a
    sliding window, ...), so that none may stay empty. An entry of states (of convolutions, of Mamba) has no length.
    """
    cache = getattr(cache, "self_attention_cache", cache)  # of an encoder and decoder
    for entry in entries:
        layer = cache.layers[entry] if entry < len(cache.layers) else None
        if layer is None or hasattr(layer, "get_seq_length"):
            stored = (getattr(layer, "keys", None), getattr(layer, "values", None))
            shapes = [t.shape if t is not None and t.ndim == 4 else (0, 1, 0, 1) for t in stored]
            cache.update(*(x.new_zeros(len(x), heads, x.shape[1], width) for _, heads, _, width in shapes), entry)


@dataclass(frozen=True, eq=False)
class BlockMask(MaskSite):
    """A block: in rows without it, the first tensor that it returns is the one that it was given."""

    def attach(self, model: nn.Module, mask: Tensor) -> list[RemovableHandle]:
        kept = self.columns(mask) > 0
        if bool(kept.all()):
            return []
        given: list[Tensor] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = input_of(args, kwargs)
            assert x is not None
            given.append(x.clone())  # the block may write to it

        def behind(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            x = given.pop()
            stays = each_row(kept, len(x), self.module).view(-1, *[1] * (x.ndim - 1))
            if isinstance(output, tuple):
                return (torch.where(stays, output[0], x), *output[1:])
            return torch.where(stays, output, x)

        block = model.get_submodule(self.module)
        return [
            block.register_forward_pre_hook(before, with_kwargs=True),
            block.register_forward_hook(behind, with_kwargs=True),
        ]


def replace_by_pass_through(model: nn.Module, name: str, layer: Layer) -> None:
    """Put `PassThrough` in the place of a block, wherever it stands."""
    block = model.get_submodule(name)
    _replace(model, block, PassThrough(block, layer.returns, layer.passes))


@contextmanager
def without(model: nn.Module, blocks: Mapping[str, Layer]) -> Iterator[None]:
    """Pass by some blocks, by name, for a while; the network's own modules are put back on any exit."""
    found = [(model.get_submodule(name), layer) for name, layer in blocks.items()]
    pairs = [(block, PassThrough(block, layer.returns, layer.passes)) for block, layer in found]
    for block, passed in pairs:
        _replace(model, block, passed)
    try:
        yield
    finally:
        for block, passed in pairs:
            _replace(model, passed, block)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):  # named_children yields each child once
            if child is old:
                setattr(parent, key, new)


def find_blocks(
    copy: nn.Module, inputs: Inputs, layers: Mapping[str, Layer]
) -> tuple[list[Candidate], list[Skipped], dict[str, Layer]]:
    """Every part of a container that keeps the shape, blocks inside blocks included.

    Args:
        copy: a private copy, in eval mode.
        inputs: example inputs.
        layers: the costs of all layers that ran.

    Returns:
        One candidate of one player per block, in the order of the model; parts that are none, with the reason; and the
        costs of the blocks.
    """
    paths: dict[nn.Module, list[str]] = {}
    for name, module in copy.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(name)
    parts = list(_parts(copy))
    calls = _observe_calls(copy, inputs, parts)
    compounds = compound_macs(copy, inputs, layers)
    found: list[Candidate] = []
    skipped: list[Skipped] = []
    blocks: dict[str, Layer] = {}
    for part in parts:
        name = paths[part][0]
        reasons = [seen.reason for seen in calls[part] if seen.reason is not None]
        returns = {seen.returns for seen in calls[part]}
        reason = reasons[0] if reasons else _shared(copy, paths[part])
        if not calls[part]:
            reason = "it was not called on the example inputs"
        elif reason is None and len(returns) > 1:
            reason = "it does not always return the same number of things"
        if reason is not None:
            skipped.append(Skipped(name, 0, reason))
            continue
        macs = sum(x.macs(x.n_in, x.n_out) for key, x in layers.items() if _within(key, [name]))
        macs += sum(x for key, x in compounds.items() if _within(key, [name]))
        params = sum(p.numel() for p in part.parameters())
        blocks[name] = Layer(
            "block",
            1,
            1,
            1,
            params,
            False,
            macs,
            least=0,
            returns=returns.pop(),
            passes=_common([seen.passes for seen in calls[part]]),
            buffers=stored_tensors(part) - 4 * params,
            activation=sum(x.activations(x.n_in, x.n_out) for key, x in layers.items() if _within(key, [name])),
        )
        found.append(Candidate(name, (Member(name, "skip", ((0,),)),)))
    return found, skipped, blocks


def outermost(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without the blocks that stand inside another of them."""
    names = {c.name for c in candidates}
    return [c for c in candidates if not _inside(c.name, names)]


def not_inside(skipped: Sequence[Skipped], candidates: Sequence[Candidate]) -> list[Skipped]:
    """Without what leaves together with a block around it."""
    names = {c.name for c in candidates}
    return [s for s in skipped if not _inside(s.name, names)]


def _inside(name: str, others: set[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in others)


def _parts(model: nn.Module) -> list[nn.Module]:
    """Children of containers that have weights and are no norm, each once."""
    containers = [m for m in model.modules() if isinstance(m, (nn.Sequential, nn.ModuleList))]
    children = dict.fromkeys(child for container in containers for child in container.children())
    return [
        c
        for c in children
        if next(c.parameters(), None) is not None and not (kind_of(c) == "norm" or isinstance(c, nn.PReLU))
    ]


@dataclass(frozen=True)
class _Call:
    """One call of a part: why it cannot be passed by, and `Layer.returns` and `Layer.passes` as this call has them."""

    reason: str | None
    returns: int | None
    passes: tuple[int | str | None, ...]


def _observe_calls(copy: nn.Module, inputs: Inputs, parts: Sequence[nn.Module]) -> dict[nn.Module, list[_Call]]:
    """All calls of the parts."""
    calls: dict[nn.Module, list[_Call]] = {part: [] for part in parts}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        several = output if type(output) is tuple and output else None
        reason = _why_not(input_of(args, kwargs), output if several is None else several[0])
        sources: dict[int | str, Any] = dict([*enumerate(args), *kwargs.items()])
        given = {id(value): key for key, value in sources.items() if isinstance(value, Tensor)}
        passes = tuple(given.get(id(value)) for value in (several or ())[1:])
        calls[module].append(_Call(reason, None if several is None else len(several), passes))

    with hooked(part.register_forward_hook(hook, with_kwargs=True) for part in parts), torch.no_grad():
        call(copy, transform(inputs, torch.clone))
    return calls


def _common(passes: Sequence[tuple[int | str | None, ...]]) -> tuple[int | str | None, ...]:
    """What all calls agree on."""
    return tuple(keys[0] if len(set(keys)) == 1 else None for keys in zip(*passes, strict=True))


def _why_not(x: Tensor | None, y: Any) -> str | None:
    if x is None:
        return "none of its inputs is a tensor"
    if not isinstance(y, Tensor):
        return f"it returns a {type(y).__name__}, not a tensor or a tuple that starts with one"
    if x.shape != y.shape:
        return f"it turns {tuple(x.shape[1:])} into {tuple(y.shape[1:])} per example, so nothing can pass in its place"
    if x.dtype != y.dtype:
        return f"it turns {x.dtype} into {y.dtype}, so nothing can pass in its place"
    return None


def _shared(model: nn.Module, paths: Sequence[str]) -> str | None:
    """Which parameter a block, that stands at ``paths``, shares with what is outside it."""
    inside: dict[int, str] = {}
    outside: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        (inside if _within(name, paths) else outside).setdefault(id(parameter), name)
    both = next((key for key in inside if key in outside), None)
    return None if both is None else f"{inside[both]} is also {outside[both]}, which would stay"


def _within(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)
