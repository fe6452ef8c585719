"""Units of recurrent layers as players: masked inside their module, too, and cut from all of its gates.

Their readers outside the module are masked and cut as those of any other layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from shaprune.network.layers.recurrent import (
    directions_of,
    gates_of,
    given_to,
    parts_of,
    run_in_steps,
    run_masked,
    units_of,
)
from shaprune.network.removal.entries import keep_entries
from shaprune.network.removal.masks import MaskSite, UnevenRowsError, each_row


@dataclass(frozen=True, eq=False)
class RecurrentMask(MaskSite):
    """The states that a recurrent layer hands on inside: removed units are read by none of its gates."""

    def attach(self, model: nn.Module, mask: Tensor) -> list[RemovableHandle]:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x, state = given_to(args, kwargs)
            if state is None:
                return args, kwargs
            h = state[0] if isinstance(state, tuple) else state
            rows = self.columns(mask).to(h.dtype)
            h = h * (rows[0] if len(rows) == 1 else each_row(rows, len(h), self.module))
            return (x, (h, *state[1:]) if isinstance(state, tuple) else h), {}

        def behind(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            kept = self.columns(mask)[:, : units_of(module)]  # the same in both directions
            if len(kept) == 1:
                return run_masked(module, args, kwargs, kept[0])
            x, state = given_to(args, kwargs)
            if isinstance(x, PackedSequence) or x.ndim != 3:
                raise UnevenRowsError(f"{self.module} is given sequences that are not one row per example")
            rows = each_row(kept.to(x.dtype), x.shape[0 if module.batch_first else 1], self.module)
            return run_in_steps(module, x, state, rows)

        layer = model.get_submodule(self.module)
        if isinstance(layer, nn.RNNCellBase):
            return [layer.register_forward_pre_hook(before, with_kwargs=True)]
        return [layer.register_forward_hook(behind, with_kwargs=True)]


def cut_units(module: Any, channels: Sequence[int]) -> None:
    """Cut units from every layer and direction of a recurrent layer, given the outputs that leave."""
    units, both = units_of(module), directions_of(module)
    gone = sorted({channel % units for channel in channels})
    if len(channels) != both * len(gone):
        raise ValueError("its directions would be left with different units")
    projected = bool(getattr(module, "proj_size", 0))
    made = ["weight_hr"] if projected else ["weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ())]
    rows = gone if projected else _repeated(gone, units, gates_of(module))
    for layer, _, end in parts_of(module):
        for name in made:
            keep_entries(module, f"{name}{end}", 0, rows)
        keep_entries(module, f"weight_hh{end}", 1, gone)
        if layer:
            keep_entries(module, f"weight_ih{end}", 1, _repeated(gone, units, both))
    setattr(module, "proj_size" if projected else "hidden_size", units - len(gone))
    _compact(module)


def cut_features(module: Any, channels: Sequence[int]) -> None:
    """Cut inputs from the first layer of a recurrent layer."""
    for layer, _, end in parts_of(module):
        if not layer:
            keep_entries(module, f"weight_ih{end}", 1, channels)
    module.input_size -= len(channels)
    _compact(module)


def _repeated(units: Sequence[int], width: int, times: int) -> list[int]:
    """The entries of units in ``times`` parts of this width, side by side."""
    return [unit + part * width for part in range(times) for unit in units]


def _compact(module: nn.Module) -> None:
    """Put the weights of a layer side by side again, where a GPU reads them so."""
    if isinstance(module, nn.RNNBase):
        module.flatten_parameters()
