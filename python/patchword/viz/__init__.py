# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: uint8 RGB arrays for files, matplotlib figures for papers and notebooks."""

from patchword.viz.heatmaps import heatmap_pixels, locate_figure, locate_overlay
from patchword.viz.matches import match_figure, match_overlay
from patchword.viz.style import phrase_colors, viridis

__all__ = [
    "heatmap_pixels",
    "locate_figure",
    "locate_overlay",
    "match_figure",
    "match_overlay",
    "phrase_colors",
    "viridis",
]
