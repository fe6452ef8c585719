"""Options named flatly, as a test lists them, put into the groups that the library takes."""

from typing import Any

from shaprune.options import Compression, RunOptions, Scoring
from shaprune.options.fields import gathered, leaves


def scoring(**flat: Any) -> dict[str, Any]:
    """Keywords of `shaprune.score`; those of `Scoring` and `RunOptions` go into their groups."""
    how, run = ({leaf.name for leaf in leaves(group)} & flat.keys() for group in (Scoring, RunOptions))
    plain = {name: value for name, value in flat.items() if name not in how | run}
    if run:
        plain["run"] = gathered(RunOptions, {**flat, "folder": plain.get("run")})
    return {**plain, "options": gathered(Scoring, flat)} if how else plain


def compression(**flat: Any) -> dict[str, Any]:
    """Keywords of `shaprune.compress`, likewise."""
    grouped = {leaf.name for leaf in leaves(Compression)}
    plain = {name: value for name, value in flat.items() if name not in grouped}
    return {**plain, "options": gathered(Compression, flat)}
