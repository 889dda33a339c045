# SPDX-License-Identifier: Apache-2.0
"""``patchword locate``: phrases in one picture or in a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from patchword import __version__
from patchword.cli import common
from patchword.cli.common import Outcome, OutputFlags
from patchword.cli.locate_sketch import SketchFlags, run_sketch
from patchword.data.folders import count_images, is_folder
from patchword.data.io import printable, read_image

if TYPE_CHECKING:
    from patchword.localization import Localizer


@dataclass(frozen=True, kw_only=True)
class Locate(SketchFlags, OutputFlags):
    """Where phrases lie in a picture or in every picture of a folder.

    Writes a heat map per phrase, a label map, a picture with legend, and JSON; for a folder also
    an HTML page. With --model sketch, labels the ink of sketches, drawn or as SVG or ndjson.
    """

    example: ClassVar[str] = 'patchword locate street.jpg --text "a bicycle" --text dog -o out'

    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|DIR")]
    """Picture or folder of pictures."""
    text: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Phrase to look for; repeat the flag for more."""

    model: Literal["words", "sketch"] = "words"
    """words: phrases in photographs, with no training. sketch: categories of a sketch's ink."""

    def run(self, name: str) -> Outcome:
        """Locate, write and report."""
        from patchword.inference.locating import check_texts

        if self.model == "sketch":
            return run_sketch(self, self, self.images, self.text)
        self.refuse_without_sketch()
        texts = check_texts(self.text)
        if is_folder(self.images):
            return self._run_folder(self.images, texts)
        return self._run_one(self.images, texts)

    def _run_one(self, path: Path, texts: Sequence[str]) -> Outcome:
        from patchword.inference.interrupt import stop_on_signal
        from patchword.inference.output import check_output, open_output
        from patchword.inference.writers import locate_summary, save_locate

        image = read_image(path, max_pixels=self.max_pixels())
        settings = self._settings(path, texts)
        output = self.folder(settings, path.stem)
        check_output(output, settings, overwrite=self.overwrite)
        if self.dry_run:
            return common.planned(output, 1)
        with stop_on_signal() as stop, open_output(output, settings, overwrite=self.overwrite):
            with self.computing():
                result = self._localizer().locate(image, list(texts))
            written = save_locate(
                result, output, extra={"input": printable(path)}, footer=path.name
            )
        files = {key: str(file) for key, file in written.items()}
        summary = locate_summary(result)
        record = {"input": printable(path), **summary, "output": str(output), "files": files}
        if self.jsonl:
            common.print_line(common.json_line(record))
        lines = [f"{'score':>6}  {'share':>5}  {'peak x,y':>13}  phrase"]
        for phrase in summary["phrases"]:
            peak = f"{phrase['peak'][0]:.0f},{phrase['peak'][1]:.0f}"
            share = f"{100 * phrase['share']:.0f}%"
            words = printable(phrase["text"])
            lines.append(f"{phrase['score']:6.3f}  {share:>5}  {peak:>13}  {words}")
        lines.append(f"results: {files['overlay']} and the files beside it")
        return Outcome(record, "\n".join(lines), common.INTERRUPTED if stop else common.DONE)

    def _run_folder(self, folder: Path, texts: Sequence[str]) -> Outcome:
        from patchword.inference.interrupt import stop_on_signal
        from patchword.inference.locating import locate_folder
        from patchword.inference.output import check_output

        settings = self._settings(folder, texts)
        output = self.folder(settings, folder.resolve().name)
        total = count_images(folder, exclude=output)
        check_output(output, settings, inputs=(folder,), overwrite=self.overwrite)
        if self.dry_run:
            return common.planned(output, total)
        with stop_on_signal() as stop, self.computing():
            run = locate_folder(
                self._localizer(),
                folder,
                texts,
                output,
                settings=settings,
                overwrite=self.overwrite,
                num_workers=self.num_workers,
                max_pixels=self.max_pixels(),
                stop=stop,
                progress=self.progress(),
                on_record=common.print_record if self.jsonl else None,
            )
        result = {"folder": printable(folder), "texts": list(texts), **common.run_report(run)}
        return common.folder_outcome(self, run, result, [])

    def _localizer(self) -> Localizer:
        from patchword.localization import Localizer

        return Localizer(device=self.torch_device())

    def _settings(self, images: Path, texts: Sequence[str]) -> dict[str, Any]:
        return {
            "command": "locate",
            "patchword": __version__,
            "images": printable(images.resolve()),
            "texts": list(texts),
        }
