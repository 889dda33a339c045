# SPDX-License-Identifier: Apache-2.0
"""The sentence encoder all-MiniLM-L6-v2: phrases in, unit vectors out.

Source: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, arXiv:1908.10084, for the pooling; Wang
et al., "MiniLM", NeurIPS 2020, arXiv:2002.10957, for the network.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.backbones.bert import BertEncoder
from patchword.backbones.weights import (
    MINILM,
    MINILM_TOKENIZER,
    load_state_dict,
    read_weights,
)
from patchword.errors import CheckpointError, OptionError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

# The published model was trained and is run on at most so many pieces.
MAX_PIECES = 256
_BATCH = 64


class SentenceEncoder:
    """all-MiniLM-L6-v2: mean over the pieces of BERT's last layer, scaled to unit length."""

    dimension = 384

    def __init__(self, device: torch.device | str | None = None) -> None:
        """Load weights and tokenizer.

        Raises:
            CheckpointError: The optional packages are missing or damaged.
        """
        self.device = torch.device("cpu" if device is None else device)
        self._tokenizer = _load_tokenizer()
        state = load_state_dict(MINILM)
        # Left over from training: the ids of the positions, and a head that sentences do not use.
        state = {
            name: tensor
            for name, tensor in state.items()
            if name != "embeddings.position_ids" and not name.startswith("pooler.")
        }
        encoder = BertEncoder()
        encoder.load_state_dict(state, strict=True)
        self._encoder = encoder.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode phrases.

        Args:
            texts: Phrases; pieces past the 256th are dropped, which is logged.

        Returns:
            ``[len(texts), 384]`` float32 of unit length.

        Raises:
            OptionError: A phrase is empty.
        """
        for text in texts:
            if not text.strip():
                raise OptionError("SentenceEncoder.encode: text must not be empty, got ''.")
        vectors = [
            self._encode_batch(list(texts[start : start + _BATCH]))
            for start in range(0, len(texts), _BATCH)
        ]
        if not vectors:
            return torch.zeros(0, self.dimension, device=self.device)
        return torch.cat(vectors)

    def _encode_batch(self, texts: list[str]) -> Tensor:
        encodings = self._tokenizer.encode_batch(texts)
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.overflowing:
                logger.warning(
                    "SentenceEncoder.encode: a text of %d characters is cut to its first %d "
                    "pieces.",
                    len(text),
                    MAX_PIECES,
                )
        ids = torch.tensor([encoding.ids for encoding in encodings], device=self.device)
        valid = torch.tensor(
            [encoding.attention_mask for encoding in encodings], device=self.device
        ).bool()
        tokens = self._encoder(ids, valid)
        weights = valid[..., None].to(tokens.dtype)
        mean = (tokens * weights).sum(dim=1) / weights.sum(dim=1)
        return F.normalize(mean, dim=1)


def _load_tokenizer() -> Tokenizer:
    """The model's word-piece tokenizer, padded to the longest text of a batch."""
    try:
        from tokenizers import Tokenizer
    except Exception as error:
        raise CheckpointError(
            f"SentenceEncoder: package tokenizers must be importable, got {error!r}. "
            f"Run {MINILM_TOKENIZER.remedy}."
        ) from error
    tokenizer = Tokenizer.from_str(read_weights(MINILM_TOKENIZER).decode("utf-8"))
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(max_length=MAX_PIECES)
    return tokenizer
