# SPDX-License-Identifier: Apache-2.0
"""Composes scene sketches from single drawings, every stroke with a known class and object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from patchword.data.strokes import Drawing, Stroke, fit_strokes, read_ndjson
from patchword.errors import DatasetError, OptionError

CANVAS = 256.0
"""Side of the square that the strokes of a scene lie in."""

_PLACEMENT_TRIES = 20
_SHRINK = 0.85


@dataclass(frozen=True)
class JitterConfig:
    """How much a drawing is changed before it is placed; all zero changes nothing.

    Attributes:
        rotation: Largest turn in degrees.
        stretch: Largest change of the proportions, as a natural logarithm.
        shear: Largest shear.
        flip: Chance of a left-right mirror image.
        warp: Size of the smooth warp, as a share of the drawing's larger side.
        stroke: Largest shift of a single stroke, as a share of the larger side.
        drop: Chance that one stroke of a drawing with at least four is left out.
    """

    rotation: float = 0.0
    stretch: float = 0.0
    shear: float = 0.0
    flip: float = 0.0
    warp: float = 0.0
    stroke: float = 0.0
    drop: float = 0.0


@dataclass(frozen=True)
class SceneConfig:
    """How scenes are composed.

    Attributes:
        min_objects: Fewest objects of a scene; each has a class of its own.
        max_objects: Most objects.
        min_side: Smallest larger side of an object, as a share of the canvas.
        max_side: Largest larger side; objects shrink below ``min_side`` where there is no room.
        max_overlap: Largest share of the smaller of two boxes that the other may cover.
        jitter: Changes to every drawing.
    """

    min_objects: int = 3
    max_objects: int = 6
    min_side: float = 0.25
    max_side: float = 0.5
    max_overlap: float = 0.1
    jitter: JitterConfig = field(default_factory=JitterConfig)

    def __post_init__(self) -> None:
        """Refuse ranges that are empty."""
        if not 1 <= self.min_objects <= self.max_objects:
            raise OptionError(
                "SceneConfig: min_objects must be in [1, max_objects], got "
                f"{self.min_objects} and {self.max_objects}."
            )
        if not 0 < self.min_side <= self.max_side <= 1:
            raise OptionError(
                "SceneConfig: min_side must be in (0, max_side] and max_side at most 1, got "
                f"{self.min_side} and {self.max_side}."
            )


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene sketch whose strokes are labelled.

    Attributes:
        strokes: Points (x, y) in ``[0, 256]``, ``[n, 2]`` each.
        labels: The class of each stroke.
        objects: The number of the object that each stroke belongs to, from 0.
        caption: One sentence that names the objects.
    """

    strokes: tuple[Stroke, ...]
    labels: tuple[str, ...]
    objects: tuple[int, ...]
    caption: str

    def classes(self) -> tuple[str, ...]:
        """The classes in the scene, sorted."""
        return tuple(sorted(set(self.labels)))


@dataclass(frozen=True, eq=False)
class DrawingLibrary:
    """Drawings by class, the classes sorted.

    Attributes:
        drawings: The drawings of every class, sorted by key.
    """

    drawings: dict[str, tuple[Drawing, ...]]

    @classmethod
    def read(cls, path: str | Path) -> DrawingLibrary:
        """Read a file of Quick, Draw! records.

        Raises:
            DatasetError: As :func:`patchword.data.strokes.read_ndjson`, or there is no drawing.
        """
        library = cls.collect(read_ndjson(path))
        if not library.drawings:
            raise DatasetError(f"DrawingLibrary.read: {path} must hold drawings, got none.")
        return library

    @classmethod
    def collect(cls, drawings: Iterable[Drawing]) -> DrawingLibrary:
        """Sort drawings into classes; those without a word or without strokes are left out."""
        by_word: dict[str, list[Drawing]] = {}
        for drawing in drawings:
            if drawing.word and drawing.strokes:
                by_word.setdefault(drawing.word, []).append(drawing)
        return cls(
            {
                word: tuple(sorted(by_word[word], key=lambda drawing: drawing.key))
                for word in sorted(by_word)
            }
        )

    def words(self) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(self.drawings)

    def split(self, held_out: float = 1 / 3) -> tuple[DrawingLibrary, DrawingLibrary]:
        """Cut every class in two by the order of keys: ``(first part, held-out last part)``."""
        first, last = {}, {}
        for word, drawings in self.drawings.items():
            cut = len(drawings) - int(len(drawings) * held_out)
            first[word], last[word] = drawings[:cut], drawings[cut:]
        return (
            DrawingLibrary({word: part for word, part in first.items() if part}),
            DrawingLibrary({word: part for word, part in last.items() if part}),
        )


