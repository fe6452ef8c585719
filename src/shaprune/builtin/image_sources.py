"""Sources of labelled images: a folder on disk in one of the known layouts -> arrays of bytes, as published.

Reading is separate from splitting and scaling (`datasets`), so that what is slow, decoding, can be kept in a cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shaprune.builtin import image_decoders
from shaprune.builtin.image_decoders import Images
from shaprune.errors import InputError
from shaprune.options.preprocessing import AS_THEY_ARE, Preprocessing

CIFAR_BINARY = "cifar-10-batches-bin"
CIFAR_TAR = "cifar10-jpeg.tar.xz"
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Source:
    """Images as published; ``held_out`` only where the publisher set some aside (a folder ``val/``)."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    held_out: Images | None = None


def read_mnist(directory: Path) -> Source:
    """MNIST from its four IDX files, in ``directory``, ``directory/raw`` or ``directory/MNIST/raw``.

    Raises:
        InputError: a missing, truncated or mismatched file.
    """
    _check_directory(directory, "mnist")
    homes = [directory, directory / "raw", directory / "MNIST" / "raw"]
    home = next((h for h in homes if _idx(h, "train-images-idx3-ubyte")), directory)

    def read(part: str) -> Images:
        images = _idx(home, f"{part}-images-idx3-ubyte") or home / f"{part}-images-idx3-ubyte.gz"
        labels = _idx(home, f"{part}-labels-idx1-ubyte") or home / f"{part}-labels-idx1-ubyte.gz"
        for path in (images, labels):
            if not path.is_file():
                raise InputError(f"{path} is missing; mnist:DIR needs the four IDX files of MNIST, gzipped or not")
        pixels, targets = image_decoders.read_idx(images), image_decoders.read_idx(labels)
        if pixels.ndim != 3 or targets.ndim != 1 or len(pixels) != len(targets):
            raise InputError(
                f"{images} holds {pixels.shape} and {labels.name} {targets.shape}; they do not belong together"
            )
        return Images(pixels[:, None], targets.astype(np.int64))  # (N, H, W) -> (N, 1, H, W)

    return Source(read("train"), read("t10k"), tuple("0123456789"))


def read_cifar10(directory: Path, *, cache: Path | None) -> Source:
    """CIFAR-10 as binary batches, as an image folder, or as ``cifar10-jpeg.tar.xz``.

    Raises:
        InputError: none of these, or a damaged one. The pickled "python version" is refused.
    """
    _check_directory(directory, "cifar10")
    for home in (directory / CIFAR_BINARY, directory):
        if (home / "data_batch_1.bin").is_file():
            train = image_decoders.read_cifar_binary([home / f"data_batch_{i}.bin" for i in range(1, 6)])
            return Source(train, image_decoders.read_cifar_binary([home / "test_batch.bin"]), CIFAR_CLASSES)
    if (directory / "train").is_dir():
        return read_image_folder(directory, cache=cache)
    tar = directory / CIFAR_TAR
    if tar.is_file():
        return _cached(cache, [tar], lambda: _read_cifar_tar(tar))
    if any((home / "data_batch_1").is_file() for home in (directory / "cifar-10-batches-py", directory)):
        raise InputError(
            f"{directory} holds CIFAR-10's python version, which is pickled code and is not loaded; "
            f"use the binary version ({CIFAR_BINARY}) or an image folder (train/<class>/, test/<class>/)"
        )
    raise InputError(
        f"{directory} holds no CIFAR-10; expected {CIFAR_BINARY}/, train/<class>/ and test/<class>/, or {CIFAR_TAR}"
    )


def _read_cifar_tar(tar: Path) -> Source:
    parts = image_decoders.read_tar(tar)
    for part in ("train", "test"):
        if part not in parts:
            raise InputError(f"{tar} has no {part}/<class>/ images; found: {', '.join(sorted(parts))}")
    (train, classes), (test, test_classes) = parts["train"], parts["test"]
    if test_classes != classes:
        raise InputError(f"{tar}: train has the classes {classes} and test has {test_classes}; they must agree")
    return Source(train, test, classes)


def read_image_folder(directory: Path, *, cache: Path | None, prepared: Preprocessing = AS_THEY_ARE) -> Source:
    """Images in ``train/<class>/`` and ``test/<class>/`` or ``val/<class>/``; with both, ``val`` is held out.

    They are resized and cropped where that is asked for.

    Raises:
        InputError: a missing or empty folder, a damaged image, or images of different sizes.
    """
    _check_directory(directory, "folder")
    train = image_decoders.list_folder(directory / "train")
    others = {
        part: image_decoders.list_folder(directory / part) for part in ("val", "test") if (directory / part).is_dir()
    }
    if not others:
        raise InputError(
            f"{directory} has neither test/ nor val/; put images that training never sees in test/<class>/"
        )
    classes = tuple(sorted({label for label, _ in train}))

    def build() -> Source:
        images = {part: image_decoders.read_folder(listing, classes, prepared) for part, listing in others.items()}
        test = images.pop("test", None) or images.pop("val")
        source = Source(image_decoders.read_folder(train, classes, prepared), test, classes, images.get("val"))
        shapes = {i.pixels.shape[1:] for i in (source.train, source.test, source.held_out) if i is not None}
        if len(shapes) > 1:
            raise InputError(f"{directory}: its parts hold images of differing shapes {sorted(shapes)}; make them one")
        return source

    files = [path for listing in (train, *others.values()) for _, path in listing]
    return _cached(cache, files, build, prepared.shape)


def _check_directory(directory: Path, kind: str) -> None:
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; {kind}:DIR names the folder that holds the data")


def _idx(home: Path, stem: str) -> Path | None:
    return next((p for p in (home / stem, home / f"{stem}.gz") if p.is_file()), None)


def _cached(
    cache: Path | None,
    files: Iterable[Path],
    build: Callable[[], Source],
    shape: tuple[int | None, int | None] = (None, None),
) -> Source:
    """What ``build`` returns, kept in ``cache`` under a name that changes when any of ``files`` or ``shape`` does."""
    if cache is None:
        return build()
    digest = hashlib.sha256(b"" if shape == (None, None) else repr(shape).encode())
    for path in files:
        try:
            stat = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; replace or remove it") from error
        digest.update(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    kept = cache / f"images-{digest.hexdigest()[:16]}.npz"
    if kept.is_file():
        try:
            return _load(kept)
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            kept.unlink()  # damaged from outside: decode again
    source = build()
    _store(source, kept)
    return source


def _load(path: Path) -> Source:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:

        def images(part: str) -> Images:
            return Images(stored[f"{part}_pixels"], stored[f"{part}_labels"])

        held_out = images("held_out") if "held_out_pixels" in stored else None
        return Source(images("train"), images("test"), tuple(str(c) for c in stored["classes"]), held_out)


def _store(source: Source, path: Path) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {"train": source.train, "test": source.test, "held_out": source.held_out}
    arrays: dict[str, Any] = {"classes": np.array(source.classes)}
    for part, images in parts.items():
        if images is not None:
            arrays |= {f"{part}_pixels": images.pixels, f"{part}_labels": images.labels}
    descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
