"""Values by enumeration: all coalitions of the sizes that count (Shapley 1953; Adamczewski et al. 2024, Eq. 3, 4.3.1).

Up to 24 players the worths stand in a table, and a player's value is a weighted sum over what it adds, half of the
table minus the other half: a player that never changes anything has the value 0, without rounding.

Above, only a few sizes can be enumerated, and worths stream through. A semivalue is linear in them: phi_i = sum over S
of v(S) * (a[|S|] if i is in S else -b[|S|]), where a coalition of s players stands for the s - 1 others of a member,
a[s] = weights[s - 1] / C(n - 1, s - 1), and for the s others of one who is not in it, b[s] = weights[s] / C(n - 1, s).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, islice
from math import comb, log10
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from shaprune.errors import InputError
from shaprune.values.concepts import Concept, leave_one_out, partial
from shaprune.values.estimators.base import Method, Task
from shaprune.values.games.arrays import Coalitions
from shaprune.values.games.checks import check_worths
from shaprune.values.games.coalition_chains import CELLS
from shaprune.values.result import Values

MAX_PLAYERS = 24  # of exact: 2^24 coalitions are 17 million
CHUNK_COALITIONS = 1 << 17  # coalitions asked for at once
MAX_COALITIONS = 1 << 24


def per_coalition(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(n + 1,) factors of v(S), by |S|: ``a`` for the members of S, ``b`` (to be subtracted) for the others."""
    each = _coefficients(weights)
    return np.append(0.0, each), np.append(each, 0.0)


@dataclass(frozen=True)
class _Enumeration(Method):
    """Sums over all coalitions whose size matters to the concept."""

    stops: ClassVar[bool] = False

    def concept_of(self, task: Task) -> Concept:
        """The concept whose coalitions are enumerated."""
        return task.concept

    def least(self, task: Task) -> int:
        return task.game.price(_count(self.concept_of(task).weights(task.n)))

    def default(self, task: Task) -> int:
        return self.least(task)

    def run(self, task: Task) -> Values:
        task = replace(task, concept=self.concept_of(task))
        n = task.n
        value, ends, total = (_from_table if n <= MAX_PLAYERS else _streamed)(task, task.weights)
        both = ends.get(n), ends.get(0)
        return self.result(task, value, np.zeros(n), ends=both, counts=total, stopped_by="enumerated")


@dataclass(frozen=True)
class Exact(_Enumeration):
    """Exact values of up to 24 players, for any concept: 2^n coalitions (fewer where some sizes do not count)."""

    name: ClassVar[str] = "exact"

    def least(self, task: Task) -> int:
        n, n_examples = task.n, task.game.n_examples
        if n > MAX_PLAYERS:
            digits = n * log10(2) + log10(n_examples)  # 2^n is no float beyond 1,023 players
            cost = f"{10 ** (digits % 1):.1f}e+{int(digits)}"
            raise InputError(
                f"exact values of {n} players need 2^{n} coalitions, {cost} evaluations with {n_examples} example(s); "
                f"the limit is {MAX_PLAYERS} players: use method='permutation'"
            )
        return super().least(task)


@dataclass(frozen=True)
class _WithOwnConcept(_Enumeration):
    """An enumeration that brings its own concept."""

    def check(self, task: Task) -> None:
        if task.concept.label != "shapley":
            raise InputError(
                f"method {self.name!r} has a concept of its own, not {task.concept.label!r}; "
                "use method='exact' or 'permutation'"
            )
        super().check(task)

    def least(self, task: Task) -> int:
        count = _count(self.concept_of(task).weights(task.n))
        if count > MAX_COALITIONS:
            raise InputError(
                f"method {self.name!r} would enumerate {count:.3g} coalitions of {task.n} players; lower k, "
                "or use method='permutation' with sizes=..."
            )
        return super().least(task)


@dataclass(frozen=True)
class Partial(_WithOwnConcept):
    """Coalitions with at most ``k`` players removed ("full"), kept ("empty"), or both (Adamczewski et al., 4.3.1)."""

    name: ClassVar[str] = "partial"
    k: int = 3
    side: str = "full"

    def concept_of(self, task: Task) -> Concept:
        return partial(min(self.k, task.n) if self == Partial() else self.k, self.side)


@dataclass(frozen=True)
class LeaveOneOut(_WithOwnConcept):
    """v(all) - v(all without i): n + 1 coalitions."""

    name: ClassVar[str] = "leave-one-out"

    def concept_of(self, task: Task) -> Concept:
        return leave_one_out()


def _sizes(weights: NDArray[np.float64]) -> list[int]:
    """Coalition sizes that a concept looks at."""
    counted = np.flatnonzero(weights > 0)
    return sorted({*counted.tolist(), *(counted + 1).tolist()})


def _coefficients(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) coefficient of one coalition of s other players."""
    return np.array([w / comb(len(weights) - 1, s) if w > 0 else 0.0 for s, w in enumerate(weights)])


def _count(weights: NDArray[np.float64]) -> int:
    return sum(comb(len(weights), size) for size in _sizes(weights))


_Sums = tuple[NDArray[np.float64], dict[int, float], int]  # value, worth of none and of all by size, coalitions


def _from_table(task: Task, weights: NDArray[np.float64]) -> _Sums:
    """Sums over the coalitions of a few players; the code of a coalition has bit i where player i is in it."""
    n, sizes = len(weights), _sizes(weights)
    worths = np.zeros(1 << n)
    total = 0
    for start in range(0, 1 << n, CHUNK_COALITIONS):
        codes = np.arange(start, min(start + CHUNK_COALITIONS, 1 << n), dtype=np.uint32)
        codes = codes[np.isin(np.bitwise_count(codes), sizes)]
        coalitions = (codes[:, None] >> np.arange(n, dtype=np.uint32) & 1).astype(bool)
        if len(codes):
            worths[codes] = check_worths(task.game(coalitions), coalitions)
        total += len(codes)
    share = _coefficients(weights)[np.bitwise_count(np.arange(1 << (n - 1), dtype=np.uint32))]
    value = np.empty(n)
    for player in range(n):
        halves = worths.reshape(-1, 2, 1 << player)
        value[player] = (share * (halves[:, 1] - halves[:, 0]).ravel()).sum()
    return value, {size: float(worths[(1 << size) - 1]) for size in (0, n) if size in sizes}, total


def _streamed(task: Task, weights: NDArray[np.float64]) -> _Sums:
    """Sums over the coalitions of a few sizes of many players."""
    n = len(weights)
    inside, outside = per_coalition(weights)
    value, total = np.zeros(n), 0
    ends: dict[int, float] = {}
    for coalitions in _coalitions(n, _sizes(weights)):
        worths = check_worths(task.game(coalitions), coalitions)
        size = coalitions.sum(1)
        value += (worths * (inside + outside)[size]) @ coalitions - (worths * outside[size]).sum()
        total += len(coalitions)
        ends.update((int(size[row]), float(worths[row])) for row in np.flatnonzero((size == 0) | (size == n)))
    return value, ends, total


def _coalitions(n: int, sizes: list[int]) -> Iterator[Coalitions]:
    """All coalitions of the given sizes, in chunks."""
    for size in sizes:
        few = min(size, n - size)
        chosen = combinations(range(n), few)
        while block := list(islice(chosen, max(1, min(CHUNK_COALITIONS // 8, CELLS // 8 // n)))):  # they become float64
            coalitions = np.zeros((len(block), n), dtype=bool)
            np.put_along_axis(coalitions, np.array(block, dtype=np.int64).reshape(len(block), few), True, axis=1)
            yield coalitions if few == size else ~coalitions
