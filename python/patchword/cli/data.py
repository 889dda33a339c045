# SPDX-License-Identifier: Apache-2.0
"""``patchword data``: training pairs made from photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from patchword.cli import common
from patchword.cli.common import Outcome, OutputFlags
from patchword.data.io import printable
from patchword.errors import ConfigError

if TYPE_CHECKING:
    from patchword.systems.segswap.generate import GenerationReport
    from patchword.systems.segswap.recipe import PairRecipe
    from patchword.systems.segswap.sources import SceneSource
    from patchword.systems.segswap.stylise import Stylist


@dataclass(frozen=True, kw_only=True)
class DataSegswap(OutputFlags):
    """Make SegSwap's training pairs: objects of one photograph pasted into another.

    Objects come from COCO annotations, from cut-outs with masks, from random pieces of plain
    photographs, or from several of these in turn. The folder has the published layout, six files
    a pair, and a page to look at. The same command continues a run that was stopped.
    """

    example: ClassVar[str] = "patchword data segswap --photos my_photos --end 1000 -o pairs"

    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Photographs that --annotations or --lists are about."""
    annotations: Annotated[Path | None, tyro.conf.arg(metavar="JSON")] = None
    """COCO instances: polygons or run lengths."""
    lists: Annotated[
        tuple[Path, Path, Path] | None, tyro.conf.arg(metavar="IMG2CAT OBJ IMG2OBJ")
    ] = None
    """The three published lists instead of --annotations."""
    cutouts: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder with index.json naming pictures and their masks."""
    photos: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of plain photographs; random pieces of them are the objects."""
    skip_missing: bool = False
    """Leave out annotated pictures that are not there instead of refusing the file."""
    styles: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Pictures that give the styles; by default the photographs themselves."""
    vgg: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Published AdaIN encoder; with --decoder and --styles it replaces the statistics transfer."""
    decoder: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Published AdaIN decoder."""
    objects: Literal["one", "two", "both"] = "both"
    """How many objects a pair shares; both means half of the pairs each."""
    start: Annotated[int, tyro.conf.arg(aliases=["--start-idx"])] = 0
    """First pair."""
    end: Annotated[int, tyro.conf.arg(aliases=["--end-idx"])] = 100_000
    """One past the last pair."""
    size: int = 480
    """Height and width of the pictures, a multiple of 16."""
    dilation: Annotated[int, tyro.conf.arg(aliases=["--iter-dilation"])] = 20
    """Pixels of surroundings that belong to an object."""
    aspect_min: Annotated[float, tyro.conf.arg(aliases=["--ar-scale-min"])] = 0.7
    """Smallest factor of width and of height."""
    angles: Annotated[tuple[float, float], tyro.conf.arg(metavar="MIN MAX")] = (-15.0, 15.0)
    """Rotation in degrees, counter-clockwise."""
    scale_one: Annotated[tuple[float, float], tyro.conf.arg(metavar="MIN MAX")] = (0.2, 1.0)
    """Size of a single object relative to the picture."""
    scale_two: Annotated[tuple[float, float], tyro.conf.arg(metavar="MIN MAX")] = (0.5, 1.0)
    """Size of one of two objects relative to its box."""
    min_contrast: float = 0.0
    """Smallest standard deviation of an object's brightness; above 0 it leaves out plain sky."""
    blend: Literal["poisson", "opencv", "feather"] = "poisson"
    """How objects are pasted; opencv is the same equation, solved by OpenCV."""
    compat: tuple[str, ...] = ()
    """Faults of the published generator to reproduce, such as T5, or all."""
    page: int = 50
    """Pairs to show on the page; 0 writes none."""

    def check(self) -> None:
        """Refuse flags that contradict each other, see :meth:`CommonFlags.check`."""
        super().check()
        labelled = self.annotations is not None or self.lists is not None
        if self.annotations is not None and self.lists is not None:
            raise ConfigError("data segswap: give either --annotations or --lists.")
        if labelled != (self.images is not None):
            raise ConfigError("data segswap: --images goes with --annotations or --lists.")
        if not labelled and self.cutouts is None and self.photos is None:
            raise ConfigError(
                "data segswap: give --images with --annotations, or --cutouts, or --photos."
            )
        given = (self.vgg is not None, self.decoder is not None)
        if any(given) and not (all(given) and self.styles is not None):
            raise ConfigError("data segswap: --vgg, --decoder and --styles go together.")
        if self.page < 0:
            raise ConfigError(f"data segswap: --page must be at least 0, got {self.page}.")

    def run(self, name: str) -> Outcome:
        """Make the pairs, write the page, report."""
        from patchword.inference.interrupt import stop_on_signal
        from patchword.inference.output import check_output
        from patchword.systems.segswap.generate import generate_pairs
        from patchword.systems.segswap.page import write_pair_page

        recipe, source = self._recipe(), self._source()
        settings = self._settings()
        output = self.folder({"command": name, **settings}, "pairs")
        if self.dry_run:
            check_output(output, settings, inputs=self._inputs(), overwrite=True)
            count = len(source.photographs)
            result = {"dry_run": True, "photographs": count, "pairs": self.end - self.start}
            text = f"would make {self.end - self.start} pairs from {count} photographs"
            return Outcome({**result, "output": str(output)}, f"{text} in {printable(output)}")
        with stop_on_signal() as stop:
            report = generate_pairs(
                source,
                output,
                recipe=recipe,
                start=self.start,
                end=self.end,
                seed=self.seed,
                num_workers=self.num_workers,
                stylist=self._stylist(),
                settings=settings,
                overwrite=self.overwrite,
                stop=stop,
                progress=self.progress(),
            )
        page = None
        if self.page and report.done + report.reused:
            page = write_pair_page(output, self.page)
        return self._outcome(report, page)

    def _recipe(self) -> PairRecipe:
        from patchword.systems.segswap.recipe import PUBLISHED_DATA, PairRecipe

        faults = PUBLISHED_DATA if "all" in self.compat else frozenset(self.compat)
        return PairRecipe(
            size=self.size,
            two_objects={"one": 0.0, "two": 1.0, "both": 0.5}[self.objects],
            aspect_min=self.aspect_min,
            angle_min=self.angles[0],
            angle_max=self.angles[1],
            scale_one=self.scale_one,
            scale_two=self.scale_two,
            dilation=self.dilation,
            min_contrast=self.min_contrast,
            blend=self.blend,
            compat=faults,
        )

    def _source(self) -> SceneSource:
        from patchword.systems.segswap.annotations import read_coco, read_cutouts, read_published
        from patchword.systems.segswap.sources import MixedSource, RegionSource

        sources: list[SceneSource] = []
        if self.images is not None and self.annotations is not None:
            sources.append(read_coco(self.images, self.annotations, skip_missing=self.skip_missing))
        if self.images is not None and self.lists is not None:
            sources.append(read_published(self.images, *self.lists, skip_missing=self.skip_missing))
        if self.cutouts is not None:
            sources.append(read_cutouts(self.cutouts))
        if self.photos is not None:
            sources.append(RegionSource.from_folder(self.photos))
        if self.objects == "two" and not any(source.offers(2) for source in sources):
            raise ConfigError(
                "data segswap: --objects two needs photographs with objects of two categories, "
                "there are none. Add --photos."
            )
        return sources[0] if len(sources) == 1 else MixedSource(sources, [1.0] * len(sources))

    def _stylist(self) -> Stylist | None:
        from patchword.data.folders import list_images

        if self.styles is None:
            return None
        styles = tuple(list_images(self.styles))
        if self.vgg is not None and self.decoder is not None:
            from patchword.systems.segswap.adain import AdaInStylist

            device = self.torch_device() or "cpu"
            if device != "cpu" and self.num_workers > 0:
                raise ConfigError(
                    "data segswap: AdaIN on a GPU runs in this process; pass --num-workers 0."
                )
            return AdaInStylist(self.vgg, self.decoder, styles, device=device)
        from patchword.systems.segswap.stylise import StatisticsStylist

        return StatisticsStylist(styles)

    def _inputs(self) -> tuple[Path, ...]:
        given = (self.images, self.cutouts, self.photos, self.styles)
        return tuple(path for path in given if path is not None)

    def _settings(self) -> dict[str, Any]:
        paths = {
            "images": self.images,
            "annotations": self.annotations,
            "cutouts": self.cutouts,
            "photos": self.photos,
            "styles": self.styles,
            "vgg": self.vgg,
            "decoder": self.decoder,
        }
        named = {key: None if path is None else str(path.resolve()) for key, path in paths.items()}
        lists = None if self.lists is None else [str(path.resolve()) for path in self.lists]
        return {**named, "lists": lists, "skip_missing": self.skip_missing}

    def _outcome(self, report: GenerationReport, page: Path | None) -> Outcome:
        record = {**report.record(), "page": None if page is None else str(page)}
        if self.jsonl:
            common.print_line(common.json_line(record))
        lines = [f"{report.done} pairs made, {report.reused} reused"]
        if report.interrupted:
            lines[0] += "; interrupted, the same command continues"
        if report.done:
            lines.append(
                f"{report.pairs_per_second:.2f} pairs per second, "
                f"{1000 * report.core_seconds_per_pair:.1f} ms of processor time per pair"
            )
            shares = report.shares().items()
            lines.append(", ".join(f"{name} {100 * share:.0f}%" for name, share in shares))
            lines.append(
                f"estimate: {report.cores_per_trainer():.1f} cores for one trainer "
                "of 400 TFLOP/s, which no measurement has confirmed"
            )
        lines.append(f"results: {printable(report.output if page is None else page)}")
        code = common.INTERRUPTED if report.interrupted else common.DONE
        return Outcome(record, "\n".join(lines), code)
