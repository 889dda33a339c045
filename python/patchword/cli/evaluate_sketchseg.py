# SPDX-License-Identifier: Apache-2.0
"""``patchword evaluate sketchseg``: label maps of sketches whose strokes are labelled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from patchword.cli.evaluate import Evaluate

if TYPE_CHECKING:
    from patchword.evaluation import EvaluationReport


@dataclass(frozen=True, kw_only=True)
class EvaluateSketchseg(Evaluate):
    """Measure label maps of sketches on a test folder laid out like FS-COCO."""

    example: ClassVar[str] = (
        'patchword evaluate sketchseg --data scenes/test --expect "pixel_accuracy>=0.75"'
    )

    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights; by default those that ship with the library."""
    vocabulary: Literal["given", "full"] = "given"
    """Categories offered: those of each sketch, as published, or all of the data set."""
    scores: Literal["minmax", "cosine"] | None = None
    """How scores are compared; by default as suits the network."""
    limit: int | None = None
    """Only so many sketches, the first by name."""
    compat: bool = False
    """Read and draw strokes as the published code does."""

    def measure(self) -> EvaluationReport:
        """Run the protocol."""
        from patchword.systems.sketchseg.evaluate import evaluate_sketches
        from patchword.systems.sketchseg.inference import load

        # Labelled strokes are sketches, however black a page of them may be.
        segmenter = load(self.checkpoint, device=self.torch_device(), any_picture=True)
        if self.scores is not None:
            segmenter.options = replace(segmenter.options, scores=self.scores)
        return evaluate_sketches(
            self.data,
            segmenter,
            vocabulary=self.vocabulary,
            limit=self.limit,
            compat=self.compat,
            progress=self.progress(),
        )
