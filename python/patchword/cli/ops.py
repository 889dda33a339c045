# SPDX-License-Identifier: Apache-2.0
"""``patchword ops``: which ops exist and which backend would run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from patchword.cli import common
from patchword.cli.common import CommonFlags, Outcome
from patchword.errors import ConfigError

Answers = Mapping[str, Mapping[str, str | None]]


def backend_lines(op: str, answers: Answers) -> list[str]:
    """Say per device which backend would run ``op`` and why each of the others would not.

    Args:
        op: Its name.
        answers: Device to backend to the reason against it, None where it would run.
    """
    lines = [f"  {op}"]
    for device, backends in answers.items():
        able = [name for name, reason in backends.items() if reason is None]
        lines.append(f"    {device:<5} {able[0] if able else 'nothing'}")
        for name, reason in backends.items():
            if reason is not None:
                lines.append(f"          not {name}: {reason}")
    return lines


@dataclass(frozen=True, kw_only=True)
class OpsList(CommonFlags):
    """Name the ops and the backend that each would use here."""

    example: ClassVar[str] = "patchword ops list"

    def run(self, name: str) -> Outcome:
        """Collect and report."""
        from patchword.ops import explain_environment

        answers: dict[str, Answers] = explain_environment()["ops"]
        chosen = {op: _chosen(devices) for op, devices in answers.items()}
        if self.jsonl:
            common.print_line(common.json_line(chosen))
        width = max(map(len, chosen), default=0)
        lines = [
            f"{op:<{width}}  " + "  ".join(f"{device}: {name}" for device, name in devices.items())
            for op, devices in chosen.items()
        ]
        return Outcome({"ops": chosen}, "\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class OpsExplain(CommonFlags):
    """Say which backend would run an op, and why the others would not."""

    example: ClassVar[str] = "patchword ops explain sample_features"

    op: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OP")]
    """A name from `patchword ops list`."""

    def run(self, name: str) -> Outcome:
        """Collect and report."""
        from patchword.ops import explain_environment

        answers: dict[str, Answers] = explain_environment()["ops"]
        if self.op not in answers:
            raise ConfigError(
                f"ops explain: there is no op {self.op!r}, there are: {', '.join(answers)}."
            )
        result = {"op": self.op, "backends": answers[self.op]}
        if self.jsonl:
            common.print_line(common.json_line(result))
        return Outcome(result, "\n".join(backend_lines(self.op, answers[self.op])))


def _chosen(devices: Answers) -> dict[str, str | None]:
    return {
        device: next((name for name, reason in backends.items() if reason is None), None)
        for device, backends in devices.items()
    }
