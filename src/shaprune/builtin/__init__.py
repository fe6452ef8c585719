"""Data sets, networks and factories that ``--data`` and ``--model`` name."""

from typing import TYPE_CHECKING

from shaprune.names.lazy import resolve_on_use

if TYPE_CHECKING:
    from shaprune.builtin.datasets import load_dataset as load_dataset
    from shaprune.builtin.models import build_model as build_model
    from shaprune.builtin.resnet import ResNet as ResNet
    from shaprune.builtin.splits import Dataset as Dataset
    from shaprune.builtin.splits import Split as Split

__all__ = ["Dataset", "ResNet", "Split", "build_model", "load_dataset"]

if not TYPE_CHECKING:
    _files = ("splits", "resnet", "splits", "models", "datasets")
    __getattr__ = resolve_on_use(__name__, {n: f"{__name__}.{f}" for n, f in zip(__all__, _files, strict=True)})
