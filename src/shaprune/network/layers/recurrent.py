"""Recurrent layers of torch, whose units are read inside, too: where their weights stand, and a run under masks.

Unit j owns entry j of every layer and direction of one module, so that what is left is a plain module again. It is read
by the columns of ``weight_hh``, by those of the next layer's ``weight_ih``, and by whatever reads the outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from shaprune.network.batches import transform
from shaprune.network.layers.layer_inputs import with_data

Recurrent = nn.RNNBase | nn.RNNCellBase
_OURS = tuple(kind.forward for kind in (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell))


def is_recurrent(module: nn.Module) -> TypeGuard[Recurrent]:
    """Whether this is one of torch's recurrent layers or cells, or a subclass that runs as they do."""
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and type(module).forward in _OURS


def units_of(module: Recurrent) -> int:
    """How many units each layer and direction gives out: hidden ones, or projections of them."""
    return int(getattr(module, "proj_size", 0)) or module.hidden_size


def directions_of(module: Recurrent) -> int:
    """1, or 2 where sequences are read both ways."""
    return 1 + bool(getattr(module, "bidirectional", False))


def gates_of(module: Recurrent) -> int:
    """How many rows of its weights make one hidden unit."""
    return 4 if isinstance(module, (nn.LSTM, nn.LSTMCell)) else 3 if isinstance(module, (nn.GRU, nn.GRUCell)) else 1


def parts_of(module: Recurrent) -> list[tuple[int, int, str]]:
    """Each layer and direction, and how the names of its weights end."""
    if isinstance(module, nn.RNNCellBase):
        return [(0, 0, "")]
    each = itertools.product(range(module.num_layers), range(directions_of(module)))
    return [(layer, direction, f"_l{layer}{'_reverse' if direction else ''}") for layer, direction in each]


