"""Prove that blocks can be passed by: each alone, in several draws, and word by word with a filled key-value cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shaprune.network.batches import Inputs, call, main_output, pick_rows, tensors, transform
from shaprune.network.error_location import error_location
from shaprune.network.removal.blocks import BlockMask, without
from shaprune.network.removal.masks import masked
from shaprune.network.tolerance import relative_difference, tolerance_for
from shaprune.players.candidate import Candidate
from shaprune.players.layer_costs import Layer

_DRAWS = 4
_STEPS = 4  # words that are read one by one
_LIMIT = 1e-4  # relative, float32
_WORDS = {"decoder_input_ids": "decoder_attention_mask", "input_ids": "attention_mask"}  # and what masks them


def verify_blocks(
    copy: nn.Module, inputs: Inputs, found: Sequence[Candidate], layers: Mapping[str, Layer]
) -> tuple[list[Candidate], list[tuple[Candidate, str]]]:
    """Split blocks into those that can be passed by, alone and together, and those that cannot, with the reason.

    Args:
        copy: a private copy, in eval mode.
        inputs: example inputs.
        found: one candidate per block.
        layers: the blocks, by name.
    """
    pair = pick_rows(inputs, slice(2))
    has_cache = _cache_agrees(copy, pair) is None
    refused: dict[str, str] = {}

    def why(names: Sequence[str]) -> str | None:
        return _why_not(copy, pair, {name: layers[name] for name in names}, has_cache)

    for candidate in found:
        reason = why([candidate.name])
        if reason is not None:
            refused[candidate.name] = reason
    rng = np.random.default_rng(0)
    for _ in range(_DRAWS):
        left = [c.name for c in found if c.name not in refused]
        drawn = rng.permutation(left)[: (len(left) + 1) // 2].tolist()
        while len(drawn) > 1 and why(drawn) is not None:  # rare: those that follow the longest sound start are refused
            gone = next(i for i in range(2, len(drawn) + 1) if why(drawn[:i]) is not None)
            refused[drawn[gone - 1]] = f"together with {', '.join(drawn[: gone - 1])}: {why(drawn[:gone])}"
            drawn.pop(gone - 1)
    good = [c for c in found if c.name not in refused]
    return good, [(c, refused[c.name]) for c in found if c.name in refused]


def _why_not(model: nn.Module, inputs: Inputs, blocks: Mapping[str, Layer], has_cache: bool) -> str | None:
    """What speaks against passing by some blocks; None for nothing."""
    owners = torch.zeros(1, dtype=torch.long, device=tensors(inputs)[0].device)
    sites = [BlockMask(name, 1, owners) for name in blocks]
    with torch.no_grad():
        try:
            with masked(model, sites, torch.zeros(1, 1, device=owners.device)):
                by_mask = call(model, transform(inputs, torch.clone))
        except Exception as error:  # whatever breaks becomes the reason of a refusal
            return _broken(error, "a mask")
        with without(model, blocks):
            try:
                by_removal = call(model, transform(inputs, torch.clone))
            except Exception as error:
                return _broken(error)
            reason = _apart(tensors(by_mask), tensors(by_removal))
            if reason is not None:
                own = any(key is None for layer in blocks.values() for key in layer.passes)
                read = "; code may read what it returns beside its first output" if own else ""
                return f"masking and removing disagree ({reason}){read}"
            return _cache_agrees(model, inputs) if has_cache else None


def _broken(error: Exception, what: str = "removal") -> str:
    place, said = error_location(error), str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{what} breaks the network{f' at {place}' if place else ''}: {said}"


def _apart(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str | None:
    """How far outputs lie apart; None where they agree."""
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} outputs"
    for a, b in zip(ours, theirs, strict=True):
        error = relative_difference(a.to(b.dtype), b) if a.is_floating_point() else float(not torch.equal(a, b))
        if not error < tolerance_for(a.dtype, _LIMIT):
            return f"relative difference {error:.1e}"
    return None


def _cache_agrees(model: nn.Module, inputs: Inputs) -> str | None:
    """Read the last words one by one with a key-value cache, and all at once without; None where both give the same."""
    named = inputs if isinstance(inputs, dict) else {"input_ids": tensors(inputs)[0]}
    key = next((name for name in _WORDS if isinstance(named.get(name), Tensor)), None)
    if key is None or named[key].ndim != 2 or named[key].shape[1] < 2:
        return "it reads no words"
    length = named[key].shape[1]
    start = max(1, length - _STEPS)
    cache: Any = None
    parts = []
    try:
        with torch.no_grad():
            whole = main_output(model(**_words(named, key, 0, length), use_cache=False))
            for begin, end in [(0, start), *((i, i + 1) for i in range(start, length))]:
                more = {} if cache is None else {"past_key_values": cache}
                output = model(**_words(named, key, begin, end), **more, use_cache=True)
                cache = output["past_key_values"]
                parts.append(main_output(output))
            if not hasattr(cache, "get_seq_length"):
                return "it has no key-value cache"
            reason = _apart([torch.cat(parts, 1)], [whole])
    except Exception as error:
        return f"with a filled key-value cache {_broken(error)}"
    return None if reason is None else f"word by word with a key-value cache it gives other outputs ({reason})"


def _words(named: Mapping[str, Any], key: str, begin: int, end: int) -> dict[str, Any]:
    """Inputs for the words from ``begin`` to ``end``, of which those before are in the cache."""
    ids = named[key]
    cut: dict[str, Any] = {}
    for name, value in named.items():
        if name == _WORDS[key]:
            cut[name] = value[:, :end]
        elif isinstance(value, Tensor) and value.shape[:2] == ids.shape and (name == key or key == "input_ids"):
            cut[name] = value[:, begin:end]
        elif name not in ("use_cache", "past_key_values"):
            cut[name] = value
    return cut
