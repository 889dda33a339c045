# SPDX-License-Identifier: Apache-2.0
"""Rows of the sketch system at its published size: sketches to label maps, and words to vectors.

Untrained weights: the time does not depend on them, and labels are held against float64.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import NotAvailable, Run
from benchmarks.peers import published_sketch
from benchmarks.registry import Inputs, Peer, Row, Target, Verdict

BOTH = ("cpu", "cuda")
SIDE = 1024
PUBLISHED = "the published way in torch"
PADDED = "padded to 77 ids in torch"
# Multiply-adds times two of one sketch: twelve blocks on 200 tokens and the second attentions.
SKETCH_FLOPS = 38e9
SENTENCE_FLOPS = 5.96e9


def _model(text_layers: int) -> Any:
    try:
        from patchword.backbones.clip import ClipConfig, TextConfig
        from patchword.systems.sketchseg.config import SketchSegConfig
        from patchword.systems.sketchseg.model import SketchSegModel
    except ImportError as error:
        raise NotAvailable(f"patchword.systems.sketchseg does not import: {error}") from error
    torch.manual_seed(21)
    clip = ClipConfig(text=TextConfig(layers=text_layers))
    return SketchSegModel(SketchSegConfig(clip=clip)).eval().requires_grad_(False)


def _sketch(generator: np.random.Generator, side: int) -> np.ndarray[Any, Any]:
    """Wandering lines of three pixels on white; they cover some 14 % of a sheet of 1024^2."""
    from patchword.data.strokes import render_strokes

    steps = generator.normal(0, side / 40, (24, 60, 2)).cumsum(axis=1)
    lines = steps + generator.uniform(0, side, (24, 1, 2))
    ink = render_strokes(list(lines), (side, side), 3)
    return np.repeat(255 - ink[..., None], 3, axis=2)


def sketch_inputs(classes: int, batch: int, small: bool) -> Inputs:
    """Return sketches, unit text vectors and an image half of the published size."""
    generator = np.random.default_rng(22)
    side = 256 if small else SIDE
    # The published way costs a pass of the adapter a category: a few are enough for the gate.
    count = min(classes, 4) if small else classes
    text = torch.randn(count, 512, generator=torch.Generator().manual_seed(23))
    return {
        "images": [_sketch(generator, side) for _ in range(1 if small else batch)],
        "text": F.normalize(text, dim=1),
        "model": _model(text_layers=1),
        "device": "cpu",
    }


class SketchGate:
    """Labels of the last sketch: a label may lose to the best score by what rounding explains."""

    def __init__(self, inputs: Inputs) -> None:
        """Store the inputs; the oracle is computed at the first judgement."""
        self._inputs = inputs
        self._maps: Tensor | None = None

    def _oracle(self) -> Tensor:
        if self._maps is None:
            model, image = copy.deepcopy(self._inputs["model"]), self._inputs["images"][-1]
            from patchword.backbones.clip.preprocess import preprocess
            from patchword.ops import use_backend

            pixels = preprocess(image, 224, "stretch").double()
            with torch.inference_mode(), use_backend("reference"):
                features = model.double().encode_image(pixels)
                features = features / features.norm(dim=1, keepdim=True)
                scores = (features[0] @ self._inputs["text"].double().T)[4:]
                scores = (scores - scores.amin(0)) / (scores.amax(0) - scores.amin(0))
            self._maps = scores.T.reshape(1, -1, 14, 14)
        return self._maps

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge one output; ``part`` is not used."""
        labels, image = torch.from_numpy(output[-1]).long(), self._inputs["images"][-1]
        ink = torch.from_numpy(image[..., 0] < 128)
        best = torch.full(ink.shape, -torch.inf, dtype=torch.float64)
        chosen = best.clone()
        for index, one in enumerate(self._oracle()[0]):
            large = F.interpolate(one[None, None], image.shape[:2], mode="bilinear")[0, 0]
            best = torch.maximum(best, large)
            chosen = torch.where(labels == index, large, chosen)
        wrong = int(((labels >= 0) != ink).sum())
        loss = (best - chosen)[ink]
        return Verdict(float(loss.max()), 1e-3, mismatches=wrong, ties=int((loss > 0).sum()))


def segment(inputs: Inputs, backend: str) -> Run:
    """Encode all sketches, several in a pass, and label their ink."""
    from patchword.ops import use_backend
    from patchword.systems.sketchseg.clip_encoder import ClipSketchEncoder
    from patchword.systems.sketchseg.encoder import SegmentOptions
    from patchword.systems.sketchseg.inference import Categories, SketchSegmenter

    text = inputs["text"]
    encoder = ClipSketchEncoder(inputs["model"], sequences=list, device=inputs["device"])
    segmenter = SketchSegmenter(encoder, SegmentOptions(mode="bilinear"), any_picture=True)
    categories = Categories(tuple(map(str, range(len(text)))), text)

    def run() -> list[np.ndarray[Any, Any]]:
        with use_backend(backend):
            return [one.labels for one in segmenter.segment_each(inputs["images"], categories)]

    return run


