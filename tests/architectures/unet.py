"""Networks that make images: U-Net, autoencoders, sub-pixel convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.entry import OUTPUT, Entry, images, seeded
from architectures.parts import unit


class UNet(nn.Module):
    """Down twice, up twice by transposed convolutions, with what was there on the way down concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _double(1, 6), _double(6, 8)
        self.bottom = _double(8, 12)
        self.up2, self.merge2 = nn.ConvTranspose2d(12, 7, 2, stride=2), _double(15, 8)
        self.up1, self.merge1 = nn.ConvTranspose2d(8, 6, 2, stride=2), _double(12, 6)
        self.last = nn.Conv2d(6, 3, 1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) -> (N, 3, H, W)."""
        x1 = self.down1(x)
        x2 = self.down2(self.pool(x1))
        x = self.bottom(self.pool(x2))
        x = self.merge2(torch.cat([x2, self.up2(x)], dim=1))
        x = self.merge1(torch.cat([x1, self.up1(x)], dim=1))
        return self.last(x)  # type: ignore[no-any-return]


def _double(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(unit(n_in, n_out, 3), unit(n_out, n_out, 3))


def autoencoder() -> nn.Module:
    """Strided convolutions to a vector, transposed convolutions back to the image."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),  # (N, 8, 4, 4) -> (N, 128)
        nn.Linear(128, 10),
        nn.Tanh(),
        nn.Linear(10, 96),
        nn.Unflatten(1, (6, 4, 4)),  # 16 neurons make one channel
        nn.ConvTranspose2d(6, 9, 4, stride=2, padding=1),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.Conv2d(9, 1, 3, padding=1),
    )


def subpixel() -> nn.Module:
    """Sub-pixel convolution (Shi et al. 2016): four channels become one of twice the size."""
    return nn.Sequential(
        nn.Conv2d(1, 10, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(10, 24, 3, padding=1),
        nn.PixelShuffle(2),  # (N, 24, H, W) -> (N, 6, 2 H, 2 W)
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )


ENTRIES = {
    "unet": Entry(
        family="U-Net",
        note="skip concatenations, transposed convolutions",
        make=seeded(UNet),
        inputs=images(1, 8, 8),
        players={"channel": 93},
        skips={"last": OUTPUT},
        classes=None,
    ),
    "autoencoder": Entry(
        family="Autoencoder",
        note="transposed convolutions; neurons that nn.Unflatten makes one channel leave together",
        make=seeded(autoencoder),
        inputs=images(1, 8, 8),
        players={"channel": 23, "neuron": 10},
        skips={"11": OUTPUT},
        classes=None,
    ),
    "subpixel": Entry(
        family="Sub-pixel convolution",
        note="pixel shuffle: four channels leave together",
        make=seeded(subpixel),
        inputs=images(1, 6, 6),
        players={"channel": 24},
        skips={"7": OUTPUT},
        classes=None,
    ),
}
