# SPDX-License-Identifier: Apache-2.0
"""The small network ready for use: its weights file, sketches of any size, any words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchword.backbones.base import input_size
from patchword.data.io import printable
from patchword.errors import CheckpointError, OptionError
from patchword.inference.atomic import write_bytes
from patchword.nn.checkpoint import read_weights, weights_bytes
from patchword.structures import ImageArray
from patchword.systems.sketchseg.encoder import SegmentOptions, SketchFeatures
from patchword.systems.sketchseg.small import (
    MULTIPLE,
    SmallConfig,
    SmallSketchNet,
    average_templates,
)
from patchword.systems.sketchseg.small_data import network_ink

SYSTEM, KIND = "sketchseg", "small"
INPUT_SIDE = 224
"""Longest side that the network sees; patches are 8 pixels of it."""

_VOCABULARY = "vocabulary"
_HALF = torch.float16
_INK_BELOW = 128
_LUMA = (0.299, 0.587, 0.114)


class SmallEncoder:
    """Encodes sketches and words with the small network.

    Words of the training vocabulary come from the weights file; all others need the sentence
    encoder of the extra ``text``, which is loaded when the first one is asked for.
    """

    defaults = SegmentOptions(scores="cosine", mode="bilinear")

    def __init__(
        self,
        network: SmallSketchNet,
        vocabulary: Mapping[str, Tensor],
        templates: Sequence[str],
        *,
        input_side: int = INPUT_SIDE,
        device: torch.device | str | None = None,
    ) -> None:
        """Take a trained network.

        Args:
            network: It is folded and frozen.
            vocabulary: Unit vectors of known words, in lower case.
            templates: Sentences that other words are put into; each has one ``{}``.
            input_side: Longest side that the network sees.
            device: Where to compute; the CPU when None.
        """
        self.device = torch.device("cpu" if device is None else device)
        self.network = network.fold().to(self.device)
        self.vocabulary = {word: vector.to(self.device) for word, vector in vocabulary.items()}
        self.templates = tuple(templates)
        self.input_side = input_side

    @torch.inference_mode()
    def encode_images(self, images: Sequence[ImageArray]) -> list[SketchFeatures]:
        """Encode sketches, uint8 ``[H, W, 3]`` of any sizes, dark on light.

        Pictures of one shape share a pass of the network.
        """
        inks = [self._network_input(image) for image in images]
        found: dict[int, SketchFeatures] = {}
        for shape in {tuple(ink.shape) for ink in inks}:
            places = [i for i, ink in enumerate(inks) if tuple(ink.shape) == shape]
            maps = self.network.encode_ink(torch.stack([inks[i] for i in places]).to(self.device))
            for place, one in zip(places, maps, strict=True):
                patches = one.flatten(1).T.contiguous()
                found[place] = SketchFeatures(patches, (one.shape[1], one.shape[2]))
        return [found[i] for i in range(len(inks))]

    @torch.inference_mode()
    def encode_text(self, words: Sequence[str]) -> Tensor:
        """Encode category names to unit vectors ``[C, D]``; case and outer blanks do not matter.

        Raises:
            OptionError: A name is empty.
            CheckpointError: A name is not in the vocabulary and the extra ``text`` is missing.
        """
        names = [" ".join(word.lower().split()) for word in words]
        if not all(names):
            raise OptionError("encode_text: a category must have a name, got ''.")
        unknown = sorted(set(names) - self.vocabulary.keys())
        if unknown:
            self.vocabulary |= dict(zip(unknown, self._project(unknown), strict=True))
        dimension = self.network.config.dimension
        vectors = [self.vocabulary[name] for name in names]
        return torch.stack(vectors) if vectors else torch.zeros(0, dimension, device=self.device)

    def _project(self, words: Sequence[str]) -> Tensor:
        return project_words(self.network, words, self.templates, self.device)

    def _network_input(self, image: ImageArray) -> Tensor:
        size = image.shape[0], image.shape[1]
        grey = image.astype("float32") @ torch.tensor(_LUMA).numpy()
        enlarge = max(1.0, self.input_side / max(size))
        target = input_size(
            (round(size[0] * enlarge), round(size[1] * enlarge)), self.input_side, MULTIPLE
        )
        return network_ink(grey < _INK_BELOW, target)


def load_small(
    checkpoint: str | Path | None = None, *, device: torch.device | str | None = None
) -> SmallEncoder:
    """Load the small network: the shipped weights, or those of a training run.

    Args:
        checkpoint: ``model.safetensors`` of a run, or None for the shipped file.
        device: Where to compute.

    Raises:
        CheckpointError: The file is missing, damaged or of something else.
    """
    path = default_weights() if checkpoint is None else Path(checkpoint)
    state, header = read_weights(path, system=SYSTEM)
    if header.get("kind") != KIND:
        raise CheckpointError(
            f"load_small: {printable(path)} must be weights of the small network, got kind "
            f"{header.get('kind')!r}."
        )
    try:
        config = SmallConfig(**header["config"])
        words, templates = header["words"], header["templates"]
        network = SmallSketchNet(config=config).eval()
        if header.get("folded"):
            network.fold()
        vectors = state.pop(_VOCABULARY, None)
        network.load_state_dict({name: one.float() for name, one in state.items()}, strict=True)
        if vectors is None:
            vectors = project_words(network, words, templates)
        vocabulary = {word.lower(): one.float() for word, one in zip(words, vectors, strict=True)}
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"load_small: {printable(path)} must hold the small network whole, got: "
            f"{str(error).splitlines()[0]}."
        ) from error
    return SmallEncoder(network, vocabulary, templates, device=device)


def save_small(encoder: SmallEncoder, path: Path, metadata: Mapping[str, Any]) -> Path:
    """Write a network in half precision, norms folded, as the shipped file is.

    Args:
        encoder: What to write, with its vocabulary.
        path: The file.
        metadata: More of the header, JSON-ready, such as data and licence.

    Raises:
        OutputError: It cannot be written.
    """
    state = {name: one.to(_HALF) for name, one in encoder.network.state_dict().items()}
    state[_VOCABULARY] = torch.stack(list(encoder.vocabulary.values())).to(_HALF)
    header = small_header(encoder.network.config, list(encoder.vocabulary), encoder.templates)
    content = weights_bytes(state, system=SYSTEM, header={**metadata, **header, "folded": True})
    return write_bytes(path, content)


def small_header(
    config: SmallConfig, words: Sequence[str], templates: Sequence[str]
) -> dict[str, Any]:
    """What a weights file says about the network in it."""
    return {
        "kind": KIND,
        "config": dict(vars(config)),
        "words": list(words),
        "templates": list(templates),
    }


def project_words(
    network: SmallSketchNet,
    words: Sequence[str],
    templates: Sequence[str],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Unit vectors ``[C, D]`` of words by way of the sentence encoder.

    Raises:
        CheckpointError: The sentence encoder is not installed.
    """
    sentences = encode_templates(words, templates).to(device)
    return average_templates([network.encode_sentences(one) for one in sentences])


def encode_templates(words: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Sentence vectors ``[templates, words, 384]``.

    Raises:
        CheckpointError: The sentence encoder is not installed.
    """
    from patchword.backbones.sentence import SentenceEncoder

    encoder = SentenceEncoder()
    vectors = [encoder.encode([template.format(word) for word in words]) for template in templates]
    # Made under inference mode, such tensors cannot take part in training.
    return torch.stack(vectors).clone()


def default_weights() -> Path:
    """The file that ships with the library."""
    return Path(str(files("patchword"))) / "assets" / "sketchseg" / "default.safetensors"
