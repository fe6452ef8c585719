"""ConvNeXt and Swin: stages of layers with layer-norms, over maps that shrink."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.attention import FeedForward
from architectures.entry import CLASSES, OUTPUT, Entry, images, seeded


class ChannelNorm(nn.LayerNorm):
    """Layer-norm over the channels of maps (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    """A 7x7 convolution per channel, norm, two linear layers, a factor per channel (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(0.5 + torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def convnext() -> nn.Module:
    """ConvNeXt with two stages."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 2, 2),  # 16 -> 8
        ChannelNorm(8),
        ConvNextBlock(8),
        ChannelNorm(8),
        nn.Conv2d(8, 12, 2, 2),  # 8 -> 4
        ConvNextBlock(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(12),
        nn.Linear(12, CLASSES),
    )


class WindowAttention(nn.Module):
    """Attention inside windows, with a learned bias per head and relative position (Liu et al. 2021)."""

    relative_position_index: Tensor

    def __init__(self, width: int, window: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.scale = (width // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, num_heads))
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (grid[:, :, None] - grid[:, None, :]) + window - 1  # (2, window^2, window^2)
        self.register_buffer("relative_position_index", apart[0] * (2 * window - 1) + apart[1])
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(windows, T, width) and a mask (windows of one image, T, T) -> (windows, T, width)."""
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.scale * q @ k.transpose(-2, -1)  # (windows, heads, T, T)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        scores = scores + bias.view(t, t, -1).permute(2, 0, 1).unsqueeze(0)
        if mask is not None:
            scores = (scores.view(-1, len(mask), self.num_heads, t, t) + mask[None, :, None]).view(
                -1, scores.shape[1], t, t
            )
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1))  # type: ignore[no-any-return]


class SwinBlock(nn.Module):
    """Norm, attention in windows that may be shifted, norm, feed-forward."""

    mask: Tensor | None

    def __init__(self, width: int, size: int, window: int, shift: int, num_heads: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        self.norm1, self.attn = nn.LayerNorm(width), WindowAttention(width, window, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(width), FeedForward(width, 2 * width)
        self.register_buffer("mask", self._mask() if shift else None)

    def _mask(self) -> Tensor:
        """Positions that a shift has brought together from opposite borders do not see each other."""
        image = torch.zeros(1, self.size, self.size, 1)
        parts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for i, rows in enumerate(parts):
            for j, columns in enumerate(parts):
                image[:, rows, columns] = 3 * i + j
        label = windows(image, self.window).squeeze(-1)  # (windows, T)
        return torch.where(label[:, :, None] == label[:, None, :], 0.0, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, size, size, width) -> the same."""
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = joined(self.attn(windows(y, self.window), self.mask), self.window, self.size)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def windows(x: Tensor, size: int) -> Tensor:
    """(N, H, W, C) -> (N * windows, size * size, C)."""
    n, h, w, c = x.shape
    x = x.view(n, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, size * size, c)


def joined(x: Tensor, size: int, side: int) -> Tensor:
    """Inverse of `windows`: (N * windows, size * size, C) -> (N, side, side, C)."""
    x = x.view(-1, side // size, side // size, size, size, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, side, side, x.shape[-1])


class PatchMerging(nn.Module):
    """Four neighbours are concatenated, normalised and projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, width) -> (N, H / 2, W / 2, 2 width)."""
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], dim=-1)
        return self.reduction(self.norm(x))  # type: ignore[no-any-return]


class Swin(nn.Module):
    """Two stages: windows, shifted windows, merging, windows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 12, 2, 2)  # 16 -> 8
        self.layers = nn.Sequential(
            SwinBlock(12, 8, 4, 0, num_heads=3),
            SwinBlock(12, 8, 4, 2, num_heads=3),
            PatchMerging(12),  # 8 -> 4
            SwinBlock(24, 4, 4, 0, num_heads=4),
        )
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 16, 16) -> (N, CLASSES)."""
        x = self.layers(self.patch_embed(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))  # type: ignore[no-any-return]


ENTRIES = {
    "convnext": Entry(
        family="ConvNeXt",
        note="layer-norm over channels, permuted maps, layer scale",
        make=seeded(convnext),
        inputs=images(3, 16, 16),
        players={"hidden channel": 20, "neuron": 40},
        skips={"9": OUTPUT},
    ),
    "swin": Entry(
        family="Swin",
        note="heads with their position biases; shifted windows side by side in the batch",
        make=seeded(Swin),
        inputs=images(3, 16, 16),
        players={"hidden channel": 36, "head": 10, "neuron": 96},
        skips={"head": OUTPUT},
    ),
}
