# SPDX-License-Identifier: Apache-2.0
"""Flags that every command has, and what is done with them: logging, results, exit codes."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from patchword.data.io import printable
from patchword.errors import ConfigError
from patchword.inference.naming import slug

if TYPE_CHECKING:
    from patchword.inference.progress import Progress
    from patchword.inference.runner import FolderRun

DONE, FAILED, USAGE, EXPECTATION_NOT_MET, INTERRUPTED = 0, 1, 2, 3, 130
SCHEMA_VERSION = 1
MAX_MEGAPIXELS = 178.0
_MAX_WARNINGS = 1000


@dataclass
class Outcome:
    """What a command hands to its caller.

    Attributes:
        result: JSON-ready; the ``result`` of ``--json``.
        text: The same for people.
        code: Exit code.
    """

    result: dict[str, Any]
    text: str
    code: int = DONE


@dataclass(frozen=True, kw_only=True)
class CommonFlags(ABC):
    """Flags of every command."""

    example: ClassVar[str]

    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:1."""
    backend: Literal["auto", "native", "triton", "reference"] = "auto"
    """Kernels to use; auto takes the fastest that can run."""
    num_workers: int = 2
    """Threads that read pictures ahead; 0 reads in the main thread."""
    seed: int = 0
    """Seed of torch's generators; the shipped commands draw no random numbers."""
    json: bool = False
    """Print one JSON object instead of text."""
    jsonl: bool = False
    """Print one JSON object per picture as it is done."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """No progress and no warnings on stderr."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """Say more on stderr, tracebacks included."""
    dry_run: bool = False
    """Check the inputs and say what would be done; compute and write nothing."""

    @abstractmethod
    def run(self, name: str) -> Outcome:
        """Do the work of the command called ``name``."""

    def check(self) -> None:
        """Refuse flags that contradict each other.

        Raises:
            ConfigError: With the flags.
        """
        if self.json and self.jsonl:
            raise ConfigError("--json and --jsonl exclude each other.")
        if self.num_workers < 0:
            raise ConfigError(f"--num-workers must be at least 0, got {self.num_workers}.")

    def torch_device(self) -> str | None:
        """Give the device for torch, None for the library's own choice.

        Raises:
            ConfigError: There is no such device here.
        """
        if self.device == "auto":
            return None
        if re.fullmatch(r"cpu|cuda(:\d+)?", self.device) is None:
            raise ConfigError(
                f"--device must be auto, cpu, cuda or cuda:<number>, got {self.device!r}."
            )
        if self.device != "cpu":
            import torch

            count = torch.cuda.device_count()
            if int(self.device.partition(":")[2] or 0) >= count:
                raise ConfigError(
                    f"--device {self.device}: this machine has {count} CUDA devices that torch "
                    "can use. Pass --device cpu."
                )
        return self.device

    def progress(self) -> Progress:
        """Choose how progress is shown."""
        from patchword.inference.progress import bar_or_log, silent

        return silent if self.quiet else bar_or_log

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Apply ``--backend`` and ``--seed`` to what runs inside."""
        import torch

        from patchword.ops import use_backend

        torch.manual_seed(self.seed)
        with use_backend(None if self.backend == "auto" else self.backend):
            yield


@dataclass(frozen=True, kw_only=True)
class OutputFlags(CommonFlags):
    """Flags of the commands that write a folder."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = None
    """Folder for the results; by default a new one below patchword_out/."""
    overwrite: bool = False
    """Use the folder even if it holds other results, and start over."""
    max_megapixels: float = 100.0
    """Refuse larger pictures from their header, before decoding."""

    def max_pixels(self) -> int:
        """Give the limit in pixels."""
        return round(self.max_megapixels * 1e6)

    def check(self) -> None:
        """Refuse flags that contradict each other, see :meth:`CommonFlags.check`."""
        super().check()
        if not 0 < self.max_megapixels <= MAX_MEGAPIXELS:
            raise ConfigError(
                f"--max-megapixels must be above 0 and at most {MAX_MEGAPIXELS:g}, "
                f"got {self.max_megapixels:g}."
            )

    def folder(self, settings: dict[str, Any], *names: str) -> Path:
        """Give ``--output``, or a name that the same settings always lead to."""
        if self.output is not None:
            return self.output
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=4).hexdigest()
        words = "-".join(slug(name) for name in (settings["command"], *names))
        return Path("patchword_out") / f"{words}-{digest}"


@dataclass
class Notes(logging.Handler):
    """Collects the library's warnings for ``--json``."""

    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take warnings and worse."""
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, up to a thousand of them."""
        if len(self.messages) < _MAX_WARNINGS:
            self.messages.append(record.getMessage())

    def __hash__(self) -> int:
        """Hash by identity, as logging needs."""
        return id(self)


