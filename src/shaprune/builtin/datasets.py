"""Labelled data in three parts that never mix: train, held out (for scoring and calibration), and test.

Every split is fixed: it depends on the data alone, never on a caller's seed, so that a model trained in one run is not
tested in another on what it was trained on. Each part is in a fixed shuffled order: its first n examples are a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from shaprune.builtin import image_sources
from shaprune.builtin.factories import call_dataset_factory
from shaprune.builtin.image_decoders import Images
from shaprune.builtin.splits import Dataset, Split, n_held_out
from shaprune.errors import InputError, nearest
from shaprune.options.preprocessing import AS_THEY_ARE, IMAGENET, Preprocessing, Scaling

__all__ = ["Dataset", "Split", "load_dataset"]


def load_dataset(
    spec: str,
    *,
    limit: int | None = None,
    cache: Path | None = None,
    held_out: Sequence[int] | None = None,
    preprocessing: Preprocessing = AS_THEY_ARE,
) -> Dataset:
    """Load data by name.

    Args:
        spec: ``digits`` (scikit-learn's, 8x8, in [0, 1]); ``mnist:DIR`` (IDX files, standardised);
            ``cifar10:DIR`` (binary batches, an image folder, or cifar10-jpeg.tar.xz, standardised);
            ``folder:DIR`` (train/<class>/ and test/<class>/ or val/<class>/, in [0, 1] unless ``preprocessing`` says);
            ``package.module:factory`` (see `call_dataset_factory`).
        limit: keep at most so many examples of each part.
        cache: a folder in which decoded images are kept for the next time.
        held_out: which training images to hold out, as indices in source order (folders: by class, then by file name).
        preprocessing: how images of ``folder:DIR`` are resized, cropped and scaled.

    Raises:
        InputError: an unknown name, missing or damaged files, indices that do not fit, or ``preprocessing`` for data
            that have their own.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it must be at least 1")
    kind, colon, rest = spec.partition(":")
    if preprocessing != AS_THEY_ARE and kind != "folder":
        raise InputError(
            f"preset, mean, std, resize and crop are for folder:DIR, and data {spec!r} have their own; leave them out"
        )
    if kind in _READERS:
        if not rest:
            raise InputError(f"data {spec!r} lacks its directory; write {kind}:DIR")
        source = _READERS[kind](Path(rest).expanduser(), cache, preprocessing)
        return _split(kind, source, _OWN.get(kind, preprocessing), limit, held_out)
    if held_out is not None:
        raise InputError(f"held_out does not apply to data {spec!r}; only to {', '.join(_READERS)}")
    if spec == "digits":
        return _limited(_digits(), limit)
    hint = nearest(kind, ["digits", *_READERS])
    if not colon:
        raise InputError(f"unknown data {spec!r}{hint} Or name a factory: package.module:factory.")
    return _limited(call_dataset_factory(spec, hint=hint), limit)


_READERS: dict[str, Callable[[Path, Path | None, Preprocessing], image_sources.Source]] = {
    "mnist": lambda directory, cache, _: image_sources.read_mnist(directory),
    "cifar10": lambda directory, cache, _: image_sources.read_cifar10(directory, cache=cache),
    "folder": lambda directory, cache, how: image_sources.read_image_folder(directory, cache=cache, prepared=how),
}
_OWN = {  # what these data are scaled by
    "mnist": Preprocessing(mean=(0.1307,), std=(0.3081,)),
    "cifar10": Preprocessing(mean=IMAGENET[0], std=IMAGENET[1]),
}


def _digits() -> Dataset:
    """The 1,797 handwritten digits of scikit-learn: 1,000 to train, 300 held out, 497 to test, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=497, stratify=labels, random_state=0)
    train, held_out = train_test_split(rest, test_size=300, stratify=labels[rest], random_state=0)

    def split(rows: NDArray[np.int64]) -> Split:
        inputs = torch.from_numpy(pixels[rows]).float().div_(16).reshape(-1, 1, 8, 8)
        return Split(inputs, torch.from_numpy(labels[rows]).long())

    return Dataset("digits", split(train), split(held_out), split(test), tuple("0123456789"), AS_THEY_ARE)


def _split(
    name: str, source: image_sources.Source, prepared: Preprocessing, limit: int | None, held_out: Sequence[int] | None
) -> Dataset:
    """Part, shuffle, cut and scale, in this order: only what is kept becomes floating point."""
    order = _shuffled(source.train)
    calibration, rows = source.train, order
    if held_out is not None:
        aside = _check_indices(held_out, len(order))[order]
        order, rows = order[~aside], order[aside]
    elif source.held_out is not None:
        calibration, rows = source.held_out, _shuffled(source.held_out)
    else:
        n = n_held_out(len(order))
        order, rows = order[n:], order[:n]
    return Dataset(
        name,
        train=_scaled(source.train, order[:limit], prepared.scaling),
        held_out=_scaled(calibration, rows[:limit], prepared.scaling),
        test=_scaled(source.test, _shuffled(source.test)[:limit], prepared.scaling),
        classes=source.classes,
        prepared=prepared,
    )


def _shuffled(images: Images) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(len(images.labels))


def _check_indices(indices: Sequence[int], n: int) -> NDArray[np.bool_]:
    """Indices into ``n`` training images as a mask (n,)."""
    rows = np.asarray(indices)
    if rows.ndim != 1 or not rows.size or rows.dtype.kind not in "iu":
        raise InputError("held_out must be a non-empty list of integers: which training images to hold out")
    if rows.min() < 0 or rows.max() >= n or len(np.unique(rows)) != len(rows) or len(rows) >= n:
        raise InputError(
            f"held_out names images {rows.min()} to {rows.max()}; give distinct indices below {n}, not all"
        )
    mask = np.zeros(n, dtype=bool)
    mask[rows] = True
    return mask


def _scaled(images: Images, rows: NDArray[np.int64], scaling: Scaling | None) -> Split:
    pixels = images.pixels[rows]
    inputs = torch.from_numpy(pixels.astype(np.float32)).div_(np.iinfo(pixels.dtype).max)
    if scaling is not None:
        mean, std = (torch.tensor(s).reshape(-1, 1, 1) for s in scaling)
        if inputs.shape[1] == 1 and len(mean) == 3:  # grey images for a network of colours
            inputs = inputs.repeat(1, 3, 1, 1)
        if inputs.shape[1] != len(mean):
            raise InputError(
                f"the images have {inputs.shape[1]} channels, and are scaled by {len(mean)} means; use folder:DIR for "
                "them, with --mean and --std (Preprocessing(mean=..., std=...)) of as many"
            )
        inputs.sub_(mean).div_(std)
    return Split(inputs, torch.from_numpy(images.labels[rows]))


def _limited(dataset: Dataset, limit: int | None) -> Dataset:
    if limit is None:
        return dataset
    train, held_out, test = (part.take(limit) for part in (dataset.train, dataset.held_out, dataset.test))
    return replace(dataset, train=train, held_out=held_out, test=test)
