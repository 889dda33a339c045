// SPDX-License-Identifier: Apache-2.0
// Toy kernels that break a rule each, and launches at the limits, which the host engine must
// report.

#include <cstddef>
#include <cstdint>

#include "kernels/common/async_copy.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/simt.cuh"

namespace simt = patchword::simt;

namespace {

enum Broken {
  kDivergentSites,
  kExitBeforeBarrier,
  kExitedLane,
  kDifferentCollectives,
  kForeignMask,
  kShuffleAgainstBarrier,
  kStaticOverflow,
  kDynamicOverflow,
  kLdmatrixOutside,
  kCopyToMisaligned,
  kCopyFromMisaligned,
  kCopyOutside,
  kPackMisaligned,
  kNamedShort,
  kLivelock,
  kBrokenCount
};

PW_KERNEL void broken_kernel(int kind, float* output) {
  PW_SHARED(float, shared, 64);
  PW_DYNAMIC_SHARED(float, dynamic);
  const unsigned t = threadIdx.x, lane = simt::lane_id();
  shared[t % 64] = 0;
  float value = static_cast<float>(t);
  switch (kind) {
    case kDivergentSites:
      if (t < 32) {
        simt::sync_block();
      } else {
        simt::sync_block();
      }
      break;
    case kExitBeforeBarrier:
      if (t == 5) return;
      simt::sync_block();
      break;
    case kExitedLane:
      if (lane == 9) return;
      value = simt::shuffle_xor(value, 1);
      break;
    case kDifferentCollectives:
      if (lane < 4) {
        value = simt::shuffle(value, 0);
      } else {
        value = simt::any(value > 3) ? 1.0f : 0.0f;
      }
      break;
    case kForeignMask: value = simt::shuffle(value, 0, 0x0000ffffu); break;
    case kShuffleAgainstBarrier:
      if (lane == 0) {
        simt::sync_block();
      } else {
        value = simt::shuffle_down(value, 1);
      }
      break;
    case kStaticOverflow:
      shared[t + 1] = value;  // the last thread writes one past the end
      break;
    case kDynamicOverflow: dynamic[t + 1] = value; break;
    case kLdmatrixOutside: {
      std::uint32_t r[4];
      simt::ldmatrix_x4(r, shared + lane * 4);  // 32 rows of 16 bytes in 256 bytes
      value = static_cast<float>(r[0]);
      break;
    }
    case kCopyToMisaligned: simt::cp_async<16>(shared + 1, output); break;
    case kCopyFromMisaligned:
      simt::cp_async<16>(shared, reinterpret_cast<const char*>(output) + 2);
      break;
    case kCopyOutside: simt::cp_async<4>(shared + 64, output); break;
    case kPackMisaligned: value = simt::load_pack<4>(shared + 2)[0]; break;
    case kNamedShort:
      if (t < 32) simt::sync_named(3, 64);
      break;
    case kLivelock:
      while (simt::atomic_add(output, 0.0f) < 1e30f) simt::spin_pause();
      break;
    default: break;
  }
  output[t] = value;
}

PW_KERNEL void large_static_kernel(float* output) {
  PW_SHARED(float, first, 8 * 1024);
  PW_SHARED(float, second, 4 * 1024);
  first[threadIdx.x] = 1;
  second[threadIdx.x] = 2;
  output[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}

PW_KERNEL void large_dynamic_kernel(float* output, int last) {
  PW_DYNAMIC_SHARED(float, arena);
  arena[last - threadIdx.x] = 3;
  output[threadIdx.x] = arena[last - threadIdx.x];
}

}  // namespace

extern "C" {

int pw_selftest_broken(int kind, float* output, void* stream, char* message, std::size_t length) {
  return PW_LAUNCH(broken_kernel, dim3(2, 1), 64, 64 * sizeof(float), stream, kind, output)
      .report(message, length);
}

int pw_selftest_launch(int grid, int threads, std::size_t dynamic_bytes, float* output,
                       void* stream, char* message, std::size_t length) {
  return PW_LAUNCH(broken_kernel, grid, threads, dynamic_bytes, stream, kBrokenCount, output)
      .report(message, length);
}

int pw_selftest_large_static(float* output, std::size_t dynamic_bytes, void* stream, char* message,
                             std::size_t length) {
  return PW_LAUNCH(large_static_kernel, 1, 32, dynamic_bytes, stream, output)
      .report(message, length);
}

int pw_selftest_large_dynamic(int raise, std::size_t bytes, float* output, void* stream,
                              char* message, std::size_t length) {
  if (raise) {
    const simt::Status status = PW_RAISE_DYNAMIC_SHARED(large_dynamic_kernel, bytes);
    if (!status.ok()) return status.report(message, length);
  }
  return PW_LAUNCH(large_dynamic_kernel, 1, 32, bytes, stream, output,
                   static_cast<int>(bytes / 4 - 1))
      .report(message, length);
}

}  // extern "C"
