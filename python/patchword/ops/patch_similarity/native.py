# SPDX-License-Identifier: Apache-2.0
"""The compiled form: schemas, allocation, registration, gradients, and when it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patchword import _library
from patchword._library import DTYPE_TAGS, C
from patchword.ops.patch_similarity.backward import similarity_backward

# Bits of the `outputs` argument of the registered op.
OUTPUT_BITS = {
    "logits": 1,
    "softmax": 2,
    "sigmoid": 4,
    "topk": 8,
    "argmax": 16,
    "logsumexp": 32,
    "minmax": 64,
}
# Where each output's tensors stand among the results of the registered op.
OUTPUT_SLOTS: dict[str, tuple[int, ...]] = {
    "logits": (0,),
    "softmax": (1,),
    "sigmoid": (2,),
    "topk": (3, 4),
    "argmax": (5, 6),
    "logsumexp": (7,),
    "minmax": (8, 9),
}
NUM_RESULTS = 10
DIFFERENTIABLE = (0, 1, 2, 7)  # logits, softmax, sigmoid, logsumexp
MAX_TOP_K = 32


def refuse(
    patches: Tensor, queries: Tensor, *, outputs: int = 1, top_k: int = 5, grouped: bool = False
) -> str | None:
    """Why the compiled kernel cannot run these inputs, or None when it can."""
    reason = _library.refuse_device(patches) or _library.refuse_dtype(patches, queries)
    if reason is None and outputs & 8 and top_k > MAX_TOP_K:
        return f"top_k {top_k} exceeds {MAX_TOP_K}"
    return reason


def _allocate(
    patches: Tensor, classes: int, outputs: int, top_k: int, channels_last: bool
) -> list[Tensor | None]:
    batch, count, _ = patches.shape
    shape = (batch, count, classes) if channels_last else (batch, classes, count)
    results: list[Tensor | None] = [None] * NUM_RESULTS
    for slot in range(3):
        if outputs >> slot & 1:
            results[slot] = patches.new_empty(*shape)
    if outputs & 8:
        results[3] = patches.new_empty(batch, count, top_k, dtype=torch.float32)
        results[4] = patches.new_empty(batch, count, top_k, dtype=torch.int64)
    if outputs & 16:
        results[5] = patches.new_empty(batch, count, dtype=torch.int64)
        results[6] = patches.new_empty(batch, count, dtype=torch.float32)
    if outputs & 32:
        results[7] = patches.new_empty(batch, count, dtype=torch.float32)
    if outputs & 64:
        results[8] = patches.new_empty(batch, classes, dtype=torch.float32)
        results[9] = patches.new_empty(batch, classes, dtype=torch.float32)
    return results


def version_of(tensor: Tensor) -> int:
    """In-place version of a tensor; -1 where torch keeps none."""
    return -1 if tensor.is_inference() else tensor._version


def pack(queries: Tensor, cosine: bool, eps: float) -> Tensor:
    """The queries as the CPU level in force wants them: a flat float32 buffer."""
    shared = queries.ndim == 2
    sizes = (1 if shared else queries.shape[0], 0, *_depth_and_rows(queries))
    strides = (0, 0, 1, 0 if shared else queries.stride(0), *queries.stride()[-2:], 0)
    tag = DTYPE_TAGS[queries.dtype]
    options = (tag, tag, cosine, shared, 0, 0, 0, 0)
    packed = torch.empty(C.patch_similarity_packed_size(options, sizes, strides))
    C.patch_similarity_pack(
        torch.get_num_threads(),
        (0, queries.data_ptr(), 0, 0, 0, 0, 0, 0),
        _library.written(packed),
        options,
        (0.0, 0.0, 0.0, eps),
        sizes,
        strides,
    )
    return packed


def _depth_and_rows(queries: Tensor) -> tuple[int, int, int]:
    rows, depth = queries.shape[-2:]
    return depth, rows, rows


def _usable(
    packed: Tensor | None, level: str, version: int, patches: Tensor, queries: Tensor
) -> bool:
    """Whether a packed form still stands for these queries and fits how patches will be read."""
    if packed is None or not _library.on_cpu(patches):
        return False
    if C.cpu_level() != level or version_of(queries) != version:
        return False
    # bfloat16 queries may be packed in pairs, which only contiguous bfloat16 patches can meet.
    return queries.dtype != torch.bfloat16 or (
        patches.dtype == torch.bfloat16 and patches.stride(2) == 1
    )


def _run(
    patches: Tensor,
    queries: Tensor,
    packed: Tensor | None,
    packed_level: str,
    packed_version: int,
    scale: Tensor | None,
    scale_value: float,
    bias: Tensor | None,
    bias_value: float,
    class_mask: Tensor | None,
    group_order: Tensor | None,
    group_offsets: Tensor | None,
    num_classes: int,
    group_mean: bool,
    outputs: int,
    top_k: int,
    background: float | None,
    channels_last: bool,
    cosine: bool,
    eps: float,
) -> list[Tensor | None]:
    """Allocate the wanted results and fill them; the others are None."""
    dtype = patches.dtype
    mixed = queries.dtype is not dtype and not _library.on_cpu(patches)
    if mixed:
        # The CUDA kernels read one element type; float32 holds both exactly.
        patches, queries = patches.float(), queries.float()
    if not _usable(packed, packed_level, packed_version, patches, queries):
        packed = None
    results = _allocate(patches, num_classes, outputs, top_k, channels_last)
    shape, query_strides = patches.shape, queries.stride()
    shared = len(query_strides) == 2
    if scale is not None:
        scale = scale.float()
    if bias is not None:
        bias = bias.float().contiguous()
    mask_stride = 0
    if class_mask is not None:
        class_mask = class_mask.contiguous()
        mask_stride = class_mask.shape[-1] if class_mask.ndim == 2 else 0
    _library.launch(
        C.patch_similarity_forward,
        patches,
        (
            patches.data_ptr(),
            queries.data_ptr(),
            _library.address(packed),
            _library.address(scale),
            _library.address(bias),
            _library.address(class_mask),
            _library.address(group_order),
            _library.address(group_offsets),
        ),
        tuple([_library.written(result) for result in results]),
        (
            DTYPE_TAGS[patches.dtype],
            DTYPE_TAGS[queries.dtype],
            cosine,
            shared,
            group_mean,
            channels_last,
            top_k if outputs & 8 else 0,
            background is not None,
        ),
        (scale_value, bias_value, 0.0 if background is None else background, eps),
        (*shape, queries.shape[-2], num_classes),
        (*patches.stride(), *((0,) if shared else ()), *query_strides, mask_stride),
    )
    if mixed:
        results[:3] = [None if result is None else result.to(dtype) for result in results[:3]]
    return results


def _filled(patches: Tensor, results: list[Tensor | None]) -> tuple[Tensor, ...]:
    """A fixed number of tensors: an empty one for each output that is not wanted."""
    return tuple(patches.new_empty(0) if result is None else result for result in results)


def _forward(patches: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _filled(patches, _run(patches, *arguments))


def _fake(patches: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    num_classes, _, outputs, top_k, _, channels_last, _, _ = arguments[-8:]
    return _filled(patches, _allocate(patches, num_classes, outputs, top_k, channels_last))


_forward_op = _library.register(
    "patch_similarity_forward(Tensor patches, Tensor queries, Tensor? packed, str packed_level, "
    "int packed_version, Tensor? scale, float scale_value, Tensor? bias, float bias_value, "
    "Tensor? class_mask, Tensor? group_order, Tensor? group_offsets, SymInt num_classes, "
    "bool group_mean, int outputs, int top_k, float? background, bool channels_last, bool cosine, "
    "float eps) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
)


def _backward(
    patches: Tensor,
    queries: Tensor,
    scale: Tensor | None,
    scale_value: float,
    bias: Tensor | None,
    bias_value: float,
    class_mask: Tensor | None,
    group_order: Tensor | None,
    group_offsets: Tensor | None,
    num_classes: int,
    group_mean: bool,
    background: float | None,
    channels_last: bool,
    cosine: bool,
    eps: float,
    gradients: list[Tensor | None],
    softmax: Tensor | None,
    sigmoid: Tensor | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    names = ("logits", "softmax", "sigmoid", "logsumexp")
    maps = {"softmax": softmax, "sigmoid": sigmoid}
    results = similarity_backward(
        patches,
        queries,
        scale_value if scale is None else scale.float(),
        bias_value if bias is None else bias.float(),
        {name: g for name, g in zip(names, gradients, strict=True) if g is not None},
        {name: value for name, value in maps.items() if value is not None},
        class_mask=class_mask,
        group_order=group_order,
        group_offsets=group_offsets,
        num_classes=num_classes,
        group_mean=group_mean,
        background=background,
        channels_last=channels_last,
        cosine=cosine,
        eps=eps,
        wanted=(wanted[0], wanted[1], wanted[2], wanted[3]),
    )
    empty = [patches.new_empty(0) if r is None else r.contiguous() for r in results]
    return empty[0], empty[1], empty[2], empty[3]


def _fake_backward(
    patches: Tensor,
    queries: Tensor,
    scale: Tensor | None,
    scale_value: float,
    bias: Tensor | None,
    bias_value: float,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wanted = arguments[-1]
    return (
        torch.empty_like(patches, memory_format=torch.contiguous_format)
        if wanted[0]
        else patches.new_empty(0),
        torch.empty_like(queries, memory_format=torch.contiguous_format)
        if wanted[1]
        else patches.new_empty(0),
        patches.new_empty((), dtype=torch.float32) if wanted[2] else patches.new_empty(0),
        patches.new_empty((queries.shape[-2],), dtype=torch.float32)
        if wanted[3]
        else patches.new_empty(0),
    )


_backward_op = _library.register(
    "patch_similarity_backward(Tensor patches, Tensor queries, Tensor? scale, float scale_value, "
    "Tensor? bias, float bias_value, Tensor? class_mask, Tensor? group_order, "
    "Tensor? group_offsets, SymInt num_classes, bool group_mean, float? background, "
    "bool channels_last, bool cosine, float eps, Tensor?[] gradients, Tensor? softmax, "
    "Tensor? sigmoid, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


class _Similarity(torch.autograd.Function):
    """Gradients of logits, softmax, sigmoid and log-sum-exp; the other outputs have none."""

    @staticmethod
    def forward(
        ctx: Any,
        patches: Tensor,
        queries: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        rest: Any,
    ) -> tuple[Tensor, ...]:
        packed, level, version, scale_value, bias_value, *options = rest
        results: tuple[Tensor, ...] = _forward_op(
            patches, queries, packed, level, version, scale, scale_value, bias, bias_value, *options
        )
        mask, order, offsets, classes, mean, outputs, _, background, last, cosine, eps = options
        softmax = results[1] if outputs & 2 else None
        sigmoid = results[2] if outputs & 4 else None
        # Grouped prompts need their own logits again, and maps rounded to half precision are too
        # coarse for sums with cancellation: for those nothing is saved.
        keep = order is None and patches.dtype == torch.float32
        ctx.save_for_backward(
            patches, queries, scale, bias, mask, order, offsets,
            softmax if keep else None, sigmoid if keep else None,
        )  # fmt: skip
        ctx.numbers = (scale_value, bias_value)
        ctx.options = (classes, mean, background, last, cosine, eps)
        ctx.set_materialize_grads(False)
        differentiable = {slot for slot in DIFFERENTIABLE if results[slot].ndim > 1}
        ctx.differentiable = differentiable
        ctx.mark_non_differentiable(
            *[result for slot, result in enumerate(results) if slot not in differentiable]
        )
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        patches, queries, scale, bias, mask, order, offsets, softmax, sigmoid = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:4])
        # A compiled graph may hand in gradients of the empty placeholders too.
        flowing = [gradients[s] if s in ctx.differentiable else None for s in DIFFERENTIABLE]
        results = _backward_op(
            patches, queries, scale, ctx.numbers[0], bias, ctx.numbers[1], mask, order, offsets,
            *ctx.options, flowing, softmax, sigmoid, wanted,
        )  # fmt: skip
        found = [r if want else None for r, want in zip(results, wanted, strict=True)]
        if found[2] is not None:
            found[2] = found[2].to(scale.dtype)
        if found[3] is not None:
            found[3] = found[3].to(bias.dtype)
        return (*found, None)


def patch_similarity_native(
    patches: Tensor,
    queries: Tensor,
    packed: tuple[Tensor | None, str, int],
    scale: Tensor | None,
    scale_value: float,
    bias: Tensor | None,
    bias_value: float,
    *options: Any,
) -> list[Tensor | None] | tuple[Tensor, ...]:
    """The results of the registered op; in plain eager mode None instead of empty tensors."""
    if _library.plain_eager(patches, queries, scale, bias):
        return _run(patches, queries, *packed, scale, scale_value, bias, bias_value, *options)
    if _library.wants_gradient(patches, queries, scale, bias):
        rest = (*packed, scale_value, bias_value, *options)
        apply: Callable[..., tuple[Tensor, ...]] = _Similarity.apply
        return apply(patches, queries, scale, bias, rest)
    results: tuple[Tensor, ...] = _forward_op(
        patches, queries, *packed, scale, scale_value, bias, bias_value, *options
    )
    return results
