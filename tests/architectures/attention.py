"""Vision transformers: timm's style, torch's layers, and MLP-Mixer, which mixes patches without attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.entry import CLASSES, OUTPUT, Entry, images, seeded
from shaprune.builtin import open_attention

WIDTH, PATCHES = 16, 4
MIXED = "(MultiheadAttention) mixes channels"


class Attention(nn.Module):
    """Queries, keys and values from one linear layer; heads by reshaping with the number of heads and their width."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> the same."""
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (B, heads, N, head_dim)
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(x.transpose(1, 2).reshape(b, n, -1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same."""
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.5 + torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same."""
        return x * self.gamma


class Layer(nn.Module):
    """Norm, attention, norm, feed-forward, both scaled and added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(WIDTH), Attention(WIDTH, 4), LayerScale(WIDTH)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(WIDTH), FeedForward(WIDTH, 24), LayerScale(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, WIDTH) -> the same."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Patches and a class token, positions added, transformer layers, the class token classified (timm's style)."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + PATCHES, WIDTH))
        self.blocks, self.norm = layers, nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 8, 8) -> (B, CLASSES)."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)  # (B, PATCHES, WIDTH)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])  # type: ignore[no-any-return]


class TorchLayer(nn.Module):
    """A layer around ``nn.MultiheadAttention``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, WIDTH) -> the same."""
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 24, batch_first=True, norm_first=True)
    return nn.Sequential(*(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) for _ in range(2)))


class Mixer(nn.Module):
    """Feed-forward over the patches, then over the channels (Tolstikhin et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.patches = nn.LayerNorm(WIDTH), FeedForward(PATCHES, 10)
        self.norm2, self.channels = nn.LayerNorm(WIDTH), FeedForward(WIDTH, 24)

    def forward(self, x: Tensor) -> Tensor:
        """(B, PATCHES, WIDTH) -> the same."""
        x = x + self.patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))  # type: ignore[no-any-return]


class MixerNet(nn.Module):
    """Patches, mixers, a norm, the mean over the patches classified."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, WIDTH, 4, 4), nn.Sequential(Mixer(), Mixer())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 8, 8) -> (B, CLASSES)."""
        x = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


ENTRIES = {
    "vit": Entry(
        family="ViT (timm style)",
        note="fused queries, keys and values; class token, positions, layer scale",
        make=seeded(lambda: ViT(nn.Sequential(Layer(), Layer()))),
        inputs=images(3, 8, 8),
        players={"hidden channel": 16, "head": 8, "neuron": 48},
        skips={"head": OUTPUT},
    ),
    "vit-torch": Entry(
        family="ViT (nn.MultiheadAttention)",
        note="heads that read their weights without calling layers: with `open_attention`",
        make=seeded(lambda: open_attention(ViT(nn.Sequential(TorchLayer(), TorchLayer())))),
        inputs=images(3, 8, 8),
        players={"hidden channel": 16, "head": 8, "neuron": 48},
        skips={"head": OUTPUT},
    ),
    "encoder-torch": Entry(
        family="ViT (nn.TransformerEncoderLayer)",
        note="torch's own layers, which take another path in eval mode",
        make=seeded(lambda: ViT(_encoder())),
        inputs=images(3, 8, 8),
        players={"neuron": 48},
        skips={
            "patch_embed": MIXED,
            "*.linear2": MIXED,
            "*.out_proj": "nn.MultiheadAttention uses its weight without calling it",
            "head": OUTPUT,
        },
    ),
    "encoder-open": Entry(
        family="ViT (nn.TransformerEncoderLayer, opened)",
        note="the same with `open_attention`",
        make=seeded(lambda: open_attention(ViT(_encoder()))),
        inputs=images(3, 8, 8),
        players={"hidden channel": 16, "head": 8, "neuron": 48},
        skips={"head": OUTPUT},
    ),
    "mixer": Entry(
        family="MLP-Mixer",
        note="hidden neurons over patches and over channels",
        make=seeded(MixerNet),
        inputs=images(3, 8, 8),
        players={"hidden channel": 16, "neuron": 68},
        skips={"*.patches.fc2": "stand on another axis", "head": OUTPUT},
    ),
}
