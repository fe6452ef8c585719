"""Classical pruning criteria with the interface of values, for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shaprune.names.lazy import resolve_on_use

if TYPE_CHECKING:
    from shaprune.criteria.registry import CRITERIA as CRITERIA
    from shaprune.criteria.registry import Criterion as Criterion
    from shaprune.criteria.registry import criterion_scores as criterion_scores
    from shaprune.criteria.torch_pruning_importance import ShapleyImportance as ShapleyImportance

_HOMES = {
    "CRITERIA": "shaprune.criteria.registry",
    "Criterion": "shaprune.criteria.registry",
    "ShapleyImportance": "shaprune.criteria.torch_pruning_importance",
    "criterion_scores": "shaprune.criteria.registry",
}
__all__ = sorted(_HOMES)

if not TYPE_CHECKING:
    __getattr__ = resolve_on_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
