"""Data sets, networks and factories that ``--data`` and ``--model`` name; attention opened, plain layers, map_back."""

from typing import TYPE_CHECKING

from shaprune.names.lazy import resolve_on_use

if TYPE_CHECKING:
    from shaprune.builtin.datasets import load_dataset as load_dataset
    from shaprune.builtin.models import build_model as build_model
    from shaprune.builtin.resnet import ResNet as ResNet
    from shaprune.builtin.splits import Dataset as Dataset
    from shaprune.builtin.splits import Split as Split
    from shaprune.network.layers.map_back import map_back as map_back
    from shaprune.network.layers.open_attention import open_attention as open_attention
    from shaprune.network.layers.plain_layers import plain_layers as plain_layers

_HOMES = {
    "Dataset": "shaprune.builtin.splits",
    "ResNet": "shaprune.builtin.resnet",
    "Split": "shaprune.builtin.splits",
    "build_model": "shaprune.builtin.models",
    "load_dataset": "shaprune.builtin.datasets",
    "map_back": "shaprune.network.layers.map_back",
    "open_attention": "shaprune.network.layers.open_attention",
    "plain_layers": "shaprune.network.layers.plain_layers",
}
__all__ = sorted(_HOMES)

if not TYPE_CHECKING:
    __getattr__ = resolve_on_use(__name__, _HOMES)
