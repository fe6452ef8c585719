"""Labelled examples in memory, in three parts that never mix."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from shaprune.errors import InputError
from shaprune.options.preprocessing import Preprocessing


@dataclass(frozen=True)
class Split:
    """Examples and their targets: ``inputs`` (N, ...), ``targets`` (N,) or (N, ...)."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise InputError(f"a split has {len(self.inputs)} inputs and {len(self.targets)} targets; they must agree")

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, batch_size: int = 256) -> list[tuple[Tensor, Tensor]]:
        """The examples in order, as views of at most ``batch_size``."""
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1")
        starts = range(0, len(self), batch_size)
        return [(self.inputs[i : i + batch_size], self.targets[i : i + batch_size]) for i in starts]

    def take(self, n: int) -> Split:
        """The first ``n`` examples (all, where there are fewer)."""
        if n < 1:
            raise InputError(f"cannot take {n} examples; take at least 1")
        return Split(self.inputs[:n], self.targets[:n])


@dataclass(frozen=True)
class Dataset:
    """Three parts that share no example; ``held_out`` comes from the training data, never from the test set.

    Attributes:
        name: of the data.
        train, held_out, test: the parts.
        classes: their names; none where the data are no classification.
        prepared: how an image in a file becomes an input; None = that is not known.
    """

    name: str
    train: Split
    held_out: Split
    test: Split
    classes: tuple[str, ...]
    prepared: Preprocessing | None = None


def n_held_out(n: int) -> int:
    """How many of ``n`` training examples are set aside by default: 5,000, or a tenth where that is less.

    Raises:
        InputError: fewer than two examples.
    """
    if n < 2:
        raise InputError(f"the training part has {n} examples; at least 2 are needed, so that one can be held out")
    return min(5_000, max(1, n // 10))
