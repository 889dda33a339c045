# SPDX-License-Identifier: Apache-2.0
"""Which sample comes when: a pure function of seed, position and number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """What a dataset is asked for.

    Attributes:
        record: Which of the dataset's records.
        draw: How many samples of the run came before this one, over all processes. All that is
            random about the sample should follow from the seed and this number.
    """

    record: int
    draw: int


class MicroBatches(Sampler[list[SampleKey]]):
    """Keys of the micro-batches that one process handles, in order, from a given step on.

    Records are taken in a new random order each time all have been taken; micro-batch ``m`` of a
    step goes to process ``m % processes``. So neither an interruption nor the number of processes
    changes which samples a step sees.
    """

    def __init__(
        self,
        records: int,
        *,
        seed: int,
        micro_batch_size: int,
        per_step: int,
        first_step: int,
        last_step: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        """Keep the numbers; ``per_step`` counts the micro-batches of a step over all processes."""
        self.records = records
        self.seed = seed
        self.micro_batch_size = micro_batch_size
        self.per_step = per_step
        self.steps = range(first_step, last_step)
        self.process, self.processes = process, processes
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        """Count the micro-batches of this process."""
        return len(self.steps) * len(range(self.process, self.per_step, self.processes))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield one list of keys a micro-batch."""
        for step in self.steps:
            for micro in range(self.process, self.per_step, self.processes):
                start = (step * self.per_step + micro) * self.micro_batch_size
                yield [self.key(draw) for draw in range(start, start + self.micro_batch_size)]

    def key(self, draw: int) -> SampleKey:
        """The key of the sample at a position of the run."""
        epoch, place = divmod(draw, self.records)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            self._order = torch.randperm(self.records, generator=generator).tolist()
            self._epoch = epoch
        return SampleKey(self._order[place], draw)


def mixed_seed(*numbers: int) -> int:
    """A seed in [0, 2^63) from several numbers, such that near numbers give unlike seeds."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        # The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
        state = (state + (number + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
