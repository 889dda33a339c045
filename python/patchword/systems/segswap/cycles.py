# SPDX-License-Identifier: Apache-2.0
"""Masks that two outputs agree on; the published code has several, each with its name here.

An output ``[B, 3, h, w]`` holds x, y in the other picture and a mask, see ``CrossTransformer``.
``carry(values, output)`` is the published ``S(values, f(output))``: what another picture's map
``values`` says at the places where ``output`` puts its own cells.
"""

from __future__ import annotations

from torch import Tensor

from patchword.ops import sample_features


def carry(values: Tensor, output: Tensor) -> Tensor:
    """Read ``[B, h1, w1]`` of picture 1 at the places of picture 0's cells, zeros outside.

    Args:
        values: ``[B, h1, w1]``.
        output: ``[B, 3, h0, w0]`` of picture 0 (or only its x and y).

    Returns:
        ``[B, h0, w0]``.
    """
    batch, _, height, width = output.shape
    points = output[:, :2].flatten(2).transpose(1, 2)
    read = sample_features(values[:, None], points, coordinates="unit")
    return read.reshape(batch, height, width)


def raw_masks(out0: Tensor, out1: Tensor) -> tuple[Tensor, Tensor]:
    """The masks as the network gives them, ``[B, h, w]`` each."""
    return out0[:, 2], out1[:, 2]


def pair_masks(out0: Tensor, out1: Tensor) -> tuple[Tensor, Tensor]:
    """Each mask times the other one seen from it, as in the discovery of objects."""
    mask0, mask1 = raw_masks(out0, out1)
    return mask0 * carry(mask1, out0), mask1 * carry(mask0, out1)


def demo_masks(out0: Tensor, out1: Tensor) -> tuple[Tensor, Tensor]:
    """There and back for picture 0, and its result seen from picture 1, as in the notebook."""
    mask0, mask1 = raw_masks(out0, out1)
    kept0 = mask0 * carry(carry(mask0, out1) * mask1, out0)
    return kept0, mask1 * carry(kept0, out1)


def self_mask(out0: Tensor, out1: Tensor, region: Tensor) -> Tensor:
    """Weights of a query's cells from relating it to itself, for retrieval.

    Args:
        out0: ``[1, 3, h, w]``, the query as picture 0.
        out1: The same as picture 1.
        region: ``[1, h, w]``, 1 where the query is asked about, else 0.

    Returns:
        ``[1, h, w]``.
    """
    inside = region * out0[:, 2]
    there = carry(inside, out1) * out1[:, 2]
    return inside * carry(there, out0)
