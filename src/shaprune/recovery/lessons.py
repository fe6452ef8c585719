"""Views of the examples, and the dense network's answers to them, which the pruned one learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shaprune.errors import InputError
from shaprune.network.batches import Forward, Inputs, concatenate, length, main_output, pick_rows, tensors, transform
from shaprune.network.disk_buffer import is_out_of_memory
from shaprune.recovery.step_training import AT_ONCE
from shaprune.recovery.training_data import Augment

_SHIFT = 8  # an image is shifted by up to this part of its side
_MOST_BYTES = 1 << 30  # of answers that are kept


class Lessons:
    """Examples, a second view of each where there is one to be had, and the dense network's answers to both.

    Answers are kept, each asked for once, unless they would take more than a gigabyte.

    Args:
        teacher: the dense network, in eval mode.
        inputs: all examples, batch first.
        augment: makes the second view; None = images are mirrored and shifted at random, other inputs have one view.
        run: how a network is called.
        device: where.
        seed: of the second view.
    """

    def __init__(
        self, teacher: nn.Module, inputs: Inputs, augment: Augment | None, run: Forward, device: torch.device, seed: int
    ) -> None:
        self._teacher, self._run, self._device = teacher, run, device
        made = _second_view(inputs, augment, seed)
        self.views = inputs if made is None else concatenate([inputs, made])
        self.count, self.per_example = length(inputs), 1 if made is None else 2
        self._answers: Tensor | None = None
        self._known = torch.zeros(length(self.views), dtype=torch.bool)

    def rows(self, examples: Tensor) -> Tensor:
        """The rows of some examples' views."""
        return torch.cat([examples + view * self.count for view in range(self.per_example)])

    def inputs(self, rows: Tensor) -> Inputs:
        """The views of some rows, on the device; images with their channels last, which is faster."""
        picked = transform(pick_rows(self.views, rows), lambda t: t.to(self._device))
        return transform(picked, lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)

    def prepare(self, rows: Tensor) -> None:
        """Ask for the answers to some rows, which are then known."""
        size = AT_ONCE
        while True:
            try:
                for part in rows.split(size):
                    found = self._asked(part)
                    if self._answers is None:
                        if found[0].nbytes * len(self._known) > _MOST_BYTES:
                            return
                        self._answers = found.new_empty((len(self._known), *found.shape[1:]))
                    self._answers[part], self._known[part] = found, True
                return
            except RuntimeError as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                size //= 2

    def answers(self, rows: Tensor) -> Tensor:
        """The dense network's answers to some rows."""
        if self._answers is not None and bool(self._known[rows].all()):
            return self._answers[rows]
        return self._asked(rows)

    def _asked(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return main_output(self._run(self._teacher, self.inputs(rows))).cpu()


def _second_view(inputs: Inputs, augment: Augment | None, seed: int) -> Inputs | None:
    """Another view of every example; None where there is none to be had."""
    if augment is not None:
        made = augment(transform(inputs, torch.clone))
        if length(made) != length(inputs):
            raise InputError(f"augment returned {length(made)} examples for {length(inputs)}; return one for each")
        shapes, given = ([tuple(t.shape) for t in tensors(held)] for held in (made, inputs))
        if shapes != given:
            raise InputError(f"augment returned inputs of shape {shapes} for {given}; return the same shapes")
        return made
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point():
        return None
    generator = torch.Generator().manual_seed(seed)
    height, width = inputs.shape[2:]
    up, left = max(1, height // _SHIFT), max(1, width // _SHIFT)
    mirrored = torch.rand(len(inputs), generator=generator) < 0.5
    flipped = torch.where(mirrored[:, None, None, None].to(inputs.device), inputs.flip(-1), inputs)
    padded = F.pad(flipped, (left, left, up, up))
    tops = torch.randint(0, 2 * up + 1, (len(inputs),), generator=generator).tolist()
    lefts = torch.randint(0, 2 * left + 1, (len(inputs),), generator=generator).tolist()
    places = zip(padded, tops, lefts, strict=True)
    return torch.stack([image[:, top : top + height, at : at + width] for image, top, at in places])
