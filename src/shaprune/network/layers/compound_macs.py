"""Multiply-adds of layers that hold several products inside: recurrent layers, and torch's attention.

They run on their parameters, not on layers of their own, so that a hook on linear layers does not see them. As
elsewhere (see `shaprune.players.layer_costs`) the products with weights count, those between activations inside
attention do not. A subclass with a ``forward`` of its own is not counted here: what it calls is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from shaprune.network.batches import Inputs, examples_in, run
from shaprune.network.hooks import hooked
from shaprune.network.layers.recurrent import given_to, is_recurrent


def compound_macs(model: nn.Module, inputs: Inputs, counted: Collection[str] = ()) -> dict[str, float]:
    """Return {name: multiply-adds per example} of every recurrent layer and torch attention that runs on ``inputs``.

    Args:
        model: in eval mode.
        inputs: batch first; they are not changed.
        counted: layers that are left out.
    """
    names: dict[nn.Module, str] = {
        m: n for n, m in model.named_modules() if (is_recurrent(m) or _is_attention(m)) and n not in counted
    }
    if not names:
        return {}
    found: dict[str, float] = defaultdict(float)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        macs = _attention if isinstance(module, nn.MultiheadAttention) else _recurrent
        found[names[module]] += macs(module, args, kwargs)

    with hooked(module.register_forward_hook(hook, with_kwargs=True) for module in names), torch.no_grad():
        rows = examples_in(inputs, run(model, inputs))
    return {name: macs / rows for name, macs in found.items()}


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


def _recurrent(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Every step of every sequence meets each weight matrix once: gates, directions, layers and projections."""
    given, _ = given_to(args, kwargs)
    steps = given.data if isinstance(given, PackedSequence) else given
    weights = sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)
    return float(steps.numel() / module.input_size * weights)


def _attention(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Projections of queries, keys and values, and the one behind; in any layout."""
    given: dict[str, Tensor] = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
    query, key, value = (given[name].numel() for name in ("query", "key", "value"))
    return float((2 * query + key + value) * module.embed_dim)
