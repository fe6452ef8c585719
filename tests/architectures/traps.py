"""What breaks pruners: shared weights and modules, several inputs and outputs, functional layers, gates, offsets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.entry import CLASSES, OUTPUT, Entry, images, noise, seeded


class Tied(nn.Module):
    """The decoder's weight is the encoder's; the layer before them is free."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.encoder = nn.Linear(10, 12), nn.Linear(12, 8)
        self.middle, self.decoder = nn.Linear(8, 12), nn.Linear(12, 8)
        self.decoder.weight = self.encoder.weight
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 10) -> (N, CLASSES)."""
        x = torch.relu(self.encoder(torch.relu(self.first(x))))
        x = torch.relu(self.decoder(torch.relu(self.middle(x))))
        return self.last(x)  # type: ignore[no-any-return]


class Twice(nn.Module):
    """One convolution runs twice, so that its inputs and outputs are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shared, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 10, 3, padding=1)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, CLASSES)."""
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.shared(F.relu(self.shared(x))))
        return self.fc(F.relu(self.last(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Siamese(nn.Module):
    """One branch runs on two inputs; the results are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Two (N, 1, H, W) -> (N, CLASSES)."""
        one, two = (self.branch(x).mean((2, 3)) for x in (left, right))
        return self.fc((one - two).abs())  # type: ignore[no-any-return]


class TwoHeads(nn.Module):
    """Two inputs of different shape, two outputs, one of which is also read inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = nn.Conv2d(1, 6, 3), nn.Linear(4, 8)
        self.joint, self.bn = nn.Linear(14, 12), nn.BatchNorm1d(12)
        self.score, self.box = nn.Linear(12, CLASSES), nn.Linear(12 + CLASSES, 2)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, H, W), (N, 4) -> (N, CLASSES), (N, 2)."""
        x = torch.cat([F.relu(self.conv(image)).amax((2, 3)), torch.tanh(self.embed(vector))], dim=1)
        x = F.relu(self.bn(self.joint(x)))
        score = self.score(x)
        return score, self.box(torch.cat([score, x], dim=1))


class Keywords(nn.Module):
    """A dict goes in, a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.number = nn.Embedding(20, 8), nn.Linear(3, 8)
        self.hidden, self.out = nn.Linear(8, 12), nn.Linear(12, CLASSES)

    def forward(self, words: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        """(N, T) indices, (N, 3) -> logits (N, CLASSES)."""
        x = self.words(words).mean(1) + torch.relu(self.number(numbers))
        return {"logits": self.out(torch.relu(self.hidden(x)))}


class Functional(nn.Module):
    """A convolution and a linear layer without modules, around a module."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(6, 3, 3, 3) / 3), nn.Parameter(torch.randn(6))
        self.conv = nn.Conv2d(6, 8, 3)
        self.weight = nn.Parameter(torch.randn(10, 8) / 3)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, CLASSES)."""
        x = F.relu(F.conv2d(x, self.kernel, self.bias))
        x = F.relu(self.conv(x)).mean((2, 3))
        return self.fc(F.relu(F.linear(x, self.weight)))  # type: ignore[no-any-return]


class Outside(nn.Module):
    """Parameters and buffers that multiply and shift channels outside of layers."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 10, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5), nn.Parameter(torch.randn(8))
        self.register_buffer("mean", torch.randn(10))
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, CLASSES)."""
        x = torch.sigmoid(self.conv1(x) * self.scale + self.shift[:, None, None])
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)) - self.mean)  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Halves of the channels gate each other: GLU, chunk and split."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 20, 3), nn.Conv2d(10, 14, 1)
        self.fc = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, CLASSES)."""
        x = F.glu(self.conv1(x), dim=1)
        content, gate = self.conv2(x).chunk(2, dim=1)
        x = self.conv3(content * torch.tanh(gate))
        left, right = x.split(x.shape[1] // 2, dim=1)
        return self.fc((left * F.softplus(right)).mean((2, 3)))  # type: ignore[no-any-return]


class Offsets(nn.Module):
    """Concatenation, then flattening: every channel is a run of inputs at an offset of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.pooled = (
            nn.Conv2d(1, 6, 3, padding=1),
            nn.Conv2d(1, 7, 5, padding=2),
            nn.Conv2d(6, 8, 1),
        )
        self.fc1, self.fc2 = nn.Linear(9 * (6 + 7) + 8, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 6, 6) -> (N, CLASSES)."""
        left, right = F.relu(self.left(x)), torch.tanh(self.right(x))
        maps = F.max_pool2d(torch.cat([left, right], dim=1), 2)  # (N, 13, 3, 3)
        pooled = F.relu(self.pooled(left)).mean((2, 3))  # (N, 8)
        x = torch.cat([maps.flatten(1), pooled], dim=1)
        return self.fc2(F.relu(self.fc1(x)))  # type: ignore[no-any-return]


ENTRIES = {
    "tied": Entry(
        family="Weight tying",
        note="what leaves one of two layers with one weight leaves the other, too",
        make=seeded(Tied),
        inputs=lambda batch: noise(batch, 10),
        players={"neuron": 20},
        skips={"last": OUTPUT},
    ),
    "twice": Entry(
        family="A module used twice",
        note="its input and output channels leave together",
        make=seeded(Twice),
        inputs=images(3, 8, 8),
        players={"channel": 18},
        skips={"fc": OUTPUT},
    ),
    "siamese": Entry(
        family="Siamese network",
        note="two inputs, one branch",
        make=seeded(Siamese),
        inputs=lambda batch: (noise(batch, 1, 8, 8), noise(batch, 1, 8, 8, seed=1)),
        players={"channel": 14},
        skips={"fc": OUTPUT},
    ),
    "two-heads": Entry(
        family="Several inputs and outputs",
        note="a tuple in, a tuple out; one output is read inside, too",
        make=seeded(TwoHeads),
        inputs=lambda batch: (noise(batch, 1, 6, 6), noise(batch, 4)),
        players={"channel": 6, "neuron": 20},
        skips={"score": OUTPUT, "box": OUTPUT},
    ),
    "keywords": Entry(
        family="Dict inputs",
        note="an embedding and a linear layer, added",
        make=seeded(Keywords),
        inputs=lambda batch: {
            "words": torch.arange(4 * batch).view(batch, 4) % 20,
            "numbers": noise(batch, 3),
        },
        players={"channel": 8, "neuron": 12},
        skips={"out": OUTPUT},
    ),
    "functional": Entry(
        family="Functional layers",
        note="the weights of F.conv2d and F.linear stay, with the layers they read and feed",
        make=seeded(Functional),
        inputs=images(3, 8, 8),
        players={},
        skips={"conv": "the network's code mixes them", "kernel": "without a layer", "fc": OUTPUT},
    ),
    "outside": Entry(
        family="Parameters outside modules",
        note="factors, shifts and buffers per channel are cut, too",
        make=seeded(Outside),
        inputs=images(3, 8, 8),
        players={"channel": 18},
        skips={"fc": OUTPUT},
    ),
    "gated": Entry(
        family="Gated channels",
        note="GLU, chunk, split: a channel leaves with its gate",
        make=seeded(Gated),
        inputs=images(3, 8, 8),
        players={"channel": 25},
        skips={"fc": OUTPUT},
    ),
    "offsets": Entry(
        family="Concatenation, then flattening",
        note="a channel is a run of inputs at its own offset",
        make=seeded(Offsets),
        inputs=images(1, 6, 6),
        players={"channel": 21, "neuron": 12},
        skips={"fc2": OUTPUT},
    ),
}
