"""The images that a command line names: examples of the test part by number, or the files of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from shaprune.builtin.datasets import Dataset
from shaprune.builtin.image_decoders import IMAGE_SUFFIXES, shaped
from shaprune.cli.command import as_usage_error
from shaprune.errors import InputError
from shaprune.pipeline.feature_maps import MAX_IMAGES


def read_images(text: str, data: Dataset) -> Tensor:
    """(N, C, H, W), scaled as the data are.

    Args:
        text: ``"0,7,12"``, examples of the test part; or a folder of images, which are brought to the data's size.
        data: the data.
    """
    with as_usage_error("--images"):
        like = data.test.inputs
        if like.ndim != 4 or like.shape[1] not in (1, 3):
            raise InputError(
                f"the examples have shape {tuple(like.shape[1:])}; looking needs images, grey or in colour"
            )
        if Path(text).is_dir():
            return _folder(Path(text), data)
        return like[_numbers(text, len(like))]


def _numbers(text: str, n: int) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is neither a folder nor numbers of test examples such as 0,7,12") from None
    if not all(0 <= number < n for number in found) or len(found) > MAX_IMAGES:
        raise InputError(f"{text!r}: give at most {MAX_IMAGES} numbers, from 0 to {n - 1}")
    return found


def _folder(folder: Path, data: Dataset) -> Tensor:
    prepared = data.prepared
    if prepared is None:
        raise InputError(f"how {data.name!r} scales its pixels is not known; name examples of its test part by number")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    if not 1 <= len(files) <= MAX_IMAGES:
        raise InputError(f"{folder} holds {len(files)} images ({', '.join(IMAGE_SUFFIXES)}); give 1 to {MAX_IMAGES}")
    n_channels, height, width = data.test.inputs.shape[1:]
    pixels = []
    for file in files:
        try:
            with Image.open(file) as image:
                small = shaped(image.convert("L" if n_channels == 1 else "RGB"), prepared).resize((width, height))
                pixels.append(np.asarray(small, dtype=np.float32).reshape(height, width, n_channels))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{file} cannot be decoded as an image; replace or remove it") from error
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    if prepared.scaling is not None:
        mean, deviation = (torch.tensor(s).reshape(-1, 1, 1) for s in prepared.scaling)
        images = (images - mean) / deviation
    return images.contiguous()
