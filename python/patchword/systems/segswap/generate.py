# SPDX-License-Identifier: Apache-2.0
"""Writes pairs to disk with several processes; a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
from torch.utils.data import DataLoader, Dataset

from patchword.errors import DatasetError, OptionError, OutputError, PatchwordError
from patchword.inference.atomic import output_error, write_json
from patchword.inference.interrupt import StopFlag
from patchword.inference.journal import Journal
from patchword.inference.output import JOURNAL_FILE, open_output
from patchword.inference.progress import Progress, silent
from patchword.systems.segswap.data import GeneratedPairs, make_pair, pair_rng
from patchword.systems.segswap.pictures import PictureCache
from patchword.systems.segswap.recipe import PairRecipe
from patchword.systems.segswap.sources import SceneSource
from patchword.systems.segswap.store import encode_picture, pair_paths, write_pair
from patchword.systems.segswap.stylise import StatisticsStylist, Stylist
from patchword.systems.segswap.timing import StageTimes

logger = logging.getLogger(__name__)

SUMMARY_FILE = "generation.json"
_OWN_FILE = re.compile(r"\.?\d+_(a|b|as|bs)\.(jpg|npy)(\.tmp)?")

# Published arithmetic: ten backbone passes (0.30 TFLOP) and twenty pairs forward and backward
# (1.5 TFLOP) for five positive pairs.
_TRAINER_TFLOP_PER_STEP = 1.8
_PAIRS_PER_STEP = 5
# An assumption, not a measurement: 40 % of a dense half-precision peak of 990 TFLOP/s.
_TRAINER_TFLOPS = 400.0


@dataclass(frozen=True)
class GenerationReport:
    """What a run wrote.

    Attributes:
        output: The folder.
        done: Pairs made now.
        reused: Pairs that an earlier run had finished.
        interrupted: Whether the run was stopped before the last pair.
        seconds: Wall time of the part that made pairs.
        num_workers: Processes that made them.
        stages: Processor seconds by stage, summed over the processes.
    """

    output: Path
    done: int
    reused: int
    interrupted: bool
    seconds: float
    num_workers: int
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def pairs_per_second(self) -> float:
        """Rate of this run; 0 when it made nothing."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def core_seconds_per_pair(self) -> float:
        """Processor time per pair; 0 when nothing was made."""
        return sum(self.stages.values()) / self.done if self.done else 0.0

    def shares(self) -> dict[str, float]:
        """Share of each stage, largest first."""
        total = sum(self.stages.values())
        ordered = sorted(self.stages.items(), key=lambda item: -item[1])
        return {name: seconds / total for name, seconds in ordered} if total else {}

    def cores_per_trainer(self) -> float:
        """Estimate the processes that keep one large accelerator busy with stage 1.

        Time per pair is measured; the trainer's appetite is arithmetic: 1.8 TFLOP per step of five
        pairs at an assumed 400 TFLOP/s. Reading the data and optimising would slow a real trainer.
        """
        pairs_per_second = _PAIRS_PER_STEP * _TRAINER_TFLOPS / _TRAINER_TFLOP_PER_STEP
        return pairs_per_second * self.core_seconds_per_pair

    def record(self) -> dict[str, Any]:
        """Give everything as JSON-ready values."""
        return {
            **asdict(self),
            "output": str(self.output),
            "pairs_per_second": self.pairs_per_second,
            "core_seconds_per_pair": self.core_seconds_per_pair,
            "stage_shares": self.shares(),
            "estimated_cores_per_trainer": self.cores_per_trainer(),
        }


class _PairWriter(Dataset[dict[str, Any]]):
    """Makes and writes pair ``index`` wherever it is asked to; gives sizes and times back."""

    def __init__(
        self,
        source: SceneSource,
        recipe: PairRecipe,
        folder: Path,
        seed: int,
        stylist: Stylist | None,
    ) -> None:
        self.pairs = GeneratedPairs(source, recipe, seed=seed, stylist=stylist)
        self.folder = folder

    def __getitem__(self, index: int) -> dict[str, Any]:
        # An exception object that crosses processes loses its class's arguments.
        try:
            return self._write(index)
        except PatchwordError as error:
            return {"index": index, "error": type(error).__name__, "message": str(error)}

    def _write(self, index: int) -> dict[str, Any]:
        pairs, times = self.pairs, StageTimes()
        pair = make_pair(
            pairs.source, pairs.recipe, pairs.seed, index, pictures=pairs.pictures, times=times
        )
        rng = pair_rng(pairs.seed, index, 1)
        with times.stage("style"):
            styled0 = pairs.stylist(pair.image0, rng)
            styled1 = pairs.stylist(pairs.to_style(pair), rng)
        with times.stage("encode"):
            pictures = {"a": pair.image0, "b": pair.image1, "as": styled0, "bs": styled1}
            encoded = {name: encode_picture(pixels) for name, pixels in pictures.items()}
        with times.stage("write"):
            write_pair(self.folder, index, encoded, pair.target0, pair.target1)
            sizes = [path.stat().st_size for path in pair_paths(self.folder, index)]
        return {"index": index, "bytes": sizes, "objects": pair.num_objects, "times": times.seconds}


