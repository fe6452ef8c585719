"""One architecture of the registry: how it is made, and what shaprune is expected to find in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Make = Callable[[], nn.Module]
Inputs = Callable[[int], Any]  # the batch size -> a tensor, a tuple or a dict
CLASSES = 5
OUTPUT = "feeds the network's output"  # why the last layer of every network stays
BREAKS = "removal breaks the network"  # where the code reshapes, splits or pads by fixed numbers


@dataclass(frozen=True)
class Entry:
    """An architecture in miniature, written in the style of the original.

    Attributes:
        family: what it is, in the words of the table.
        note: what is special about it, for the table.
        make: a new network in eval mode, always with the same weights; the global random state stays.
        inputs: random inputs for a batch of that size, always the same ones.
        players: how many players of each unit (``"hidden channel"``, ``"channel"``, ``"neuron"``,
            ``"head"``) the network has.
        skips: which layers have channels that are no players: a glob of their names -> words of the reason.
        classes: how many the (first) output tells apart; None where it is no classifier.
        needs: the optional package that ``make`` imports.
        onnx: which of torch's exporters takes it: ``"trace"`` (TorchScript, fast) or ``"dynamo"``.
    """

    family: str
    note: str
    make: Make
    inputs: Inputs
    players: Mapping[str, int]
    skips: Mapping[str, str] = field(default_factory=dict)
    classes: int | None = CLASSES
    needs: str | None = None
    onnx: Literal["trace", "dynamo"] = "trace"

    @property
    def status(self) -> Literal["supported", "partly", "refused"]:
        """Supported: all channels but those of the output are players; refused: there is no player."""
        if not self.players:
            return "refused"
        return "supported" if set(self.skips.values()) <= {OUTPUT} else "partly"


def images(channels: int, *size: int) -> Inputs:
    """Inputs of one tensor (batch, channels, *size)."""
    return lambda batch: noise(batch, channels, *size)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers that depend on nothing but ``seed``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int, length: int, *, entries: int) -> Tensor:
    """(batch, length) indices into a vocabulary."""
    return torch.randint(entries, (batch, length), generator=torch.Generator().manual_seed(0))


def seeded(build: Make) -> Make:
    """A factory that always makes the same network, in eval mode, with lively normalisations."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return lively(build()).eval()

    return make


def lively(model: nn.Module) -> nn.Module:
    """Random statistics and affine parameters for every normalisation, so that a zeroed channel does not stay zero."""
    with torch.no_grad():
        for module in model.modules():
            if "Norm" not in type(module).__name__:
                continue
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if name in ("weight", "running_var"):
                    tensor.uniform_(0.5, 1.5)
                elif name in ("bias", "running_mean"):
                    tensor.uniform_(-0.5, 0.5)
    return model
