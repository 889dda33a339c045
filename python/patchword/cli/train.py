# SPDX-License-Identifier: Apache-2.0
"""``patchword train``: a system's training run, from configuration to run folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from patchword.cli import common
from patchword.cli.common import CommonFlags, Outcome
from patchword.data.io import printable


@dataclass(frozen=True, kw_only=True)
class Train(CommonFlags):
    """Train a system, or go on with a run that was interrupted.

    Words of the form key=value change the configuration, as in training.optim.lr=1e-4. Start it
    with torchrun to share a run between processes.
    """

    example: ClassVar[str] = (
        "patchword train segswap --config paper -o runs/first training.optim.lr=1e-4"
    )

    system: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SYSTEM")]
    """Name of the system."""
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="KEY=VALUE")
    ] = ()
    """Changes to the configuration; the last one wins."""
    config: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE")] = None
    """A configuration that ships with the system, such as paper, or a YAML file."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = None
    """The run's folder; by default runs/<system>-<config>."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder."""
    show_config: bool = False
    """Print the configuration as YAML and stop."""

    def run(self, name: str) -> Outcome:
        """Fill the configuration, train, report."""
        from patchword.systems import trainer
        from patchword.training.config import load_config, to_plain, to_yaml

        module = trainer(self.system)
        config = load_config(
            module.TrainConfig, system=self.system, source=self.config, overrides=self.overrides
        )
        label = "default" if self.config is None else Path(self.config).stem
        folder = self.output if self.output is not None else Path("runs") / f"{self.system}-{label}"
        if self.show_config or self.dry_run:
            return Outcome(
                {"output": str(folder), "config": to_plain(config)}, to_yaml(config).rstrip()
            )
        return self._train(module, config, folder)

    def _train(self, module: Any, config: Any, folder: Path) -> Outcome:
        from patchword.inference.progress import bar_or_log, silent
        from patchword.training.loop import fit

        with self.computing():
            result = fit(
                module.create_task(config),
                config.training,
                folder,
                whole_config=config,
                resume=self.resume,
                device=self.torch_device(),
                progress=silent if self.quiet else partial(bar_or_log, unit="step"),
            )
        record = {
            "output": str(result.folder),
            "steps": result.steps,
            "interrupted": result.interrupted,
            "losses": result.losses,
            "metrics": result.metrics,
        }
        if self.jsonl:
            common.print_line(common.json_line(record))
        numbers = {**result.losses, **result.metrics}
        lines = [f"{key:<16} {value:.5f}" for key, value in numbers.items()]
        state = "interrupted, --resume goes on" if result.interrupted else "done"
        lines.append(f"{result.steps} steps {state}: {printable(result.folder)}")
        code = common.INTERRUPTED if result.interrupted else common.DONE
        return Outcome(record, "\n".join(lines), code)
