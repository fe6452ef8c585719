"""The zoo: every architecture on which shaprune is tested, and what is expected to be found in each."""

from __future__ import annotations

from architectures import (
    attention,
    branched,
    hierarchical,
    huggingface,
    mobile,
    plain,
    recurrent,
    residual,
    split,
    traps,
    unet,
)
from architectures.entry import Entry

_FAMILIES = (plain, residual, mobile, split, branched, unet, hierarchical, attention, huggingface, recurrent, traps)
ZOO: dict[str, Entry] = {name: entry for family in _FAMILIES for name, entry in family.ENTRIES.items()}
