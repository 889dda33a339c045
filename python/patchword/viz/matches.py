# SPDX-License-Identifier: Apache-2.0
"""Two pictures side by side with what they share: regions, correspondences, one score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patchword.viz import canvas
from patchword.viz.canvas import MARGIN, Pen
from patchword.viz.masks import overlay_mask, resize_image, resize_mask
from patchword.viz.style import FOOTER, SHARED, viridis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from patchword.structures import MatchResult

_PANEL_BOX = (560, 760)
_CAPTION_PX = 66
_MAX_LINES = 32
# Lines that start closer to a better one than this share of the picture's diagonal only hide it.
_MIN_SPACING = 0.025
_BLANK = 225
_SUBPIXEL_BITS = 4


def match_overlay(
    result: MatchResult, *, max_lines: int = _MAX_LINES, footer: str = FOOTER
) -> NDArray[np.uint8]:
    """Draw both pictures, their shared regions, the best correspondences and a caption.

    Args:
        result: What to draw; a picture that it does not hold is drawn as a grey panel.
        max_lines: Most correspondences drawn; well spread ones are preferred.
        footer: Small grey line: which pictures, which network.

    Returns:
        uint8 RGB, about 1600 pixels wide at most.
    """
    panels, scales = zip(*(_panel(result, side) for side in (0, 1)), strict=True)
    panel_height = max(panel.shape[0] for panel in panels)
    lefts = (MARGIN, MARGIN + panels[0].shape[1] + MARGIN)
    tops = tuple(MARGIN + (panel_height - panel.shape[0]) // 2 for panel in panels)
    width = max(lefts[1] + panels[1].shape[1] + MARGIN, 640)
    picture = canvas.sheet(MARGIN + panel_height + _CAPTION_PX, width)
    for panel, top, left in zip(panels, tops, lefts, strict=True):
        canvas.place(picture, panel, top, left)
    chosen = spread_matches(result, max_lines)
    ends = [
        result.matches[chosen, 2 * side : 2 * side + 2] * scales[side] + (lefts[side], tops[side])
        for side in (0, 1)
    ]
    low, high = _score_range(result.match_scores[chosen])
    colors = viridis((result.match_scores[chosen] - low) / (high - low))
    _draw_lines(picture, ends[0], ends[1], colors)

    pen = Pen(picture)
    line = MARGIN + panel_height + 22
    x = MARGIN + pen.text(MARGIN, line, f"matching score {result.score:.2f}", bold=True)
    pen.swatch(x + 24, line, SHARED)
    pen.text(x + 46, line, _caption(result, len(chosen)))
    if len(chosen):
        pen.color_bar(width - MARGIN, line + 22, 120, f"match {low:.2f}", f"{high:.2f}")
    pen.footer(MARGIN, line + 22, footer)
    pen.done()
    return picture


def match_figure(result: MatchResult, *, footer: str = FOOTER) -> Figure:
    """Draw the same as a matplotlib figure, lines as vectors, for a paper or a notebook."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import ConnectionPatch

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for side, ax in enumerate(axes):
        image, mask = _image_and_mask(result, side)
        height, width = mask.shape
        ax.imshow(overlay_mask(image, mask, SHARED, quiet=True), extent=(0, width, height, 0))
        ax.set_axis_off()
    chosen = spread_matches(result, _MAX_LINES)
    low, high = _score_range(result.match_scores[chosen])
    norm = Normalize(low, high)
    for (x0, y0, x1, y1), score in zip(
        result.matches[chosen], result.match_scores[chosen], strict=True
    ):
        line = ConnectionPatch(
            (x0, y0), (x1, y1), "data", "data", axesA=axes[0], axesB=axes[1], lw=1.1, alpha=0.9
        )
        red, green, blue = (viridis((score - low) / (high - low)) / 255).tolist()
        line.set_color((red, green, blue))
        line.set_in_layout(False)
        figure.add_artist(line)
    if len(chosen):
        bar = figure.colorbar(ScalarMappable(norm, "viridis"), ax=list(axes), shrink=0.6, pad=0.01)
        bar.set_label("match score")
    figure.suptitle(f"matching score {result.score:.2f}: {_caption(result, len(chosen))}", size=11)
    figure.text(0.995, 0.005, footer, ha="right", va="bottom", size=6, color="0.55")
    return figure


def spread_matches(result: MatchResult, limit: int) -> NDArray[np.int64]:
    """Pick at most ``limit`` matches, best first, none starting close to a better one."""
    order = np.argsort(-result.match_scores, kind="stable")
    if not len(order):
        return order
    starts = result.matches[:, :2]
    # Just wide enough that the lines cover the whole region that has matches.
    covered = float(np.prod(np.ptp(starts, axis=0)))
    least = _MIN_SPACING * float(np.hypot(*result.mask0.shape))
    spacing = max(least, 0.8 * float(np.sqrt(covered / limit)))
    kept: list[int] = []
    for index in order:
        if not kept or np.hypot(*(starts[kept] - starts[index]).T).min() >= spacing:
            kept.append(int(index))
            if len(kept) == limit:
                break
    return np.array(kept, dtype=np.int64)


def _image_and_mask(
    result: MatchResult, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    image = result.image1 if side else result.image0
    mask = result.mask1 if side else result.mask0
    return (np.full((*mask.shape, 3), _BLANK, np.uint8) if image is None else image), mask


def _panel(result: MatchResult, side: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    image, mask = _image_and_mask(result, side)
    height, width = mask.shape
    size = canvas.fit((height, width), _PANEL_BOX)
    panel = overlay_mask(resize_image(image, size), resize_mask(mask, size), SHARED, quiet=True)
    return panel, np.array([size[1] / width, size[0] / height])


def _caption(result: MatchResult, drawn: int) -> str:
    count = len(result.matches)
    shares = " and ".join(
        f"{100 * float(mask.mean()):.0f}%" for mask in (result.mask0, result.mask1)
    )
    lines = "no correspondences" if not count else f"{count} correspondences"
    best = f", {drawn} drawn" if 0 < drawn < count else ""
    return f"shared region {shares} of the pictures, {lines}{best}"


def _score_range(scores: NDArray[np.float32]) -> tuple[float, float]:
    if not len(scores):
        return 0.0, 1.0
    low, high = float(scores.min()), float(scores.max())
    return (low, high) if high - low > 1e-3 else (high - 1e-3, high)


def _draw_lines(
    picture: NDArray[np.uint8],
    starts: NDArray[np.float64],
    stops: NDArray[np.float64],
    colors: NDArray[np.uint8],
) -> None:
    import cv2

    # Continuous coordinates put a pixel's centre at .5, OpenCV puts it at 0.
    def fixed(points: NDArray[np.float64]) -> list[tuple[int, int]]:
        scaled = np.rint((points - 0.5) * (1 << _SUBPIXEL_BITS)).astype(int)
        return [(int(x), int(y)) for x, y in scaled]

    layer = picture.copy()
    # The best line is drawn last, on top.
    drawn = list(zip(fixed(starts), fixed(stops), colors.tolist(), strict=True))[::-1]
    for start, stop, color in drawn:
        cv2.line(layer, start, stop, color, 2, cv2.LINE_AA, _SUBPIXEL_BITS)
    cv2.addWeighted(layer, 0.8, picture, 0.2, 0, dst=picture)
    for start, stop, color in drawn:
        for point in (start, stop):
            radius = 4 << _SUBPIXEL_BITS
            cv2.circle(picture, point, radius, (255, 255, 255), -1, cv2.LINE_AA, _SUBPIXEL_BITS)
            cv2.circle(picture, point, radius * 3 // 4, color, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
