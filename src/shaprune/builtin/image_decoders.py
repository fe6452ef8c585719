"""Decoders: files of labelled images -> arrays of bytes. Nothing is unpickled, and no network is used."""

from __future__ import annotations

import gzip
import io
import lzma
import math
import re
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shaprune.errors import InputError
from shaprune.options.preprocessing import AS_THEY_ARE, Preprocessing
from shaprune.storage.atomic_files import read_file

MOST_BYTES = 1 << 30  # of a file
MOST_ARCHIVE = 1 << 35  # bytes of an archive, decompressed
MOST_PIXELS = 1 << 26  # of an image
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Images:
    """Decoded images in source order: ``pixels`` (N, C, H, W) uint8 or uint16, ``labels`` (N,) int64."""

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    labels: NDArray[np.int64]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one IDX file of bytes (MNIST's format), gzipped or not.

    Format: two zero bytes, the type (8 = unsigned byte), the number of dimensions, each dimension as a big-endian
    32-bit integer, then the values.

    Raises:
        InputError: missing, truncated, or not such a file.
    """
    raw = read_file(path, MOST_BYTES)
    if path.suffix == ".gz":
        try:
            with gzip.open(io.BytesIO(raw)) as file:
                raw = file.read(MOST_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is truncated or damaged ({error}); copy it again") from error
        if len(raw) > MOST_BYTES:
            raise InputError(f"{path} holds more than {MOST_BYTES:,} bytes; is it an IDX file?")
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise InputError(f"{path} is not an IDX file of bytes (its header is {raw[:4].hex() or 'empty'})")
    header = 4 + 4 * raw[3]
    shape = [int(n) for n in np.frombuffer(raw[4 : min(header, len(raw) // 4 * 4)], ">u4")]
    if len(shape) < raw[3] or len(raw) != header + math.prod(shape):
        raise InputError(
            f"{path} is truncated: it says {shape} and holds {max(len(raw) - header, 0)} bytes; copy it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_cifar_binary(paths: Sequence[Path]) -> Images:
    """Read CIFAR-10 in its binary version: records of one label byte and 3 x 32 x 32 pixel bytes.

    Raises:
        InputError: a missing file, or one that is not a whole number of records.
    """
    record = 1 + 3 * 32 * 32
    parts = []
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"{path} is missing; the binary version of CIFAR-10 has data_batch_1..5.bin and test_batch.bin"
            )
        raw = np.frombuffer(read_file(path, MOST_BYTES), np.uint8)
        if not raw.size or raw.size % record:
            raise InputError(f"{path} is truncated: {raw.size} bytes are not whole records of {record}; copy it again")
        parts.append(raw.reshape(-1, record))
    rows = np.concatenate(parts)
    if rows[:, 0].max() > 9:
        raise InputError(f"{paths[0].parent}: a label is {rows[:, 0].max()}; CIFAR-10 has 0 to 9 (is it CIFAR-100?)")
    return Images(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64))


def list_folder(root: Path) -> list[tuple[str, Path]]:
    """The images of ``root/<class>/<file>`` as (class, path), sorted by class, then by file name.

    Raises:
        InputError: a missing folder, one without classes, or a class without images.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; an image folder has one folder per class in it")
    listing: list[tuple[str, Path]] = []
    for directory in (d for d in _inside(root) if d.is_dir() and not d.name.startswith(".")):
        files = [f for f in _inside(directory) if f.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise InputError(f"{directory} holds no image ({', '.join(IMAGE_SUFFIXES)}); fill it or remove it")
        listing += [(directory.name, f) for f in files]
    if not listing:
        raise InputError(f"{root} is empty; an image folder has one folder per class in it")
    return listing


def _inside(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise InputError(f"{directory} cannot be read: {error.strerror}; check its permissions") from error


def read_folder(
    listing: Sequence[tuple[str, Path]], classes: Sequence[str], prepared: Preprocessing = AS_THEY_ARE
) -> Images:
    """Decode what `list_folder` found; images are resized and cropped where that is asked for."""
    return _decode(((label, str(path), read_file(path, MOST_BYTES)) for label, path in listing), classes, prepared)


def shaped(image: Image.Image, prepared: Preprocessing) -> Image.Image:
    """An image, resized and cropped as `torchvision.transforms.Resize` and ``CenterCrop`` do.

    Raises:
        ValueError: it is smaller than the square to crop.
    """
    resize, crop = prepared.shape
    if resize is not None:
        shorter = min(image.size)
        wide, high = (int(resize * side / shorter) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    if crop is not None:
        if min(image.size) < crop:
            raise ValueError(f"a square of {crop} cannot be cropped from {image.width}x{image.height} pixels")
        left, top = (round((side - crop) / 2) for side in image.size)
        image = image.crop((left, top, left + crop, top + crop))
    return image


def read_tar(path: Path) -> dict[str, tuple[Images, tuple[str, ...]]]:
    """Decode ``<part>/<class>/<file>`` images straight from a tar archive: part -> (images, classes).

    The order is that of `list_folder`: by class, then by file name, whatever the order in the archive.

    Raises:
        InputError: a damaged archive, or one without such images.
    """
    found: dict[str, list[tuple[str, str, bytes]]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.offset_data + member.size > MOST_ARCHIVE or (member.isfile() and member.size > MOST_BYTES):
                    raise InputError(f"{path} holds {member.name!r} of {member.size:,} bytes; is it an image?")
                place = PurePosixPath(member.name).parts[-3:]
                if member.isfile() and len(place) == 3 and PurePosixPath(place[2]).suffix.lower() in IMAGE_SUFFIXES:
                    stream = archive.extractfile(member)
                    if stream is not None:
                        found.setdefault(place[0], []).append((place[1], place[2], stream.read()))
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); copy it again") from error
    if not found:
        raise InputError(f"{path} holds no image at <part>/<class>/<file>")
    result = {}
    for part, files in found.items():
        classes = tuple(sorted({label for label, _, _ in files}))
        named = (
            (label, f"{path}:{part}/{label}/{name}", raw) for label, name, raw in sorted(files, key=lambda f: f[:2])
        )
        result[part] = (_decode(named, classes), classes)
    return result


def _pixels(raw: bytes, prepared: Preprocessing) -> NDArray[Any]:
    """(H, W) or (H, W, 3) bytes, resized and cropped; (H, W) uint16 of an image with 16 bits.

    Raises:
        ValueError: more pixels than an image has, or numbers that are no brightness.
    """
    with Image.open(io.BytesIO(raw)) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels")
        if image.mode[0] not in "IF":
            return np.asarray(shaped(image.convert("L" if image.mode in ("1", "L") else "RGB"), prepared))
        found = np.asarray(shaped(image, prepared))
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() > np.iinfo(np.uint16).max:
        raise ValueError(f"its pixels are {found.dtype} from {found.min()} to {found.max()}, neither 8 nor 16 bits")
    return found.astype(np.uint16)


def _decode(
    files: Iterable[tuple[str, str, bytes]], classes: Sequence[str], prepared: Preprocessing = AS_THEY_ARE
) -> Images:
    """Decode (class, name, bytes); RGB, or one channel where every image is grey."""
    index = {name: i for i, name in enumerate(classes)}
    arrays: list[NDArray[Any]] = []
    labels: list[int] = []
    for label, name, raw in files:
        try:
            array = _pixels(raw, prepared)
        except Exception as error:  # decoders of damaged files fail in many ways
            reason = re.sub(r" <_io.*>", "", str(error))
            raise InputError(f"{name} cannot be decoded as an image ({reason}); replace or remove it") from error
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            (h, w), (h0, w0) = array.shape[:2], arrays[0].shape[:2]
            raise InputError(
                f"{name} is {w}x{h} and the images before it are {w0}x{h0}; bring all to one size "
                "(--resize and --crop, or Preprocessing(resize=..., crop=...), for folder:DIR)"
            )
        if label not in index:
            raise InputError(
                f"{name} is of class {label!r}, which the training images lack; known: {', '.join(classes)}"
            )
        arrays.append(array)
        labels.append(index[label])
    if any(a.dtype == np.uint16 for a in arrays):  # 255 of 8 bits is 65535 of 16
        arrays = [a if a.dtype == np.uint16 else a.astype(np.uint16) * 257 for a in arrays]
    if any(a.ndim == 3 for a in arrays):
        arrays = [a if a.ndim == 3 else np.repeat(a[:, :, None], 3, axis=2) for a in arrays]
        pixels = np.stack(arrays).transpose(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W)
    else:
        pixels = np.stack(arrays)[:, None]  # (N, H, W) -> (N, 1, H, W)
    return Images(np.ascontiguousarray(pixels), np.asarray(labels, dtype=np.int64))
