# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest
import torch

from patchword.backbones.bert import BertConfig, BertEncoder
from patchword.backbones.imagenet_words import (
    build_class_vectors,
    class_names,
    load_class_vectors,
)
from patchword.backbones.sentence import SentenceEncoder
from patchword.errors import OptionError


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def test_padded_pieces_change_nothing() -> None:
    torch.manual_seed(0)
    small = BertEncoder(BertConfig(vocabulary=50, hidden=16, layers=2, heads=2, intermediate=32))
    small.eval()
    ids = torch.tensor([[1, 7, 9, 2]])
    padded = torch.tensor([[1, 7, 9, 2, 0, 0]])
    alone = small(ids, torch.ones_like(ids).bool())
    beside = small(padded, padded > 0)[:, :4]
    assert torch.allclose(alone, beside, atol=1e-6)


def test_vectors_have_unit_length_whatever_the_batch(encoder: SentenceEncoder) -> None:
    texts = ["a dog", "a long sentence about the history of the wooden bridge over the river"]
    together = encoder.encode(texts)
    assert together.shape == (2, 384)
    assert torch.allclose(together.norm(dim=1), torch.ones(2), atol=1e-5)
    alone = torch.cat([encoder.encode([text]) for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)


def test_like_sentences_are_closer_than_unlike_ones(encoder: SentenceEncoder) -> None:
    base, near, far = encoder.encode(
        ["A man is eating food.", "A man is eating a piece of bread.", "The stars are distant."]
    )
    assert base @ near > 0.6
    assert base @ far < 0.2


def test_case_does_not_matter(encoder: SentenceEncoder) -> None:
    lower, upper = encoder.encode(["eiffel tower", "Eiffel Tower"])
    assert torch.allclose(lower, upper, atol=1e-6)


def test_no_text_gives_no_vectors(encoder: SentenceEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)


def test_empty_text_is_refused(encoder: SentenceEncoder) -> None:
    with pytest.raises(OptionError, match="text must not be empty"):
        encoder.encode(["a dog", "  "])


def test_overlong_text_is_cut_and_said(
    encoder: SentenceEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="patchword"):
        long = encoder.encode(["word " * 2000])
    assert "cut to its first 256 pieces" in caplog.text
    assert torch.allclose(long, encoder.encode(["word " * 254]), atol=1e-6)


def test_shipped_class_vectors_can_be_made_again(encoder: SentenceEncoder) -> None:
    shipped = load_class_vectors()
    assert shipped.shape == (1000, 384)
    assert class_names()[207] == "golden retriever"
    picked = [0, 207, 587, 999]
    made = build_class_vectors(encoder.encode, picked)
    # The shipped file is in half precision: half a step of 2^-11 at values up to 0.25.
    assert (made - shipped[picked]).abs().max() < 2e-4
