# SPDX-License-Identifier: Apache-2.0
"""Descriptors of pictures kept on disk, so that the next query over a gallery starts from them."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from patchword.errors import DatasetError
from patchword.inference.atomic import write_bytes
from patchword.structures import PatchFeatures

logger = logging.getLogger(__name__)

_FORMAT = "patchword-features/1"


class FeatureCache:
    """One safetensors file per picture, found by the digest of the picture's bytes.

    Every file says what made it; one made by another network or other settings is not used.
    Several processes may share a folder: files appear whole, and equal ones are equal.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Keep files below ``folder``.

        Args:
            folder: Made when the first file is written.
            fingerprint: Names the network, its weights and its preprocessing.
        """
        self.folder = folder
        self.fingerprint = fingerprint

    def key(self, path: Path) -> str:
        """Digest the bytes of a picture together with the fingerprint.

        Raises:
            DatasetError: The file cannot be read.
        """
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise DatasetError(f"read_image: {path}: {error.strerror}.", path=path) from error
        return hashlib.sha256(content + self.fingerprint.encode()).hexdigest()

    def get(self, key: str) -> PatchFeatures | None:
        """Give stored descriptors (without the picture), or None; a damaged file counts as none."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                if notes.get("format") != _FORMAT or notes.get("made_by") != self.fingerprint:
                    return None
                shape: dict[str, Any] = json.loads(notes["shape"])
                return PatchFeatures(
                    tokens=file.get_tensor("tokens"),
                    grid=(shape["grid"][0], shape["grid"][1]),
                    stride=shape["stride"],
                    image_size=(shape["image_size"][0], shape["image_size"][1]),
                )
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("FeatureCache: %s is damaged and made anew: %s", path, error)
            return None

    def put(self, key: str, features: PatchFeatures) -> PatchFeatures:
        """Store descriptors and give them as :meth:`get` would.

        Scoring what this returns makes first and later runs equal to the bit: matrix products
        round differently for another memory layout.

        Raises:
            OutputError: The file cannot be written.
        """
        shape = {
            "grid": features.grid,
            "stride": features.stride,
            "image_size": features.image_size,
        }
        notes = {"format": _FORMAT, "made_by": self.fingerprint, "shape": json.dumps(shape)}
        tokens = features.tokens.detach().cpu().contiguous()
        write_bytes(self._path(key), save({"tokens": tokens}, notes))
        return PatchFeatures(tokens, features.grid, features.stride, features.image_size)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
