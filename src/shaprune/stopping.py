"""Stopping rules for ``estimate(..., stop=...)``: ``sp.stopping.stderr_below(0.01) | sp.stopping.seconds(60)``."""

from shaprune.values.stopping import (
    Rule,
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

__all__ = ["Rule", "cut_settled", "evaluations", "evaluations_per_player", "median_error_below", "rank_stable"]
__all__ += ["relative_error_below", "rule_of", "seconds", "stderr_below"]
