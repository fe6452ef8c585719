"""Random changes of images that keep their class, for the ``augment`` of a fine-tuning. Batches (N, C, H, W)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warped(images: Tensor) -> Tensor:
    """Digits, half of them turned (up to 10 degrees), scaled (10 %), slanted and shifted (12 %) a little."""
    n = len(images)
    turn, scale, slant, x, y = (
        (torch.rand(5, n) - 0.5) * torch.tensor([[0.35], [0.2], [0.3], [0.25], [0.25]])
    ).unbind()
    cos, sin = torch.cos(turn) * (1 + scale), torch.sin(turn) * (1 + scale)
    rows = torch.stack([cos, slant - sin, x], 1), torch.stack([sin, cos, y], 1)
    dark = images.amin()  # what comes in from outside is background
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images - dark, grid, align_corners=False) + dark


def cropped(images: Tensor) -> Tensor:
    """Photographs, each mirrored or not and shifted by up to 4 pixels, as He et al. 2016 do for CIFAR-10."""
    n, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    mirrored = torch.where(torch.rand(n, 1, 1, 1) < 0.5, padded.flip(3), padded)
    windows = mirrored.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 9, 9, H, W)
    down, right = torch.randint(9, (2, n))
    return windows[torch.arange(n), :, down, right].contiguous()


def noise(n: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """(n, channels, side, side) noise as smooth as photographs are, for those who have none.

    The amplitude of a frequency f is f^-1.5 (of natural images it is nearer to 1 / f, Field 1987; the steeper one
    served the refit better), channels are correlated (0.8), and the standard deviation is 1, as of standardised images.
    """
    generator = torch.Generator().manual_seed(seed)
    shared, own = (torch.randn(n, c, side, side, generator=generator) for c in (1, channels))
    down, right = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    frequency = (down**2 + right**2).sqrt().clamp_min(1 / side)
    images = torch.fft.irfft2(torch.fft.rfft2(0.8**0.5 * shared + 0.2**0.5 * own) / frequency**1.5, s=(side, side))
    return images / images.std()
