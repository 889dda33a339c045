# SPDX-License-Identifier: Apache-2.0
"""Small sketch networks, a made-up encoder, and the tensor list of the published checkpoint."""

import numpy as np
import torch

from patchword.backbones.clip import ClipConfig, ImageConfig, TextConfig
from patchword.systems.sketchseg.config import SketchSegConfig
from patchword.systems.sketchseg.convert import to_published
from patchword.systems.sketchseg.encoder import SegmentOptions, SketchFeatures
from patchword.systems.sketchseg.model import SketchSegModel

TINY = SketchSegConfig(
    clip=ClipConfig(
        image=ImageConfig(width=64, layers=4, heads=1, patch=16, grid=14),
        text=TextConfig(width=64, layers=1, heads=1),
        embed=32,
    ),
    dual_start=3,
    taps=(3, 4),
    adapter_hidden=48,
)


def tiny_model(seed=0, config=TINY):
    torch.manual_seed(seed)
    model = SketchSegModel(config)
    for tensor in model.parameters():
        if tensor.ndim == 1:
            torch.nn.init.normal_(tensor, 1.0 if tensor.mean() > 0.5 else 0.0, 0.1)
    return model.eval().requires_grad_(False)


def twelve_blocks():
    """A small model whose surgery starts where the published file has it."""
    clip = ClipConfig(
        image=ImageConfig(width=64, layers=12, heads=1, patch=16, grid=2),
        text=TextConfig(vocabulary=40, width=64, layers=12, heads=1),
        embed=32,
    )
    return tiny_model(3, SketchSegConfig(clip=clip, adapter_hidden=48))


def published(model):
    """What the published trainer would save of a model, without the prefix."""
    state = {**to_published(model), "logit_scale": torch.tensor(4.6)}
    for name in list(state):
        if ".encoder.layer2." in name:
            for clone in ("layers", "layer1"):
                state[name.replace("layer2", clone)] = torch.zeros(1)
        if name.startswith("visual.transformer.resblocks.6.attn."):
            state[f"visual.attn.{name.split('.attn.')[1]}"] = state[name]
    for name in [n for n in state if n.startswith("visual.transformer.ca.")]:
        state[name.removeprefix("visual.")] = torch.zeros(1)
    return state


class FakeEncoder:
    """Patches that lean to the first word on the left and to the last on the right."""

    defaults = SegmentOptions()
    device = torch.device("cpu")

    def __init__(self, grid=(7, 7)):
        self.grid = grid
        self.encoded = 0

    def encode_images(self, images):
        self.encoded += len(images)
        along = torch.linspace(0, 1, self.grid[1]).repeat(self.grid[0])
        features = SketchFeatures(torch.stack([1 - along, along], dim=1), self.grid)
        return [features for _ in images]

    def encode_text(self, words):
        part = torch.linspace(0, 1, len(words))
        return torch.stack([1 - part, part], dim=1)


def sketch(height=120, width=200):
    image = np.full((height, width, 3), 255, np.uint8)
    image[20:23, 10:-10] = 0
    image[60:100, 30:33] = 40
    return image


def _block(prefix, width, surgery):
    fused, out = ("qkv.", "proj") if surgery else ("in_proj_", "out_proj")
    return {
        f"{prefix}attn.{fused}weight": (3 * width, width),
        f"{prefix}attn.{fused}bias": (3 * width,),
        f"{prefix}attn.{out}.weight": (width, width),
        f"{prefix}attn.{out}.bias": (width,),
        f"{prefix}mlp.c_fc.weight": (4 * width, width),
        f"{prefix}mlp.c_fc.bias": (4 * width,),
        f"{prefix}mlp.c_proj.weight": (width, 4 * width),
        f"{prefix}mlp.c_proj.bias": (width,),
        **{f"{prefix}ln_{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")},
    }


def _adapter(prefix):
    shapes = {
        f"{prefix}text_projection.weight": (768, 512),
        f"{prefix}text_projection.bias": (768,),
    }
    for layer in ("layers.0", "layer1.0", "layer2.0"):
        stem = f"{prefix}encoder.{layer}."
        for index in range(4):
            shapes[f"{stem}self_attn.linears.{index}.weight"] = (768, 768)
            shapes[f"{stem}self_attn.linears.{index}.bias"] = (768,)
        shapes[f"{stem}feed_forward.w_1.weight"] = (1024, 768)
        shapes[f"{stem}feed_forward.w_1.bias"] = (1024,)
        shapes[f"{stem}feed_forward.w_2.weight"] = (768, 1024)
        shapes[f"{stem}feed_forward.w_2.bias"] = (768,)
        for index in (0, 1):
            shapes[f"{stem}sublayer.{index}.norm.a"] = (768,)
            shapes[f"{stem}sublayer.{index}.norm.b"] = (768,)
    return shapes


def published_shapes():
    """Name and shape of each tensor in the published checkpoint, without ``module.``."""
    shapes = {
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "logit_scale": (),
        "token_embedding.weight": (49408, 512),
        "ln_final.weight": (512,),
        "ln_final.bias": (512,),
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (197, 768),
        "visual.proj": (768, 512),
        "visual.prompt_embeddings": (1, 3, 768),
        "visual.conv1.weight": (768, 3, 16, 16),
        **_adapter("visual.transformer.ca."),
        **_adapter("transformer.ca."),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{norm}.{kind}": (768,) for kind in ("weight", "bias")}
    for index in range(12):
        shapes |= _block(f"visual.transformer.resblocks.{index}.", 768, index >= 6)
        shapes |= _block(f"transformer.resblocks.{index}.", 512, False)
    alias = "visual.transformer.resblocks.6.attn."
    shapes |= {n.replace(alias, "visual.attn."): s for n, s in shapes.items() if alias in n}
    return shapes
