// SPDX-License-Identifier: Apache-2.0
// Toy kernels of wgmma.cuh: products through descriptors that the caller writes bit by bit, and
// broken ones that the host engine must report.

#include <cstddef>
#include <cstdint>

#include "kernels/common/async_copy.cuh"
#include "kernels/common/simt.cuh"
#include "kernels/common/wgmma.cuh"

namespace simt = patchword::simt;
using patchword::BFloat16;
using patchword::Half;

namespace {

constexpr int kImage = 32768;  // bytes of operands in shared memory

// A product of `steps` times 16 along k. The image holds the operands as shared memory shall hold
// them; a and b are descriptors whose start address counts from the image, and each step adds
// a_step and b_step bytes to it.
struct Call {
  const unsigned char* image;
  const std::uint32_t* a_registers;  // [steps][128][4]
  std::uint64_t a, b;
  std::int32_t steps, a_step, b_step;
  float* d;  // [128][columns / 2]
};

enum Fault {
  kNone,
  kNoProxyFence,
  kNoFence,
  kNoCommit,
  kTouchedInFlight,
  kReadInFlight,
  kNoBarrier,
  kOverwritten,
  kOtherDescriptor,
  kOneWarpLess,
};

#if PW_HAS_WGMMA

PW_DEVICE unsigned char* load_image(const Call& call, unsigned char* arena, Fault fault) {
  unsigned char* const image = simt::align_panels(arena);
  if (fault == kNoBarrier && simt::warp_id() == 3) {
    for (int i = 0; i < 32; ++i) simt::spin_pause();  // a slow warp
  }
  for (unsigned i = threadIdx.x * 16; i < kImage; i += blockDim.x * 16) {
    simt::cp_async<16>(image + i, call.image + i);
  }
  simt::cp_async_wait_all();
  if (fault != kNoProxyFence) simt::fence_async_proxy();
  if (fault != kNoBarrier) simt::sync_block();
  return image;
}

template <int N>
PW_DEVICE void store(const Call& call, const float (&d)[N][4]) {
  for (int n = 0; n < N; ++n) {
    for (int i = 0; i < 4; ++i) call.d[threadIdx.x * 4 * N + 4 * n + i] = d[n][i];
  }
}

#endif

// A in shared memory, or in registers with B transposed.
template <class T, int N, bool FromRegisters>
PW_KERNEL void PW_LAUNCH_BOUNDS(128) product_kernel(Call call, Fault fault) {
#if PW_HAS_WGMMA
  PW_DYNAMIC_SHARED(unsigned char, arena);
  unsigned char* const image = load_image(call, arena, fault);
  const std::uint64_t base = simt::shared_address(image) >> 4;
  float d[N][4];
  for (int n = 0; n < N; ++n) {
    for (int i = 0; i < 4; ++i) d[n][i] = 77.0f;  // the first product overwrites it
  }
  std::uint64_t b = base + call.b;
  if (fault == kOtherDescriptor && simt::warp_id() == 2) b += std::uint64_t{1} << 32;
  simt::pin(d);
  if (fault != kNoFence) simt::wgmma_fence();
  for (int step = 0; step < call.steps; ++step) {
    if (fault == kOneWarpLess && simt::warp_id() == 1 && step == 1) break;
    const std::uint64_t right = simt::advance(b, step * call.b_step);
    if constexpr (FromRegisters) {
      std::uint32_t a[4];
      for (int r = 0; r < 4; ++r) a[r] = call.a_registers[(step * 128 + threadIdx.x) * 4 + r];
      simt::wgmma_mn_major<T>(d, a, right, step > 0);
    } else {
      simt::wgmma_k_major<T>(d, simt::advance(base + call.a, step * call.a_step), right, step > 0);
    }
    if (fault == kTouchedInFlight) d[0][0] = 1.0f;
  }
  if (fault != kNoCommit) simt::wgmma_commit();
  if (fault == kReadInFlight) {
    store(call, d);
    simt::wgmma_wait<0>(d);
    return;
  }
  if (fault == kOverwritten) {
    for (unsigned i = threadIdx.x; i < kImage; i += blockDim.x) image[i] = 0;
    simt::sync_block();
  }
  simt::wgmma_wait<0>(d);
  store(call, d);
#endif
}

// Two groups in flight: the first one's sums are complete while the second one still runs.
PW_KERNEL void PW_LAUNCH_BOUNDS(128) two_groups_kernel(Call call) {
#if PW_HAS_WGMMA
  PW_DYNAMIC_SHARED(unsigned char, arena);
  const std::uint64_t base = simt::shared_address(load_image(call, arena, kNone)) >> 4;
  float first[8][4], second[8][4];
  simt::pin(first);
  simt::pin(second);
  simt::wgmma_fence();
  simt::wgmma_k_major<Half>(first, base + call.a, base + call.b, false);
  simt::wgmma_commit();
  simt::wgmma_k_major<Half>(second, simt::advance(base + call.a, call.a_step),
                            simt::advance(base + call.b, call.b_step), false);
  simt::wgmma_commit();
  simt::wgmma_wait<1>(first);
  for (int n = 0; n < 8; ++n) {
    for (int i = 0; i < 4; ++i) first[n][i] *= 2.0f;
  }
  simt::wgmma_wait<0>(second);
  for (int n = 0; n < 8; ++n) {
    for (int i = 0; i < 4; ++i) first[n][i] += second[n][i];
  }
  store(call, first);
#endif
}

template <class T>
simt::Status run(const Call& call, int columns, bool from_registers, Fault fault, int threads,
                 void* stream) {
  using Kernel = void (*)(Call, Fault);
  Kernel kernel = columns == 64 ? product_kernel<T, 8, false> : product_kernel<T, 16, false>;
  if (from_registers) {
    kernel = columns == 32   ? product_kernel<T, 4, true>
             : columns == 64 ? product_kernel<T, 8, true>
             : columns == 96 ? product_kernel<T, 12, true>
                             : product_kernel<T, 16, true>;
  }
  const std::size_t bytes = kImage + simt::kPanelAlignment;
  return PW_LAUNCH(kernel, 1, threads, bytes, stream, call, fault);
}

}  // namespace

extern "C" {

int pw_selftest_wgmma(int bfloat16, int columns, int from_registers, int fault, int threads,
                      const Call* call, void* stream, char* message, std::size_t length) {
  const auto broken = static_cast<Fault>(fault);
  return (bfloat16 ? run<BFloat16>(*call, columns, from_registers != 0, broken, threads, stream)
                   : run<Half>(*call, columns, from_registers != 0, broken, threads, stream))
      .report(message, length);
}

int pw_selftest_wgmma_two_groups(const Call* call, void* stream, char* message,
                                 std::size_t length) {
  return PW_LAUNCH(two_groups_kernel, 1, 128, kImage + simt::kPanelAlignment, stream, *call)
      .report(message, length);
}

}  // extern "C"
