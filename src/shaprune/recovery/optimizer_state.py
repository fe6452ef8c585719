"""Optimiser state of the pruned network: momenta are cut along the channels of their parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from shaprune.errors import InputError
from shaprune.network.borrow import copied
from shaprune.network.removal.surgery import remove_players
from shaprune.planning.plan import Plan

SUPPORTED = (SGD, Adam, AdamW)
_FOR_OTHERS = ("params", "param_names", "initial_lr")  # a group's entries that belong to the old parameters or schedule


def check_optimizer(optimizer: Any, dense: nn.Module) -> None:
    """Check that an optimiser can be carried over from ``dense``.

    Raises:
        InputError: another kind than SGD, Adam or AdamW, or one that holds other parameters than those of ``dense``.
    """
    if type(optimizer) not in SUPPORTED:
        raise InputError(
            f"the optimizer is a {type(optimizer).__name__}; the state of "
            f"{', '.join(kind.__name__ for kind in SUPPORTED)} can be carried over, others: give a callable finetune"
        )
    own = {id(p) for p in dense.parameters()}
    strangers = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if strangers:
        raise InputError(
            f"{strangers} of the optimizer's parameters are not the dense network's; give the optimizer that trained it"
        )


def carry_over_optimizer(optimizer: Optimizer, dense: nn.Module, small: nn.Module, plan: Plan) -> Optimizer:
    """An optimiser for ``small`` with the groups, options and state that ``optimizer`` has for ``dense``.

    What a parameter's state holds in the parameter's shape (momentum, running moments) goes through the same surgery as
    the parameter itself; the rest (step counts) is copied. A scheduler's starting rate is not carried over: the current
    rate is. Neither network nor ``optimizer`` is changed.

    Args:
        optimizer: SGD, Adam or AdamW over parameters of ``dense``.
        dense: the network before surgery.
        small: what ``plan`` made of it, its weights recovered or not.
        plan: who stays.

    Raises:
        InputError: as `check_optimizer`; or ``small`` was not made by this plan.
    """
    check_optimizer(optimizer, dense)
    names = {id(p): name for name, p in dense.named_parameters()}
    states = {names[id(p)]: state for p, state in optimizer.state.items() if id(p) in names}
    shapes = {name: p.shape for name, p in dense.named_parameters()}
    moving = {
        key
        for name, state in states.items()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == shapes[name]
    }
    smaller = {
        key: _removed_from(dense, plan, {n: s[key] for n, s in states.items() if _has(s, key)}) for key in moving
    }
    left = dict(small.named_parameters())
    renamed = _names_after(dense, plan)
    groups, carried = [], {}
    for group in optimizer.param_groups:
        parameters = []
        for name in (names[id(p)] for p in group["params"]):
            after = renamed.get(name)
            if after is None:
                continue  # it left with its block or expert
            if after not in left:
                raise InputError(f"parameter {after!r} is missing in the pruned network; the plan made another one")
            parameters.append(left[after])
            if name in states:
                carried[after] = {k: _one(k, v, smaller, after, left[after]) for k, v in states[name].items()}
        if parameters:
            groups.append({**{k: v for k, v in group.items() if k not in _FOR_OTHERS}, "params": parameters})
    if not groups:
        raise InputError("none of the optimizer's parameters is left in the pruned network; leave optimizer out")
    kind: Any = type(optimizer)
    result: Optimizer = kind(groups)
    for name, state in carried.items():
        result.state[left[name]] = state
    return result


def _has(state: dict[str, Any], key: str) -> bool:
    return isinstance(state.get(key), Tensor)


def _removed_from(dense: nn.Module, plan: Plan, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Surgery on a network whose parameters are ``values`` (0 where there is none), by the names that are left."""
    clone = copied(dense)
    with torch.no_grad():
        for name, parameter in clone.named_parameters():
            parameter.data = values[name].clone() if name in values else torch.zeros_like(parameter)
        return {
            name: p.detach().clone() for name, p in remove_players(clone, plan.players, plan.kept).named_parameters()
        }


def _names_after(dense: nn.Module, plan: Plan) -> dict[str, str]:
    """Name in the dense network -> name in the pruned one, matched by numbers that surgery carries along.

    Experts that leave their list make the later ones move up.
    """
    order = [name for name, _ in dense.named_parameters()]
    marks = {
        n: torch.full_like(p, float(i), dtype=torch.float64) for i, (n, p) in enumerate(dense.named_parameters(), 1)
    }
    left = {name: int(p.max()) for name, p in _removed_from(dense, plan, marks).items() if p.numel()}
    return {order[mark - 1]: name for name, mark in left.items() if mark}


def _one(key: str, value: Any, smaller: dict[str, dict[str, Tensor]], name: str, parameter: Tensor) -> Any:
    """One entry of a parameter's state."""
    if not isinstance(value, Tensor):
        return value
    if key not in smaller or value.ndim == 0:
        return value.detach().clone()
    found = smaller[key][name]
    if found.shape != parameter.shape:
        raise InputError(
            f"parameter {name!r} has shape {tuple(parameter.shape)} in the pruned network and the plan makes it "
            f"{tuple(found.shape)}; give the plan that made it"
        )
    return found
