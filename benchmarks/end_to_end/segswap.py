# SPDX-License-Identifier: Apache-2.0
"""Rows of SegSwap at 480 x 480: the transformer on one pair and on a gallery, and whole pictures.

Untrained weights: the time does not depend on them, and every output is held against the same
network in float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import NotAvailable, Run
from benchmarks.peers import masked_transformer
from benchmarks.registry import Inputs, Peer, Row, Target, Verdict

GRID, SIDE = 30, 480
BOTH = ("cpu", "cuda")
MASKED = "nn.TransformerEncoderLayer, block mask"
# Operations of one pair of 900 + 900 tokens as two streams.
PAIR_FLOPS = 16.3e9


def _transformer(channels_of: str) -> Any:
    try:
        from patchword.nn.cross_transformer import CrossTransformer
        from patchword.systems.segswap import make_config
    except ImportError as error:
        raise NotAvailable(f"patchword.systems.segswap does not import: {error}") from error
    torch.manual_seed(12)
    return CrossTransformer(make_config("small", channels_of).transformer).eval()


def pair_inputs(candidates: int, small: bool) -> Inputs:
    """Return unit features of a query and its candidates, and a network of the published size."""
    generator = torch.Generator().manual_seed(13)
    side = 4 if small else GRID
    sizes = ((1, 1024, side, side), (1 if small else candidates, 1024, side, side))
    maps0, maps1 = (F.normalize(torch.rand(size, generator=generator), dim=1) for size in sizes)
    return {"maps0": maps0, "maps1": maps1, "transformer": _transformer("resnet50-layer3")}


class PairGate:
    """Outputs of both pictures of every pair, against the network in float64."""

    def __init__(self, inputs: Inputs) -> None:
        """Store the inputs; the oracle is computed on first use, for the last candidate alone."""
        self._inputs = inputs

    def _oracle(self) -> list[Tensor]:
        import copy

        network = copy.deepcopy(self._inputs["transformer"]).double()
        maps0, maps1 = self._inputs["maps0"].double(), self._inputs["maps1"][-1:].double()
        from patchword.ops import use_backend

        with torch.inference_mode(), use_backend("reference"):
            return [out[0].float() for out in network(maps0, maps1)]

    def __call__(self, output: Any, part: str) -> Verdict | None:
        """Judge the last pair: five layers may lose what one product may, each."""
        if part == "other":
            return None
        found = [out[-1].detach().cpu() for out in output]
        error = max(float((a - b).abs().max()) for a, b in zip(found, self._oracle(), strict=True))
        return Verdict(error, 1e-5)


def _relate(transformer: Any, maps0: Tensor, maps1: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        out: tuple[Tensor, Tensor] = transformer(maps0, maps1)
    return out


def whole(inputs: Inputs, backend: str) -> Run:
    """Everything from features, nothing kept from before."""
    from patchword.ops import use_backend

    def run() -> tuple[Tensor, Tensor]:
        with use_backend(backend):
            return _relate(inputs["transformer"], inputs["maps0"], inputs["maps1"])

    return run


def kept(inputs: Inputs, backend: str) -> Run:
    """Pictures described before: the layers that see one picture are not run again."""
    from patchword.ops import use_backend

    transformer = inputs["transformer"]
    with torch.inference_mode():
        first, second = transformer.embed(inputs["maps0"]), transformer.embed(inputs["maps1"])

    def run() -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), use_backend(backend):
            out: tuple[Tensor, Tensor] = transformer.relate(first, second)
        return out

    return run


def picture_inputs(small: bool) -> Inputs:
    """Return two pictures as the network sees them, with the packaged backbone."""
    from patchword.backbones import create_backbone

    generator = torch.Generator().manual_seed(14)
    side = 64 if small else SIDE
    pixels0, pixels1 = torch.rand(2, 1, 3, side, side, generator=generator)
    backbone = create_backbone("efficientnet-lite0")
    return {
        "pixels0": pixels0,
        "pixels1": pixels1,
        "backbone": backbone,
        "transformer": _transformer("efficientnet-lite0"),
        "maps0": backbone.describe(pixels0).clone(),
        "maps1": backbone.describe(pixels1).clone(),
    }


def pictures(inputs: Inputs, backend: str) -> Run:
    """From pixels of two pictures to both outputs."""
    from patchword.ops import use_backend

    describe = inputs["backbone"].describe

    def run() -> tuple[Tensor, Tensor]:
        with use_backend(backend):
            maps0, maps1 = describe(inputs["pixels0"]), describe(inputs["pixels1"])
            return _relate(inputs["transformer"], maps0, maps1)

    return run


def _row(name: str, title: str, candidates: int, **fields: Any) -> Row:
    return Row(
        id=f"segswap.{name}",
        op="segswap",
        title=title,
        shape=f"{candidates} x (900 + 900 tokens), width 256, 5 layers",
        dtype="float32",
        layout="features NCHW",
        flops=PAIR_FLOPS * candidates,
        formula="16.3 GFLOP a pair with two streams; 24.6 under a block mask",
        **fields,
    )


ROWS = (
    _row(
        "pair",
        "Transformer on one pair, 480 x 480",
        1,
        inputs=partial(pair_inputs, 1),
        gate=PairGate,
        ours=whole,
        variants=(("both pictures described before", kept),),
        peers=(Peer(MASKED, masked_transformer.pairs, devices=BOTH),),
        targets=(Target((MASKED,), 1.9),),
    ),
    _row(
        "gallery",
        "Transformer on a query and 32 described candidates, 480 x 480",
        32,
        inputs=partial(pair_inputs, 32),
        gate=PairGate,
        ours=kept,
        variants=(("nothing described before", whole),),
        peers=(Peer(MASKED, masked_transformer.pairs, devices=BOTH),),
        targets=(Target((MASKED,), 1.9),),
        note="the block-mask form can keep nothing of one picture",
    ),
    _row(
        "pictures",
        "Two pictures of 480 x 480, EfficientNet-Lite0 and transformer",
        1,
        inputs=picture_inputs,
        gate=PairGate,
        ours=pictures,
        peers=(Peer(MASKED, masked_transformer.described, devices=BOTH),),
        note="pictures per second are two over the time",
    ),
)
