"""Rows that a network picks by its own numbers (routing, sorting, token pruning), compared between two networks.

A layer behind such a choice reads other rows in the pruned network than in the dense one wherever the two choose
otherwise; then its calls cannot be paired. Indices of the dense network's run are recorded in order; in the run of the
pruned network each is compared, and what other indices have picked, with all that is computed of it, counts as
reordered. What is written back into rows in their old order (``index_add``, ``scatter``, the inverse order) does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from shaprune.network.batches import all_equal, tensors

_PICKING = ("getitem", "index_select", "gather", "take_along_dim", "masked_select", "take")
_WRITING = (
    "setitem",
    "index_add",
    "index_copy",
    "index_put",
    "index_fill",
    "index_reduce",
    "masked_scatter",
    "scatter",
)
Picked = tuple[Tensor, Tensor] | None  # of the pruned and the dense network, (rows,), where there is one such order


def picking_indices(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors by which an operation picks rows; none where it picks none."""
    if name.strip("_") not in _PICKING:
        return []
    return [t for t in tensors((args[1:], kwargs)) if not t.is_floating_point() and not t.is_complex()]


class RowSelections:
    """Indices by which one network picks rows, and what another picks by other ones."""

    def __init__(self) -> None:
        self._recorded: list[list[Tensor]] = []
        self._next: int | None = None
        self._reordered = WeakIdKeyDictionary()  # tensor of other rows -> how they were picked

    def compare(self) -> None:
        """From here on, compare what is seen with what has been recorded."""
        self._next = 0

    def is_reordered(self, tensor: Tensor) -> bool:
        """Whether rows of a tensor, or of what it was computed of, were picked by other indices."""
        return tensor in self._reordered

    def see(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Follow one operation."""
        ours = picking_indices(name, args, kwargs)
        if self._next is None:
            if ours:
                self._recorded.append([t.clone() for t in ours])
            return
        writes = name.strip("_").startswith(_WRITING)
        before = [self._reordered[t] for t in tensors(args[:1] if writes else (args, kwargs)) if t in self._reordered]
        if ours:
            theirs = self._recorded[self._next] if self._next < len(self._recorded) else []
            self._next += 1
            if not all_equal(ours, theirs):
                single = name.strip("_") == "getitem" and args[1] is ours[0] and _is_order(ours[0], *theirs)
                now = (ours[0].clone(), theirs[0]) if single else None
                if _restores(before, now):
                    return
                before.append(None if before else now)
        if before:
            for made in tensors(output):
                self._reordered[made] = before[0] if len(before) == 1 else None


def _is_order(*indices: Tensor) -> bool:
    return len(indices) == 2 and all(i.ndim == 1 and i.dtype == torch.int64 for i in indices)


def _restores(before: list[Picked], now: Picked) -> bool:
    """Whether rows that were picked in one order are picked so that both networks have the same again."""
    first = before[0] if len(before) == 1 else None
    return first is not None and now is not None and torch.equal(first[0][now[0]], first[1][now[1]])
