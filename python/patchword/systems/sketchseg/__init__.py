# SPDX-License-Identifier: Apache-2.0
"""Open-vocabulary segmentation of scene sketches (Bourouis, Fan and Gryaditskaya, CVPR 2024)."""

from patchword.systems.sketchseg.convert import from_published
from patchword.systems.sketchseg.encoder import SegmentOptions
from patchword.systems.sketchseg.inference import SketchResult, SketchSegmenter, load

__all__ = ["SegmentOptions", "SketchResult", "SketchSegmenter", "from_published", "load"]
