# SPDX-License-Identifier: Apache-2.0
"""``patchword evaluate``: measures on labelled folders, and demands that must be met."""

from __future__ import annotations

import operator
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from patchword.cli import common
from patchword.cli.common import CommonFlags, Outcome
from patchword.data.folders import is_folder
from patchword.data.io import printable
from patchword.errors import ConfigError, DatasetError
from patchword.inference.atomic import make_folder

if TYPE_CHECKING:
    from patchword.evaluation import EvaluationReport

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Expectation:
    """A demand such as ``ap>=0.45``."""

    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Read ``metric>=number`` (or ``<=``, ``>``, ``<``).

        Raises:
            ConfigError: It does not read so.
        """
        found = re.fullmatch(r"\s*([^<>=\s]+)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*", text)
        try:
            if found is None:
                raise ValueError(text)
            return cls(found[1], found[2], float(found[3]))
        except ValueError as error:
            raise ConfigError(f'--expect must read like "ap>=0.45", got {text!r}.') from error

    def met(self, metrics: Mapping[str, float]) -> bool:
        """Compare with what was measured; NaN meets nothing.

        Raises:
            ConfigError: There is no such metric.
        """
        if self.metric not in metrics:
            raise ConfigError(
                f"--expect: there is no metric {self.metric!r} here, there are: "
                f"{', '.join(metrics)}."
            )
        return bool(_COMPARE[self.sign](metrics[self.metric], self.bound))


@dataclass(frozen=True, kw_only=True)
class Evaluate(CommonFlags):
    """Flags of every protocol, and what is done with its numbers."""

    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Labelled folder; its layout tells the protocol."""
    expect: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Demand such as "ap>=0.45"; exit code 3 if not met. Repeat for more."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = None
    """Folder for the report; nothing is written without."""

    @abstractmethod
    def measure(self) -> EvaluationReport:
        """Run the protocol."""

    def run(self, name: str) -> Outcome:
        """Measure, compare with what was expected, report."""
        demands = [Expectation.parse(text) for text in self.expect]
        if not is_folder(self.data):
            raise DatasetError(f"evaluate: {printable(self.data)} is not a folder.", path=self.data)
        if self.dry_run:
            result: dict[str, object] = {"dry_run": True, "data": str(self.data)}
            return Outcome(result, f"would measure on {printable(self.data)}")
        if self.output is not None:
            # Before the measurement, which may take long, and not after it.
            make_folder(self.output)
        with self.computing():
            report = self.measure()
        if self.output is not None:
            report.save(self.output)
        verdicts = [(demand, demand.met(report.metrics)) for demand in demands]
        return self._report(report, verdicts)

    def _report(
        self, report: EvaluationReport, verdicts: Sequence[tuple[Expectation, bool]]
    ) -> Outcome:
        record = {
            "data": str(self.data),
            "protocol": report.protocol,
            "metrics": {name: float(value) for name, value in report.metrics.items()},
            "expectations": [
                {"metric": d.metric, "sign": d.sign, "bound": d.bound, "met": met}
                for d, met in verdicts
            ],
        }
        if self.jsonl:
            common.print_line(common.json_line(record))
        width = max(map(len, report.metrics), default=0)
        lines = [f"{name:<{width}}  {value:.4f}" for name, value in report.metrics.items()]
        for demand, met in verdicts:
            words = f"{demand.metric} {demand.sign} {demand.bound:g}"
            lines.append(f"{'met' if met else 'NOT MET'}: {words}")
        all_met = all(met for _, met in verdicts)
        return Outcome(
            record, "\n".join(lines), common.DONE if all_met else common.EXPECTATION_NOT_MET
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateMatch(Evaluate):
    """Measure correspondences and shared-region masks on a labelled folder."""

    example: ClassVar[str] = 'patchword evaluate match --data copy_paste_pairs --expect "ap>=0.45"'

    backbone: str = "efficientnet-lite0"
    """Network that describes patches."""
    model: Literal["auto", "segswap", "training-free"] = "auto"
    """What is measured, as in patchword match."""
    apart: int = 0
    """With objects: pairings a picture that share nothing, for the metric auc."""

    def measure(self) -> EvaluationReport:
        """Run the protocol of the folder."""
        from patchword.evaluation import evaluate_match
        from patchword.systems.segswap.joint import create_matcher

        matcher = create_matcher(self.model, backbone=self.backbone, device=self.torch_device())
        return evaluate_match(
            self.data, matcher=matcher, apart=self.apart, progress=self.progress()
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateLocate(Evaluate):
    """Measure phrase localisation on a labelled folder."""

    example: ClassVar[str] = "patchword evaluate locate --data public_domain_photos"

    def measure(self) -> EvaluationReport:
        """Run the protocol of the folder."""
        from patchword.evaluation import evaluate_locate
        from patchword.localization import Localizer

        localizer = Localizer(device=self.torch_device())
        return evaluate_locate(self.data, localizer=localizer, progress=self.progress())
