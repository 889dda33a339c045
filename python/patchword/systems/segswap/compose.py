# SPDX-License-Identifier: Apache-2.0
"""Makes one training pair: objects of one photograph pasted into another, and where they went."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from patchword.errors import DatasetError
from patchword.geometry import Matrix
from patchword.systems.segswap.blend import paste
from patchword.systems.segswap.correspondence import (
    Grid,
    affine_flow,
    cycle_masks,
    grid_mask,
)
from patchword.systems.segswap.layers import (
    Layer,
    LayerDraw,
    RejectedSceneError,
    exact_layer,
    published_layer,
)
from patchword.systems.segswap.outlines import dilate_cross
from patchword.systems.segswap.pictures import PictureCache, squash
from patchword.systems.segswap.recipe import PairRecipe, draw_scale
from patchword.systems.segswap.sources import Scene, SceneSource
from patchword.systems.segswap.timing import StageTimes

Pixels = npt.NDArray[np.uint8]
Target = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]

_MAX_ATTEMPTS = 500
_PUBLISHED_SIZE = 480

# Boxes (x0, y0, x1, y1) of the first and the second object in a picture of 480 pixels.
TWO_OBJECT_LAYOUTS: tuple[tuple[Box, Box], ...] = (
    ((0, 0, 240, 224), (0, 256, 240, 480)),
    ((0, 0, 224, 224), (256, 256, 480, 480)),
    ((0, 0, 224, 240), (256, 0, 480, 240)),
    ((0, 0, 240, 224), (0, 256, 480, 480)),
    ((0, 0, 224, 240), (256, 0, 480, 480)),
    ((0, 240, 224, 480), (256, 240, 480, 480)),
    ((0, 256, 224, 480), (256, 0, 480, 224)),
    ((0, 256, 240, 480), (0, 0, 480, 224)),
    ((0, 240, 224, 480), (256, 0, 480, 480)),
    ((240, 256, 480, 480), (240, 0, 480, 224)),
    ((240, 256, 480, 480), (0, 0, 480, 224)),
    ((256, 240, 480, 480), (0, 0, 224, 480)),
    ((256, 0, 480, 240), (0, 0, 224, 480)),
    ((240, 0, 480, 224), (0, 256, 480, 480)),
    ((0, 0, 480, 224), (0, 256, 480, 480)),
    ((0, 0, 224, 480), (256, 0, 480, 480)),
)


@dataclass(frozen=True)
class ComposedPair:
    """Two pictures that share one or two objects.

    Attributes:
        image0: The photograph that the objects are from, squashed, ``[S, S, 3]``.
        image1: The background with the objects pasted in, ``[S, S, 3]``.
        plain1: The background without them.
        target0: For cells of picture 0: x and y in picture 1 (of [0, 1]) and mask, ``[3, h, w]``.
        target1: The same for picture 1.
        num_objects: 1 or 2.
    """

    image0: Pixels
    image1: Pixels
    plain1: Pixels
    target0: Target
    target1: Target
    num_objects: int


def compose_pair(
    source: SceneSource,
    recipe: PairRecipe,
    rng: np.random.Generator,
    *,
    pictures: PictureCache | None = None,
    times: StageTimes | None = None,
) -> ComposedPair:
    """Draw scenes until one gives a pair whose masks are large enough.

    Args:
        source: Where photographs and objects come from.
        recipe: Sizes and ranges.
        rng: The only source of randomness.
        pictures: Decoded photographs to reuse.
        times: Collects the time of each stage.

    Raises:
        DatasetError: A file cannot be read, or 500 scenes in a row are unusable.
    """
    cache = pictures if pictures is not None else PictureCache()
    clock = times if times is not None else StageTimes()
    two = source.offers(2) and float(rng.random()) < recipe.two_objects
    for _ in range(_MAX_ATTEMPTS):
        with clock.stage("draw"):
            scene = source.draw(rng, 2 if two else 1, any_category=recipe.keeps("T6"))
        try:
            return _compose(scene, recipe, rng, cache, clock)
        except RejectedSceneError:
            continue
    raise DatasetError(
        f"compose_pair: objects must cover at least {recipe.min_cells:g} cells, but {_MAX_ATTEMPTS}"
        " scenes in a row had smaller or overlapping ones. Larger objects or a smaller min_cells "
        "are needed."
    )


def _compose(
    scene: Scene,
    recipe: PairRecipe,
    rng: np.random.Generator,
    cache: PictureCache,
    clock: StageTimes,
) -> ComposedPair:
    size = recipe.size
    count = len(scene.outlines)
    with clock.stage("read and resize"):
        photograph = cache.read(scene.foreground)
        plain1 = cache.squashed(scene.background, size)
    with clock.stage("outlines"):
        # Published code dilates at least once whatever it is told.
        steps = max(recipe.dilation, 1) if recipe.keeps("T16") else recipe.dilation
        masks = [dilate_cross(outline.mask(photograph), steps) for outline in scene.outlines]
        if any(not mask.any() for mask in masks):
            raise RejectedSceneError
        if recipe.min_contrast > 0 and min(_contrast(photograph, mask) for mask in masks) < (
            recipe.min_contrast
        ):
            raise RejectedSceneError
        if count == 2 and bool(cv2.bitwise_and(masks[0], masks[1]).any()):
            raise RejectedSceneError
    cropped = count == 1 and float(rng.random()) < recipe.border_crop
    with clock.stage("read and resize"):
        if cropped:
            photograph, masks[0] = crop_to_border(photograph, masks[0])
            image0 = squash(photograph, size)
        else:
            image0 = cache.squashed(scene.foreground, size)
        squashed = [_squash_mask(mask, size) for mask in masks]
    rooms = _rooms(count, size, rng)
    flows, final = [], []
    image1 = plain1
    for mask, room in zip(squashed, rooms, strict=True):
        draw = _draw_layer(recipe, rng, count)
        with clock.stage("warp"):
            layer = _layer(image0, mask, draw, room, recipe)
        with clock.stage("blend"):
            image1, matrix = _paste(layer, image1, room, recipe, rng)
        with clock.stage("correspondences"):
            flow01 = affine_flow(matrix, recipe.grid, size)
            flow10 = affine_flow(np.linalg.inv(matrix).astype(np.float64), recipe.grid, size)
            flows.append((flow01, flow10))
            final.append(cycle_masks(grid_mask(mask, recipe.grid), flow01, flow10))
    with clock.stage("correspondences"):
        target0, target1 = _targets(flows, final, recipe)
    return ComposedPair(image0, image1, plain1, target0, target1, count)


def _contrast(photograph: Pixels, mask: Pixels) -> float:
    """Standard deviation of the brightness under a mask."""
    x, y, width, height = cv2.boundingRect(mask)
    place = (slice(y, y + height), slice(x, x + width))
    grey = cv2.cvtColor(np.ascontiguousarray(photograph[place]), cv2.COLOR_RGB2GRAY)
    _, deviation = cv2.meanStdDev(grey, mask=np.ascontiguousarray(mask[place]))
    return float(deviation[0, 0])


def _draw_layer(recipe: PairRecipe, rng: np.random.Generator, count: int) -> LayerDraw:
    scale_x, scale_y = rng.uniform(recipe.aspect_min, 1.0, 2)
    return LayerDraw(
        scale_x=float(scale_x),
        scale_y=float(scale_y),
        degrees=float(rng.uniform(recipe.angle_min, recipe.angle_max)),
        share=draw_scale(rng, recipe.scale_one if count == 1 else recipe.scale_two),
    )


def _rooms(count: int, size: int, rng: np.random.Generator) -> tuple[Box, ...]:
    if count == 1:
        return ((0, 0, size, size),)
    layout = TWO_OBJECT_LAYOUTS[rng.integers(len(TWO_OBJECT_LAYOUTS))]
    scaled = [tuple(edge * size // _PUBLISHED_SIZE for edge in box) for box in layout]
    return tuple((box[0], box[1], box[2], box[3]) for box in scaled)


def crop_to_border(photograph: Pixels, mask: Pixels) -> tuple[Pixels, Pixels]:
    """Cut off the narrowest strip between an object and the border, so that they touch.

    Ties go to the left, then right, top, bottom.
    """
    height, width = mask.shape
    x, y, wide, tall = cv2.boundingRect(mask)
    gaps = (x, width - x - wide, y, height - y - tall)
    kept = [
        (slice(None), slice(x, None)),
        (slice(None), slice(None, x + wide)),
        (slice(y, None), slice(None)),
        (slice(None, y + tall), slice(None)),
    ][int(np.argmin(gaps))]
    return np.ascontiguousarray(photograph[kept]), np.ascontiguousarray(mask[kept])


def _squash_mask(mask: Pixels, size: int) -> Pixels:
    return np.array(Image.fromarray(mask).resize((size, size), Image.Resampling.BILINEAR))


def _layer(image: Pixels, mask: Pixels, draw: LayerDraw, room: Box, recipe: PairRecipe) -> Layer:
    extent = (room[3] - room[1], room[2] - room[0])
    if recipe.keeps("T5") or recipe.keeps("T16"):
        return published_layer(image, mask, draw, extent, wrong_angles=recipe.keeps("T5"))
    return exact_layer(image, mask, draw, extent)


def _paste(
    layer: Layer, background: Pixels, room: Box, recipe: PairRecipe, rng: np.random.Generator
) -> tuple[Pixels, Matrix]:
    """Paste at a random place in its room; gives the picture and the matrix picture 0 -> 1."""
    height, width = layer.mask.shape
    y = room[1] + int(rng.integers(room[3] - room[1] - height + 1))
    x = room[0] + int(rng.integers(room[2] - room[0] - width + 1))
    shift = np.eye(3)
    shift[:2, 2] = (x, y)
    matrix = shift @ layer.matrix
    if recipe.keeps("T16"):
        return paste_published(layer, background, (x, y)), matrix
    return paste(layer.patch, layer.mask, background, (x, y), blend=recipe.blend), matrix


def paste_published(layer: Layer, background: Pixels, corner: tuple[int, int]) -> Pixels:
    """Clone as the published code does: soft mask, and a centre that OpenCV reads otherwise."""
    height, width = layer.mask.shape
    center = (corner[0] + width // 2 - 1, corner[1] + height // 2 - 1)
    try:
        cloned: Pixels = cv2.seamlessClone(
            layer.patch, background, layer.mask, center, cv2.NORMAL_CLONE
        )
    except cv2.error as error:
        # Patches of a few pixels at the border fall outside because of the shift.
        raise RejectedSceneError from error
    return cloned


def _targets(
    flows: list[tuple[Grid, Grid]], masks: list[tuple[Grid, Grid]], recipe: PairRecipe
) -> tuple[Target, Target]:
    """Merge the objects' masks and maps; refuse small or overlapping ones."""
    if len(flows) == 1:
        merged = [_stack(flows[0][side], masks[0][side]) for side in (0, 1)]
    else:
        if recipe.keeps("T14"):
            masks[0] = cycle_masks(masks[0][0], *flows[0])
        if any(float((masks[0][side] * masks[1][side]).max()) > 0 for side in (0, 1)):
            raise RejectedSceneError
        merge = _merge_published if recipe.keeps("T14") else _merge
        merged = [
            merge([flow[side] for flow in flows], [mask[side] for mask in masks], side)
            for side in (0, 1)
        ]
    if any(float(mask.sum()) < recipe.min_cells for pair in masks for mask in pair):
        raise RejectedSceneError
    return merged[0], merged[1]


def _merge(flows: list[Grid], masks: list[Grid], side: int) -> Target:
    """Take at each cell the map of the object that covers it, or else of the nearest object."""
    distances = [
        cv2.distanceTransform((mask <= 0).astype(np.uint8), cv2.DIST_L2, 5) for mask in masks
    ]
    first = distances[0] <= distances[1]
    return _stack(np.where(first[..., None], flows[0], flows[1]), masks[0] + masks[1])


def _merge_published(flows: list[Grid], masks: list[Grid], side: int) -> Target:
    """Leave zeros outside the objects; x of picture 0 is gated above 0, all else above 0.5."""
    flow = np.zeros_like(flows[0])
    for one, mask in zip(flows, masks, strict=True):
        flow[..., 0] += one[..., 0] * (mask > (0.0 if side == 0 else 0.5))
        flow[..., 1] += one[..., 1] * (mask > 0.5)
    return _stack(flow, masks[0] + masks[1])


def _stack(flow: Grid, mask: Grid) -> Target:
    return np.concatenate([flow.transpose(2, 0, 1), mask[None]]).astype(np.float32)
