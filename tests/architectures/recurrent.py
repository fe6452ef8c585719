"""Recurrent networks: units of LSTM and GRU layers leave, and so does what stands around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.entry import CLASSES, OUTPUT, Entry, seeded, tokens

WORDS, LENGTH = 20, 6


class Recurrent(nn.Module):
    """Embedding, recurrent layers, a hidden linear layer on the last state."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.rnn = layer(8, 10, batch_first=True, bidirectional=layer is nn.GRU)
        self.fc1, self.fc2 = nn.Linear(20 if layer is nn.GRU else 10, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, LENGTH) word indices -> (N, CLASSES)."""
        states, _ = self.rnn(self.embedding(x))
        return self.fc2(torch.relu(self.fc1(states[:, -1])))  # type: ignore[no-any-return]


ENTRIES = {
    "lstm": Entry(
        family="LSTM",
        note="hidden units, and the embedding in front",
        make=seeded(lambda: Recurrent(nn.LSTM)),
        inputs=lambda batch: tokens(batch, LENGTH, entries=WORDS),
        players={"channel": 18, "neuron": 12},
        skips={"fc2": OUTPUT},
    ),
    "gru": Entry(
        family="GRU",
        note="unit j of both directions, and the embedding in front",
        make=seeded(lambda: Recurrent(nn.GRU)),
        inputs=lambda batch: tokens(batch, LENGTH, entries=WORDS),
        players={"channel": 18, "neuron": 12},
        skips={"fc2": OUTPUT},
    ),
}