def quiet_worker(worker: int) -> None:
    """Keep OpenCV to one thread; give this to a DataLoader as ``worker_init_fn``.

    Worker processes already share the cores, and OpenCV's threads do not survive a fork.
    """
    cv2.setNumThreads(0)


def generate_pairs(
    source: SceneSource,
    folder: str | Path,
    *,
    recipe: PairRecipe | None = None,
    start: int = 0,
    end: int = 100_000,
    seed: int = 0,
    num_workers: int = 2,
    stylist: Stylist | None = None,
    settings: dict[str, Any] | None = None,
    overwrite: bool = False,
    stop: StopFlag | None = None,
    progress: Progress = silent,
) -> GenerationReport:
    """Write pairs ``start`` to ``end`` - 1 in the published layout.

    The bytes of a pair depend on the source, the recipe, the stylist, the seed and its number
    alone: any number of processes, and any number of interruptions, give the same folder. A pair
    counts as done once its six files are complete and its line is in the journal.

    Args:
        source: Where photographs and objects come from.
        folder: New, empty, or of an earlier run with the same settings.
        recipe: Sizes and ranges; by default the published ones.
        start: First number.
        end: One past the last number; it may differ between runs into one folder.
        seed: Of everything that is drawn.
        num_workers: Processes; 0 works in this one.
        stylist: Re-draws pictures; by default statistics of the source's own photographs.
        settings: JSON-ready values that say what the source and the stylist are; kept in
            ``run.json`` and compared when the run is continued.
        overwrite: Remove pairs and records that are there, and start over.
        stop: Ends the run after the current pair once it is true.
        progress: Wraps the loop.

    Raises:
        OptionError: The numbers are out of range.
        ConfigError: The folder belongs to something else or to other settings.
        DatasetError: A file of the source cannot be read.
        OutputError: Something cannot be written; finished pairs stay and are not made again.
    """
    if not 0 <= start <= end:
        raise OptionError(
            f"generate_pairs: numbers must satisfy 0 <= start <= end, got {start} and {end}."
        )
    if num_workers < 0:
        raise OptionError(f"generate_pairs: num_workers must be at least 0, got {num_workers}.")
    recipe = recipe if recipe is not None else PairRecipe()
    stop = stop if stop is not None else StopFlag()
    all_settings = {
        "command": "data segswap",
        "seed": seed,
        "recipe": {**asdict(recipe), "compat": sorted(recipe.compat)},
        **(settings or {}),
    }
    # As it will read back: tuples become lists.
    all_settings = json.loads(json.dumps(all_settings))
    with open_output(Path(folder), all_settings, overwrite=overwrite) as output:
        if overwrite:
            _remove_pairs(output)
        if stylist is None:
            stylist = StatisticsStylist(source.photographs, PictureCache())
        writer = _PairWriter(source, recipe, output, seed, stylist)
        with Journal(output / JOURNAL_FILE) as journal:
            missing = [
                index for index in range(start, end) if not _finished(journal, output, index)
            ]
            made = _run(writer, journal, missing, num_workers, stop, progress)
        report = GenerationReport(
            output=output,
            reused=end - start - len(missing),
            num_workers=num_workers,
            **made,
        )
        write_json(output / SUMMARY_FILE, report.record())
    return report


def _run(
    writer: _PairWriter,
    journal: Journal,
    numbers: list[int],
    num_workers: int,
    stop: StopFlag,
    progress: Progress,
) -> dict[str, Any]:
    times = StageTimes()
    done, interrupted = 0, False
    begun = time.perf_counter()
    for record in progress(_records(writer, numbers, num_workers), total=len(numbers)):
        if "error" in record:
            kind = OutputError if record["error"] == "OutputError" else DatasetError
            raise kind(f"pair {record['index']}: {record['message']}")
        times.add(record.pop("times"))
        journal.append({"key": str(record["index"]), "stamp": [0, 0], "status": "ok", **record})
        done += 1
        if stop and done < len(numbers):
            interrupted = True
            break
    return {
        "done": done,
        "interrupted": interrupted,
        "seconds": time.perf_counter() - begun,
        "stages": times.seconds,
    }


def _records(writer: _PairWriter, numbers: list[int], num_workers: int) -> Iterator[dict[str, Any]]:
    loader: Iterable[dict[str, Any]] = DataLoader(
        writer,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=quiet_worker,
    )
    yield from loader


def _as_is(record: Any) -> Any:
    return record


def _finished(journal: Journal, folder: Path, index: int) -> bool:
    """Tell whether a pair is in the journal and its files have the sizes noted there.

    Sizes are compared because a power failure may keep the journal's line and lose a file.
    """
    record = journal.find(str(index), (0, 0))
    if record is None:
        return False
    try:
        sizes = [path.stat().st_size for path in pair_paths(folder, index)]
    except OSError:
        return False
    return bool(sizes == record.get("bytes"))


def _remove_pairs(folder: Path) -> None:
    try:
        for path in folder.iterdir():
            if _OWN_FILE.fullmatch(path.name):
                path.unlink()
        with suppress(FileNotFoundError):
            (folder / SUMMARY_FILE).unlink()
    except OSError as error:
        raise output_error(folder, error) from error
