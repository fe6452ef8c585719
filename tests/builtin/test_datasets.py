"""Data sets: what is decoded, how it is split, and what is refused."""

import gzip
import io
import json
import os
import struct
import tarfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from shaprune.builtin import image_sources
from shaprune.builtin.datasets import Dataset, Split, load_dataset
from shaprune.builtin.models import build_model
from shaprune.deploy.measure import accuracy
from shaprune.errors import InputError
from shaprune.options import Preprocessing


def _rows(split: Split) -> set[bytes]:
    return {row.numpy().tobytes() for row in split.inputs}


# --- splits ---


def test_a_split_batches_and_takes_in_order() -> None:
    split = Split(torch.arange(10.0), torch.arange(10))
    batches = split.batches(4)
    assert [b[0].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(torch.equal(x.long(), y) for x, y in batches)
    assert split.take(3).targets.tolist() == [0, 1, 2]
    assert len(split.take(99)) == len(split) == 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Split(torch.zeros(2), torch.zeros(3)), "2 inputs and 3 targets"),
        (lambda: Split(torch.zeros(2), torch.zeros(2)).take(0), "take at least 1"),
        (lambda: Split(torch.zeros(2), torch.zeros(2)).batches(0), "batch_size is 0"),
    ],
)
def test_a_split_refuses(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong()


# --- digits ---


def test_digits_are_split_once_and_for_all() -> None:
    data = load_dataset("digits")
    assert (len(data.train), len(data.held_out), len(data.test)) == (1000, 300, 497)
    assert data.train.inputs.shape[1:] == (1, 8, 8)
    assert data.train.targets.dtype == torch.int64
    assert data.train.inputs.min() == 0
    assert data.train.inputs.max() == 1
    every = [row for part in (data.train, data.held_out, data.test) for row in part.inputs]
    assert len({row.numpy().tobytes() for row in every}) == 1797  # no two digits are alike, none stands in two parts
    for part in (data.train, data.held_out, data.test):
        shares = part.targets.bincount(minlength=10) / len(part)
        assert (shares - 0.1).abs().max() < 0.01  # stratified
    torch.manual_seed(123)
    np.random.seed(5)
    assert torch.equal(load_dataset("digits").test.inputs, data.test.inputs)


def test_limit_cuts_every_part_to_a_sample() -> None:
    data = load_dataset("digits", limit=50)
    assert (len(data.train), len(data.held_out), len(data.test)) == (50, 50, 50)
    assert len(data.train.targets.unique()) == 10


# --- MNIST ---


def _write_idx(path: Path, values: np.ndarray) -> None:
    raw = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def _small_mnist(home: Path, suffix: str = "") -> np.ndarray:
    """40 training images, each all of its own index, and 6 for the test."""
    pixels = np.repeat(np.arange(40, dtype=np.uint8), 9).reshape(40, 3, 3)
    for part, n in (("train", 40), ("t10k", 6)):
        _write_idx(home / f"{part}-images-idx3-ubyte{suffix}", pixels[:n])
        _write_idx(home / f"{part}-labels-idx1-ubyte{suffix}", np.arange(n, dtype=np.uint8) % 10)
    return pixels


@pytest.mark.parametrize(("place", "suffix"), [("", ""), ("", ".gz"), ("raw", ""), ("MNIST/raw", ".gz")])
def test_mnist_is_read_wherever_torchvision_keeps_it(tmp_path: Path, place: str, suffix: str) -> None:
    _small_mnist(tmp_path / place, suffix)
    data = load_dataset(f"mnist:{tmp_path}")
    assert (len(data.train), len(data.held_out), len(data.test)) == (36, 4, 6)
    seen = torch.cat([data.train.inputs, data.held_out.inputs])[:, 0, 0, 0] * 0.3081 + 0.1307
    values = (seen * 255).round().long()
    assert sorted(values.tolist()) == list(range(40))
    assert torch.equal(values % 10, torch.cat([data.train.targets, data.held_out.targets]))  # labels follow their image


def test_held_out_indices_choose_the_held_out_images(tmp_path: Path) -> None:
    _small_mnist(tmp_path)
    chosen = [3, 17, 39, 0]
    data = load_dataset(f"mnist:{tmp_path}", held_out=chosen)
    values = ((data.held_out.inputs[:, 0, 0, 0] * 0.3081 + 0.1307) * 255).round().long()
    assert sorted(values.tolist()) == sorted(chosen)
    assert len(data.train) == 36
    assert not _rows(data.train) & _rows(data.held_out)


@pytest.mark.parametrize("wrong", [[], [40], [-1], [1, 1], list(range(40)), [0.5], ["a"]])
def test_held_out_indices_that_do_not_fit_are_refused(tmp_path: Path, wrong: list[int]) -> None:
    _small_mnist(tmp_path)
    with pytest.raises(InputError, match="held_out"):
        load_dataset(f"mnist:{tmp_path}", held_out=wrong)


def test_a_damaged_mnist_file_is_named(tmp_path: Path) -> None:
    _small_mnist(tmp_path, ".gz")
    images, labels = tmp_path / "train-images-idx3-ubyte.gz", tmp_path / "train-labels-idx1-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:-9])  # the gzip stream ends early
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz is truncated"):
        load_dataset(f"mnist:{tmp_path}")
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))  # the stream is whole, a pixel is missing
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz is truncated: it says \[40, 3, 3\]"):
        load_dataset(f"mnist:{tmp_path}")
    for head in (b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"PK\x03\x04" * 9):
        images.write_bytes(gzip.compress(head))
        with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz is (truncated|not an IDX file)"):
            load_dataset(f"mnist:{tmp_path}")
    images.write_bytes(whole)
    _write_idx(labels, np.zeros(39, dtype=np.uint8))
    with pytest.raises(InputError, match="do not belong together"):
        load_dataset(f"mnist:{tmp_path}")
    labels.unlink()
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte\.gz is missing"):
        load_dataset(f"mnist:{tmp_path}")


