# SPDX-License-Identifier: Apache-2.0
"""SegSwap's network as the retrieval protocols use it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from patchword.errors import OptionError
from patchword.nn.cross_transformer import ImageTokens
from patchword.ops import match_score
from patchword.structures import ImageArray
from patchword.systems.segswap import retrieval
from patchword.systems.segswap.model import SegSwapNetwork
from patchword.systems.segswap.protocols.scorer import CandidateScores, Normalisation


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """A picture in memory, ready to be compared.

    Attributes:
        rows: ``[h * w, C]`` unit descriptors.
        tokens: Batch of one.
    """

    rows: Tensor
    tokens: ImageTokens


class NetworkScorer:
    """Compares by the network's masks, flow and descriptors.

    Args:
        network: With its backbone, in evaluation mode.
        published: The same weights with the published evaluation's normalisation, for candidates
            under ``compat``; None where it is not needed.
        rounding: How a predicted place becomes a cell, see :func:`patchword.ops.match_score`.
        batch: Candidates compared at once.
    """

    def __init__(
        self,
        network: SegSwapNetwork,
        published: SegSwapNetwork | None = None,
        *,
        rounding: retrieval.Rounding = "cell",
        batch: int = 32,
    ) -> None:
        """Take the networks; their weights name everything that is cached."""
        self._networks: dict[str, SegSwapNetwork | None] = {
            "correct": network.eval(),
            "segswap_eval": None if published is None else published.eval(),
        }
        self._transformer = network.transformer
        self._rounding = rounding
        self._batch = batch
        self._digest = _digest(network)

    def fingerprint(self) -> str:
        """Digest of all weights, and how places become cells."""
        return f"{self._digest}/{self._rounding}"

    @torch.inference_mode()
    def encode(self, image: ImageArray, normalisation: Normalisation = "correct") -> Tensor:
        """Unit descriptors ``[C, h, w]`` of uint8 ``[H, W, 3]``.

        Raises:
            OptionError: The network with that normalisation was not given.
        """
        network = self._networks[normalisation]
        if network is None:
            raise OptionError(
                f'NetworkScorer: normalisation "{normalisation}" needs the network that has it, '
                "got none. Pass it as published=."
            )
        pixels = torch.from_numpy(np.array(image)).to(self._device())
        return network.features(pixels.permute(2, 0, 1)[None].float() / 255)[0]

    @torch.inference_mode()
    def embed(self, descriptors: Tensor) -> EncodedPicture:
        """What depends on one picture alone: its rows of descriptors and its first tokens."""
        maps = descriptors[None].to(self._device())
        rows = maps[0].flatten(1).T.contiguous()
        return EncodedPicture(rows, self._transformer.embed(maps))

    @torch.inference_mode()
    def score(
        self, query: EncodedPicture, cells: Tensor, candidates: Sequence[EncodedPicture]
    ) -> CandidateScores:
        """Score candidates of any sizes, and say where each query cell was found."""
        region = cells.to(self._device())
        weights = retrieval.query_weights(self._transformer, query.tokens, region)
        wanted = region.flatten().nonzero()[:, 0]
        out = CandidateScores(
            torch.zeros(len(candidates)),
            torch.zeros(len(candidates), *cells.shape, 2),
            torch.zeros(len(candidates), *cells.shape),
        )
        for chosen in _batches(candidates, self._batch):
            members = [candidates[i] for i in chosen]
            tokens = _joined([member.tokens for member in members])
            rows0, mask1 = retrieval.relate_cells(self._transformer, query.tokens, tokens, wanted)
            scores = match_score(
                query.rows[wanted],
                torch.stack([member.rows for member in members]),
                rows0[..., :2],
                weights[wanted] * rows0[..., 2],
                mask1,
                grid=tokens.grid,
                rounding=self._rounding,
            )
            out.scores[chosen] = scores.cpu()
            for n, i in enumerate(chosen):
                out.points[i][cells] = rows0[n, :, :2].cpu()
                out.masks[i][cells] = (weights[wanted] * rows0[n, :, 2]).cpu()
        return out

    def _device(self) -> torch.device:
        return next(self._transformer.parameters()).device


def _batches(candidates: Sequence[EncodedPicture], batch: int) -> Iterator[list[int]]:
    """Numbers of candidates of one grid, at most ``batch`` together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, candidate in enumerate(candidates):
        groups.setdefault(candidate.tokens.grid, []).append(i)
    for members in groups.values():
        for start in range(0, len(members), batch):
            yield members[start : start + batch]


def _joined(pictures: Sequence[ImageTokens]) -> ImageTokens:
    """Pictures of one grid as a batch."""
    first = pictures[0]
    parts = {
        field.name: torch.cat([getattr(picture, field.name) for picture in pictures])
        for field in fields(first)
        if isinstance(getattr(first, field.name), Tensor)
    }
    return replace(first, **parts)  # type: ignore[arg-type]


def _digest(network: SegSwapNetwork) -> str:
    state = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
