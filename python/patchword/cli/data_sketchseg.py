# SPDX-License-Identifier: Apache-2.0
"""``patchword data sketchseg``: scene sketches with exact labels, made from single drawings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from patchword.cli.common import CommonFlags, Outcome
from patchword.data.folders import is_folder
from patchword.data.io import printable
from patchword.errors import ConfigError, OutputError


@dataclass(frozen=True, kw_only=True)
class DataSketchseg(CommonFlags):
    """Compose captioned scene sketches from single drawings, every stroke labelled.

    Writes train/ (sketches and captions) and test/ (labelled strokes) laid out like FS-COCO. Test
    scenes hold drawings that no training scene holds.
    """

    example: ClassVar[str] = (
        "patchword data sketchseg quickdraw.ndjson.gz --train 1000 --test 500 -o scenes"
    )

    drawings: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="NDJSON")]
    """File of Quick, Draw! records, also gzip-compressed."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """Folder to write; it must be new or empty."""
    train: int = 1000
    """Training scenes."""
    test: int = 500
    """Test scenes."""
    min_objects: int = 3
    """Fewest objects of a scene."""
    max_objects: int = 6
    """Most objects of a scene."""
    held_out: float = 1 / 3
    """Share of each class's drawings that only test scenes hold."""

    def check(self) -> None:
        """Refuse numbers out of range, see :meth:`CommonFlags.check`."""
        super().check()
        if self.train < 0 or self.test < 0:
            raise ConfigError(
                f"--train and --test must be at least 0, got {self.train} and {self.test}."
            )
        if not 0 < self.held_out < 1:
            raise ConfigError(f"--held-out must be above 0 and below 1, got {self.held_out:g}.")

    def run(self, name: str) -> Outcome:
        """Compose, write, report."""
        from patchword.systems.sketchseg.compose import (
            DrawingLibrary,
            SceneConfig,
            compose_scene,
            scene_generator,
        )
        from patchword.systems.sketchseg.data import write_captioned, write_labelled

        config = SceneConfig(min_objects=self.min_objects, max_objects=self.max_objects)
        if is_folder(self.output) and any(self.output.iterdir()):
            raise OutputError(
                f"data: {printable(self.output)} must be a new or empty folder. Choose another."
            )
        library = DrawingLibrary.read(self.drawings)
        seen, held_out = library.split(self.held_out)
        result = {
            "output": str(self.output),
            "classes": len(library.words()),
            "train": self.train,
            "test": self.test,
        }
        if self.dry_run:
            return Outcome({"dry_run": True, **result}, f"would write {self._counts()}")
        bar = self.progress()
        # Scenes of both parts have numbers of their own, so that none is the other's twin.
        train = (
            compose_scene(seen, scene_generator(self.seed, 2 * index), config)
            for index in bar(range(self.train), total=self.train)
        )
        test = (
            compose_scene(held_out, scene_generator(self.seed, 2 * index + 1), config)
            for index in bar(range(self.test), total=self.test)
        )
        if self.train:
            write_captioned(self.output / "train", train)
        if self.test:
            write_labelled(self.output / "test", test, library.words())
        return Outcome(result, f"wrote {self._counts()}")

    def _counts(self) -> str:
        return f"{self.train} training and {self.test} test scenes to {printable(self.output)}"
