"""Stopping rules for ``estimate(..., stop=...)``: ``sp.stopping.stderr_below(0.01) | sp.stopping.seconds(60)``."""

from shaprune.values.stopping import (
    Rule,
    certified_cut,
    cut_settled,
    evaluations,
    evaluations_per_player,
    median_error_below,
    rank_stable,
    relative_error_below,
    rule_of,
    seconds,
    stderr_below,
)

__all__ = ["Rule", "certified_cut", "cut_settled", "evaluations", "evaluations_per_player", "median_error_below"]
__all__ += ["rank_stable", "relative_error_below", "rule_of", "seconds", "stderr_below"]