@contextmanager
def logging_to_stderr(flags: CommonFlags) -> Iterator[list[str]]:
    """Send the library's log to stderr while a command runs; gives the list of warnings."""
    from rich.console import Console
    from rich.logging import RichHandler

    logger = logging.getLogger("patchword")
    level = logging.ERROR if flags.quiet else logging.DEBUG if flags.verbose else logging.INFO
    shown = RichHandler(
        level, console=Console(stderr=True), show_path=False, show_time=flags.verbose
    )
    notes = Notes()
    before = logger.level
    logger.setLevel(min(level, logging.WARNING))
    logger.addHandler(shown)
    logger.addHandler(notes)
    try:
        yield notes.messages
    finally:
        logger.removeHandler(shown)
        logger.removeHandler(notes)
        logger.setLevel(before)


def print_line(text: str) -> None:
    """Write one line of results to stdout at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def complain(message: str) -> None:
    """Write one line about an error to stderr."""
    sys.stderr.write(f"patchword: {message}\n")


def failures_text(failures: Sequence[tuple[str, str]], failed: int) -> str:
    """List what could not be read, one line each, after a count."""
    noun = "file" if failed == 1 else "files"
    lines = [f"{failed} {noun} could not be read:"]
    for key, message in failures:
        named = printable(key) in message
        lines.append(f"  {message}" if named else f"  {printable(key)}: {message}")
    if failed > len(failures):
        lines.append(f"  and {failed - len(failures)} more, see journal.jsonl")
    return "\n".join(lines)


def print_record(record: dict[str, Any]) -> None:
    """Print one picture's record of a folder run as a line of ``--jsonl``."""
    print_line(json_line({"schema_version": SCHEMA_VERSION, **record}))


def planned(output: Path, pictures: int) -> Outcome:
    """Tell what ``--dry-run`` found."""
    result = {"dry_run": True, "pictures": pictures, "output": str(output)}
    noun = "picture" if pictures == 1 else "pictures"
    return Outcome(result, f"would read {pictures} {noun} and write to {printable(output)}")


def run_report(run: FolderRun) -> dict[str, Any]:
    """Give a folder run as JSON-ready counts."""
    summary = run.summary
    return {
        "output": str(run.output),
        "index": str(run.index),
        "done": summary.done,
        "reused": summary.reused,
        "failed": summary.failed,
        "failures": [{"key": key, "error": error} for key, error in summary.failures],
        "interrupted": summary.interrupted,
    }


def folder_outcome(
    flags: CommonFlags, run: FolderRun, result: dict[str, Any], lines: list[str]
) -> Outcome:
    """Report a folder run: counts and page to stdout, unreadable files to stderr, exit code."""
    summary = run.summary
    counts = f"{summary.done} pictures done, {summary.reused} reused, {summary.failed} failed"
    if summary.interrupted:
        counts += "; interrupted, the same command continues"
    text = "\n".join([*lines, counts, f"results: {printable(run.index)}"])
    if summary.failed:
        complain(failures_text(summary.failures, summary.failed))
    if flags.jsonl:
        print_line(json_line({"schema_version": SCHEMA_VERSION, "summary": result}))
    code = INTERRUPTED if summary.interrupted else FAILED if summary.failed else DONE
    return Outcome(result, text, code)


def json_line(value: Any) -> str:
    """Give strict JSON on one line."""
    return json.dumps(value, allow_nan=False)


def envelope(
    command: str,
    result: dict[str, Any] | None,
    warnings: list[str],
    error: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Wrap a result as ``--json`` prints it; ``error`` is there only when something failed."""
    wrapped = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "result": result,
        "warnings": warnings,
    }
    return wrapped if error is None else {**wrapped, "error": error}
