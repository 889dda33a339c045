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


def table_lines(answers: Mapping[str, Answers]) -> list[str]:
    """Name the backend that would run each op, a column per device.

    Args:
        answers: Op to what :func:`backend_lines` takes.
    """
    width = max(map(len, answers), default=0)
    devices = list(next(iter(answers.values()), {}))
    lines = [f"{'':<{width}}  " + "  ".join(f"{device:<10}" for device in devices).rstrip()]
    for op, chosen in _chosen_by_op(answers).items():
        cells = "  ".join(f"{chosen[device] or '-':<10}" for device in devices)
        lines.append(f"{op:<{width}}  {cells.rstrip()}")
    return lines


def reason_lines(answers: Mapping[str, Answers]) -> list[str]:
    """Say once per reason which backend it keeps from running where, and for which ops."""
    ops_by_reason: dict[tuple[str, str, str], list[str]] = {}
    for op, devices in answers.items():
        for device, backends in devices.items():
            for name, reason in backends.items():
                if reason is not None:
                    ops_by_reason.setdefault((device, name, reason), []).append(op)
    return [
        f"{device}, {name}: {reason}" + ("" if len(ops) == len(answers) else f" ({', '.join(ops)})")
        for (device, name, reason), ops in ops_by_reason.items()
    ]


@dataclass(frozen=True, kw_only=True)
class OpsList(CommonFlags):
    """Name the ops and the backend that each would use here."""

    example: ClassVar[str] = "patchword ops list"

    def run(self, name: str) -> Outcome:
        """Collect and report."""
        from patchword.ops import explain_environment

        answers: dict[str, Answers] = explain_environment()["ops"]
        chosen = _chosen_by_op(answers)
        if self.jsonl:
            common.print_line(common.json_line(chosen))
        return Outcome({"ops": chosen}, "\n".join(table_lines(answers)))


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


def _chosen_by_op(answers: Mapping[str, Answers]) -> dict[str, dict[str, str | None]]:
    """First backend per op and device that does not refuse."""
    return {
        op: {
            device: next((name for name, reason in backends.items() if reason is None), None)
            for device, backends in devices.items()
        }
        for op, devices in answers.items()
    }
