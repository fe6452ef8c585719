"""Attention whose heads can leave, in the place of `torch.nn.MultiheadAttention`.

torch's module reads its weights without calling its layers, and cannot hold fewer heads than it is wide. Here is the
same function of the same weights, with a linear layer for each of queries, keys and values, so that heads are coupled
channels like those of any other attention. Attention with parametrized weights, or an instance whose ``forward`` was
replaced, stays as it is.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Collection, Mapping
from copy import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from shaprune.network.batches import Inputs, run, tensors
from shaprune.network.borrow import borrowed, copied
from shaprune.network.tolerance import relative_difference, tolerance_for

_JOINED = ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class OpenAttention(nn.MultiheadAttention):
    """Multi-head attention, called as `torch.nn.MultiheadAttention` is, on three linear layers of any number of heads.

    Args:
        of: the layer in whose place it stands.
    """

    opens: type[nn.MultiheadAttention] = nn.MultiheadAttention

    def __init__(self, of: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        kept = {key: copy(value) for key, value in vars(of).items()}
        for name in _JOINED:
            kept["_parameters"].pop(name, None)
        self.__dict__.update(kept)
        self._qkv_same_embed_dim = False  # by which torch.nn.TransformerEncoderLayer leaves its fused path
        apart = (of.q_proj_weight, of.k_proj_weight, of.v_proj_weight)
        weights = apart if of.in_proj_weight is None else _thirds(of.in_proj_weight)
        biases = (None, None, None) if of.in_proj_bias is None else _thirds(of.in_proj_bias)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj: Any = _linear(of.out_proj.weight, of.out_proj.bias)
        self.train(of.training)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (self.opens,), vars(self)  # classes made here are found by what they open

    @property
    def in_proj_weight(self) -> Tensor | None:  # type: ignore[override]
        """Weights of queries, keys and values, one below the other; None if of several widths."""
        weights: list[Tensor] = [layer.weight for layer in (self.q_proj, self.k_proj, self.v_proj)]
        if len({w.shape[1] for w in weights}) > 1:
            return None
        joined: Any = torch.cat(weights)
        joined.of = self  # by which `_Redirected` knows it
        return joined  # type: ignore[no-any-return]

    q_proj_weight = property(lambda self: self.q_proj.weight)
    k_proj_weight = property(lambda self: self.k_proj.weight)
    v_proj_weight = property(lambda self: self.v_proj.weight)

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        """The same of their biases; None where there are none."""
        biases: list[Tensor | None] = [layer.bias for layer in (self.q_proj, self.k_proj, self.v_proj)]
        given = [b for b in biases if b is not None]
        return torch.cat(given) if given else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in `torch.nn.MultiheadAttention`; ``is_causal`` is a hint only, the mask itself counts."""
        batched = query.ndim == 3
        first = self.batch_first or not batched
        read = [t if batched else t[None] for t in (query, key, value)]
        q, k, v = (t if first else t.transpose(0, 1) for t in read)
        q, k, v = self.q_proj(q), _followed_by(self.k_proj(k), self.bias_k), _followed_by(self.v_proj(v), self.bias_v)
        q, k, v = (t.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for t in (q, k, v))
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        added = int(self.bias_k is not None) + int(self.add_zero_attn)
        mask = _joined(attn_mask, key_padding_mask, q)
        mask = None if mask is None else F.pad(mask, (0, added))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        made = self.out_proj(mixed.transpose(1, 2).flatten(2))
        made = made if first else made.transpose(0, 1)
        return made if batched else made[0], weights


class _Redirected(TorchFunctionMode):
    """A context in which torch's functions, called with the joined weights of an open attention, call its layers."""

    def __init__(self, attention: OpenAttention) -> None:
        super().__init__()
        self.attention = attention

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        own = self.attention
        if func is F.linear:
            x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
            if getattr(weight, "of", None) is own and (bias is None) == (own.q_proj.bias is None):
                return torch.cat([layer(x) for layer in (own.q_proj, own.k_proj, own.v_proj)], -1)
        if func is not F.multi_head_attention_forward:
            return func(*args, **(kwargs or {}))
        given = _SIGNATURE.bind(*args, **(kwargs or {})).arguments
        meant = getattr(given["in_proj_weight"], "of", None) is own or given.get("k_proj_weight") is own.k_proj.weight
        if not meant or (given["in_proj_bias"] is None) != (own.q_proj.bias is None):
            return func(*args, **(kwargs or {}))
        first = own.batch_first and given["query"].ndim == 3  # the function reads steps first
        turned = {name: given[name].transpose(0, 1) if first else given[name] for name in ("query", "key", "value")}
        options = {name: given[name] for name in _OPTIONS if name in given}
        made, weights = OpenAttention.forward(own, **turned, **options)
        return made.transpose(0, 1) if first else made, weights


_SIGNATURE = inspect.signature(F.multi_head_attention_forward)
_OPTIONS = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


