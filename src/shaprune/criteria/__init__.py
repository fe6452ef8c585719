"""Classical pruning criteria with the interface of values, for comparison."""

from shaprune.criteria.registry import CRITERIA, Criterion, criterion_scores
from shaprune.criteria.torch_pruning_importance import ShapleyImportance

__all__ = ["CRITERIA", "Criterion", "ShapleyImportance", "criterion_scores"]
