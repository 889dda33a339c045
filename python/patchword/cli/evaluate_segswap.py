# SPDX-License-Identifier: Apache-2.0
"""``patchword evaluate segswap internet``: object discovery in sets of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from patchword.cli.evaluate import Evaluate
from patchword.errors import ConfigError

if TYPE_CHECKING:
    from patchword.evaluation import EvaluationReport
    from patchword.systems.segswap.protocols.internet import InternetOptions


@dataclass(frozen=True, kw_only=True)
class EvaluateSegswapInternet(Evaluate):
    """Measure object discovery on the Internet subset: Airplane100, Car100, Horse100.

    --data is the folder of the classes, or one class: pictures, and GroundTruth with a mask for
    each. With --cache a run that was stopped goes on, and other settings of the graph cost no
    second pass of the network.
    """

    example: ClassVar[str] = (
        "patchword evaluate segswap internet --data Internet --cache pairs -o out"
    )

    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="FILE", aliases=["--resume-pth"])] = (
        None
    )
    """Weights; by default those that ship with the library."""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR", aliases=["--corr-dir"])] = None
    """Keep the outputs of pairs here, 500 pairs a file."""
    size: int = 480
    """Height and width that pictures are resized to."""
    no_flip: bool = False
    """Do not try the second picture of a pair mirrored."""
    two_cycles: bool = False
    """Let correspondences of one pair support each other too, not only around triangles."""
    mask_three_cycles: Annotated[bool, tyro.conf.arg(aliases=["--mask-in-3cycle"])] = False
    """Weigh a triangle by the masks of its third side."""
    top_k: int = 5
    """Partners of each picture that count."""
    confidence: Annotated[float, tyro.conf.arg(aliases=["--conf-th"])] = 0.85
    """Cells with a mask above this count."""
    sigma: str = "Airplane=0.8,Car=5,Horse=1.2"
    """Distance in cells over which support fades, per class by the start of its name."""
    other_sigma: float = 1.0
    """The same for classes that --sigma does not name."""
    foreground: Annotated[float, tyro.conf.arg(aliases=["--fg-th"])] = 0.6
    """Votes above this share of the largest are surely object."""
    ring: Annotated[int, tyro.conf.arg(aliases=["--dilate"])] = 10
    """Side in pixels of the square that finds background around the object."""
    mode: Literal["sum", "max", "mean"] = "sum"
    """How votes of several pairs are joined."""
    batch: int = 32
    """Pairs in one call of the network."""
    compat: bool = False
    """Reproduce the published faults: normalisation, mirrored pairs, rounding, sign."""

    def measure(self) -> EvaluationReport:
        """Run the protocol."""
        import patchword
        from patchword.systems.segswap import PreprocessConfig
        from patchword.systems.segswap.protocols.internet import evaluate_internet
        from patchword.systems.segswap.relations import SegswapPairs

        options = self._options()
        system = patchword.load(
            "segswap",
            checkpoint=self.checkpoint,
            device=self.torch_device(),
            normalisation="segswap_eval" if self.compat else None,
            preprocess=PreprocessConfig(
                resize="squash",
                size=(self.size, self.size),
                normalisation="segswap_eval" if self.compat else "correct",
            ),
        )
        return evaluate_internet(
            self.data, model=SegswapPairs(system), options=options, progress=self.progress()
        )

    def _options(self) -> InternetOptions:
        from patchword.systems.segswap.discovery import PUBLISHED_DISCOVERY, DiscoveryOptions
        from patchword.systems.segswap.graph import GraphOptions
        from patchword.systems.segswap.protocols.internet import InternetOptions, parse_sigmas

        if self.batch < 1:
            raise ConfigError(f"evaluate: --batch must be at least 1, got {self.batch}.")
        graph = GraphOptions(
            top_k=self.top_k,
            confidence=self.confidence,
            sigma=self.other_sigma,
            two_cycles=self.two_cycles,
            mask_three_cycles=self.mask_three_cycles,
        )
        discovery = DiscoveryOptions(
            graph=graph,
            flip=not self.no_flip,
            mode=self.mode,
            foreground=self.foreground,
            ring=self.ring,
            compat=PUBLISHED_DISCOVERY if self.compat else frozenset(),
        )
        return InternetOptions(
            discovery=discovery,
            sigmas=parse_sigmas(self.sigma),
            cache=self.cache,
            batch=self.batch,
        )
