"""ImageNet as `shaprune compress` takes it: images to score and test on, and a fine-tuning that reads from disk.

From this folder, with the weights of torchvision (or any state dict of the same network):

    IMAGENET=DIR shaprune compress --config resnet50-imagenet.yaml --weights resnet50.pth

``DIR`` holds ``train/<class>/`` and ``val/<class>/``. Settings are read from the environment: ``IMAGENET_SIDE``
(pixels, 224), ``IMAGENET_TEST`` (validation images held in memory, 5000), ``IMAGENET_EPOCHS`` (30),
``IMAGENET_WORKERS`` (8).
It has not been run on ImageNet: there was neither the data nor a GPU. Tests run it on a few made images.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Examples

from shaprune.builtin.image_decoders import list_folder
from shaprune.builtin.splits import Dataset, Split
from shaprune.errors import InputError

CALIBRATION, BATCH = 1000, 256
LR, MOMENTUM, WEIGHT_DECAY, SMOOTHING = 0.05, 0.9, 5e-5, 0.1
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Photographs(Examples[tuple[Tensor, int]]):
    """Images of a folder; each decoded, cut to a square and standardised when it is asked for.

    Args:
        part: ``train`` or ``val``.
        rows: which of them, in the order of their classes and names; None = all.
        varied: mirrored at random, and a random part of each (Szegedy et al. 2015) instead of its centre.
    """

    def __init__(self, part: str, rows: np.ndarray | None = None, *, varied: bool = False) -> None:
        if "IMAGENET" not in os.environ:
            raise InputError("IMAGENET is not set; let it name the folder that holds train/ and val/")
        listing = list_folder(Path(os.environ["IMAGENET"]) / part)
        self.classes = sorted({name for name, _ in listing})
        self.listing = listing if rows is None else [listing[i] for i in rows]
        self.varied, self.side = varied, int(os.environ.get("IMAGENET_SIDE", 224))

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        name, path = self.listing[index]
        with Image.open(path) as opened:
            image = opened.convert("RGB")
            image = self._some(image) if self.varied else self._centre(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - MEAN) / STD, self.classes.index(name)

    def _centre(self, image: Image.Image) -> Image.Image:
        short = min(image.size) * 224 / 256  # as if the shorter side had 256 pixels and the centre 224
        left, top = ((length - short) / 2 for length in image.size)
        return image.resize((self.side, self.side), box=(left, top, left + short, top + short))

    def _some(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        area, ratio = torch.empty(2).uniform_(0, 1).tolist()
        size = (0.08 + 0.92 * area) * width * height
        shape = (3 / 4) ** (1 - 2 * ratio)
        w, h = min(width, (size * shape) ** 0.5), min(height, (size / shape) ** 0.5)
        left, top, mirror = (torch.rand(3) * torch.tensor([width - w, height - h, 1])).tolist()
        found = image.resize((self.side, self.side), box=(left, top, left + w, top + h))
        return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror < 0.5 else found


def images() -> Dataset:
    """1,000 training images to score and refit on, and validation images to test on. Training data stay on disk."""
    every = Photographs("train")
    order = np.random.default_rng(0).permutation(len(every))
    aside, few = order[:CALIBRATION], order[CALIBRATION : CALIBRATION + 1]
    if not few.size:
        aside, few = order[:-1], order[-1:]
    n = int(os.environ.get("IMAGENET_TEST", 5000))
    test = np.random.default_rng(0).permutation(len(Photographs("val")))[:n]
    parts = (_held(Photographs("train", few)), _held(Photographs("train", aside)), _held(Photographs("val", test)))
    return Dataset("imagenet", *parts, classes=tuple(every.classes))


def finetune(model: nn.Module) -> None:
    """Train on all training images but those that score: SGD, label smoothing, cosine; the settings are the usual ones.

    What is held out for scoring is never trained on, and the validation images are never looked at.
    """
    epochs, device = int(os.environ.get("IMAGENET_EPOCHS", 30)), next(model.parameters()).device
    rows = np.random.default_rng(0).permutation(len(Photographs("train")))
    rows = rows[CALIBRATION:] if len(rows) > CALIBRATION else rows[-1:]
    workers = int(os.environ.get("IMAGENET_WORKERS", 8))
    loader = DataLoader(
        Photographs("train", rows, varied=True),
        BATCH,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                outputs = model(x.to(device, non_blocking=True))
            loss = F.cross_entropy(outputs.float(), y.to(device), label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


def _held(photographs: Photographs) -> Split:
    found = [photographs[i] for i in range(len(photographs))]
    return Split(torch.stack([x for x, _ in found]), torch.tensor([y for _, y in found]))