def given_to(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The sequence, and the initial states or None, that a layer or cell is given, by position or by keyword."""
    given = {**dict(zip(("input", "hx"), args, strict=False)), **kwargs}
    return given["input"], given.get("hx")


def states_of(module: Recurrent, output: Any) -> Tensor:
    """The outputs (..., directions x units) in what a layer or cell returns."""
    first = output[0] if isinstance(output, tuple) else output
    return first.data if isinstance(first, PackedSequence) else first


def rows_of_units(module: Recurrent) -> Tensor:
    """(directions x units, weights) all weights that make each unit, those of all gates and layers side by side."""
    kinds = ("weight_hr",) if getattr(module, "proj_size", 0) else ("weight_ih", "weight_hh")
    rows: list[list[Tensor]] = [[] for _ in range(directions_of(module))]
    for _, direction, end in parts_of(module):
        made = [getattr(module, f"{kind}{end}") for kind in kinds]
        rows[direction] += [gate for weight in made for gate in weight.split(units_of(module))]
    return torch.cat([torch.cat(each, 1) for each in rows])


def run_masked(module: nn.RNNBase, args: tuple[Any, ...], kwargs: Mapping[str, Any], kept: Tensor) -> Any:
    """Run under one mask for all rows: the columns of the weights that read a removed unit are zero.

    Args:
        module: it is not changed.
        args, kwargs: as it is called.
        kept: (units,) 1 for those that stay.
    """
    each = {}
    for layer, _, end in parts_of(module):
        each[f"weight_hh{end}"] = kept
        if layer:
            each[f"weight_ih{end}"] = kept.repeat(directions_of(module))
    other = object.__new__(type(module))  # the same parameters: what is masked is no parameter of either
    other.__dict__.update(module.__dict__)
    weights = ((name, getattr(module, name)) for name in module._flat_weights_names)
    other.__dict__["_flat_weights"] = [w * each[n].to(w.dtype) if n in each else w for n, w in weights]
    return type(module).forward(other, *args, **kwargs)


def run_in_steps(module: nn.RNNBase, x: Tensor, state: Any, kept: Tensor) -> Any:
    """Run step by step, each row of the batch under its own mask.

    Args:
        module: it is not changed.
        x: (rows, steps, features), or (steps, rows, features) as the module takes it.
        state: the initial states, as the module takes them, or None for zeros.
        kept: (rows, units) 1 for those that stay.
    """
    x = x.transpose(0, 1) if module.batch_first else x
    parts = len(parts_of(module))
    given = state if isinstance(state, (tuple, list)) else (state, None)
    hidden, cells = (
        x.new_zeros(parts, x.shape[1], width) if start is None else start
        for start, width in zip(given, (units_of(module), module.hidden_size), strict=True)
    )
    outputs: list[Tensor] = []
    last: list[tuple[Tensor, Tensor]] = []
    for i, (_, direction, end) in enumerate(parts_of(module)):
        found, final = _steps(module, end, x, (hidden[i], cells[i]), kept, reverse=bool(direction))
        outputs.append(found)
        last.append(final)
        if direction == module.bidirectional:  # the last of a layer
            y = torch.cat(outputs, -1)
            x, outputs = y * kept.repeat(1, directions_of(module)), []
    h_n, c_n = (torch.stack(list(states)) for states in zip(*last, strict=True))
    y = y.transpose(0, 1) if module.batch_first else y
    return (y, (h_n, c_n)) if isinstance(module, nn.LSTM) else (y, h_n)


def _steps(
    module: nn.RNNBase, end: str, x: Tensor, state: tuple[Tensor, Tensor], kept: Tensor, *, reverse: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Outputs (steps, rows, units) of one layer in one direction, and its last state."""
    bias = [getattr(module, f"bias_{side}{end}") if module.bias else None for side in ("ih", "hh")]
    read = functional.linear(x, getattr(module, f"weight_ih{end}"), bias[0])
    project = getattr(module, f"weight_hr{end}") if module.proj_size else None
    h, c = state
    found: list[Tensor] = []
    for step in reversed(read) if reverse else read:
        own = functional.linear(h * kept, getattr(module, f"weight_hh{end}"), bias[1])
        if isinstance(module, nn.LSTM):
            i, f, g, o = (step + own).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            h = h if project is None else functional.linear(h, project)
        elif isinstance(module, nn.GRU):
            (reset, update, new), (own_reset, own_update, own_new) = step.chunk(3, -1), own.chunk(3, -1)
            z = (update + own_update).sigmoid()
            n = (new + (reset + own_reset).sigmoid() * own_new).tanh()
            h = n + z * (h - n)
        else:
            h = (step + own).tanh() if module.nonlinearity == "tanh" else (step + own).relu()
        found.append(h)
    return torch.stack(found[::-1] if reverse else found), (h, c)


def mark(module: Recurrent, output: Any, channels: Tensor) -> Any:
    """A copy of an output in which some of its units are NaN, in all steps and in the last states.

    Args:
        module: what gave the output.
        output: a tensor and the last states.
        channels: (directions x units,) bool.
    """
    units = units_of(module)
    if isinstance(module, nn.RNNCellBase):
        return transform(output, lambda states: states.masked_fill(channels.to(states.device), float("nan")))

    def marked(states: Tensor) -> Tensor:
        states = states.clone()
        if states.shape[-1] != units:  # the cells behind a projection stay
            return states
        for i, (_, direction, _end) in enumerate(parts_of(module)):
            states[i, ..., channels[direction * units :][:units]] = float("nan")
        return states

    given, last = output
    y = given.data.clone() if isinstance(given, PackedSequence) else given.clone()
    y[..., channels] = float("nan")
    return with_data(given, y), tuple(map(marked, last)) if isinstance(last, tuple) else marked(last)


def marked_states(module: Recurrent, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """(directions x units,) which units are NaN in the initial states: the same units of the outputs depend on them."""
    units, both = units_of(module), directions_of(module)
    found = torch.zeros(both, units, dtype=torch.bool)
    layers = len(parts_of(module)) // both
    _, state = given_to(args, kwargs)
    for given in state if isinstance(state, (tuple, list)) else (state,):
        if given is None:
            continue
        nan = torch.isnan(given).cpu()
        if nan.shape[-1] == units:
            found |= nan.reshape(layers, both, -1, units).any(2).any(0)
        else:  # the cells behind a projection
            found |= bool(nan.any())
    return found.flatten()
