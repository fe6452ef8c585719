"""Training recipes of the demo's networks. Pure data, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from shaprune.errors import InputError, check_choice


@dataclass(frozen=True)
class Recipe:
    """How a network of the demo is trained, and on which data."""

    data: str
    epochs: int
    lr: float
    batch_size: int


RECIPES = {
    "digits": Recipe("digits", epochs=20, lr=5e-3, batch_size=64),
    "lenet5": Recipe("mnist", epochs=2, lr=2e-3, batch_size=128),
    "lenet1": Recipe("mnist", epochs=3, lr=1e-2, batch_size=128),
}


def choose_architecture(data: str, architecture: str | None) -> str:
    """The network to train on ``data``: the one asked for, or the first that fits.

    Raises:
        InputError: data that the demo does not know, or a network that does not fit them.
    """
    kind = data.partition(":")[0]
    fitting = [name for name, recipe in RECIPES.items() if recipe.data == kind]
    if not fitting:
        raise InputError(
            f"the demo runs on digits or mnist:DIR, not on {data!r}; for your own data use `shaprune score`"
        )
    if architecture is None:
        return fitting[0]
    check_choice("architecture", architecture, RECIPES)
    if architecture not in fitting:
        raise InputError(f"{architecture} is not for {kind}; choose {' or '.join(fitting)}")
    return architecture
