# SPDX-License-Identifier: Apache-2.0
"""Does the page's work: loads each model once, computes one request at a time, keeps results."""

from __future__ import annotations

import base64
import hashlib
import io
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchword.app.limits import Limits
from patchword.data.io import read_image
from patchword.errors import DatasetError, OptionError
from patchword.structures import ImageArray, LabelArray, LocateResult, MatchResult
from patchword.viz.masks import overlay_labels, resize_image
from patchword.viz.matches import match_overlay
from patchword.viz.style import phrase_colors

Answer = dict[str, Any]

KINDS = ("photo", "sketch")
"""What a picture for words can be: each kind has a model of its own."""


class BusyError(Exception):
    """Too many requests are waiting already."""


class ForgottenError(Exception):
    """The result that a threshold was moved on is no longer kept."""


class Workbench:
    """The models behind the page.

    Args:
        limits: Bounds of one request.
        locators: For each kind of :data:`KINDS` what makes its model, an object with
            ``locate(image, texts) -> LocateResult``; by default the library's own.
        matcher: What makes the model for two pictures, an object with
            ``match(image0, image1) -> MatchResult``.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        locators: dict[str, Callable[[], Any]] | None = None,
        matcher: Callable[[], Any] | None = None,
    ) -> None:
        """Remember how models are made; nothing is loaded before it is needed."""
        self.limits = limits if limits is not None else Limits()
        self._makers: dict[str, Callable[[], Any]] = {
            "photo": _photo_locator,
            "sketch": _sketch_locator,
            "match": _matcher,
            **(locators or {}),
        }
        if matcher is not None:
            self._makers["match"] = matcher
        self._models: dict[str, Any] = {}
        self._results: OrderedDict[str, LocateResult] = OrderedDict()
        self._turn = threading.Lock()
        self._queue = threading.BoundedSemaphore(self.limits.max_waiting + 1)

    def locate(self, picture: bytes, words: str, kind: str, threshold: float) -> Answer:
        """Find words in a picture and label it.

        Args:
            picture: The bytes of an image file.
            words: Phrases, one a line or separated by commas.
            kind: One of :data:`KINDS`.
            threshold: Heat in [0, 1] from which a pixel takes a label.

        Raises:
            OptionError: No words, too many, or a setting out of range.
            DatasetError: The bytes are no picture, or a too large one.
            BusyError: Too many requests wait.
        """
        texts = self._phrases(words)
        if kind not in KINDS:
            raise OptionError(f"locate: kind must be one of {list(KINDS)}, got {kind!r}.")
        _check_threshold(threshold)
        key = hashlib.blake2b(
            b"\0".join([kind.encode(), "\n".join(texts).encode(), picture]), digest_size=16
        ).hexdigest()
        if key not in self._results:
            image = self._decode(picture)
            with self._working():
                result = self._model(kind).locate(image, texts)
            self._keep(key, replace(result, image=image))
        return self.relabel(key, threshold)

    def relabel(self, key: str, threshold: float) -> Answer:
        """Label the picture of an earlier answer by another threshold.

        Raises:
            ForgottenError: That result is no longer kept.
            OptionError: The threshold is out of range.
        """
        _check_threshold(threshold)
        result = self._results.get(key)
        if result is None or result.image is None:
            raise ForgottenError("the picture is no longer kept here, send it again.")
        labels = label_at(result, threshold)
        colors = phrase_colors(result.texts)
        legend = [
            {
                "text": text,
                "color": "#{:02x}{:02x}{:02x}".format(*colors[k].tolist()),
                "score": round(float(result.scores[k]), 4),
                "share": round(float((labels == k).mean()), 4),
            }
            for k, text in enumerate(result.texts)
        ]
        return {
            "key": key,
            "threshold": threshold,
            "size": list(labels.shape),
            "overlay": _png(overlay_labels(result.image, labels, colors)),
            # 0 is "no label", so that the file is a usual label map.
            "labels": _png((labels + 1).astype(np.uint8)),
            "legend": sorted(legend, key=lambda row: -float(str(row["score"]))),
        }

    def match(self, picture0: bytes, picture1: bytes) -> Answer:
        """Find what two pictures share.

        Raises:
            DatasetError: The bytes are no picture, or a too large one.
            BusyError: Too many requests wait.
        """
        images = [self._decode(picture) for picture in (picture0, picture1)]
        with self._working():
            result: MatchResult = self._model("match").match(*images)
        result = replace(result, image0=images[0], image1=images[1])
        return {
            "score": round(float(result.score), 4),
            "matches": len(result.matches),
            "share": [round(float((m >= 0.5).mean()), 4) for m in (result.mask0, result.mask1)],
            "overlay": _png(match_overlay(result)),
        }

    def _keep(self, key: str, result: LocateResult) -> None:
        self._results[key] = result
        while len(self._results) > 1:
            kept = sum(result.heatmaps.nbytes for result in self._results.values())
            if kept <= self.limits.kept_bytes:
                break
            self._results.popitem(last=False)

    def _phrases(self, words: str) -> list[str]:
        texts = [" ".join(text.split()) for text in words.replace("\n", ",").split(",")]
        texts = list(dict.fromkeys(text for text in texts if text))
        if not texts:
            raise OptionError("locate: words must name at least one thing, got none.")
        if len(texts) > self.limits.max_words:
            raise OptionError(
                f"locate: words must name at most {self.limits.max_words} things, got {len(texts)}."
            )
        longest = max(map(len, texts))
        if longest > self.limits.max_phrase:
            raise OptionError(
                f"locate: a phrase must have at most {self.limits.max_phrase} characters, "
                f"got one of {longest}."
            )
        return texts

    def _decode(self, picture: bytes) -> ImageArray:
        # The reader of files is the hardened one; a private folder keeps the visitor's bytes from
        # ever meeting a path of the visitor's choice.
        with tempfile.TemporaryDirectory(prefix="patchword-") as folder:
            path = Path(folder) / "picture"
            path.write_bytes(picture)
            try:
                image = read_image(path, max_pixels=self.limits.max_pixels)
            except DatasetError as error:
                message = str(error).replace(str(path), "the picture")
                raise DatasetError(message) from None
        height, width = image.shape[:2]
        factor = self.limits.max_side / max(height, width)
        if factor >= 1:
            return image
        return resize_image(image, (max(1, round(height * factor)), max(1, round(width * factor))))

    def _model(self, name: str) -> Any:
        if name not in self._models:
            self._models[name] = self._makers[name]()
        return self._models[name]

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One computation at a time: two would only slow each other down."""
        if not self._queue.acquire(blocking=False):
            raise BusyError("too many pictures are waiting already, try again in a moment.")
        try:
            with self._turn:
                yield
        finally:
            self._queue.release()


def label_at(result: LocateResult, threshold: float) -> LabelArray:
    """Label map of a result at another threshold: the best phrase, -1 below the threshold.

    Pixels that the model itself left without a label for another reason than heat (paper around
    the ink of a sketch) stay without one: their heat is 0.
    """
    best = result.heatmaps.argmax(axis=0)
    heat = np.take_along_axis(result.heatmaps, best[None], axis=0)[0]
    return np.where((heat >= threshold) & (heat > 0), best, -1).astype(np.int64)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise OptionError(f"locate: threshold must be in [0, 1], got {threshold}.")


def _png(pixels: np.ndarray[Any, Any]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _photo_locator() -> Any:
    from patchword.localization import Localizer

    return Localizer()


def _sketch_locator() -> Any:
    from patchword.systems import load

    return load("sketchseg")


def _matcher() -> Any:
    from patchword.matching import Matcher

    return Matcher()
