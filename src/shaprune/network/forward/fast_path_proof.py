"""The proof of a fast way to run rows: it must answer as the plain masked network does, with players removed.

The plain way is slow and simple: one coalition at a time, the whole network. Whatever is faster (the part behind the
mask, recorded calls, players added instead of recomputed, batches side by side, lower precision, derivatives) is asked
the same once per game, on the user's own examples, and is not used where its answers differ. Every example stands in
several rows, under several coalitions, so that a network that puts its rows in another order on the way is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shaprune.network.batches import tensors
from shaprune.network.forward.suffix import WholeRunner
from shaprune.network.removal.masks import MaskSite
from shaprune.network.tolerance import relative_difference, tolerance_for

PROOF_TOLERANCE = 1e-4  # relative, float32: how well a fast way must reproduce the plain outputs
_OF_THE_CHANGE = 0.25  # an error must also be this small against what the removal changed ...
_ROUNDING = 0.1  # ... unless it is below this share of the limit
_EXAMPLES = 3  # that stand in a question, each under every coalition
_LOOKED_AT = 256  # examples among which these are chosen


@dataclass(frozen=True, eq=False)
class ProofQuestion:
    """Rows of which the plain masked network has given the outputs.

    Attributes:
        examples: (R,) int64, numbers of examples; neighbours differ, and so do the coalitions of neighbours.
        masks: (R, n) float32: about half of the players stay, all but a few, none; fewer where the network cannot be
            run without some players.
        outputs: (R, ...) of the plain network.
        dense: (R, ...) of the dense network.
    """

    examples: Tensor
    masks: Tensor
    outputs: Tensor
    dense: Tensor

    def first(self, rows: int) -> ProofQuestion:
        """The question about its first rows, which are other examples each, under other coalitions."""
        return self._of(slice(rows))

    def only(self, row: int) -> ProofQuestion:
        """The question about one of its rows."""
        return self._of(slice(row, row + 1))

    def _of(self, rows: slice) -> ProofQuestion:
        return ProofQuestion(self.examples[rows], self.masks[rows], self.outputs[rows], self.dense[rows])

    def moves_outputs(self) -> bool | None:
        """Whether the outputs change, beyond rounding, as all players leave; None where the network cannot run so."""
        rows = torch.nonzero(~self.masks.any(1)).flatten()[:1]
        if not len(rows):
            return None
        return relative_difference(self.outputs[rows], self.dense[rows]) > _ROUNDING * tolerance_for(
            self.dense.dtype, PROOF_TOLERANCE
        )

    def refuted(self, outputs: Tensor, near: float = PROOF_TOLERANCE) -> str | None:
        """Return how ``outputs`` of the rows differ from the plain ones; None where they agree.

        An error is large where it is large against the outputs, or against what the removal changed.
        """
        plain, dense = self.outputs, self.dense
        if outputs.shape != plain.shape:
            return f"outputs have shape {tuple(outputs.shape)} and not {tuple(plain.shape)}"
        if not torch.equal(outputs.isfinite(), plain.isfinite()):
            return "other outputs are NaN or infinite"
        given, plain, dense = (_flat(t) for t in (outputs, plain, dense))
        limit = tolerance_for(self.outputs.dtype, near) * max(float(plain.abs().max()), float(dense.abs().max()), 1e-30)
        error, change = (given - plain).abs().amax(1), (plain - dense).abs().amax(1)
        wrong = (error > limit) | ((error > _OF_THE_CHANGE * change) & (error > _ROUNDING * limit))
        if not wrong.any():
            return None
        row = int(error.where(wrong, -1.0).argmax())
        return f"outputs differ by {float(error[row]):.2g} where removal changes them by {float(change[row]):.2g}"


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().double().nan_to_num(0.0, 0.0, 0.0).flatten(1) if tensor.ndim > 1 else _flat(tensor[:, None])


def proof_question(
    plain: WholeRunner,
    sites: Sequence[MaskSite],
    examples: Tensor,
    outputs: Tensor,
    inputs_of: Callable[[Tensor], object],
) -> ProofQuestion | None:
    """Ask the plain masked network about a few rows; None where it answers none of them.

    Args:
        plain: runs the whole network, in which one example does not change the output of another.
        sites: where the masks of the game stand.
        examples: (E,) numbers of examples, see `chosen_examples`.
        outputs: (N, ...) of the dense network.
        inputs_of: gives the inputs of examples (rows,).
    """
    masks = _coalitions(sites[0].n_players).to(outputs.device)
    asked: list[int] = []
    answers: list[Tensor] = []
    for row in range(len(masks)):
        try:
            answer = plain.run(plain.prepare(inputs_of(examples)), masks[row : row + 1])
        except Exception:  # a network that cannot be run without all of its players answers the other rows
            continue
        if answer.shape[:1] == examples.shape:
            asked.append(row)
            answers.append(answer)
    if not asked:
        return None
    every = torch.arange(len(examples) * len(asked), device=outputs.device)
    example = every % len(examples)
    coalition = (every + 2 * (every // len(examples))) % len(asked)  # sorted by example, rows do not find their own
    found = torch.stack(answers)[coalition, example]
    return ProofQuestion(examples[example], masks[asked][coalition], found, outputs[examples[example]])


def chosen_examples(n: int, inputs_of: Callable[[Tensor], object]) -> Tensor:
    """(E,) numbers of examples that differ in how much of their inputs is not zero (padding), and in place."""
    looked_at = torch.linspace(n - 1, 0, min(n, _LOOKED_AT)).long()
    filled = torch.zeros(len(looked_at), dtype=torch.float64)
    for number, tensor in enumerate(tensors(inputs_of(looked_at))):
        if tensor.ndim > 1:
            filled += (number + 1) * (tensor != 0).flatten(1).double().mean(1).cpu()
    chosen = torch.linspace(0, len(looked_at) - 1, _EXAMPLES).ceil().long()
    return looked_at[filled.argsort(stable=True)[chosen]]


def _coalitions(n: int) -> Tensor:
    """(3, n) coalitions, see `ProofQuestion`; the same for every game of n players."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    few = max(1, min(n // 10, max(8, n // 50)))
    masks = torch.ones(3, n)
    masks[0, order[: n // 2]] = 0
    masks[1, order[-few:]] = 0
    masks[2] = 0
    return masks
