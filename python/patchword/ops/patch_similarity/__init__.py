# SPDX-License-Identifier: Apache-2.0
"""Similarity of every patch to every query, and what is made of it in the same pass."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from patchword.errors import DTypeError, OptionError, ShapeError
from patchword.ops import _backends
from patchword.ops._backends import Backend
from patchword.ops.patch_similarity import native, triton_kernels
from patchword.ops.patch_similarity.packed import Metric, PackedQueries, check_eps, pack_queries
from patchword.ops.patch_similarity.reference import patch_similarity_reference

__all__ = [
    "ArgMax",
    "MinMax",
    "PackedQueries",
    "TopK",
    "pack_queries",
    "patch_similarity",
    "refusals",
]

Output = Literal["logits", "softmax", "sigmoid", "topk", "argmax", "logsumexp", "minmax"]

_MAPS = ("logits", "softmax", "sigmoid")


class TopK(NamedTuple):
    """The best classes of each patch, best first."""

    values: Tensor
    """``[B, N, k]`` logits, float32 (float64 for float64); -inf where no class is left."""
    indices: Tensor
    """``[B, N, k]`` int64; -1 where no class is left."""


class ArgMax(NamedTuple):
    """The best class of each patch."""

    indices: Tensor
    """``[B, N]`` int64; -1 where no class takes part or the background wins."""
    confidence: Tensor
    """``[B, N]`` softmax probability of the winner, float32 (float64 for float64)."""


class MinMax(NamedTuple):
    """Extremes of each class over the patches."""

    minimum: Tensor
    """``[B, C]`` float32 (float64 for float64); inf without patches."""
    maximum: Tensor
    """``[B, C]``; -inf without patches."""


_BUNDLES: dict[str, type[TopK] | type[ArgMax] | type[MinMax]] = {
    "topk": TopK,
    "argmax": ArgMax,
    "minmax": MinMax,
}

Value = Tensor | TopK | ArgMax | MinMax


def _always(patches: Tensor, queries: Tensor, **options: Any) -> str | None:
    return None


refusals: dict[Backend, _backends.Refusal] = {
    "native": native.refuse,
    "triton": triton_kernels.refuse,
    "reference": _always,
}


def _check_tensors(patches: Tensor, queries: Tensor) -> None:
    shape, wanted = patches.shape, queries.shape
    if len(shape) != 3:
        remedy = " Add a batch dimension with patches[None]." if len(shape) == 2 else ""
        raise ShapeError(
            f"patch_similarity: patches must have shape [B, N, D], got {list(shape)}.{remedy}",
            "[B, N, D]",
            tuple(shape),
        )
    if len(wanted) not in (2, 3):
        raise ShapeError(
            f"patch_similarity: queries must have shape [C, D] or [B, C, D], got {list(wanted)}.",
            "[C, D] or [B, C, D]",
            tuple(wanted),
        )
    if wanted[-1] != shape[2]:
        raise ShapeError(
            f"patch_similarity: patches and queries must share D, got {shape[2]} and {wanted[-1]}.",
            shape[2],
            wanted[-1],
        )
    if len(wanted) == 3 and wanted[0] != shape[0]:
        raise ShapeError(
            f"patch_similarity: patches and queries must share B, got {shape[0]} and {wanted[0]}.",
            shape[0],
            wanted[0],
        )
    for name, tensor in (("patches", patches), ("queries", queries)):
        if not tensor.dtype.is_floating_point:
            raise DTypeError(
                f"patch_similarity: {name} must be floating point, got {tensor.dtype}."
            )
    _check_device("queries", queries, patches)


def _check_device(name: str, tensor: Tensor, patches: Tensor) -> None:
    if tensor.device != patches.device:
        raise DTypeError(
            f"patch_similarity: {name} must be on {patches.device} like patches, "
            f"got {tensor.device}."
        )


def _check_mask(class_mask: Tensor, patches: Tensor, count: int) -> None:
    if class_mask.dtype != torch.bool:
        raise DTypeError(
            f"patch_similarity: class_mask must be bool, got {class_mask.dtype}. "
            "True means that a class takes part."
        )
    if tuple(class_mask.shape) not in ((count,), (patches.shape[0], count)):
        raise ShapeError(
            f"patch_similarity: class_mask must have shape [{count}] or "
            f"[{patches.shape[0]}, {count}], got {list(class_mask.shape)}.",
            (count,),
            tuple(class_mask.shape),
        )
    _check_device("class_mask", class_mask, patches)


def _tensor_or_number(value: float | Tensor | None, neutral: float) -> tuple[Tensor | None, float]:
    """A scale or bias as the tensor it is, or None, and as a number."""
    if value is None:
        return None, neutral
    return (value, neutral) if isinstance(value, Tensor) else (None, float(value))


def _check_numbers(scale: Tensor | None, bias: Tensor | None, patches: Tensor, count: int) -> None:
    if scale is not None:
        if scale.ndim != 0:
            raise ShapeError(
                f"patch_similarity: scale must be a number or a 0-d tensor, "
                f"got shape {list(scale.shape)}.",
                (),
                tuple(scale.shape),
            )
        _check_device("scale", scale, patches)
    if bias is not None:
        if tuple(bias.shape) != (count,):
            raise ShapeError(
                f"patch_similarity: bias must be a number or have shape [{count}], "
                f"got {list(bias.shape)}.",
                (count,),
                tuple(bias.shape),
            )
        _check_device("bias", bias, patches)


def _check_groups(groups: Tensor, patches: Tensor, count: int, num_groups: int | None) -> int:
    if groups.dtype != torch.int64:
        raise DTypeError(f"patch_similarity: groups must be int64, got {groups.dtype}.")
    if tuple(groups.shape) != (count,):
        raise ShapeError(
            f"patch_similarity: groups must have shape [{count}], got {list(groups.shape)}.",
            (count,),
            tuple(groups.shape),
        )
    _check_device("groups", groups, patches)
    if num_groups is None:
        return int(groups.max()) + 1 if count else 0
    if num_groups < 0:
        raise OptionError(f"patch_similarity: num_groups must not be negative, got {num_groups}.")
    return num_groups


def _bits_of(output: Any) -> int:
    """The wanted outputs as bits."""
    bits = 0
    for name in (output,) if isinstance(output, str) else output:
        if name not in native.OUTPUT_BITS:
            raise OptionError(
                f"patch_similarity: output must be one of {', '.join(native.OUTPUT_BITS)}, "
                f"got {name!r}."
            )
        bits |= native.OUTPUT_BITS[name]
    if bits == 0:
        raise OptionError("patch_similarity: output must name at least one output, got none.")
    return bits


def _shaped(name: str, tensors: Any, grid: tuple[int, int] | None, channels_last: bool) -> Value:
    if name in _BUNDLES:
        return _BUNDLES[name](*tensors)
    value: Tensor = tensors[0]
    if grid is not None and name in _MAPS:
        if channels_last:
            return value.view(value.shape[0], *grid, value.shape[2])
        return value.view(value.shape[0], value.shape[1], *grid)
    return value


def patch_similarity(
    patches: Tensor,
    queries: Tensor | PackedQueries,
    *,
    metric: Metric = "cosine",
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    class_mask: Tensor | None = None,
    groups: Tensor | None = None,
    group_reduce: Literal["max", "mean"] = "max",
    num_groups: int | None = None,
    output: Output | tuple[Output, ...] = "logits",
    top_k: int = 5,
    background: float | None = None,
    grid: tuple[int, int] | None = None,
    channels_last: bool = False,
    eps: float = 1e-12,
    backend: Backend | None = None,
) -> Any:
    """Similarity of every patch to every query.

    ``z[b, c, n] = scale * <patches[b, n], queries[c]> / (|patches[b, n]| |queries[c]|) + bias[c]``
    for ``metric="cosine"``, with norms of at least ``eps``; without the norms for ``"dot"``.

    Args:
        patches: ``[B, N, D]``, any strides; float16/bfloat16/float32/float64.
        queries: ``[C, D]`` shared by the batch, ``[B, C, D]``, or a handle of
            :func:`pack_queries`. May have another floating point type than ``patches``.
        metric: ``"cosine"`` normalises both sides; a zero vector has similarity 0.
        scale: Multiplies the similarity, e.g. CLIP's logit scale; a number or a 0-d tensor.
        bias: Added to the similarity: a number or ``[C]``.
        class_mask: ``[C]`` or ``[B, C]`` bool, True = take part. An excluded class has probability
            0 and is never chosen; ``"logits"`` and ``"minmax"`` hold its similarity all the same.
        groups: ``[C]`` int64, the class in ``[0, G)`` of each prompt. Prompts are reduced to
            classes before anything else, and every output has G classes. Prompts that
            ``class_mask`` excludes or whose class is out of range do not count; a class without
            prompts is excluded and has the logit -inf.
        group_reduce: ``"max"`` or ``"mean"`` of the logits of a class.
        num_groups: G. By default the largest class plus one, which reads ``groups`` (on a GPU
            that waits for it).
        output: One name, or a tuple of names to get several from one pass: ``"logits"``,
            ``"softmax"`` over the classes, ``"sigmoid"``, ``"topk"``, ``"argmax"`` with
            confidence, ``"logsumexp"`` over the classes, ``"minmax"`` over the patches.
        top_k: How many classes ``"topk"`` returns.
        background: Logit of one more class that competes in softmax, argmax and log-sum-exp and is
            not returned. Where it is above all others the argmax is -1.
        grid: ``(h, w)`` with ``h * w == N``: maps become ``[B, C, h, w]``.
        channels_last: Maps are ``[B, N, C]`` (``[B, h, w, C]`` with ``grid``).
        eps: Lower bound of the norms.

    Other Parameters:
        backend: See :func:`patchword.ops.use_backend`. Never changes the result beyond rounding.

    Returns:
        For one name its value, for a tuple a dict from name to value. Maps (``"logits"``,
        ``"softmax"``, ``"sigmoid"``) are ``[B, C, N]`` in the dtype of ``patches``;
        ``"logsumexp"`` is ``[B, N]`` float32 (float64 for float64); the others are :class:`TopK`,
        :class:`ArgMax` and :class:`MinMax`. Among equal logits the lowest class wins, a class wins
        over an equal background, NaN never wins.

    Raises:
        ShapeError: Shapes do not fit together, or ``grid`` does not cover ``N``.
        DTypeError: Wrong dtype, or tensors on different devices.
        OptionError: An option has none of its documented values.
        BackendError: A forced backend cannot run these inputs.

    Note:
        Differentiable in ``patches``, ``queries``, ``scale`` and ``bias`` through ``"logits"``,
        ``"softmax"``, ``"sigmoid"`` and ``"logsumexp"``. Deterministic on every backend.

    Source:
        CLIP, arXiv:2103.00020, section 3.1.2, per patch.

    Example:
        >>> import torch
        >>> out = patch_similarity(torch.eye(4)[None], torch.eye(4)[:2], grid=(2, 2))
        >>> out.shape
        torch.Size([1, 2, 2, 2])
        >>> patch_similarity(torch.eye(3)[None], torch.eye(3), output="argmax").indices
        tensor([[0, 1, 2]])
    """
    packed: tuple[Tensor | None, str, int] = (None, "", -1)
    if isinstance(queries, PackedQueries):
        if queries.metric != metric or queries.eps != eps:
            raise OptionError(
                f"patch_similarity: metric and eps must be those of the packed queries, "
                f"{queries.metric!r} and {queries.eps}, got {metric!r} and {eps}."
            )
        packed = (queries.packed, queries.level, queries.version)
        queries = queries.queries
    _check_tensors(patches, queries)
    count = queries.shape[-2]
    if metric not in ("cosine", "dot"):
        raise OptionError(f'patch_similarity: metric must be "cosine" or "dot", got {metric!r}.')
    if group_reduce not in ("max", "mean"):
        raise OptionError(
            f'patch_similarity: group_reduce must be "max" or "mean", got {group_reduce!r}.'
        )
    check_eps("patch_similarity", eps)
    scale_tensor, scale_value = _tensor_or_number(scale, 1.0)
    bias_tensor, bias_value = _tensor_or_number(bias, 0.0)
    _check_numbers(scale_tensor, bias_tensor, patches, count)
    if class_mask is not None:
        _check_mask(class_mask, patches, count)
    if grid is not None and grid[0] * grid[1] != patches.shape[1]:
        raise ShapeError(
            f"patch_similarity: grid must cover the {patches.shape[1]} patches, got {grid}.",
            patches.shape[1],
            grid,
        )
    if top_k < 1:
        raise OptionError(f"patch_similarity: top_k must be at least 1, got {top_k}.")
    if background is not None and not abs(background) < float("inf"):
        raise OptionError(f"patch_similarity: background must be finite, got {background}.")
    num_classes = count if groups is None else _check_groups(groups, patches, count, num_groups)
    bits = _bits_of(output)
    names: tuple[str, ...] = (output,) if isinstance(output, str) else tuple(output)
    chosen = _backends.choose(
        "patch_similarity",
        refusals,
        backend,
        patches,
        queries,
        outputs=bits,
        top_k=top_k,
        grouped=groups is not None,
    )
    found: dict[str, Any]
    if chosen == "native":
        order, offsets = (None, None) if groups is None else _sorted_groups(groups, num_classes)
        results = native.patch_similarity_native(
            patches, queries, packed, scale_tensor, scale_value, bias_tensor, bias_value,
            class_mask, order, offsets, num_classes, group_reduce == "mean", bits, top_k,
            background, channels_last, metric == "cosine", eps,
        )  # fmt: skip
        found = {name: [results[i] for i in native.OUTPUT_SLOTS[name]] for name in names}
    elif chosen == "triton":
        value = triton_kernels.patch_similarity_triton(
            patches,
            queries,
            softmax=bits == native.OUTPUT_BITS["softmax"],
            cosine=metric == "cosine",
            scale=scale,
            bias=0.0 if bias is None else bias,
            class_mask=class_mask,
            background=background,
            channels_last=channels_last,
            eps=eps,
        )
        found = {names[0]: (value,)}
    else:
        found = dict(
            patch_similarity_reference(
                patches,
                queries,
                outputs=names,
                cosine=metric == "cosine",
                scale=scale,
                bias=0.0 if bias is None else bias,
                class_mask=class_mask,
                groups=groups,
                num_classes=num_classes,
                group_mean=group_reduce == "mean",
                top_k=top_k,
                background=background,
                channels_last=channels_last,
                eps=eps,
            )
        )
    if isinstance(output, str):
        return _shaped(output, found[output], grid, channels_last)
    return {name: _shaped(name, found[name], grid, channels_last) for name in names}


def _sorted_groups(groups: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Prompts in the order of their classes, and where each class begins."""
    ranked, order = groups.sort(stable=True)
    edges = torch.arange(num_classes + 1, device=groups.device, dtype=torch.int64)
    return order, torch.searchsorted(ranked, edges)
