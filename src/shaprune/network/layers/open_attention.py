"""Attention whose heads can leave, in the place of `torch.nn.MultiheadAttention`.

torch's module reads its weights without calling its layers, and cannot hold fewer heads than it is wide. Here is the
same function of the same weights, with a linear layer for each of queries, keys and values, so that heads are coupled
channels like those of any other attention. Attention with added keys or values (``bias_k``, ``add_zero_attn``), with
parametrized weights or a ``forward`` of its own stays as it is.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shaprune.network.borrow import copied


class OpenAttention(nn.Module):
    """Multi-head attention, called as `torch.nn.MultiheadAttention` is, on three linear layers of any number of heads.

    Args:
        of: the layer in whose place it stands.
    """

    _qkv_same_embed_dim = False  # by which torch.nn.TransformerEncoderLayer leaves its fused path
    batch_first: bool
    head_dim: int
    dropout: float

    def __init__(self, of: nn.MultiheadAttention) -> None:
        super().__init__()
        replaced = ("_parameters", "_modules", "_buffers", "_qkv_same_embed_dim")
        self.__dict__.update({key: copy(value) for key, value in vars(of).items() if key not in replaced})
        apart = (of.q_proj_weight, of.k_proj_weight, of.v_proj_weight)
        weights = apart if of.in_proj_weight is None else _thirds(of.in_proj_weight)
        biases = (None, None, None) if of.in_proj_bias is None else _thirds(of.in_proj_bias)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(of.out_proj.weight, of.out_proj.bias)
        self.train(of.training)

    @property
    def in_proj_weight(self) -> Tensor | None:
        """Weights of queries, keys and values, one below the other; None if of several widths."""
        weights: list[Tensor] = [layer.weight for layer in (self.q_proj, self.k_proj, self.v_proj)]
        return torch.cat(weights) if len({w.shape[1] for w in weights}) == 1 else None

    @property
    def in_proj_bias(self) -> Tensor | None:
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
        read = [t if first else t.transpose(0, 1) for t in read]
        q, k, v = (
            layer(t).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer, t in zip((self.q_proj, self.k_proj, self.v_proj), read, strict=True)
        )
        mask = _joined(attn_mask, key_padding_mask, q)
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


def open_attention(model: nn.Module) -> nn.Module:
    """Return a copy of a network in which the heads of every `torch.nn.MultiheadAttention` can leave.

    It is the same function; hooks and attributes of the attention layers stay. Encoders around them run on padded
    batches, never on nested tensors: positions of padding are then not zero at the outputs. Find players on the copy,
    score and prune it, and give `shaprune.load` a factory that opens the attention of what it makes, too.

    Args:
        model: the network; it is not changed.

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
    for name, module in list(opened.named_modules()):
        if not can_open(module):
            continue
        if not name:
            return OpenAttention(module)
        parent, _, last = name.rpartition(".")
        setattr(opened.get_submodule(parent), last, OpenAttention(module))
    for module in opened.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, OpenAttention) for m in module.modules()):
            module.use_nested_tensor = False
    return opened


def can_open(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module is an attention layer of torch that `open_attention` replaces."""
    if type(module) is not nn.MultiheadAttention or "forward" in vars(module):
        return False
    added = module.bias_k is not None or module.bias_v is not None or module.add_zero_attn
    return not added and type(module.out_proj.weight) is nn.Parameter


def _thirds(tensor: Tensor) -> tuple[Tensor, ...]:
    """The parts of queries, keys and values as parameters of their own."""
    return tuple(nn.Parameter(part.clone(), requires_grad=tensor.requires_grad) for part in tensor.detach().chunk(3))


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