@functools.cache
def _open_class(kind: type[nn.MultiheadAttention]) -> type[OpenAttention]:
    """The class that opens a class of attention: what its own code calls on torch's class, it calls on ours."""
    if kind is nn.MultiheadAttention:
        return OpenAttention
    own: dict[str, Any] = {"opens": kind, "__module__": __name__}
    theirs = kind.forward
    if theirs is not nn.MultiheadAttention.forward:

        @functools.wraps(theirs)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _Redirected(self):
                return theirs(self, *args, **kwargs)

        own["forward"] = forward
    return type(f"Open{kind.__name__}", (kind, OpenAttention), own)


def _empty(kind: Any) -> OpenAttention:
    made = _open_class(kind)
    return made.__new__(made)


def _opened(module: nn.MultiheadAttention) -> OpenAttention:
    made = _empty(type(module))
    OpenAttention.__init__(made, module)
    return made


def open_attention(model: nn.Module, *, only: Collection[str] | None = None) -> nn.Module:
    """Return a copy of a network in which the heads of every `torch.nn.MultiheadAttention` can leave.

    It is the same function; hooks and attributes of the attention layers stay, and so does what subclasses of it do
    around. Encoders around them run on padded batches, never on nested tensors: positions of padding are then not zero
    at the outputs. Find players on the copy, score and prune it; `shaprune.compress` and the command line do it by
    themselves, and `shaprune.load` opens what was open.

    Args:
        model: the network; it is not changed.
        only: names of the attention layers to open; None = all.

    Returns:
        The copy, with an `OpenAttention` in the place of every attention layer that can be opened; where there is
        none, an equal network.

    Raises:
        InputError: the model cannot be copied.

    Example:
        >>> model = open_attention(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True))
        >>> model.self_attn.q_proj
        Linear(in_features=32, out_features=32, bias=True)
    """
    opened = copied(model)
    made: dict[int, OpenAttention] = {}
    for name, module in list(opened.named_modules(remove_duplicate=False)):
        if not can_open(module) or (only is not None and name not in only):
            continue
        if id(module) not in made:
            made[id(module)] = _opened(module)
        if not name:
            return made[id(module)]
        parent, _, last = name.rpartition(".")
        setattr(opened.get_submodule(parent), last, made[id(module)])
    for module in opened.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, OpenAttention) for m in module.modules()):
            module.use_nested_tensor = False
    return opened


def opened_for(model: nn.Module, layers: Collection[str]) -> nn.Module:
    """The network as one with these ``layers`` is: with open attention where they stand inside; as it is if nowhere."""
    attentions = [name for name, module in model.named_modules() if can_open(module)]
    inside = [name for name in attentions if any(layer.startswith(f"{name}." if name else "") for layer in layers)]
    return open_attention(model, only=inside) if inside else model


def opened_where_same(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The network with open attention, if both run and give the same on ``inputs``; else, or without any, as it is."""
    if not any(can_open(module) for module in model.modules()):
        return model
    opened = open_attention(model)
    try:
        with torch.no_grad(), borrowed(model), borrowed(opened):
            given = [tensors(run(network, inputs)) for network in (model, opened)]
    except Exception:  # as find_players will say
        return model
    same = all(relative_difference(b, a) < tolerance_for(a.dtype, _SAME) for a, b in zip(*given, strict=True))
    return opened if same else model


_SAME = 1e-4  # relative, float32


def can_open(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module is an attention layer of torch, or of a subclass, that `open_attention` replaces."""
    if not isinstance(module, nn.MultiheadAttention) or isinstance(module, OpenAttention) or "forward" in vars(module):
        return False
    own = module._parameters
    apart = [own.get(name) for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
    read = apart if own.get("in_proj_weight") is None else [own["in_proj_weight"]]
    return all(type(weight) is nn.Parameter for weight in (module.out_proj.weight, *read))


def _thirds(tensor: Tensor) -> tuple[Tensor, ...]:
    """The parts of queries, keys and values as parameters of their own."""
    return tuple(nn.Parameter(part.clone(), requires_grad=tensor.requires_grad) for part in tensor.detach().chunk(3))


def _followed_by(x: Tensor, added: Tensor | None) -> Tensor:
    """(batch, steps, features) with one more step, the same for all."""
    return x if added is None else torch.cat([x, added.expand(len(x), -1, -1)], 1)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight, layer.bias = weight, bias
    return layer


def _joined(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """One mask to add to the scores, as wide as (examples, heads, queries, keys) or broadcast to it."""
    parts = []
    if attn_mask is not None:
        added = _to_add(attn_mask, q)
        parts.append(_by_head(added, q) if added.ndim == 3 else added)
    if key_padding_mask is not None:
        padding = key_padding_mask if key_padding_mask.ndim == 2 else key_padding_mask[None]
        parts.append(_to_add(padding, q)[:, None, None])
    return sum(parts[1:], parts[0]) if parts else None


def _by_head(mask: Tensor, q: Tensor) -> Tensor:
    """(examples, heads, queries, keys) a mask that stands head by head under the other."""
    examples, heads = q.shape[:2]
    if len(mask) != examples * heads:
        raise ValueError(
            f"attn_mask has {len(mask)} entries for {examples} examples of {heads} heads; make it of as many "
            "as num_heads of the attention says, or one for all heads"
        )
    return mask.view(examples, heads, *mask.shape[1:])


def _to_add(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)
