# SPDX-License-Identifier: Apache-2.0
"""Sketch segmentation the published way in plain torch: a copy per category, full-size maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.common import Run
from benchmarks.registry import Inputs

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def labels(inputs: Inputs) -> Run:
    """Label maps of every sketch, one after the other as the published code must."""
    model, text, device = inputs["model"], inputs["text"], inputs["device"]

    def run() -> list[np.ndarray[Any, Any]]:
        with torch.inference_mode():
            return [_one(model, image, text, device) for image in inputs["images"]]

    return run


def _one(
    model: Any, image: np.ndarray[Any, Any], text: Tensor, device: str
) -> np.ndarray[Any, Any]:
    small = Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small)).to(device).permute(2, 0, 1).float() / 255
    mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (_MEAN, _STD))
    features = encode(model, ((pixels - mean) / std)[None], text)
    features = features / features.norm(dim=1, keepdim=True)
    scores = (features[0] @ text.T)[4:]
    low, high = scores.amin(0), scores.amax(0)
    maps = ((scores - low) / (high - low)).T.reshape(1, -1, 14, 14)
    large = F.interpolate(maps, image.shape[:2], mode="bilinear")[0]
    best = large.argmax(0).cpu().numpy().astype(np.int16)
    best[image[..., 0] >= 128] = -1
    return best


def encode(model: Any, pixels: Tensor, text: Tensor) -> Tensor:
    """Features ``[C, 200, 512]``: the adapter attends from a copy of all tokens for each text."""
    visual = model.visual
    tokens = visual.conv1(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(1, 1, -1), tokens], 1)
    tokens = tokens + visual.positional_embedding
    x = visual.ln_pre(torch.cat([tokens[:, :1], model.prompts, tokens[:, 1:]], 1))
    for block in visual.transformer.resblocks[:6]:
        attended, _ = _attend(block, x, dual=False)
        x = _feed(block, x + attended)
    path = x
    for block in visual.transformer.resblocks[6:]:
        attended, values = _attend(block, x, dual=True)
        path = path + values
        x = _feed(block, x + attended)
    copies = [one.expand(len(text), -1, -1) for one in (path, x)]
    patches, first = (_adapt(model.adapter, one, text) for one in copies)
    return visual.ln_post(torch.cat([first[:, :1], patches[:, 1:]], 1)) @ visual.proj


def _attend(block: Any, x: Tensor, *, dual: bool) -> tuple[Tensor, Tensor]:
    attn = block.attn
    fused = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    query, key, value = _heads(fused, 3 * attn.heads).chunk(3, dim=1)
    ordinary = _join(attn, F.scaled_dot_product_attention(query, key, value))
    if not dual:
        return ordinary, ordinary
    return ordinary, _join(attn, F.scaled_dot_product_attention(value, value, value))


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def _join(attn: Any, mixed: Tensor) -> Tensor:
    joined: Tensor = attn.out_proj(mixed.transpose(1, 2).flatten(2))
    return joined


def _feed(block: Any, x: Tensor) -> Tensor:
    inner = block.mlp.c_fc(block.ln_2(x))
    fed: Tensor = x + block.mlp.c_proj(inner * torch.sigmoid(1.702 * inner))
    return fed


def _adapt(adapter: Any, tokens: Tensor, text: Tensor) -> Tensor:
    repeated = adapter.text(text)[:, None].expand(-1, tokens.shape[1], -1)
    query, key = _heads(adapter.query(tokens), 8), _heads(adapter.key(repeated), 8)
    mixed = F.scaled_dot_product_attention(query, key, _heads(adapter.value(tokens), 8))
    y = adapter.norm0(tokens + adapter.out(mixed.transpose(1, 2).flatten(2)))
    adapted: Tensor = adapter.norm1(y + adapter.contract(F.relu(adapter.expand(y))))
    return adapted


def padded_texts(inputs: Inputs) -> Run:
    """Vectors of all categories, every sentence padded to 77 ids."""
    tower, rows, count = inputs["tower"], inputs["sequences"], inputs["templates"]
    tokens = torch.zeros(len(rows), 77, dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    tokens = tokens.to(inputs["device"])

    def run() -> Tensor:
        with torch.inference_mode():
            # A category at a time, as published.
            parts = [tower.padded(chunk) for chunk in tokens.split(count)]
            return torch.stack([_average(part) for part in parts])

    return run


def _average(vectors: Tensor) -> Tensor:
    return F.normalize(F.normalize(vectors, dim=1).mean(0), dim=0)
