# SPDX-License-Identifier: Apache-2.0
"""Sizes and switches of the sketch network, and their form inside a weights file."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

from patchword.backbones.clip.config import VIT_B16, ClipConfig, ImageConfig, TextConfig
from patchword.errors import CheckpointError

FeatureNorm = Literal["tokens", "sign", "channel"]
"""Axis of the features' normalisation.

``"tokens"`` as in the published demonstration, ``"sign"`` as in its test script, ``"channel"`` the
cosine that its description promises.
"""


@dataclass(frozen=True)
class SketchSegConfig:
    """The network; the defaults are those of the published checkpoint.

    Attributes:
        clip: Both towers of CLIP.
        prompts: Learned tokens between the class token and the patches.
        dual_start: First block, from 1, with value-value attention beside the ordinary one.
        taps: Blocks that training looks at; inference takes the last.
        adapter_heads: Heads of the adapter's attention, as its plain form computes it.
        adapter_hidden: Width inside the adapter's feed-forward part.
        dropout: Of prompts and adapter, in training.
    """

    clip: ClipConfig = VIT_B16
    prompts: int = 3
    dual_start: int = 7
    taps: tuple[int, ...] = (7, 10, 12)
    adapter_heads: int = 8
    adapter_hidden: int = 1024
    dropout: float = 0.1


def config_to_json(config: SketchSegConfig) -> str:
    """One line of JSON that :func:`config_from_json` reads."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def config_from_json(text: str) -> SketchSegConfig:
    """Read what :func:`config_to_json` wrote.

    Raises:
        CheckpointError: It is no such configuration.
    """
    try:
        record: dict[str, Any] = json.loads(text)
        clip: dict[str, Any] = record.pop("clip")
        image, text_config = ImageConfig(**clip.pop("image")), TextConfig(**clip.pop("text"))
        towers = ClipConfig(image=image, text=text_config, **clip)
        return SketchSegConfig(clip=towers, taps=tuple(record.pop("taps")), **record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"config_from_json: weights must say their sizes, got {text[:60]!r} ({error})."
        ) from error