def scene_generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of scene ``index``: the same whoever composes it, in whatever order."""
    return np.random.default_rng([seed, index])


def compose_scene(
    library: DrawingLibrary, rng: np.random.Generator, config: SceneConfig | None = None
) -> Scene:
    """Place drawings of different classes on a canvas.

    Args:
        library: Where drawings come from, every class as likely.
        rng: Source of randomness, such as :func:`scene_generator`.
        config: How many, how large and how much changed; by default 3 to 6 unchanged drawings.

    Raises:
        OptionError: The library has fewer classes than the scene needs.
    """
    config = SceneConfig() if config is None else config
    words = library.words()
    count = int(rng.integers(config.min_objects, config.max_objects + 1))
    if count > len(words):
        raise OptionError(
            f"compose_scene: library must have at least {count} classes, got {len(words)}."
        )
    chosen = [words[i] for i in rng.choice(len(words), count, replace=False)]
    strokes: list[Stroke] = []
    labels: list[str] = []
    objects: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    for number, word in enumerate(chosen):
        options = library.drawings[word]
        drawing = options[int(rng.integers(len(options)))]
        changed = jitter_strokes(drawing.strokes, rng, config.jitter)
        box = _place(rng, config, boxes)
        boxes.append(box)
        placed = fit_strokes(changed, box)
        strokes.extend(placed)
        labels.extend([word] * len(placed))
        objects.extend([number] * len(placed))
    return Scene(tuple(strokes), tuple(labels), tuple(objects), _caption(chosen, rng))


def jitter_strokes(
    strokes: Sequence[Stroke], rng: np.random.Generator, config: JitterConfig
) -> list[Stroke]:
    """Change a drawing as another hand might have drawn it, see :class:`JitterConfig`."""
    kept = list(strokes)
    if len(kept) >= 4 and rng.random() < config.drop:
        kept.pop(int(rng.integers(len(kept))))
    ends = np.cumsum([len(stroke) for stroke in kept])[:-1]
    points = np.concatenate(kept).astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(float((high - low).max()), 1.0)
    points = (points - (low + high) / 2) / side
    angle = np.deg2rad(rng.uniform(-config.rotation, config.rotation))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.exp(rng.uniform(-config.stretch, config.stretch) / 2)
    slant = rng.uniform(-config.shear, config.shear)
    mirror = -1.0 if rng.random() < config.flip else 1.0
    shape = np.array([[mirror * stretch, slant], [0.0, 1.0 / stretch]])
    points = points @ (turn @ shape).T
    # Two slow waves along random directions bend lines without tearing strokes apart.
    for _ in range(2):
        direction = rng.normal(size=2) * 3.0
        phase = rng.uniform(0.0, 2 * np.pi)
        points = (
            points + rng.normal(size=2) * config.warp * np.sin(points @ direction + phase)[:, None]
        )
    shifts = rng.uniform(-config.stroke, config.stroke, (len(kept), 2))
    lengths = [len(stroke) for stroke in kept]
    points = (points + np.repeat(shifts, lengths, axis=0)) * side
    return [part.astype(np.float32) for part in np.split(points, ends)]


def _place(
    rng: np.random.Generator,
    config: SceneConfig,
    boxes: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """A square box for the next object; ever smaller ones are tried until one has room."""
    side = rng.uniform(config.min_side, config.max_side) * CANVAS
    while True:
        for _ in range(_PLACEMENT_TRIES):
            x, y = rng.uniform(2.0, CANVAS - 2.0 - side, 2)
            box = (float(x), float(y), float(x + side), float(y + side))
            if all(_overlap(box, other) <= config.max_overlap for other in boxes):
                return box
        side *= _SHRINK


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> float:
    """Common area of two boxes as a share of the smaller one."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other))
    return width * height / smaller


_PLACES = ("next to", "near", "behind", "beside", "in front of")


def _caption(words: Sequence[str], rng: np.random.Generator) -> str:
    """One sentence that names the classes in the order they were placed."""
    parts = [_with_article(word) for word in words]
    if len(parts) == 1:
        return f"{parts[0]} is standing alone in the picture".capitalize()
    where = _PLACES[int(rng.integers(len(_PLACES)))]
    rest = " and ".join([", ".join(parts[1:-1])] * (len(parts) > 2) + [parts[-1]])
    return f"{parts[0][0].upper()}{parts[0][1:]} is standing {where} {rest} in the picture"


def _with_article(word: str) -> str:
    if word.lower().startswith("the "):
        return word
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"
