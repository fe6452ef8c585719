"""Preprocessing: images of a folder resized, cropped, and scaled to a network's means and deviations."""

from __future__ import annotations

from dataclasses import dataclass

from shaprune.errors import InputError, check_choice
from shaprune.options.fields import option

Scaling = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# Side that the shorter edge is resized to, side of the centre that is cropped, mean and deviation.
PRESETS: dict[str, tuple[int, int, Scaling]] = {
    "imagenet": (256, 224, IMAGENET),  # torchvision's classifiers, timm's ResNets
    "inception": (342, 299, HALVES),  # Inception, and its successors in timm
    "vit": (256, 224, HALVES),  # ViT and MLP-Mixer as Google trained them
    "clip": (224, 224, CLIP),
}


def numbers_of(text: str) -> tuple[float, ...]:
    """``"0.485,0.456,0.406"`` -> (0.485, 0.456, 0.406).

    Raises:
        InputError: something else.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{text!r} is no list of numbers, one per channel, such as 0.485,0.456,0.406") from None


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the images of ``folder:DIR`` become inputs; by default as they are, with pixels in [0, 1].

    Attributes:
        preset: a name in `PRESETS`, for all of it; what is given beside it stands in its place.
        mean, std: per channel, of pixels in [0, 1]; both or none.
        resize: pixels of the shorter edge, by bilinear interpolation; None = images keep their size.
        crop: pixels of the side of a square in the centre; None = none is cropped.

    Raises:
        InputError: an unknown preset, numbers that cannot be used, or ``mean`` without ``std``.
    """

    preset: str | None = option(
        None, f"How images of folder:DIR become inputs: {', '.join(PRESETS)}.", names=tuple(PRESETS)
    )
    mean: tuple[float, ...] | None = option(
        None, "Mean per channel of pixels in [0, 1]: 0.485,0.456,0.406.", metavar="NUMBERS", read=numbers_of
    )
    std: tuple[float, ...] | None = option(
        None, "Standard deviation per channel: 0.229,0.224,0.225.", metavar="NUMBERS", read=numbers_of
    )
    resize: int | None = option(None, "Resize the shorter edge of images to so many pixels.", least=1)
    crop: int | None = option(None, "Crop a square of so many pixels from the centre of images.", least=1)

    def __post_init__(self) -> None:
        if self.preset is not None:
            check_choice("preset", self.preset, PRESETS)
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{name} is {value!r}; give a whole number of pixels, at least 1")
        if (self.mean is None) != (self.std is None) and self.preset is None:
            raise InputError("mean and std go together; give both")
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"std is {self.std}; deviations must be above 0")
        mean, std = self.scaling or ((), ())
        if len(mean) != len(std):
            raise InputError(f"mean has {len(mean)} numbers and std {len(std)}; give one of each per channel")

    @property
    def scaling(self) -> Scaling | None:
        """Mean and deviation per channel; None = pixels stay in [0, 1]."""
        mean, std = PRESETS[self.preset][2] if self.preset is not None else (self.mean, self.std)
        mean, std = self.mean or mean, self.std or std
        return None if mean is None or std is None else (tuple(mean), tuple(std))

    @property
    def shape(self) -> tuple[int | None, int | None]:
        """``resize`` and ``crop``, a preset's where they are not given."""
        resize, crop, _ = (None, None, None) if self.preset is None else PRESETS[self.preset]
        return self.resize or resize, self.crop or crop


AS_THEY_ARE = Preprocessing()
