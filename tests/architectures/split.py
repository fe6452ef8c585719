"""Networks that split their channels and send the parts different ways: YOLO, CSP, Res2Net, MixNet, FasterNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.entry import CLASSES, OUTPUT, Entry, images, seeded
from architectures.parts import unit


def _silu(n_in: int, n_out: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    return unit(n_in, n_out, kernel, stride=stride, activation=nn.SiLU)


class Bottleneck(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = _silu(width, inner, 3), _silu(inner, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        return x + self.cv2(self.cv1(x))  # type: ignore[no-any-return]


class C3(nn.Module):
    """Two branches, of which one has bottlenecks, concatenated."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = _silu(width, inner), _silu(width, inner), _silu(2 * inner, width)
        self.m = nn.Sequential(Bottleneck(inner, inner))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))  # type: ignore[no-any-return]


class C2f(nn.Module):
    """YOLOv8's C2f, and with C3 inside YOLO11's C3k2: all parts of a chunk and what follows are concatenated."""

    def __init__(self, n_in: int, n_out: int, width: int, *inner: nn.Module, by_size: bool = False) -> None:
        super().__init__()
        self.c, self.by_size = width, by_size
        self.cv1, self.cv2 = _silu(n_in, 2 * width), _silu((2 + len(inner)) * width, n_out)
        self.m = nn.ModuleList(inner)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H, W)."""
        y = self.cv1(x)
        parts = list(y.split((self.c, self.c), 1) if self.by_size else y.chunk(2, 1))
        parts.extend(layer(parts[-1]) for layer in self.m)
        return self.cv2(torch.cat(parts, 1))  # type: ignore[no-any-return]


class Pyramid(nn.Module):
    """SPPF: one map, pooled again and again, concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.m = _silu(width, width // 2), _silu(width // 2 * 4, width), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))  # type: ignore[no-any-return]


class Head(nn.Module):
    """Average pooling and a linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> (N, CLASSES)."""
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class CrossStage(nn.Module):
    """CSPDarknet in timm: half of a kept width passes the blocks by."""

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        self.expand_chs = width
        self.conv_down, self.conv_exp = _silu(n_in, width, 3, 2), _silu(width, width)
        self.blocks = nn.Sequential(Bottleneck(width // 2, 4), Bottleneck(width // 2, 4))
        self.conv_transition_b, self.conv_transition = _silu(width // 2, width // 2), _silu(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, width, H / 2, W / 2)."""
        passed, x = self.conv_exp(self.conv_down(x)).split(self.expand_chs // 2, 1)
        y = torch.cat((passed, self.conv_transition_b(self.blocks(x))), 1)
        return self.conv_transition(y)  # type: ignore[no-any-return]


class Scales(nn.Module):
    """Res2Net: each part of the middle layer is convolved, and added to the next."""

    def __init__(self, n_in: int, width: int, scales: int = 4) -> None:
        super().__init__()
        self.width = width
        self.conv1, self.conv3 = unit(n_in, width * scales, 1), unit(width * scales, n_in, 1, activation=None)
        self.convs = nn.ModuleList(unit(width, width, 3) for _ in range(scales - 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> the same."""
        parts = torch.split(self.conv1(x), self.width, 1)
        out, y = [], torch.zeros_like(parts[0])
        for layer, part in zip(self.convs, parts, strict=False):
            y = layer(y + part)
            out.append(y)
        return torch.relu(x + self.conv3(torch.cat((*out, parts[-1]), 1)))


class Kernels(nn.Module):
    """MixNet: depthwise kernels of several sizes, each over a part of the channels."""

    def __init__(self, width: int, splits: tuple[int, ...]) -> None:
        super().__init__()
        self.splits = list(splits)
        self.expand, self.project = unit(width, sum(splits), 1), unit(sum(splits), width, 1, activation=None)
        kernels = zip(splits, (3, 5, 7), strict=True)
        self.kernels = nn.ModuleList(nn.Conv2d(n, n, k, padding=k // 2, groups=n, bias=False) for n, k in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        parts = torch.split(self.expand(x), self.splits, 1)
        y = torch.cat([kernel(part) for kernel, part in zip(self.kernels, parts, strict=True)], 1)
        return x + self.project(torch.relu(y))  # type: ignore[no-any-return]


class Partial(nn.Module):
    """FasterNet: a quarter of the residual stream is convolved, the rest passes to the neurons as it is."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dim_conv3, self.dim_untouched = width // 4, width - width // 4
        self.partial_conv3 = nn.Conv2d(self.dim_conv3, self.dim_conv3, 3, padding=1, bias=False)
        self.mlp = nn.Sequential(unit(width, inner, 1), nn.Conv2d(inner, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) -> the same."""
        a, b = torch.split(x, [self.dim_conv3, self.dim_untouched], 1)
        return x + self.mlp(torch.cat((self.partial_conv3(a), b), 1))  # type: ignore[no-any-return]


def _of(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def yolo() -> nn.Module:
    """The backbone of YOLOv8 and YOLO11, as a classifier."""
    return _of(
        _silu(3, 6, 3, 2),
        C2f(6, 8, 4, Bottleneck(4, 4), Bottleneck(4, 4)),
        _silu(8, 12, 3, 2),
        C2f(12, 12, 6, C3(6, 3), by_size=True),
        Pyramid(12),
        Head(12),
    )


ENTRIES = {
    "yolo": Entry(
        family="YOLOv8, YOLO11",
        note="C2f, C3k2: halves of a chunk or split go different ways and leave together; SPPF",
        make=seeded(yolo),
        inputs=images(3, 16, 16),
        players={"channel": 89},
        skips={"5.fc": OUTPUT},
    ),
    "cspdarknet": Entry(
        family="CSPDarknet",
        note="half of the channels passes the blocks by; split by half of a kept width",
        make=seeded(lambda: _of(_silu(3, 6, 3), CrossStage(6, 8), CrossStage(8, 12), Head(12))),
        inputs=images(3, 16, 16),
        players={"channel": 82},
        skips={"3.fc": OUTPUT},
    ),
    "res2net": Entry(
        family="Res2Net",
        note="parts of a split are convolved one after the other: one channel of each leaves together",
        make=seeded(lambda: _of(unit(3, 8, 3), Scales(8, 4), Scales(8, 3), Head(8))),
        inputs=images(3, 8, 8),
        players={"channel": 22},
        skips={"3.fc": OUTPUT},
    ),
    "mixnet": Entry(
        family="MixNet",
        note="depthwise kernels of several sizes over parts whose sizes the code keeps in a list",
        make=seeded(lambda: _of(unit(3, 8, 3), Kernels(8, (6, 4, 4)), Kernels(8, (5, 3, 3)), Head(8))),
        inputs=images(3, 8, 8),
        players={"channel": 33},
        skips={"3.fc": OUTPUT},
    ),
    "fasternet": Entry(
        family="FasterNet",
        note="a quarter of the residual stream is convolved; both parts leave with the numbers kept of them",
        make=seeded(lambda: _of(unit(3, 12, 3), Partial(12, 16), Partial(12, 16), Head(12))),
        inputs=images(3, 8, 8),
        players={"channel": 50},
        skips={"3.fc": OUTPUT},
    ),
}
