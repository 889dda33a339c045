# SPDX-License-Identifier: Apache-2.0
"""``patchword env``: what this installation can run, for people and for bug reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from patchword.cli import common
from patchword.cli.common import CommonFlags, Outcome
from patchword.cli.ops import reason_lines, table_lines


@dataclass(frozen=True, kw_only=True)
class Env(CommonFlags):
    """Versions, devices and backends; paste it into bug reports."""

    example: ClassVar[str] = "patchword env --json"

    def run(self, name: str) -> Outcome:
        """Collect and report."""
        from patchword.ops import explain_environment

        found = explain_environment()
        if self.jsonl:
            common.print_line(common.json_line(found))
        return Outcome(found, "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    native = found["native"]
    lines = [f"python {found['python']} on {found['platform']}", "", "packages"]
    for name, version in found["packages"].items():
        lines.append(f"  {name:<34}{version or 'not installed'}")
    lines += ["", "compiled module"]
    if native["loaded"]:
        build = native["build"]
        lines += [
            f"  CPU level   {native['cpu_level']} (best here: {native['best_cpu_level']}; "
            f"built: {_joined(build['cpu_levels'])})",
            f"  CUDA        {build['cuda']}",
            f"  OpenMP      {native['openmp'] or 'none'}",
            f"  compiler    {build['compiler']}",
        ]
    else:
        lines.append(f"  absent: {native['reason']}; ops run in plain torch")
    devices = _joined(found["cuda_devices"]) or "none"
    lines += ["", f"threads {found['threads']}, CUDA devices: {devices}", "", "ops"]
    lines += [f"  {line}" for line in table_lines(found["ops"])]
    lines += ["", "attention: ours or torch's by shape (docs/ops/attention.md)"]
    lines += [f"  {device:<5} {source}" for device, source in found["attention_routes"].items()]
    lines += ["", "why not the others"]
    lines += [f"  {line}" for line in reason_lines(found["ops"])]
    return lines


def _joined(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value))