def text_inputs(classes: int, small: bool) -> Inputs:
    """Return a text tower of the published size and the ids of all sentences."""
    from patchword.backbones.clip.tokenizer import ClipTokenizer
    from patchword.errors import CheckpointError
    from patchword.systems.sketchseg.prompts import TEMPLATES

    try:
        tokenizer = ClipTokenizer()
    except CheckpointError as error:
        raise NotAvailable(str(error)) from error
    words = _words(2 if small else classes)
    templates = TEMPLATES[:3] if small else TEMPLATES
    texts = [template.format(word) for word in words for template in templates]
    return {
        "tower": _model(text_layers=12).text,
        "sequences": tokenizer.sequences(texts),
        "words": words,
        "templates": len(templates),
        "device": "cpu",
    }


def _words(count: int) -> list[str]:
    """Ordinary nouns of one and two words: the names that ImageNet classes are known by."""
    from patchword.backbones.imagenet_words import class_names

    return [" ".join(name.split()[:2]) for name in class_names()][:count]


class TextGate:
    """The first category's vector against the padded way in float64."""

    def __init__(self, inputs: Inputs) -> None:
        """Compute the oracle."""
        tower = copy.deepcopy(inputs["tower"]).double()
        rows = inputs["sequences"][: inputs["templates"]]
        tokens = torch.zeros(len(rows), 77, dtype=torch.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        with torch.inference_mode():
            vectors = F.normalize(tower.padded(tokens), dim=1)
        self._expected = F.normalize(vectors.mean(0), dim=0)

    def __call__(self, output: Tensor, part: str) -> Verdict | None:
        """Judge one output; ``part`` is not used."""
        return Verdict(float((output[0].cpu().double() - self._expected).abs().max()), 1e-5)


def encode_words(inputs: Inputs, backend: str) -> Run:
    """Encode all categories at once, nothing remembered from before."""
    from patchword.inference.vocabulary import VocabularyEncoder
    from patchword.ops import use_backend

    tower = inputs["tower"].to(inputs["device"])
    count, rows = inputs["templates"], inputs["sequences"]
    templates = [f"{{}} {index}" for index in range(count)]
    names = [str(index) for index in range(len(rows) // count)]
    known = {
        template.replace("{}", name): rows[count * i + k]
        for i, name in enumerate(names)
        for k, template in enumerate(templates)
    }

    def run() -> Tensor:
        with use_backend(backend):
            encoder = VocabularyEncoder(tower, lambda texts: [known[t] for t in texts], templates)
            return encoder.encode(names)

    return run


def _sketch_row(classes: int, batch: int, target: float | None) -> Row:
    return Row(
        id=f"sketchseg.labels_{classes}_batch_{batch}",
        op="sketchseg",
        title=f"{batch} sketch(es) to label maps, {classes} categories",
        shape=f"{batch} x {SIDE}^2, ViT-B/16 at 224^2, C {classes}",
        dtype="float32",
        layout="uint8 [H,W,3]",
        inputs=partial(sketch_inputs, classes, batch),
        gate=SketchGate,
        ours=segment,
        peers=(Peer(PUBLISHED, published_sketch.labels, devices=BOTH),),
        targets=() if target is None else (Target((PUBLISHED,), target),),
        flops=SKETCH_FLOPS * batch,
        formula="38 GFLOP a sketch; the published adapter adds 3.7 GFLOP a category",
    )


def _text_row(classes: int) -> Row:
    return Row(
        id=f"sketchseg.text_{classes}",
        op="sketchseg",
        title=f"{classes} categories in 85 sentences each to vectors",
        shape=f"{classes} x 85 sentences, width 512, 12 layers",
        dtype="float32",
        layout="ids",
        inputs=partial(text_inputs, classes),
        gate=TextGate,
        ours=encode_words,
        peers=(Peer(PADDED, published_sketch.padded_texts, devices=BOTH),),
        targets=(Target((PADDED,), 5.0),),
        flops=SENTENCE_FLOPS * 85 * classes,
        formula="5.96 GFLOP a sentence of 77 ids, as the padded way computes them",
    )


ROWS = (
    _sketch_row(10, 1, None),
    _sketch_row(150, 1, 5.0),
    _sketch_row(10, 32, None),
    _text_row(10),
)
LARGE_ROWS = (_sketch_row(150, 32, 5.0), _text_row(150))
"""The peers of these take a quarter of an hour a call on one core."""
