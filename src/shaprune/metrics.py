"""Measurements: quality and speed of networks, cost of scoring, values of layers and pairs, plans along a budget."""

from shaprune.deploy.measure import Latency, Measurement, accuracy, compare, count, latency
from shaprune.pipeline.cost_estimate import expected_cost
from shaprune.pipeline.quality import quality_on
from shaprune.pipeline.sensitivity import layer_values
from shaprune.planning.frontier import frontier
from shaprune.planning.refine import refine
from shaprune.planning.sensitivity_curves import Sensitivity
from shaprune.values.redundancy import redundancy

__all__ = ["Latency", "Measurement", "Sensitivity", "accuracy", "compare", "count", "expected_cost", "frontier"]
__all__ += ["latency", "layer_values", "quality_on", "redundancy", "refine"]
