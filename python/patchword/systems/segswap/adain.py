# SPDX-License-Identifier: Apache-2.0
"""Style transfer by adaptive instance normalisation, after Huang and Belongie (2017).

The two published weight files are read as they are; neither ships with the library.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from patchword.data.io import printable
from patchword.errors import CheckpointError, DatasetError
from patchword.systems.segswap.pictures import PictureCache

Pixels = npt.NDArray[np.uint8]

_EPSILON = 1e-5
# Convolutions of the full published encoder beyond relu4_1, which are not used.
_UNUSED = frozenset(
    f"{k}.{part}" for k in (32, 35, 38, 42, 45, 48, 51) for part in ("weight", "bias")
)


def _convolution(channels_in: int, channels_out: int, *, relu: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.ReflectionPad2d(1), nn.Conv2d(channels_in, channels_out, 3)]
    return [*layers, nn.ReLU()] if relu else layers


def _pool() -> nn.Module:
    return nn.MaxPool2d(2, 2, ceil_mode=True)


def _enlarge() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="nearest")


def build_encoder() -> nn.Sequential:
    """VGG-19 up to relu4_1 behind a 1 x 1 convolution: 31 modules, 3,505,740 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 3, 1),
        *_convolution(3, 64),
        *_convolution(64, 64),
        _pool(),
        *_convolution(64, 128),
        *_convolution(128, 128),
        _pool(),
        *_convolution(128, 256),
        *_convolution(256, 256),
        *_convolution(256, 256),
        *_convolution(256, 256),
        _pool(),
        *_convolution(256, 512),
    )


def build_decoder() -> nn.Sequential:
    """The mirrored decoder: 29 modules, 3,505,219 parameters."""
    return nn.Sequential(
        *_convolution(512, 256),
        _enlarge(),
        *_convolution(256, 256),
        *_convolution(256, 256),
        *_convolution(256, 256),
        *_convolution(256, 128),
        _enlarge(),
        *_convolution(128, 128),
        *_convolution(128, 64),
        _enlarge(),
        *_convolution(64, 64),
        *_convolution(64, 3, relu=False),
    )


def normalise_to(content: Tensor, style: Tensor) -> Tensor:
    """Give each channel of ``content`` the mean and deviation that ``style`` has over space.

    Args:
        content: ``[B, C, h, w]``.
        style: ``[B, C, h', w']``.
    """
    mean_c, deviation_c = _moments(content)
    mean_s, deviation_s = _moments(style)
    return deviation_s * (content - mean_c) / deviation_c + mean_s


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(features, dim=(2, 3), keepdim=True)
    return mean, (variance + _EPSILON).sqrt()


def _load(module: nn.Module, path: Path, unused: frozenset[str]) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"AdaIN: {printable(path)} cannot be read ({reason}).") from error
    wanted = module.state_dict()
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"AdaIN: {printable(path)} must hold named tensors.")
    extra = sorted(state.keys() - wanted.keys() - unused)
    missing = sorted(wanted.keys() - state.keys())
    wrong = sorted(
        name for name in wanted.keys() & state.keys() if state[name].shape != wanted[name].shape
    )
    if extra or missing or wrong:
        raise CheckpointError(
            f"AdaIN: {printable(path)} must hold exactly the tensors of this network, got "
            f"{len(extra)} unknown, {len(missing)} missing and {len(wrong)} of another shape "
            f"(first: {(extra + missing + wrong)[0]})."
        )
    module.load_state_dict({name: state[name] for name in wanted})


class AdaInStylist:
    """Styles drawn from a list of paintings, with a strength drawn from [0, 1]."""

    def __init__(
        self,
        vgg: str | Path,
        decoder: str | Path,
        styles: Sequence[Path],
        *,
        device: str | torch.device = "cpu",
        short_side: int = 512,
        pictures: PictureCache | None = None,
    ) -> None:
        """Read both weight files.

        Args:
            vgg: ``vgg_normalised.pth``.
            decoder: ``Adain_decoder_iter160K.pth.tar``.
            styles: Paintings.
            device: Where the networks run.
            short_side: Pictures are resized so that their shorter side is this many pixels.
            pictures: Decoded paintings to reuse.

        Raises:
            CheckpointError: A file is damaged, unsafe, or of another network.
            DatasetError: There are no paintings.
        """
        if not styles:
            raise DatasetError("AdaInStylist: styles must hold at least one picture, got none.")
        self._encoder, self._decoder = build_encoder(), build_decoder()
        _load(self._encoder, Path(vgg), _UNUSED)
        _load(self._decoder, Path(decoder), frozenset())
        self._device = torch.device(device)
        for network in (self._encoder, self._decoder):
            network.requires_grad_(requires_grad=False).eval().to(self._device)
        self._styles = tuple(styles)
        self._short_side = short_side
        self._pictures = pictures if pictures is not None else PictureCache()

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """Re-draw a picture after a random painting.

        Raises:
            DatasetError: The painting cannot be read.
        """
        style = self._pictures.read(self._styles[int(rng.integers(len(self._styles)))])
        return self.transfer(image, style, float(rng.random()))

    @torch.no_grad()
    def transfer(self, image: Pixels, style: Pixels, strength: float) -> Pixels:
        """Re-draw a picture after another one; the result has its size."""
        content = self._encoder(self._to_tensor(image))
        wanted = normalise_to(content, self._encoder(self._to_tensor(style)))
        mixed = strength * wanted + (1.0 - strength) * content
        drawn = self._decoder(mixed)[0].clamp(0.0, 1.0).permute(1, 2, 0)
        pixels = (drawn * 255.0).round().to(torch.uint8).cpu().numpy()
        size = (image.shape[1], image.shape[0])
        return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))

    def _to_tensor(self, pixels: Pixels) -> Tensor:
        height, width = pixels.shape[:2]
        factor = self._short_side / min(height, width)
        size = (round(width * factor), round(height * factor))
        resized = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(resized)).to(self._device)
        return values.permute(2, 0, 1)[None].float() / 255.0