def test_the_real_mnist(shared_data: Path) -> None:
    data = load_dataset(f"mnist:{shared_data / 'mnist'}", limit=5000)
    assert len(data.held_out) == 5000
    assert data.test.inputs.shape == (5000, 1, 28, 28)
    assert abs(float(data.test.inputs.mean())) < 0.03
    assert abs(float(data.test.inputs.std()) - 1) < 0.03
    assert data.held_out.targets.bincount().min() > 400
    ones, zeros = (data.test.inputs[data.test.targets == c].mean(0)[0] for c in (1, 0))
    assert ones[14, 14] > 1.5  # a one has ink in the middle
    assert zeros[14, 14] < 0


# --- CIFAR-10 ---


def test_the_real_cifar10_in_the_order_that_the_shared_network_expects(
    shared_data: Path, request: pytest.FixtureRequest
) -> None:
    from safetensors.torch import load_file

    home = shared_data / "resnet56-cifar10"
    card = json.loads((home / "resnet56.json").read_text())
    data = load_dataset(
        f"cifar10:{shared_data / 'cifar10-jpeg'}",
        limit=500,
        held_out=card["held_out"],
        cache=request.config.cache.mkdir("images"),
    )
    assert list(data.classes) == card["classes"]
    assert len(data.held_out) == 500
    model = build_model("resnet56")
    model.load_state_dict(load_file(home / "resnet56.safetensors"))
    reached = accuracy(model, data.test.batches(500))
    assert abs(reached - card["test_accuracy"]) < 3 * (0.9 * 0.1 / 500) ** 0.5


def _jpeg(
    colour: tuple[int, int, int], size: tuple[int, int] = (32, 32), kind: str = "PNG", mode: str = "RGB"
) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def _folder(root: Path, parts: dict[str, dict[str, int]]) -> None:
    """Images of part/class/NN.png; red says the class, green the number, blue the part."""
    for p, (part, classes) in enumerate(parts.items()):
        for c, (label, n) in enumerate(sorted(classes.items())):
            (root / part / label).mkdir(parents=True)
            for i in range(n):
                (root / part / label / f"{i:02}.png").write_bytes(_jpeg((c, i, p)))


