# SPDX-License-Identifier: Apache-2.0
"""The part of ``patchword locate`` that labels the ink of sketches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from patchword import __version__
from patchword.cli import common
from patchword.cli.common import Outcome, OutputFlags
from patchword.data.folders import count_images, is_folder
from patchword.data.io import printable
from patchword.errors import ConfigError

if TYPE_CHECKING:
    from patchword.structures import ImageArray
    from patchword.systems.sketchseg.encoder import SegmentOptions
    from patchword.systems.sketchseg.inference import SketchResult, SketchSegmenter

_NAME_CHARS = 40


@dataclass(frozen=True, kw_only=True)
class SketchFlags:
    """Flags of ``patchword locate`` that need ``--model sketch``."""

    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights: the published file, or one from convert or train; by default those that ship."""
    threshold: float | None = None
    """Ink whose best score is below stays unassigned, and is drawn black."""
    isolate: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = ()
    """Also draw each category alone where its score reaches this; repeat the flag for more."""
    scores: Literal["auto", "minmax", "cosine"] = "auto"
    """minmax stretches each category's scores, so that every one claims some ink; cosine does not.
    auto takes what suits the weights."""
    upsampling: Literal["auto", "bilinear", "bicubic"] = "auto"
    """Interpolation of scores to the sketch's size."""
    norm: Literal["auto", "tokens", "sign", "channel"] = "auto"
    """Axis of normalisation in the published network; auto is tokens, as in its demonstration."""
    compat: bool = False
    """As the published demonstration: min-max, bilinear, ink only where red is exactly 0."""
    text_cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that keeps encoded categories of the published network between runs."""
    any_picture: bool = False
    """Take pictures that do not look like sketches."""
    record: int = 0
    """Which drawing of an .ndjson file, from 0."""
    thickness: int = 3
    """Width in pixels of the lines of a vector drawing."""

    def refuse_without_sketch(self) -> None:
        """Refuse these flags where no sketch is asked for.

        Raises:
            ConfigError: With the first one that is set.
        """
        for one in fields(SketchFlags):
            if getattr(self, one.name) != one.default:
                flag = one.name.replace("_", "-")
                raise ConfigError(f"--{flag} needs --model sketch.")


def run_sketch(
    flags: OutputFlags, sketch: SketchFlags, images: Path, words: Sequence[str]
) -> Outcome:
    """Segment one sketch or a folder of sketches, write and report.

    Raises:
        OptionError: A category or option is wrong.
        DatasetError: A file cannot be read or is no sketch.
        CheckpointError: The weights cannot be used.
    """
    from patchword.systems.sketchseg.inference import check_categories

    if sketch.thickness < 1 or sketch.record < 0:
        raise ConfigError(
            f"--thickness must be at least 1 and --record at least 0, got {sketch.thickness} and "
            f"{sketch.record}."
        )
    texts = check_categories(words)
    settings = {
        "command": "locate",
        "patchword": __version__,
        "images": printable(images.resolve()),
        "texts": list(texts),
        "model": "sketch",
        **{one.name: _plain(getattr(sketch, one.name)) for one in fields(SketchFlags)},
    }
    settings.pop("text_cache")
    work = _run_folder if is_folder(images) else _run_one
    return work(flags, sketch, images, texts, settings)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return printable(value.resolve())
    return list(value) if isinstance(value, tuple) else value


def _run_one(
    flags: OutputFlags,
    sketch: SketchFlags,
    path: Path,
    texts: Sequence[str],
    settings: dict[str, Any],
) -> Outcome:
    from patchword.inference.interrupt import stop_on_signal
    from patchword.inference.output import check_output, open_output
    from patchword.systems.sketchseg.output import save_sketch, sketch_summary

    image = _read(flags, sketch, path)
    output = flags.folder(settings, path.stem)
    check_output(output, settings, overwrite=flags.overwrite)
    if flags.dry_run:
        return common.planned(output, 1)
    with stop_on_signal() as stop, open_output(output, settings, overwrite=flags.overwrite):
        with flags.computing():
            result = _segmenter(flags, sketch).segment(image, texts)
        written = save_sketch(
            result,
            output,
            isolate=sketch.isolate,
            extra={"input": printable(path)},
            footer=path.name,
        )
    files = {key: str(file) for key, file in written.items()}
    summary = sketch_summary(result)
    record = {"input": printable(path), **summary, "output": str(output), "files": files}
    if flags.jsonl:
        common.print_line(common.json_line(record))
    text = "\n".join([*_table(result, summary), f"results: {files['overlay']} and beside it"])
    return Outcome(record, text, common.INTERRUPTED if stop else common.DONE)


def _table(result: SketchResult, summary: dict[str, Any]) -> list[str]:
    lines = [f"{'of the ink':>10}  {'mean score':>10}  category"]
    for one in summary["categories"]:
        score = "-" if one["mean_score"] is None else f"{one['mean_score']:.3f}"
        name = printable(one["text"])[:_NAME_CHARS]
        lines.append(f"{100 * one['share']:>8.1f} %  {score:>10}  {name}")
    if summary["unassigned"]:
        share = 100 * summary["unassigned"] / max(1, summary["ink"])
        lines.append(f"{share:>8.1f} %  {'':>10}  not assigned")
    return lines


def _run_folder(
    flags: OutputFlags,
    sketch: SketchFlags,
    folder: Path,
    texts: Sequence[str],
    settings: dict[str, Any],
) -> Outcome:
    from patchword.inference.interrupt import stop_on_signal
    from patchword.inference.output import check_output
    from patchword.systems.sketchseg.output import SUFFIXES, segment_folder

    output = flags.folder(settings, folder.resolve().name)
    total = count_images(folder, exclude=output, suffixes=SUFFIXES)
    check_output(output, settings, inputs=(folder,), overwrite=flags.overwrite)
    if flags.dry_run:
        return common.planned(output, total)
    with stop_on_signal() as stop, flags.computing():
        run = segment_folder(
            _segmenter(flags, sketch),
            folder,
            texts,
            output,
            read=lambda path: _read(flags, sketch, path),
            settings=settings,
            isolate=sketch.isolate,
            overwrite=flags.overwrite,
            num_workers=flags.num_workers,
            stop=stop,
            progress=flags.progress(),
            on_record=common.print_record if flags.jsonl else None,
        )
    result = {"folder": printable(folder), "texts": list(texts), **common.run_report(run)}
    return common.folder_outcome(flags, run, result, [])


def _read(flags: OutputFlags, sketch: SketchFlags, path: Path) -> ImageArray:
    from patchword.data.sketches import read_sketch

    return read_sketch(
        path,
        record=sketch.record,
        thickness=sketch.thickness,
        max_pixels=flags.max_pixels(),
    )


def _segmenter(flags: OutputFlags, sketch: SketchFlags) -> SketchSegmenter:
    from patchword.systems.sketchseg.inference import load

    extra: dict[str, Any] = {}
    if sketch.norm != "auto":
        extra["norm"] = sketch.norm
    if sketch.text_cache is not None:
        extra["text_cache"] = sketch.text_cache
    segmenter = load(
        sketch.checkpoint, device=flags.torch_device(), any_picture=sketch.any_picture, **extra
    )
    segmenter.options = _options(sketch, segmenter.options)
    return segmenter


def _options(sketch: SketchFlags, options: SegmentOptions) -> SegmentOptions:
    if sketch.compat:
        options = replace(options, scores="minmax", mode="bilinear", ink="red_zero")
    if sketch.scores != "auto":
        options = replace(options, scores=sketch.scores)
    if sketch.upsampling != "auto":
        options = replace(options, mode=sketch.upsampling)
    if sketch.threshold is not None:
        options = replace(options, threshold=sketch.threshold)
    return options
