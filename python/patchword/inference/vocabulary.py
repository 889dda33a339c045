# SPDX-License-Identifier: Apache-2.0
"""Vectors of words by averaging over sentence templates, kept in memory and on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from patchword.backbones.clip.text import TextTower
from patchword.errors import OptionError
from patchword.inference.atomic import write_bytes

logger = logging.getLogger(__name__)

_FORMAT = "patchword-vocabulary/1"
# Words encoded at once: bounds memory, and is enough for templates to share their beginnings.
_CHUNK = 256


class VocabularyEncoder:
    """One unit vector a word: the mean over templates of unit text vectors, scaled again.

    A word is encoded once and then remembered. With a folder, each vocabulary is also one file
    there, found by what it depends on: the tower's weights, the templates and the words.
    """

    def __init__(
        self,
        tower: TextTower,
        sequences: Callable[[Sequence[str]], Sequence[Sequence[int]]],
        templates: Sequence[str],
        folder: Path | None = None,
    ) -> None:
        """Name the parts.

        Args:
            tower: Encodes id sequences.
            sequences: Turns texts into id sequences, start and end ids included.
            templates: Sentences with ``{}`` where the word goes.
            folder: Where vocabularies are kept; None keeps them in memory only.

        Raises:
            OptionError: There is no template, or one has no place for the word.
        """
        if not templates or any("{}" not in template for template in templates):
            raise OptionError(
                "VocabularyEncoder: templates must each hold {}, got "
                f"{next((t for t in templates if '{}' not in t), 'none')!r}."
            )
        self._tower = tower
        self._sequences = sequences
        self.templates = tuple(templates)
        self.folder = folder
        self._known: dict[str, Tensor] = {}
        self._weights_digest: str | None = None

    @torch.inference_mode()
    def encode(self, words: Sequence[str]) -> Tensor:
        """Vectors ``[C, D]`` of unit length, on the tower's device.

        Args:
            words: Any strings; the empty one gives what the templates have in common.

        Raises:
            OptionError: A word is too long for the tower.
        """
        device = self._tower.text_projection.device
        if not words:
            return torch.zeros(0, self._tower.text_projection.shape[1], device=device)
        missing = [word for word in dict.fromkeys(words) if word not in self._known]
        if missing:
            path = self._path(missing)
            stored = None if path is None else _read(path, len(missing))
            vectors = self._compute(missing) if stored is None else stored
            if path is not None and stored is None:
                notes = {"format": _FORMAT}
                write_bytes(path, save({"vectors": vectors.cpu().contiguous()}, notes))
            self._known.update(zip(missing, vectors.to(device), strict=True))
        return torch.stack([self._known[word] for word in words])

    def _compute(self, words: Sequence[str]) -> Tensor:
        means = []
        for start in range(0, len(words), _CHUNK):
            chunk = words[start : start + _CHUNK]
            texts = [template.replace("{}", word) for word in chunk for template in self.templates]
            vectors = F.normalize(self._tower.encode_sequences(self._sequences(texts)), dim=1)
            means.append(vectors.view(len(chunk), len(self.templates), -1).mean(dim=1))
        return F.normalize(torch.cat(means), dim=1)

    def _path(self, words: Sequence[str]) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(self._fingerprint().encode())
        for text in (*self.templates, "", *words):
            content = text.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def _fingerprint(self) -> str:
        if self._weights_digest is None:
            self._weights_digest = weights_digest(self._tower)
        return self._weights_digest


def weights_digest(module: nn.Module) -> str:
    """Digest of a module's tensors, their names, types and sizes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def _read(path: Path, count: int) -> Tensor | None:
    """Stored vectors, or None; a damaged file counts as none and is written again."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            vectors: Tensor = file.get_tensor("vectors")
            fits = (file.metadata() or {}).get("format") == _FORMAT and len(vectors) == count
    except (OSError, SafetensorError) as error:
        logger.warning("VocabularyEncoder: %s is damaged and made again: %s", path.name, error)
        return None
    return vectors if fits else None