def _colours(split: Split) -> Tensor:
    """(N, 3): red, green and blue of each image of `_folder`, whatever the standardisation."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((split.inputs[:, :, 0, 0] * std + mean) * 255).round().long()


def test_cifar10_from_a_tar_is_sorted_whatever_the_order_inside(tmp_path: Path) -> None:
    _folder(tmp_path / "plain", {"train": {"cat": 4, "dog": 4}, "test": {"cat": 1, "dog": 2}})
    files = sorted((tmp_path / "plain").rglob("*.png"), reverse=True)
    with tarfile.open(tmp_path / image_sources.CIFAR_TAR, "w:xz") as tar:
        for path in files:
            tar.add(path, path.relative_to(tmp_path / "plain").as_posix())
    from_tar = load_dataset(f"cifar10:{tmp_path}", held_out=[1, 6])
    assert sorted(map(tuple, _colours(from_tar.held_out).tolist())) == [(0, 1, 0), (1, 2, 0)]
    assert from_tar.classes == ("cat", "dog")
    from_folder = load_dataset(f"cifar10:{tmp_path / 'plain'}", held_out=[1, 6])
    for part in ("train", "held_out", "test"):
        assert torch.equal(getattr(from_tar, part).inputs, getattr(from_folder, part).inputs)
        assert torch.equal(_colours(getattr(from_tar, part))[:, 0], getattr(from_tar, part).targets)


def test_cifar10_binary_batches(tmp_path: Path) -> None:
    home = tmp_path / image_sources.CIFAR_BINARY
    home.mkdir()
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        rows = np.zeros((4, 3073), dtype=np.uint8)
        rows[:, 0] = [0, 1, 2, 9]
        rows[:, 1:1025], rows[:, 1025:2049], rows[:, 2049:] = rows[:, :1], np.arange(4)[:, None], i
        rows.tofile(home / f"{name}.bin")
    data = load_dataset(f"cifar10:{tmp_path}", held_out=[4, 19])
    assert len(data.train) == 18
    assert data.train.inputs.shape[1:] == (3, 32, 32)
    assert sorted(map(tuple, _colours(data.held_out).tolist())) == [(0, 0, 1), (9, 3, 4)]
    assert torch.equal(_colours(data.train)[:, 0], data.train.targets)
    (home / "data_batch_3.bin").write_bytes(b"\0" * 3000)
    with pytest.raises(InputError, match=r"data_batch_3\.bin is truncated"):
        load_dataset(f"cifar10:{tmp_path}")
    (home / "data_batch_3.bin").unlink()
    with pytest.raises(InputError, match=r"data_batch_3\.bin is missing"):
        load_dataset(f"cifar10:{home}")


def test_cifar10_is_never_unpickled(tmp_path: Path) -> None:
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    (home / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for directory in (tmp_path, home):
        with pytest.raises(InputError, match="binary version"):
            load_dataset(f"cifar10:{directory}")


def test_a_directory_without_cifar10_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no CIFAR-10; expected cifar-10-batches-bin/, .*cifar10-jpeg\.tar\.xz"):
        load_dataset(f"cifar10:{tmp_path}")


def test_a_truncated_tar_is_named(tmp_path: Path) -> None:
    _folder(tmp_path, {"inside/train": {"cat": 30}})
    tar = tmp_path / image_sources.CIFAR_TAR
    with tarfile.open(tar, "w:xz") as archive:
        archive.add(tmp_path / "inside" / "train", "train")
    tar.write_bytes(tar.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"cifar10-jpeg\.tar\.xz is truncated or damaged"):
        load_dataset(f"cifar10:{tmp_path}")


# --- image folders ---


def test_a_folder_of_images(tmp_path: Path) -> None:
    _folder(tmp_path, {"train": {"ant": 12, "bee": 8}, "test": {"bee": 3}})
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".hidden").mkdir()
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("ant", "bee")
    assert (len(data.train), len(data.held_out), len(data.test)) == (18, 2, 3)
    red = (data.train.inputs[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(red, data.train.targets)
    assert data.test.targets.tolist() == [1, 1, 1]
    assert not torch.equal(data.train.targets, data.train.targets.sort().values)  # shuffled: files are sorted by class


def test_val_is_held_out_beside_test_and_the_test_without_it(tmp_path: Path) -> None:
    _folder(tmp_path / "both", {"train": {"a": 10}, "val": {"a": 3}, "test": {"a": 5}})
    both = load_dataset(f"folder:{tmp_path / 'both'}")
    assert (len(both.train), len(both.held_out), len(both.test)) == (10, 3, 5)
    assert set((both.held_out.inputs[:, 2, 0, 0] * 255).round().tolist()) == {1.0}
    _folder(tmp_path / "one", {"train": {"a": 10}, "val": {"a": 3}})
    one = load_dataset(f"folder:{tmp_path / 'one'}")
    assert (len(one.train), len(one.held_out), len(one.test)) == (9, 1, 3)


def test_images_are_resized_cropped_and_scaled_as_asked(tmp_path: Path) -> None:
    for part, sizes in (("train", [(40, 20), (20, 30), (25, 25)]), ("test", [(60, 21)])):
        (tmp_path / part / "a").mkdir(parents=True)
        for i, size in enumerate(sizes):
            (tmp_path / part / "a" / f"{i}.png").write_bytes(_jpeg((51, 102, 255), size))
    with pytest.raises(InputError, match=r"bring all to one size \(--resize and --crop"):
        load_dataset(f"folder:{tmp_path}")
    how = Preprocessing(resize=16, crop=12, mean=(0.2, 0.4, 0.5), std=(1, 1, 0.5))
    data = load_dataset(f"folder:{tmp_path}", preprocessing=how, cache=tmp_path / "kept")
    assert data.train.inputs.shape[1:] == data.test.inputs.shape[1:] == (3, 12, 12)
    assert torch.allclose(data.test.inputs[0, :, 0, 0], torch.tensor([0.0, 0.0, 1.0]))
    assert data.prepared == how
    other = load_dataset(f"folder:{tmp_path}", preprocessing=Preprocessing(resize=14, crop=14), cache=tmp_path / "kept")
    assert other.test.inputs.shape[1:] == (3, 14, 14)  # the cache knows which
    large = load_dataset(f"folder:{tmp_path}", preprocessing=Preprocessing(preset="imagenet", std=(1, 1, 1)))
    assert large.test.inputs.shape[1:] == (3, 224, 224)
    assert torch.allclose(large.test.inputs[0, :, 0, 0], torch.tensor([0.2 - 0.485, 0.4 - 0.456, 1 - 0.406]))


def test_the_square_is_cut_from_the_centre_and_grey_images_get_the_channels_of_the_means(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(2):
            pixels = np.zeros((8, 10), dtype=np.uint8)
            pixels[2:6, 3:7] = 255
            Image.fromarray(pixels).save(tmp_path / part / "a" / f"{i}.png")
    data = load_dataset(f"folder:{tmp_path}", preprocessing=Preprocessing(crop=4, mean=(0, 0, 0), std=(1, 1, 1)))
    assert torch.equal(data.test.inputs, torch.ones(2, 3, 4, 4))
    with pytest.raises(InputError, match="a square of 9 cannot be cropped from 10x8 pixels"):
        load_dataset(f"folder:{tmp_path}", preprocessing=Preprocessing(crop=9))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"preset": "imagnet"}, "did you mean 'imagenet'"),
        ({"mean": (0.5,)}, "mean and std go together"),
        ({"mean": (0.5,), "std": (0.0,)}, "must be above 0"),
        ({"mean": (0.5,), "std": (1.0, 1.0)}, "mean has 1 numbers and std 2"),
        ({"resize": 0}, "resize is 0; give a whole number of pixels"),
    ],
)
def test_preprocessing_that_means_nothing_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Preprocessing(**given)


def test_preprocessing_is_for_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"are for folder:DIR, and data 'digits' have their own"):
        load_dataset("digits", preprocessing=Preprocessing(crop=4))
    _folder(tmp_path, {"train": {"a": 3}, "test": {"a": 2}})
    with pytest.raises(InputError, match="the images have 3 channels, and are scaled by 2 means"):
        load_dataset(f"folder:{tmp_path}", preprocessing=Preprocessing(mean=(0, 0), std=(1, 1)))


def test_grey_images_have_one_channel_and_join_coloured_ones(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        for i in range(2):
            (tmp_path / part / "a" / f"{i}.png").write_bytes(_jpeg((50, 50, 50), mode="L"))
    assert load_dataset(f"folder:{tmp_path}").train.inputs.shape[1:] == (1, 32, 32)
    for part in ("train", "test"):
        (tmp_path / part / "a" / "2.png").write_bytes(_jpeg((50, 50, 50)))
    mixed = load_dataset(f"folder:{tmp_path}")
    assert mixed.test.inputs.shape == (3, 3, 32, 32)
    assert torch.allclose(mixed.test.inputs, torch.tensor(50 / 255))


def _png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_images_of_16_bits_are_read_as_what_they_are(tmp_path: Path) -> None:
    deep = np.array([[0, 1], [30_000, 65_535]], dtype=np.uint16)
    for part in ("train", "test"):
        for i in range(4):
            _png(tmp_path / part / "a" / f"{i}.png", deep)
    data = load_dataset(f"folder:{tmp_path}")
    assert data.test.inputs.dtype == torch.float32
    assert torch.equal(data.test.inputs[0, 0], torch.from_numpy(deep.astype(np.float32) / 65_535))
    _png(tmp_path / "test" / "a" / "4.png", np.array([[0, 128], [255, 255]], dtype=np.uint8))
    mixed = load_dataset(f"folder:{tmp_path}").test.inputs
    assert sorted(x.max().item() for x in mixed[:, 0].flatten(1).max(1).values) == [1.0] * 5
    assert torch.isclose(mixed, torch.tensor(128 / 255)).any()


def _pipe(root: Path) -> None:
    os.mkfifo(root / "train" / "ant" / "pipe.png")


def _device(root: Path) -> None:
    (root / "train" / "ant" / "zero.png").symlink_to("/dev/zero")


def _directory(root: Path) -> None:
    (root / "train" / "ant" / "more.png").mkdir()


def _broken_link(root: Path) -> None:
    (root / "train" / "ant" / "gone.png").symlink_to(root / "nowhere.png")


def _bomb(root: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(root / "train" / "ant" / "bomb.png")


def _large(root: Path) -> None:
    Image.new("1", (9_000, 9_000)).save(root / "train" / "ant" / "bomb.png")


def _text_bomb(root: Path) -> None:
    about = PngInfo()
    about.add_text("about", "x" * 100_000_000, zip=True)
    Image.new("L", (4, 4)).save(root / "train" / "ant" / "bomb.png", pnginfo=about)


def _numbers(root: Path) -> None:
    Image.fromarray(np.array([[0, 1], [2, 1 << 20]], dtype=np.int32)).save(root / "n.tiff")
    (root / "n.tiff").rename(root / "train" / "ant" / "numbers.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_pipe, r"pipe\.png is no file but a pipe or a device"),
        (_device, r"zero\.png is no file but a pipe or a device"),
        (_directory, r"more\.png cannot be read: Is a directory"),
        (_broken_link, r"gone\.png cannot be read: No such file"),
        (_bomb, r"bomb\.png cannot be decoded as an image \(.*400000000 pixels"),
        (_large, r"bomb\.png cannot be decoded as an image \(9000x9000 pixels"),
        (_text_bomb, r"bomb\.png cannot be decoded as an image \(Decompressed data too large"),
        (_numbers, r"numbers\.png cannot be decoded as an image \(its pixels are int32"),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_what_is_no_image_among_images_is_named_at_once(
    tmp_path: Path, make: Callable[[Path], object], message: str, cached: bool
) -> None:
    _folder(tmp_path, {"train": {"ant": 3}, "test": {"ant": 2}})
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        load_dataset(f"folder:{tmp_path}", cache=tmp_path / "cache" if cached else None)


def test_an_idx_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaprune.builtin.image_decoders.MOST_BYTES", 1_000)
    _small_mnist(tmp_path, ".gz")
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"\0" * 100_000)
    with pytest.raises(InputError, match="holds more than 1,000 bytes"):
        load_dataset(f"mnist:{tmp_path}")


def _empty(root: Path) -> None:
    (root / "train" / "ant").mkdir(parents=True)


def _odd_size(root: Path) -> None:
    _folder(root, {"train": {"ant": 2}, "test": {"ant": 1}})
    (root / "train" / "ant" / "99.png").write_bytes(_jpeg((0, 0, 0), size=(16, 24)))


def _not_an_image(root: Path) -> None:
    _folder(root, {"train": {"ant": 2}, "test": {"ant": 1}})
    (root / "train" / "ant" / "99.jpg").write_bytes(b"hello")


def _cut_image(root: Path) -> None:
    _folder(root, {"train": {"ant": 2}, "test": {"ant": 1}})
    (root / "train" / "ant" / "99.jpg").write_bytes(_jpeg((9, 9, 9), kind="JPEG")[:-300])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "train is not a folder"),
        (lambda root: (root / "train").mkdir(), "train is empty"),
        (_empty, "ant holds no image"),
        (lambda root: _folder(root, {"train": {"ant": 2}}), "neither test/ nor val/"),
        (_odd_size, r"99\.png is 16x24 and the images before it are 32x32"),
        (_not_an_image, r"99\.jpg cannot be decoded"),
        (_cut_image, r"99\.jpg cannot be decoded"),
        (
            lambda root: _folder(root, {"train": {"ant": 2}, "test": {"bee": 1}}),
            "'bee', which the training images lack",
        ),
        (lambda root: _folder(root, {"train": {"ant": 1}, "test": {"ant": 1}}), "at least 2 are needed"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        load_dataset(f"folder:{tmp_path}")


def test_the_cache_is_used_and_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    _folder(root, {"train": {"ant": 5}, "val": {"ant": 2}, "test": {"ant": 2}})
    decoded = []
    read = image_sources.image_decoders.read_folder
    monkeypatch.setattr(image_sources.image_decoders, "read_folder", lambda *a: decoded.append(1) or read(*a))
    first = load_dataset(f"folder:{root}", cache=cache)
    assert len(decoded) == 3
    again = load_dataset(f"folder:{root}", cache=cache)
    assert len(decoded) == 3
    for part in ("train", "held_out", "test"):
        assert torch.equal(getattr(first, part).inputs, getattr(again, part).inputs)
        assert torch.equal(getattr(first, part).targets, getattr(again, part).targets)
    assert again.classes == first.classes
    (kept,) = cache.iterdir()  # no temporary file is left
    kept.write_bytes(kept.read_bytes()[:100])
    assert torch.equal(load_dataset(f"folder:{root}", cache=cache).train.inputs, first.train.inputs)
    assert len(decoded) == 6  # damaged: decoded again
    (root / "train" / "ant" / "new.png").write_bytes(_jpeg((1, 2, 3)))
    assert len(load_dataset(f"folder:{root}", cache=cache).train) == 6


# --- factories ---

FACTORIES = """
    import numpy as np, torch
    from shaprune.builtin.datasets import Split
    x, y = torch.arange(20.0)[:, None], torch.arange(20) % 4
    def pair(): return (x, y), (x[:5] + 100, y[:5])
    def triple(): return (x, y), (x[:6] + 50, y[:6]), (x[:5] + 100, y[:5])
    def mapping(): return {"train": Split(x, y), "test": (np.ones((3, 1), dtype="float32"), np.ones(3))}
    def typo(): return {"train": (x, y), "tets": (x, y)}
    def half(): return {"train": (x, y)}
    def number(): return 3
    def ragged(): return (x, y), (x, y[:3])
    def empty(): return (x, y), (x[:0], y[:0])
    def broken(): raise RuntimeError("the user's own error")
    value = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(FACTORIES))
    monkeypatch.chdir(tmp_path)
    return name


