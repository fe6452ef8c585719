"""Recurrent networks: the weights of LSTM and GRU layers are no layers that can be cut, what stands around them is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.entry import CLASSES, OUTPUT, Entry, seeded, tokens

WORDS, LENGTH = 20, 6
HIDDEN = "hidden units"


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
        note="hidden units stay, the classifier behind them is pruned",
        make=seeded(lambda: Recurrent(nn.LSTM)),
        inputs=lambda batch: tokens(batch, LENGTH, entries=WORDS),
        players={"neuron": 12},
        skips={"embedding": "(LSTM) mixes channels", "rnn": HIDDEN, "fc2": OUTPUT},
    ),
    "gru": Entry(
        family="GRU",
        note="both directions; hidden units stay, the classifier behind them is pruned",
        make=seeded(lambda: Recurrent(nn.GRU)),
        inputs=lambda batch: tokens(batch, LENGTH, entries=WORDS),
        players={"neuron": 12},
        skips={"embedding": "(GRU) mixes channels", "rnn": HIDDEN, "fc2": OUTPUT},
    ),
}
