# SPDX-License-Identifier: Apache-2.0
"""``patchword convert SYSTEM``: published weights into files that this library reads."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from patchword.cli import common
from patchword.cli.common import CommonFlags, Outcome
from patchword.data.io import printable
from patchword.errors import ConfigError

if TYPE_CHECKING:
    from patchword.nn.checkpoint import ConvertReport


@dataclass(frozen=True, kw_only=True)
class Convert(CommonFlags):
    """Turn a published checkpoint into a file that this library reads."""

    example: ClassVar[str]
    # Module with `convert_file(source, target) -> ConvertReport`.
    module: ClassVar[str]

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The published file; opened without running anything in it."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.safetensors")]
    """Where the result goes."""
    overwrite: bool = False
    """Replace the result if it is there."""

    def run(self, name: str) -> Outcome:
        """Convert and report."""
        if self.target.suffix != ".safetensors":
            raise ConfigError(
                f"{name}: the result must be called .safetensors, got {printable(self.target)}."
            )
        if self.target.exists() and not self.overwrite:
            raise ConfigError(
                f"{name}: {printable(self.target)} is there already. Pass --overwrite."
            )
        if self.dry_run:
            plan = {"source": printable(self.source), "target": printable(self.target)}
            return Outcome(
                {"dry_run": True, **plan}, f"would write {plan['target']} from {plan['source']}"
            )
        report: ConvertReport = import_module(self.module).convert_file(self.source, self.target)
        result = {
            "system": report.system,
            "kind": report.kind,
            "source": printable(report.source),
            "target": printable(report.target),
            "tensors": report.tensors,
            "ignored": list(report.ignored),
        }
        if self.jsonl:
            common.print_line(common.json_line(result))
        text = f"{report.kind}: {report.tensors} tensors written to {result['target']}"
        if report.ignored:
            text += f", {len(report.ignored)} of no use here left out"
        return Outcome(result, text)


@dataclass(frozen=True, kw_only=True)
class ConvertSegswap(Convert):
    """Read a published SegSwap checkpoint, or MoCo-v2 weights for training."""

    example: ClassVar[str] = "patchword convert segswap hard_mining_neg5.pth segswap.safetensors"
    module: ClassVar[str] = "patchword.systems.segswap.convert"


@dataclass(frozen=True, kw_only=True)
class ConvertSketchseg(Convert):
    """Read the published checkpoint of the sketch network."""

    example: ClassVar[str] = (
        "patchword convert sketchseg sketch_seg_best_miou.pth sketchseg.safetensors"
    )
    module: ClassVar[str] = "patchword.systems.sketchseg.convert"
