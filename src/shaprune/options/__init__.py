"""Groups of options: `Scoring`, `RunOptions`, `Units`, `Limits`, `Planning`; `Compression` holds most of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shaprune.names.lazy import resolve_on_use

if TYPE_CHECKING:
    from shaprune.options.groups import Compression as Compression
    from shaprune.options.groups import Planning as Planning
    from shaprune.options.groups import Scoring as Scoring
    from shaprune.options.groups import Units as Units
    from shaprune.options.preprocessing import Preprocessing as Preprocessing
    from shaprune.planning.limits import Limits as Limits
    from shaprune.runs.session import RunOptions as RunOptions

_HOMES = {
    "Compression": "shaprune.options.groups",
    "Limits": "shaprune.planning.limits",
    "Planning": "shaprune.options.groups",
    "Preprocessing": "shaprune.options.preprocessing",
    "RunOptions": "shaprune.runs.session",
    "Scoring": "shaprune.options.groups",
    "Units": "shaprune.options.groups",
}
__all__ = sorted(_HOMES)

if not TYPE_CHECKING:
    __getattr__ = resolve_on_use(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
