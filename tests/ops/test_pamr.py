# SPDX-License-Identifier: Apache-2.0
"""pamr: the standard tests against the reference in float64 and the published code's output."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from golden_inputs import golden, seeded
from op_checks import BACKENDS, FAR, assert_graph_replays, assert_repeats, far_apart, native
from torch import Tensor

from patchword import _library
from patchword.errors import BackendError, DTypeError, OptionError, ShapeError
from patchword.ops import explain, pamr
from patchword.ops.pamr.reference import weights
from patchword.testing import assert_within, expanded, layouts, rounding
from patchword.testing import strategies as s

PUBLISHED = (1, 2, 4, 8, 12, 24)
# B, K, C, h, w: empty, one, primes, vector widths and channel blocks +- 1.
SHAPES = [
    (0, 3, 2, 4, 4),
    (1, 3, 0, 4, 4),
    (1, 1, 1, 1, 1),
    (1, 3, 1, 1, 7),
    (2, 3, 2, 7, 1),
    (2, 2, 3, 5, 15),
    (1, 3, 4, 9, 16),
    (1, 4, 5, 3, 17),
    (3, 3, 6, 6, 31),
    (1, 3, 7, 4, 33),
    (1, 3, 8, 13, 40),
    (2, 3, 9, 8, 65),
    (1, 3, 21, 5, 8),
]


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    batch, colours, channels, height, width = shape
    image = torch.rand(batch, colours, height, width)
    return image, torch.randn(batch, channels, height, width).to(dtype)


def check(image: Tensor, masks: Tensor, what: str, **options) -> Tensor:
    got = pamr(image, masks, backend="native", **options)
    want = pamr(image.double(), masks.double(), backend="reference", **options)
    assert got.dtype == masks.dtype
    if want.numel():
        # Errors of the exponents, up to 2e-6 relative a step, and of the sums.
        steps = max(options.get("iterations", 10), 1)
        bound = 2e-6 * steps * masks.double().abs().max() + rounding(masks.dtype, want)
        assert_within(got, want, bound, what)
    else:
        assert got.shape == want.shape
    return got


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_published_code(backend):
    image = seeded("pamr.image", (2, 3, 56, 48)).sigmoid()
    masks = torch.softmax(3 * seeded("pamr.mask", (2, 11, 28, 24)), 1)
    refined = pamr(image, masks, PUBLISHED, 10, backend=backend)
    assert refined.shape == (2, 11, 56, 48)
    assert_within(refined[:, [0, 3, 10]], golden("pamr", "pamr"), 5e-6, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    image, masks = torch.zeros(1, 3, 3, 3), torch.zeros(1, 2, 3, 3)
    masks[0, 0, 1, 1], masks[0, 1, 0, 0] = 1, 1
    refined = pamr(image, masks, [1], 1, backend=backend)
    assert torch.equal(
        refined[0, 0],
        torch.full((3, 3), 0.125).index_put_(
            (torch.tensor([1]), torch.tensor([1])), torch.zeros(1)
        ),
    )
    corner = torch.tensor([[0.375, 0.25, 0.0], [0.25, 0.125, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(refined[0, 1], corner)
    columns = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 3, 4, 4)
    start = torch.tensor([1.0, 0.4, 0.2, 0.0]).expand(1, 1, 4, 4)
    for iterations, row in (
        (1, [0.775, 0.76, 0.08, 0.075]),
        (10, [10 / 13, 10 / 13, 1 / 13, 1 / 13]),
    ):
        got = pamr(columns, start, [1], iterations, backend=backend)
        assert_within(got[0, 0], torch.tensor(row).expand(4, 4), 1e-6, f"{iterations} steps")
    ramp = torch.arange(8.0) / 7
    x, y = ramp.expand(8, 8), ramp[:, None].expand(8, 8)
    image = torch.stack((x, y, (x + y) / 2))[None]
    left = (torch.arange(8) < 4).float().expand(1, 1, 8, 8)
    got = pamr(image, left, backend=backend)[0, 0]
    first = [0.998897, 0.991349, 0.939807, 0.762850, 0.289809, 0.083432, 0.014851, 0.002158]
    assert_within(got[0], torch.tensor(first), 2e-6, "row 0")
    assert abs(float(got.sum()) - 32) < 1e-4


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(cpu_level, shape):
    image, masks = make(shape)
    check(image, masks, f"{cpu_level} published", iterations=3)
    check(image, masks, f"{cpu_level} one ring", dilations=[3], iterations=2)
    check(image, masks, f"{cpu_level} no step", dilations=[1], iterations=0)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    image, masks = make((2, 3, 5, 12, 20), dtype)
    check(image, masks, f"{dtype}")
    check(image.to(dtype), masks, f"{dtype} image")


@native
@pytest.mark.parametrize("threads", [1, 2])
def test_matches_reference_large(threads):
    torch.set_num_threads(threads)
    check(*make((1, 3, 21, 48, 72)), f"one image, {threads} threads", iterations=2)
    check(*make((5, 3, 4, 40, 56)), f"images side by side, {threads} threads", iterations=2)


@native
def test_live_channels(cpu_level):
    image, masks = make((3, 3, 11, 9, 20))
    live = torch.rand(3, 11) < 0.4
    live[1] = False
    got = check(image, masks, "live", live=live)
    assert bool((got[~live] == 0).all())
    everything = pamr(image, masks)
    assert torch.equal(got[live], everything[live]), "a channel does not depend on the others"
    assert torch.equal(
        pamr(image, masks, live=live[0]), pamr(image, masks, live=live[:1].expand(3, -1))
    )
    check(image, masks, "live, no step", live=live, iterations=0)
    check(image, masks, "live with a stride", live=live.T.contiguous().T)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_of_another_size_are_resized(backend):
    image = torch.rand(1, 3, 12, 10)
    masks = torch.rand(1, 2, 5, 7)
    wide = F.interpolate(masks, size=(12, 10), mode="bilinear", align_corners=True)
    assert torch.equal(pamr(image, masks, backend=backend), pamr(image, wide, backend=backend))
    half = pamr(image, masks.half(), backend=backend)
    assert half.dtype == torch.float16
    assert pamr(image, masks[:, :0], backend=backend).shape == (1, 0, 12, 10)


@native
def test_layouts():
    image, masks = make((2, 3, 5, 6, 17))
    for (name, view), (other, planes) in itertools.product(layouts(image), layouts(masks)):
        check(view, planes, f"image {name}, masks {other}", dilations=[1, 3], iterations=2)
    for dim in range(4):
        check(expanded(image, dim), masks, f"image expanded along {dim}", iterations=2)
        check(image, expanded(masks, dim), f"masks expanded along {dim}", iterations=2)


@native
def test_properties():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.given(s.sizes(1, 20), s.sizes(1, 20), s.sizes(1, 9), s.seeds())
    def run(height: int, width: int, channels: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(1, 3, height, width, generator=generator)
        masks = torch.randn(1, channels, height, width, generator=generator)
        refined = pamr(image, masks, [1, 2, 30], 3)
        # Means of means stay between the extremes; constants stay.
        low, high = masks.amin((2, 3), True) - 1e-5, masks.amax((2, 3), True) + 1e-5
        assert bool(((refined >= low) & (refined <= high)).all())
        ones = pamr(image, torch.ones_like(masks), [1, 2, 30], 3)
        assert_within(ones, torch.ones_like(ones), 3e-6, "constant masks")
        # Steps compose, and flipping picture and masks flips the result up to the order of sums.
        assert torch.equal(
            pamr(image, pamr(image, masks, [1], 2), [1], 1), pamr(image, masks, [1], 3)
        )
        flipped = pamr(image.flip(3), masks.flip(3), [1, 2, 30], 3).flip(3)
        assert_within(flipped, refined.double(), 1e-5 * (1 + float(masks.abs().max())), "flipped")
        assert_within(
            weights(image.double(), [1, 5]).sum(1), torch.ones(1, height, width), 1e-12, "weights"
        )

    run()


def test_errors():
    image, masks = torch.rand(2, 3, 4, 5), torch.rand(2, 6, 4, 5)
    with pytest.raises(
        ShapeError, match=r"image must have shape \[B, channels, h, w\], got \[3, 4"
    ):
        pamr(image[0], masks)
    with pytest.raises(ShapeError, match=r"masks must have shape .* got \[6, 4, 5\]"):
        pamr(image, masks[0])
    with pytest.raises(ShapeError, match="batch size 2 of masks, got 1"):
        pamr(image[:1], masks)
    with pytest.raises(ShapeError, match="image must have at least one channel and pixel"):
        pamr(image[:, :0], masks)
    with pytest.raises(ShapeError, match="masks must have at least one cell"):
        pamr(image, masks[:, :, :0])
    with pytest.raises(DTypeError, match="masks must be floating point"):
        pamr(image, masks.long())
    with pytest.raises(DTypeError, match="masks must be on cpu like image, got meta"):
        pamr(image, masks.to("meta"))
    with pytest.raises(ShapeError, match=r"live must have shape \[6\] or \[2, 6\], got \[5\]"):
        pamr(image, masks, live=torch.ones(5, dtype=torch.bool))
    with pytest.raises(DTypeError, match=r"live must be bool, True = refine, got torch\.int64"):
        pamr(image, masks, live=torch.ones(6, dtype=torch.int64))
    for dilations in ([], [1, 0], [-2]):
        with pytest.raises(OptionError, match="dilations must be at least one number from 1 up"):
            pamr(image, masks, dilations)
    with pytest.raises(OptionError, match="iterations must be at least 0, got -1"):
        pamr(image, masks, iterations=-1)
    with pytest.raises(BackendError, match="pamr has no triton version"):
        pamr(image, masks, backend="triton")
    if _library.C is not None:
        with pytest.raises(BackendError, match="float64 is not float32/float16/bfloat16"):
            pamr(image.double(), masks, backend="native")
        with pytest.raises(BackendError, match="more than 16 dilations"):
            pamr(image, masks, range(1, 18), backend="native")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient(backend):
    image, masks = make((1, 3, 2, 4, 5))
    leaf = masks.clone().requires_grad_()
    with pytest.raises(OptionError, match=r"masks must not require a gradient.*masks\.detach\(\)"):
        pamr(image, leaf, backend=backend)
    with pytest.raises(OptionError, match="image must not require a gradient"):
        pamr(image.clone().requires_grad_(), masks, backend=backend)
    with torch.no_grad():
        assert not pamr(image, leaf, backend=backend).requires_grad


@native
def test_registration():
    image, masks = make((1, 3, 2, 4, 5))
    op = torch.ops.patchword.pamr.default
    live = torch.tensor([[True, False]])
    torch.library.opcheck(op, (image, masks, live, [1, 2], 2))
    torch.library.opcheck(op, (image, masks, None, [1], 1))
    assert pamr(image.to("meta"), masks.to("meta")).is_meta
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pamr(image, masks).dtype == torch.float32
    assert explain("pamr", image, masks)["native"] is None


@native
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_into_one_graph():
    image, masks = make((1, 3, 2, 6, 5))
    run = torch.compile(lambda i, m: pamr(i, m, [1, 2], 3) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(image, masks), pamr(image, masks, [1, 2], 3) + 1)


@native
def test_edges(cpu_level):
    image, masks = make((1, 3, 3, 8, 19))
    flat = pamr(torch.full_like(image, 0.3), masks, [1], 1, backend="native")
    check(torch.full_like(image, 0.3), masks, "a picture without edges", iterations=1)
    assert bool(flat.isfinite().all())
    for magnitude in (1e-30, 1e-9, 1e3, 1e12):
        check(image * magnitude, masks, f"picture of magnitude {magnitude}", iterations=2)
    check(image, masks * 1e30, "large masks", iterations=2)
    check(image, masks, "a dilation beyond every border", dilations=[2**40], iterations=2)
    speck = torch.full_like(image, 0.5)
    speck[0, 0, 4, 9] += 1e-7
    check(speck, masks, "a difference of one unit in the last place", iterations=1)
    # NaN reaches the pixels that see it, and no other.
    hurt = image.clone()
    hurt[0, 1, 0, 0] = math.nan
    seen = pamr(hurt, masks, [1], 1, backend="native").isnan()
    want = torch.zeros(1, 3, 8, 19, dtype=torch.bool)
    want[..., :2, :2] = True
    assert torch.equal(seen, want)
    assert torch.equal(pamr(hurt, masks, [1], 1, backend="reference").isnan(), want)
    wrong = masks.clone()
    wrong[0, 0, 7, 18] = math.nan
    assert torch.equal(
        pamr(image, wrong, [1, 2], 2, backend="native").isnan(),
        pamr(image, wrong, [1, 2], 2, backend="reference").isnan(),
    )


@native
def test_repeats_bit_for_bit(cpu_level):
    for shape in ((1, 3, 5, 60, 70), (6, 3, 3, 30, 40)):
        image, masks = make(shape)
        assert_repeats(
            lambda image=image, masks=masks: pamr(image, masks, [1, 5], 4, backend="native")
        )


@native
def test_offsets_beyond_32_bits():
    view = far_apart((1, 2, 3, 4), (0, 0, FAR // 2 + 3, 1), torch.float32)
    values = torch.rand(3, 4)
    view[0, 0] = values
    plain = values.expand(1, 2, 3, 4)
    want = pamr(plain.double(), plain.double(), [1], 2)
    assert_within(pamr(view, view, [1], 2, backend="native"), want, 4e-6, "rows far apart")


def run_on_cuda_kernels(device: str, shapes: list[tuple[int, ...]]) -> None:
    for shape in shapes:
        image, masks = (t.to(device) for t in make(shape))
        check(image, masks, f"{shape}", dilations=[1, 2, 6], iterations=3)
        check(image, masks, f"{shape} no step", iterations=0)
        live = torch.rand(shape[0], shape[2], device=device) < 0.5
        check(image, masks, f"{shape} live", dilations=[1], iterations=2, live=live)
        check(image, masks, f"{shape} live, no step", dilations=[1], iterations=0, live=live)


CUDA_SHAPES = [
    (0, 3, 2, 4, 4),
    (1, 1, 1, 1, 1),
    (2, 3, 5, 5, 7),
    (1, 3, 9, 6, 40),
    (1, 2, 35, 3, 3),
]
LARGE_CUDA_SHAPES = [(1, 2, 9, 2, 2100), (2, 1, 3, 65, 64)]  # one launch per step


@pytest.mark.parametrize("shape", CUDA_SHAPES, ids=str)
def test_cuda_kernels_on_the_cpu(simt, shape):
    run_on_cuda_kernels("cpu", [shape])


@pytest.mark.parametrize("shape", LARGE_CUDA_SHAPES, ids=str)
def test_cuda_kernels_on_the_cpu_step_by_step(simt, shape):
    image, masks = make(shape)
    live = torch.rand(shape[0], shape[2]) < 0.6
    for view in (masks, masks.transpose(2, 3).contiguous().transpose(2, 3)):
        check(image, view, f"{shape}", dilations=[2], iterations=2, live=live)
    check(image, masks, f"{shape} odd", dilations=[1], iterations=3)


def test_cuda_kernels_on_the_cpu_any_layout(simt):
    image, masks = make((2, 3, 2, 3, 4))
    for name, view in layouts(image):
        check(view, masks, f"image {name}", dilations=[1], iterations=2)
    for name, view in layouts(masks):
        check(image, view, f"masks {name}", dilations=[1], iterations=2)


@pytest.mark.cuda
@pytest.mark.sanitizer
def test_cuda():
    run_on_cuda_kernels("cuda", [*CUDA_SHAPES, *LARGE_CUDA_SHAPES, (4, 3, 11, 56, 56)])


@pytest.mark.cuda
def test_cuda_graph():
    image, masks = (t.cuda() for t in make((2, 3, 4, 20, 30)))
    assert_graph_replays(lambda: pamr(image, masks))
