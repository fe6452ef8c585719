"""Protocol of a runner of rows under masks: prepared once per batch of examples, then asked for many coalitions."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from shaprune.network.forward.cached_state import CachedState
from shaprune.network.forward.incremental_linear import IncrementalLinear


class Runner(Protocol):
    """A way to run rows: `SuffixRunner` (torch.fx), `ReplayRunner` (recorded calls) or `WholeRunner` (all of it)."""

    @property
    def because(self) -> str | None:
        """Why the whole model is run; None where only what lies behind the masks is."""

    @property
    def incremental_linear(self) -> IncrementalLinear | None:
        """The one linear layer that reads the mask, where there is one."""

    @property
    def rows_apart(self) -> bool:
        """Whether the rows of a batch may have masks of their own."""

    def prepare(self, given: Any, /) -> CachedState:
        """Compute what does not depend on the coalition, from inputs (or, to replay, from numbers of examples)."""

    def run(self, state: Any, mask: Tensor, /) -> Tensor:
        """Outputs of the rows ``state`` under ``mask`` (rows, n)."""

    def row_bytes(self, state: Any, mask: Tensor, /) -> int:
        """Memory that one row takes."""

    def first_nonfinite_layer(self, state: Any, mask: Tensor, /) -> str | None:
        """The first layer whose output is not finite."""
