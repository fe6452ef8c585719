"""Small registered networks on which the promises are tested: ``NETWORKS`` maps a name to (factory, example inputs).

Every factory is seeded, every batch-norm has random statistics and affine parameters (so that a zeroed channel does not
stay zero behind it), and every network ends in a linear layer with five outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_OUTPUTS = 5
BATCH = 4


class Plain(nn.Module):
    """Convolutions with batch-norm and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 10, 3)
        self.fc = nn.Linear(10, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.conv3(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Flattened(nn.Module):
    """A convolution flattened into a linear layer: one channel is many input features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 4 * 4, 12), nn.Linear(12, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x))
        return self.fc2(torch.sigmoid(self.fc1(torch.flatten(x, 1))))


class Residual(nn.Module):
    """An identity shortcut, then a projection shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1a, self.bn1a = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1b, self.bn1b = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2a, self.bn2a = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2b, self.bn2b = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.project, self.bn2p = nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn1b(self.conv1b(F.relu(self.bn1a(self.conv1a(x))))) + x)
        x = F.relu(self.bn2b(self.conv2b(F.relu(self.bn2a(self.conv2a(x))))) + self.bn2p(self.project(x)))
        return self.fc(x.mean((2, 3)))


class Concatenated(nn.Module):
    """Two branches side by side, and the input of both carried along (as in Inception and DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.left, self.bn_left = nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)
        self.right = nn.Conv2d(6, 7, 3, padding=1)
        self.merge, self.bn_merge = nn.Conv2d(21, 9, 3, bias=False), nn.BatchNorm2d(9)
        self.fc = nn.Linear(9, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = torch.cat([F.relu(self.bn_left(self.left(x))), torch.tanh(self.right(x)), x], dim=1)
        x = F.relu(self.bn_merge(self.merge(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Depthwise(nn.Module):
    """An inverted residual block without shortcut: expand, one filter per channel, project (as in MobileNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(3, 10, 1, bias=False), nn.BatchNorm2d(10)
        self.depth, self.bn2 = nn.Conv2d(10, 10, 3, padding=1, groups=10, bias=False), nn.BatchNorm2d(10)
        self.project, self.bn3 = nn.Conv2d(10, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn1(self.expand(x)))
        x = F.relu6(self.bn2(self.depth(x)))
        x = self.bn3(self.project(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Grouped(nn.Module):
    """A convolution in four groups between two plain ones (as in ResNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.bn2 = nn.Conv2d(8, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16)
        self.conv3, self.bn3 = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.grouped(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Perceptron(nn.Module):
    """Linear layers with batch-norm, an activation that maps 0 elsewhere, and dropout (off in eval mode)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(10, 16), nn.BatchNorm1d(16)
        self.fc2, self.drop = nn.Linear(16, 12), nn.Dropout(0.5)
        self.fc3 = nn.Linear(12, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.bn1(self.fc1(x)))
        return self.fc3(self.drop(torch.sigmoid(self.fc2(x))))


class Signal(nn.Module):
    """One-dimensional convolutions over a sequence, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(2, 8, 5, padding=2), nn.BatchNorm1d(8)
        self.conv2, self.bn2 = nn.Conv1d(8, 6, 3, padding=1, bias=False), nn.BatchNorm1d(6)
        self.fc = nn.Linear(6 * 8, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.leaky_relu(self.bn2(self.conv2(x)))
        return self.fc(x.flatten(1))


class Padded(nn.Module):
    """ResNet's option-A shortcut: subsampled, and padded with channels of zeros on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, N_OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _seeded(kind: Callable[[], nn.Module], seed: int) -> Callable[[], nn.Module]:
    """A factory that always makes the same network, in eval mode, and draws nothing from the global generator."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = kind()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    nn.init.normal_(module.running_mean, std=0.5)
                    nn.init.uniform_(module.running_var, 0.5, 2.0)
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.5)
        return model.eval()

    return make


def _inputs(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(7))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "plain": (_seeded(Plain, 1), _inputs(3, 8, 8)),
    "flattened": (_seeded(Flattened, 2), _inputs(1, 8, 8)),
    "residual": (_seeded(Residual, 3), _inputs(3, 8, 8)),
    "concatenated": (_seeded(Concatenated, 4), _inputs(3, 8, 8)),
    "depthwise": (_seeded(Depthwise, 5), _inputs(3, 8, 8)),
    "grouped": (_seeded(Grouped, 6), _inputs(3, 8, 8)),
    "mlp": (_seeded(Perceptron, 7), _inputs(10)),
    "conv1d": (_seeded(Signal, 8), _inputs(2, 16)),
    "padded": (_seeded(Padded, 9), _inputs(3, 8, 8)),
}


def labelled(example: Tensor, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random inputs (n, ...) like those of ``example``, and their classes, each in turn."""
    inputs = torch.randn(n, *example.shape[1:], generator=torch.Generator().manual_seed(seed))
    return inputs, torch.arange(n) % N_OUTPUTS
