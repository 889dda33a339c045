# SPDX-License-Identifier: Apache-2.0
"""``patchword evaluate segswap brueghel|tokyo247|pitts30k``: the published retrieval protocols.

The published scripts' flags are taken too, as second names.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from patchword.cli import common
from patchword.cli.common import CommonFlags, Outcome
from patchword.cli.evaluate import Expectation
from patchword.inference.atomic import make_folder

if TYPE_CHECKING:
    from patchword.evaluation import EvaluationReport
    from patchword.systems.segswap.protocols.network import NetworkScorer


@dataclass(frozen=True, kw_only=True)
class _Retrieval(CommonFlags):
    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["--resume-pth"], metavar="FILE")] = (
        None
    )
    """Weights from `patchword convert segswap` or training; by default those that ship."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = None
    """Folder for the report and for finished parts; the same command continues a stopped run."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for descriptors of pictures, which other runs with the same weights use again."""
    half: bool = False
    """Keep cached descriptors in half precision."""
    compat: bool = False
    """Follow the published evaluation to the letter, its mistakes included."""
    batch: int = 32
    """Candidates compared at once."""
    expect: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Demand such as "map_image_level>=0.5"; exit code 3 if not met. Repeat for more."""

    @abstractmethod
    def measure(self, scorer: NetworkScorer, options: dict[str, Any]) -> EvaluationReport:
        """Run the protocol; ``options`` are cache, work, progress and stop."""

    def run(self, name: str) -> Outcome:
        """Measure, compare with what was expected, report."""
        from patchword.inference.interrupt import stop_on_signal

        demands = [Expectation.parse(text) for text in self.expect]
        if self.dry_run:
            return Outcome({"dry_run": True}, f"would run {name}")
        if self.output is not None:
            make_folder(self.output)
        with stop_on_signal() as stop, self.computing():
            work = None if self.output is None else self.output / "parts"
            report = self.measure(
                self._scorer(),
                {"cache": self.cache, "work": work, "progress": self.progress(), "stop": stop},
            )
        if self.output is not None:
            report.save(self.output)
        metrics = {key: float(value) for key, value in report.metrics.items()}
        verdicts = [(demand, demand.met(metrics)) for demand in demands]
        width = max(map(len, metrics), default=0)
        lines = [f"{key:<{width}}  {value:.4f}" for key, value in metrics.items()]
        for demand, met in verdicts:
            words = f"{demand.metric} {demand.sign} {demand.bound:g}"
            lines.append(f"{'met' if met else 'NOT MET'}: {words}")
        known = {key: None if math.isnan(value) else value for key, value in metrics.items()}
        result = {"protocol": report.protocol, "metrics": known, "per_item": report.per_item}
        all_met = all(met for _, met in verdicts)
        return Outcome(
            result, "\n".join(lines), common.DONE if all_met else common.EXPECTATION_NOT_MET
        )

    def _scorer(self) -> NetworkScorer:
        from patchword.systems.segswap.checkpoint import load_network
        from patchword.systems.segswap.protocols.network import NetworkScorer

        device = self.torch_device()
        network = load_network(self.checkpoint, device=device)
        published = None
        if self.compat and self.needs_published:
            published = load_network(self.checkpoint, device=device, normalisation="segswap_eval")
        rounding: Literal["cell", "published"] = "published" if self.compat else "cell"
        return NetworkScorer(network, published, rounding=rounding, batch=self.batch)

    # Whether candidates are normalised as the published evaluation does under --compat.
    needs_published: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class EvaluateBrueghel(_Retrieval):
    """Measure one-shot detail retrieval in artworks."""

    example: ClassVar[str] = (
        "patchword evaluate segswap brueghel --images Brueghel/Image "
        "--labels Brueghel/brueghelTest.json --checkpoint segswap.safetensors -o out"
    )

    images: Annotated[Path, tyro.conf.arg(aliases=["--test-dir"], metavar="DIR")]
    """Folder of the artworks."""
    labels: Annotated[Path, tyro.conf.arg(aliases=["--label-pth"], metavar="JSON")]
    """Queries and their true boxes, in the published schema."""
    image_size: Annotated[int, tyro.conf.arg(aliases=["--img-size"])] = 640
    """Side to which artworks are squashed."""
    query_size: Annotated[int, tyro.conf.arg(aliases=["--qry-size"])] = 64
    """Pixels of the longest side of a query box."""
    query_filter: Literal["bicubic", "nearest"] = "bicubic"
    """How queries are resized; nearest as Pillow did before version 7."""
    method: Literal["segswap", "sliding"] = "segswap"
    """sliding: the localised baseline by cosine similarity of cells, without the transformer."""
    scales: tuple[int, ...] = (80, 74, 68, 60, 49, 36, 20)
    """Of the sliding baseline: cells on the longest side of an artwork, one number a scale."""
    out_coarse: Annotated[Path | None, tyro.conf.arg(metavar="JSON")] = None
    """Write rankings with predicted places in the published layout."""

    def measure(self, scorer: NetworkScorer, options: dict[str, Any]) -> EvaluationReport:
        """Run the protocol."""
        from patchword.systems.segswap.protocols import brueghel, sliding

        if self.method == "sliding":
            queries = brueghel.read_queries(self.labels)
            kept = {key: options[key] for key in ("cache", "progress")}
            sliding_options = sliding.SlidingOptions(scales=self.scales)
            return sliding.evaluate_sliding(scorer, self.images, queries, sliding_options, **kept)
        chosen = brueghel.BrueghelOptions(
            image_size=self.image_size,
            query_size=self.query_size,
            compat=self.compat,
            filter_name=self.query_filter,
            half=self.half,
        )
        return brueghel.evaluate_brueghel(
            scorer, self.images, self.labels, chosen, out_coarse=self.out_coarse, **options
        )


@dataclass(frozen=True, kw_only=True)
class _Places(_Retrieval):
    needs_published: ClassVar[bool] = True
    prefix: ClassVar[str]
    group_size: ClassVar[int]

    queries: Annotated[Path, tyro.conf.arg(aliases=["--qry-dir"], metavar="DIR")]
    """Folder that the query paths start from."""
    database: Annotated[Path, tyro.conf.arg(aliases=["--db-dir"], metavar="DIR")]
    """Folder that the database paths start from."""
    lists: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder of the published lists of paths and places."""
    score: Annotated[Path, tyro.conf.arg(metavar="NPY")]
    """The other method's ranking: scores of all pairs, or indices with the best first."""
    image_size: tuple[int, int] = (480, 640)
    """Height and width to which pictures are squashed."""
    rerank: int = 100
    """Candidates of a query that are put in order again."""

    def measure(self, scorer: NetworkScorer, options: dict[str, Any]) -> EvaluationReport:
        """Run the protocol."""
        from patchword.systems.segswap.protocols import places

        data = places.read_places(
            self.lists, self.queries, self.database, self.score, prefix=self.prefix
        )
        chosen = places.PlacesOptions(
            image_size=self.image_size,
            rerank=self.rerank,
            group_size=self.group_size,
            compat=self.compat,
            half=self.half,
        )
        return places.evaluate_places(scorer, data, chosen, **options)


@dataclass(frozen=True, kw_only=True)
class EvaluateTokyo247(_Places):
    """Measure place recognition by day and night: another ranking, put in order again."""

    example: ClassVar[str] = (
        "patchword evaluate segswap tokyo247 --queries 247query_subset_v2 --database database "
        "--lists lists --score top100_patchVlad.npy --checkpoint segswap.safetensors -o out"
    )
    prefix: ClassVar[str] = ""
    group_size: ClassVar[int] = 12


@dataclass(frozen=True, kw_only=True)
class EvaluatePitts30k(_Places):
    """Measure place recognition in Pittsburgh: another ranking, put in order again."""

    example: ClassVar[str] = (
        "patchword evaluate segswap pitts30k --queries queries_real --database . "
        "--lists lists --score top100_patchVlad.npy --checkpoint segswap.safetensors -o out"
    )
    prefix: ClassVar[str] = "pitts_test_"
    group_size: ClassVar[int] = 1
