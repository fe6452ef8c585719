"""The multiple-choice knapsack, exactly: one option per class, the least total loss within a capacity. NumPy only.

Classes are merged one by one into a list of undominated states (Nemhauser & Ullmann 1969). A state that cannot beat the
best known choice even in the Lagrangian relaxation of the classes to come is dropped, which keeps the list short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MAX_STATES = 100_000
_HALVINGS = 60


@dataclass(frozen=True)
class KnapsackChoice:
    """What `solve_knapsack` found.

    Attributes:
        options: per class, the option taken.
        loss: their total loss.
        gap: how far below ``loss`` another choice may be at most; 0 = this is the least there is.
    """

    options: tuple[int, ...]
    loss: float
    gap: float


def solve_knapsack(
    losses: Sequence[Floats], costs: Sequence[Floats], capacity: Floats, *, max_states: int = MAX_STATES
) -> KnapsackChoice | None:
    """Choose one option per class so that the total loss is least and the total cost within the capacity.

    Args:
        losses: per class, (options,) float64, any sign.
        costs: per class, (options, m) float64, any sign: of m resources.
        capacity: (m,) what the total may be.
        max_states: bound of the list of states; where it is reached, the most promising are followed and
            `KnapsackChoice.gap` says how much may have been missed.

    Returns:
        The choice; None where none is within the capacity.
    """
    if not losses:
        return KnapsackChoice((), 0.0, 0.0) if (capacity >= 0).all() else None
    room = capacity + 1e-9 * (np.abs(capacity) + sum(np.abs(c).max(0) for c in costs))  # costs are sums of floats
    price = _resource_prices(losses, costs, room)
    priced = [loss + cost @ price for loss, cost in zip(losses, costs, strict=True)]
    best = _greedy(losses, costs, room, [int(p.argmin()) for p in priced])
    least_cost = np.cumsum([c.min(0) for c in costs[::-1]], axis=0)[::-1]
    least_priced = np.cumsum([p.min() for p in priced[::-1]])[::-1] - room @ price
    known = np.inf if best is None else sum(loss[o] for loss, o in zip(losses, best, strict=True))
    spent, lost = np.zeros((1, len(capacity))), np.zeros(1)
    history: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    missed = np.inf  # the lowest bound of a state that was given up
    for i, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        last = i + 1 == len(losses)
        from_state, option = (a.ravel() for a in np.indices((len(lost), len(loss))))
        spent, lost = spent[from_state] + cost[option], lost[from_state] + loss[option]
        bound = lost + spent @ price + (least_priced[i + 1] if not last else -room @ price)
        alive = (spent + (0 if last else least_cost[i + 1]) <= room).all(1) & (bound < known)
        rows = np.flatnonzero(alive)
        rows = rows[_undominated(spent[rows], lost[rows])]
        if len(rows) > max_states:
            rows = rows[np.argsort(bound[rows], kind="stable")]
            missed = min(missed, float(bound[rows[max_states]]))
            rows = rows[:max_states]
        spent, lost = spent[rows], lost[rows]
        history.append((from_state[rows], option[rows]))
    if len(lost):
        at = int(lost.argmin())
        known, found = float(lost[at]), []
        for origin, option in reversed(history):
            found.append(int(option[at]))
            at = int(origin[at])
        best = found[::-1]
    if best is None and missed < np.inf:  # what was given up may have been the only choice there is
        return solve_knapsack(losses, costs, capacity, max_states=10 * max_states)
    return None if best is None else KnapsackChoice(tuple(best), float(known), max(0.0, float(known) - missed))


def _resource_prices(losses: Sequence[Floats], costs: Sequence[Floats], room: Floats) -> Floats:
    """(m,) what a unit of each resource costs in loss so that the cheapest options are just within the room."""
    price = np.zeros(len(room))

    def over(k: int, tried: float) -> bool:
        at = price.copy()
        at[k] = tried
        taken = (cost[(loss + cost @ at).argmin(), k] for loss, cost in zip(losses, costs, strict=True))
        return bool(sum(taken) > room[k])

    for _ in range(1 if len(room) == 1 else 4):
        for k in range(len(room)):
            low, high = 0.0, 1e-9
            if not over(k, low):
                price[k] = 0.0
                continue
            while over(k, high) and high < 1e30:
                high *= 10
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                low, high = (middle, high) if over(k, middle) else (low, middle)
            price[k] = high
    return price


def _greedy(losses: Sequence[Floats], costs: Sequence[Floats], room: Floats, start: list[int]) -> list[int] | None:
    """A choice within the room near ``start``, from which no single class can improve; None where none was found."""
    options = list(start)
    spent = np.sum([c[o] for c, o in zip(costs, options, strict=True)], axis=0)
    if not (spent <= room).all():
        options = [int(c.sum(1).argmin()) for c in costs]
        spent = np.sum([c[o] for c, o in zip(costs, options, strict=True)], axis=0)
    if not (spent <= room).all():
        return None
    while True:
        moves = []
        for i, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
            fits = (spent + cost - cost[options[i]] <= room).all(1)
            o = int(np.where(fits, loss, np.inf).argmin())
            moves.append((float(loss[o] - loss[options[i]]), i, o))
        gain, i, o = min(moves)
        if gain >= 0:
            return options
        spent = spent + costs[i][o] - costs[i][options[i]]
        options[i] = o


def _undominated(spent: Floats, lost: Floats) -> NDArray[np.int64]:
    """Rows that no other row beats in loss and in all costs; of equal rows the first."""
    if spent.shape[1] > 1:
        return _undominated_in_several(spent, lost)
    order = np.lexsort((lost, spent[:, 0]))
    ranked = lost[order]
    before = np.concatenate([[np.inf], np.minimum.accumulate(ranked)[:-1]]) if len(ranked) else ranked
    return np.asarray(order[ranked < before], dtype=np.int64)


def _undominated_in_several(spent: Floats, lost: Floats) -> NDArray[np.int64]:
    order = np.lexsort((*spent.T, lost))
    kept: list[int] = []
    front = np.empty_like(spent)
    for row in order.tolist():  # in order of loss: only an earlier row can dominate
        if not (front[: len(kept)] <= spent[row]).all(1).any():
            front[len(kept)] = spent[row]
            kept.append(row)
    return np.array(kept, dtype=np.int64)
