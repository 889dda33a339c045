# SPDX-License-Identifier: Apache-2.0
"""CLIP's image and text towers, its tokenizer and preprocessing, and its checkpoints."""

from patchword.backbones.clip.checkpoint import clip_from_state_dict, load_clip
from patchword.backbones.clip.config import (
    VIT_B16,
    VIT_B32,
    VIT_L14,
    VIT_L14_336,
    ClipConfig,
    ImageConfig,
    TextConfig,
)
from patchword.backbones.clip.model import Clip
from patchword.backbones.clip.preprocess import preprocess
from patchword.backbones.clip.tokenizer import ClipTokenizer

__all__ = [
    "VIT_B16",
    "VIT_B32",
    "VIT_L14",
    "VIT_L14_336",
    "Clip",
    "ClipConfig",
    "ClipTokenizer",
    "ImageConfig",
    "TextConfig",
    "clip_from_state_dict",
    "load_clip",
    "preprocess",
]
