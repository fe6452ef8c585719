"""Estimators with options, solution concepts with parameters, re-scoring in rounds, and aggregation over examples.

Estimators and concepts without options are named by a string, such as ``method="permutation", concept="banzhaf:0.7"``.
"""

from shaprune.values.aggregation import mean_std, per_group, quantile
from shaprune.values.concepts import Concept, banzhaf, beta, owen, semivalue, shapley
from shaprune.values.estimators.control_variate import ControlVariate
from shaprune.values.estimators.exact import Exact, LeaveOneOut, Partial
from shaprune.values.estimators.msr import MSR
from shaprune.values.estimators.permutation import Permutation
from shaprune.values.estimators.regression import Regression
from shaprune.values.estimators.svarm import SVARM
from shaprune.values.rescoring import estimate_in_rounds

__all__ = ["MSR", "SVARM", "Concept", "ControlVariate", "Exact", "LeaveOneOut", "Partial", "Permutation"]
__all__ += ["Regression", "banzhaf", "beta", "estimate_in_rounds", "mean_std", "owen", "per_group", "quantile"]
__all__ += ["semivalue", "shapley"]
