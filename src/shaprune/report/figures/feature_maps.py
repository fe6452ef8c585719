"""Figures of feature maps: images inside the page, each with a text that describes it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shaprune.pipeline.feature_maps import ChannelMaps, FeatureMaps
from shaprune.report.markup import note

Floats = NDArray[np.float64]
_LARGEST = 160  # pixels of a side
_HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)  # inferno
_IMAGES_PER_CHANNEL = 3  # images shown per channel


def feature_maps_section(look: FeatureMaps) -> Iterator[str]:
    """The section of a report."""
    yield "<h2>What the network sees</h2>"
    yield "<h3>Where it looks</h3>"
    yield note(
        f"Grad-CAM at {look.layer}, for the dense network's answer: the dense network, and two that lost "
        f"{look.share:.0%} of the channels of every group: the least valuable, or the most valuable ones. Percent: the "
        "probability of that answer. Masks only, no recovery."
    )
    for i, image in enumerate(look.images):
        yield '<div class="looks four">'
        yield _figure(_picture(image), f"image {i + 1}")
        for name, attention in look.attention.items():
            answer = _class(look, int(attention.answer[i]))
            told = f"{name}: {answer}, {attention.confidence[i]:.0%}"
            yield _figure(_overlay(image, attention.maps[i]), told, f"Image {i + 1}, Grad-CAM, {told}")
        yield "</div>"
    for channels in look.channels:
        yield from _of_group(look, channels)


def _of_group(look: FeatureMaps, channels: ChannelMaps) -> Iterator[str]:
    yield f"<h3>Channels of {escape(channels.group)}</h3>"
    yield note(
        "What the readers of the most and the least valuable channels get to see; bright is large, on one scale per "
        "channel."
    )
    for i in range(len(look.images)):
        yield f'<div class="looks" role="group" aria-label="Image {i + 1}">'
        for j, name in enumerate(channels.names):
            rank = "most" if j < channels.n_best else "least"
            told = f"{name}, {channels.value[j]:.3g} ({rank} valuable)"
            largest = float(np.abs(channels.maps[:, j]).max())
            heat = _heated(np.abs(channels.maps[i, j]) / (largest or 1.0))
            yield _figure(_encoded(heat), told, f"Feature map of {told} on image {i + 1}")
        yield "</div>"
    words = "its value on that image" if channels.served_by == "values" else "what the answer loses without it alone"
    yield f"<details><summary>Images that each channel serves most</summary>{note(f'In brackets: {words}.')}"
    for j, name in enumerate(channels.names):
        most = np.argsort(-np.nan_to_num(channels.serves[:, j], nan=-np.inf), kind="stable")[:_IMAGES_PER_CHANNEL]
        yield f'<div class="looks" role="group" aria-label="{escape(name)}">'
        for i in most.tolist():
            told = f"{name}: image {i + 1} ({channels.serves[i, j]:.3g})"
            yield _figure(_picture(look.images[i]), told, f"Channel {told}")
        yield "</div>"
    yield "</details>"


def _class(look: FeatureMaps, index: int) -> str:
    return look.classes[index] if index < len(look.classes) else f"class {index}"


def _figure(source: str, caption: str, told: str = "") -> str:
    return (
        f'<figure><img src="{source}" alt="{escape(told or caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _picture(image: Floats) -> str:
    return _encoded(_stretched(image))


def _stretched(image: Floats) -> Floats:
    """(H, W, 3) from 0 to 255, stretched: three channels as they are, any other number as their mean."""
    colours = image if len(image) == 3 else np.repeat(image.mean(0, keepdims=True), 3, axis=0)
    low, high = float(colours.min()), float(colours.max())
    return np.asarray((colours - low).transpose(1, 2, 0) * (255 / (high - low) if high > low else 0.0))


def _heated(share: Floats) -> Floats:
    """(h, w) of 0 to 1 -> (h, w, 3) colours."""
    stops = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(share, stops, _HEAT[:, c]) for c in range(3)], axis=-1)


def _overlay(image: Floats, attention: Floats) -> str:
    """Attention over the image in grey."""
    largest = float(attention.max())
    small = Image.fromarray((255 * attention / (largest or 1.0)).astype(np.uint8))
    height, width = image.shape[1:]
    share = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float64) / 255
    grey = _stretched(image).mean(-1, keepdims=True)
    return _encoded(0.45 * grey + 0.55 * _heated(share))


def _encoded(colours: Floats) -> str:
    """(H, W, 3) of 0 to 255 as a data address."""
    picture = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    picture.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