def test_a_factory_gives_two_or_three_parts(factories: str) -> None:
    pair, triple = load_dataset(f"{factories}:pair"), load_dataset(f"{factories}:triple", limit=4)
    assert (len(pair.train), len(pair.held_out), len(pair.test)) == (18, 2, 5)
    assert not _rows(pair.train) & _rows(pair.held_out)
    assert pair.classes == ("0", "1", "2", "3")
    assert triple.held_out.inputs.flatten().tolist() == [50, 51, 52, 53]
    assert triple.test.inputs[0] == 100
    numbers = load_dataset(f"{factories}:mapping")
    assert isinstance(numbers, Dataset)
    assert numbers.classes == ()
    assert numbers.test.targets.is_floating_point()


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("typo", "'tets'; did you mean 'test'"),
        ("half", "no part 'test'"),
        ("number", "returned a int"),
        ("ragged", "20 inputs and 3 targets"),
        ("empty", "'test' is empty"),
        ("value", "is a int; name a function"),
        ("pairs", "no 'pairs'; did you mean 'pair'"),
    ],
)
def test_a_factory_that_cannot_be_used_says_why(factories: str, attribute: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(f"{factories}:{attribute}")


def test_an_error_of_the_factory_itself_goes_through(factories: str) -> None:
    with pytest.raises(RuntimeError, match="the user's own error"):
        load_dataset(f"{factories}:broken")


# --- names ---


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "unknown data 'digit'; did you mean 'digits'"),
        ("", "unknown data ''"),
        ("mnist", "write mnist:DIR"),
        ("cifar10:", "write cifar10:DIR"),
        ("mnst:some/where", "not of the form package.module:factory; did you mean 'mnist'"),
        ("cifar:data", "module 'cifar' cannot be imported .*; did you mean 'cifar10'"),
        ("mnist:no/such/place", "no/such/place is not a directory"),
        ("folder:no/such/place", "no/such/place is not a directory"),
        ("no.such.module:make", "'no.such.module' cannot be imported"),
    ],
)
def test_an_unknown_name_or_place_is_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(spec)


def test_options_that_do_not_apply_are_refused() -> None:
    with pytest.raises(InputError, match="limit is 0"):
        load_dataset("digits", limit=0)
    with pytest.raises(InputError, match="held_out does not apply to data 'digits'"):
        load_dataset("digits", held_out=[1])
