# SPDX-License-Identifier: Apache-2.0
"""``patchword match``: two pictures, or one against a folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from patchword import __version__
from patchword.cli import common
from patchword.cli.common import Outcome, OutputFlags
from patchword.data.folders import count_images
from patchword.data.io import printable, read_image
from patchword.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from patchword.inference.cache import FeatureCache
    from patchword.inference.gallery import Box, GalleryRun
    from patchword.matching import Matcher


@dataclass(frozen=True, kw_only=True)
class Match(OutputFlags):
    """What two pictures share, or which pictures of a folder share it.

    Writes masks, a picture of both with the best correspondences, and JSON; for a folder a
    ranking, the same files for the best, and an HTML page.
    """

    example: ClassVar[str] = "patchword match cup.jpg kitchen.jpg -o out"

    query: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """First picture."""
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")] = None
    """Second picture; left out with --gallery."""
    gallery: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of pictures to rank instead of one second picture."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X,Y,W,H")] = None
    """Part of the first picture to look for, in pixels."""
    top: int = 10
    """With --gallery: how many of the best get masks and correspondences."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """With --gallery: keep descriptors (1 MB a picture) here, so that other queries are fast."""
    backbone: str = "efficientnet-lite0"
    """Network that describes patches."""
    model: Literal["auto", "segswap", "training-free"] = "auto"
    """auto: trained masks and training-free correspondences; segswap: trained alone, faster."""

    def run(self, name: str) -> Outcome:
        """Match, write and report."""
        if (self.other is None) == (self.gallery is None):
            raise ConfigError("match: give either a second picture or --gallery DIR.")
        if self.top < 1:
            raise ConfigError(f"match: --top must be at least 1, got {self.top}.")
        box = parse_box(self.box)
        if self.gallery is not None:
            return self._run_gallery(self.query, self.gallery, box)
        assert self.other is not None
        return self._run_pair(self.query, self.other, box)

    def _run_pair(self, first: Path, second: Path, box: Box | None) -> Outcome:
        from patchword.inference.gallery import require_box_inside
        from patchword.inference.interrupt import stop_on_signal
        from patchword.inference.output import check_output, open_output
        from patchword.inference.writers import match_summary, save_match

        image0, image1 = (
            read_image(path, max_pixels=self.max_pixels()) for path in (first, second)
        )
        require_box_inside(box, (image0.shape[0], image0.shape[1]))
        settings = self._settings(box, first=first, second=second)
        output = self.folder(settings, first.stem, second.stem)
        check_output(output, settings, overwrite=self.overwrite)
        if self.dry_run:
            return common.planned(output, 2)
        with stop_on_signal() as stop, open_output(output, settings, overwrite=self.overwrite):
            with self.computing():
                result = self._matcher().match(image0, image1, box0=box)
            inputs = {"input0": printable(first), "input1": printable(second)}
            written = save_match(
                result,
                output,
                extra=inputs,
                footer=f"{first.name} and {second.name}, {self.backbone}",
            )
        files = {key: str(path) for key, path in written.items()}
        record = {**inputs, **match_summary(result), "output": str(output), "files": files}
        if self.jsonl:
            common.print_line(common.json_line(record))
        shares = [f"{100 * float(mask.mean()):.0f}%" for mask in (result.mask0, result.mask1)]
        text = (
            f"matching score   {result.score:.3f}\n"
            f"shared region    {shares[0]} of {printable(first)}, {shares[1]} of "
            f"{printable(second)}\n"
            f"correspondences  {len(result.matches)}\n"
            f"results          {files['overlay']} and the files beside it"
        )
        return Outcome(record, text, common.INTERRUPTED if stop else common.DONE)

    def _run_gallery(self, query: Path, gallery: Path, box: Box | None) -> Outcome:
        from patchword.inference.gallery import rank_gallery, require_box_inside
        from patchword.inference.interrupt import stop_on_signal
        from patchword.inference.output import check_output

        image = read_image(query, max_pixels=self.max_pixels())
        require_box_inside(box, (image.shape[0], image.shape[1]))
        settings = self._settings(box, first=query, gallery=gallery)
        output = self.folder(settings, query.stem, gallery.name)
        total = count_images(gallery, exclude=output)
        check_output(output, settings, inputs=(gallery,), overwrite=self.overwrite)
        if self.dry_run:
            return common.planned(output, total)
        with stop_on_signal() as stop, self.computing():
            matcher = self._matcher()
            run = rank_gallery(
                matcher,
                query,
                gallery,
                output,
                settings=settings,
                box=box,
                top=self.top,
                cache=None if self.cache is None else self._cache(matcher, self.cache),
                overwrite=self.overwrite,
                num_workers=self.num_workers,
                max_pixels=self.max_pixels(),
                stop=stop,
                progress=self.progress(),
                on_record=common.print_record if self.jsonl else None,
            )
        return self._report_gallery(run, query)

    def _report_gallery(self, run: GalleryRun, query: Path) -> Outcome:
        result = {"query": printable(query), **common.run_report(run), "hits": list(run.hits)}
        lines = [f"{'rank':>4}  {'score':>6}  {'quick':>6}  picture"]
        lines += [
            f"{h['rank']:4d}  {h['score']:6.3f}  {h['quick_score']:6.3f}  {printable(h['key'])}"
            for h in run.hits
        ]
        return common.folder_outcome(self, run, result, lines)

    def _matcher(self) -> Matcher:
        from patchword.systems.segswap.joint import create_matcher

        return create_matcher(self.model, backbone=self.backbone, device=self.torch_device())

    def _cache(self, matcher: Matcher, folder: Path) -> FeatureCache:
        from patchword.inference.cache import FeatureCache

        made_by = f"{self.backbone} {matcher.options.max_size} patchword {__version__}"
        return FeatureCache(folder, made_by)

    def _settings(
        self,
        box: Box | None,
        *,
        first: Path,
        second: Path | None = None,
        gallery: Path | None = None,
    ) -> dict[str, Any]:
        return {
            "command": "match",
            "patchword": __version__,
            "backbone": self.backbone,
            "model": self.model,
            "box": None if box is None else list(box),
            "query": _digest(first),
            "other": None if second is None else _digest(second),
            "gallery": None if gallery is None else printable(gallery.resolve()),
        }


def parse_box(text: str | None) -> Box | None:
    """Turn ``x,y,w,h`` into ``x0 y0 x1 y1``.

    Raises:
        ConfigError: It is not four numbers.
    """
    if text is None:
        return None
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"match: --box must be four numbers x,y,w,h in pixels, got {text!r}."
        ) from error
    return (x, y, x + width, y + height)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"match: {printable(path)} cannot be read: {error.strerror}.") from error
