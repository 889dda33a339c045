// SPDX-License-Identifier: Apache-2.0
// Toy kernels that use every feature of simt.cuh; selftest_faults.cu has those that break its
// rules.

#include <cstddef>
#include <cstdint>

#include "kernels/common/async_copy.cuh"
#include "kernels/common/mma.cuh"
#include "kernels/common/simt.cuh"

#if defined(PATCHWORD_SIMT_HOST) && defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace simt = patchword::simt;
using patchword::BFloat16;
using patchword::Half;

namespace {

constexpr int kTile = 16;

template <class Op>
PW_KERNEL void PW_LAUNCH_BOUNDS(256)
    block_reduce_kernel(const float* input, int count, Op op, float start, float* output) {
  PW_SHARED(float, scratch, 32);
  float value = start;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    value = op(value, input[static_cast<std::size_t>(blockIdx.x) * count + i]);
  }
  value = simt::block_reduce(value, op, scratch);
  if (threadIdx.x == blockDim.x - 1) output[blockIdx.x] = value;
}

// With `barrier` false the barrier between the write and the read is missing.
template <bool Barrier>
PW_KERNEL void transpose_kernel(const float* input, int rows, int columns, float* output) {
  PW_SHARED(float, tile, kTile*(kTile + 1));
  const int row = blockIdx.y * kTile + threadIdx.y, column = blockIdx.x * kTile + threadIdx.x;
  if (row < rows && column < columns) {
    tile[threadIdx.y * (kTile + 1) + threadIdx.x] = input[row * columns + column];
  }
  if constexpr (Barrier) simt::sync_block();
  const int out_row = blockIdx.x * kTile + threadIdx.y;
  const int out_column = blockIdx.y * kTile + threadIdx.x;
  if (out_row < columns && out_column < rows) {
    output[out_row * rows + out_column] = tile[threadIdx.x * (kTile + 1) + threadIdx.y];
  }
}

struct AtomicResults {
  std::int32_t sum;
  float float_sum;
  std::uint64_t wide_sum;
  std::uint32_t max;
  std::uint64_t wide_max;
  std::int64_t wide_min;
  std::uint64_t packed_argmax;  // by compare and exchange
  std::uint32_t last_block;     // 1 + the block that arrived last
  std::uint32_t arrived;
  std::uint32_t seen;
};

PW_KERNEL void atomics_kernel(const std::uint32_t* values, int count, AtomicResults* results) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) {
    const std::uint32_t v = values[i];
    simt::atomic_add(&results->sum, static_cast<std::int32_t>(v % 1000));
    simt::atomic_add(&results->float_sum, 0.5f);
    simt::atomic_add(&results->wide_sum, static_cast<std::uint64_t>(v) << 8);
    simt::atomic_max(&results->max, v);
    simt::atomic_max(&results->wide_max, static_cast<std::uint64_t>(v) << 32 | (~0u - i));
    simt::atomic_min(&results->wide_min, -static_cast<std::int64_t>(v));
    simt::atomic_or(&results->seen, 1u << v % 32);
    const std::uint64_t mine = static_cast<std::uint64_t>(v) << 32 | i;
    std::uint64_t old = simt::atomic_add(&results->packed_argmax, 0);
    while (mine > old) {
      const std::uint64_t before =
          simt::atomic_compare_exchange(&results->packed_argmax, old, mine);
      if (before == old) break;
      old = before;
    }
  }
  simt::thread_fence();
  simt::sync_block();
  if (threadIdx.x == 0 && simt::atomic_add(&results->arrived, 1u) == gridDim.x - 1) {
    simt::atomic_exchange(&results->last_block, blockIdx.x + 1);
  }
}

// Every warp primitive, one result per lane and row of `output` [rows][32].
PW_KERNEL void warp_kernel(const std::int32_t* input, std::int64_t* output) {
  const unsigned lane = simt::lane_id();
  const int v = input[lane];
  int row = 0;
  const auto put = [&](std::int64_t result) { output[row++ * 32 + lane] = result; };
  put(simt::shuffle(v, 5));
  put(simt::shuffle(v, lane + 3));
  put(simt::shuffle(v, 1, simt::kFullMask, 8));
  put(simt::shuffle_up(v, 3));
  put(simt::shuffle_up(v, 3, simt::kFullMask, 8));
  put(simt::shuffle_down(v, 7));
  put(simt::shuffle_down(v, 7, simt::kFullMask, 16));
  put(simt::shuffle_xor(v, 6));
  put(simt::shuffle_xor(v, 12, simt::kFullMask, 8));
  put(simt::shuffle(static_cast<std::int64_t>(v) << 33, 31 - lane));
  put(static_cast<std::int64_t>(simt::shuffle_xor(0.5f * v, 1) * 2));
  put(simt::ballot(v % 3 == 0));
  put(simt::any(v == input[7]));
  put(simt::all(v >= 0));
  put(simt::warp_reduce(v, simt::Max{}));
  put(simt::warp_reduce(v, simt::Sum{}, 4));
  put(simt::set_bits(static_cast<unsigned>(v)));
  if (lane < 16) {
    put(simt::shuffle_down(v, 1, 0x0000ffffu, 16));
    put(simt::shuffle(v, 20, 0x0000ffffu));  // undefined: the mask does not name lane 20
  } else {
    put(simt::ballot(v % 2 == 0, 0xffff0000u));
    put(simt::all(lane >= 16, 0xffff0000u));
  }
  simt::sync_warp();
}

template <class T>
PW_KERNEL void mma_registers_kernel(const std::uint32_t* a, const std::uint32_t* b, const float* c,
                                    float* d) {
  const unsigned lane = simt::lane_id();
  std::uint32_t ra[4], rb[2];
  float acc[4];
  for (int i = 0; i < 4; ++i) ra[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) rb[i] = b[lane * 2 + i];
  for (int i = 0; i < 4; ++i) acc[i] = c[lane * 4 + i];
  if constexpr (std::is_same<T, float>::value) {
    simt::mma_m16n8k8_tf32(acc, ra, rb, acc);
  } else {
    simt::mma_m16n8k16<T>(acc, ra, rb, acc);
  }
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = acc[i];
}

// Loads four (two) consecutive 8 x 8 matrices of `input` [Count][8][8].
template <int Count, bool Trans>
PW_KERNEL void ldmatrix_kernel(const std::uint16_t* input, std::uint32_t* output) {
  PW_SHARED(std::uint16_t, matrices, Count * 64);
  const unsigned lane = simt::lane_id();
  for (unsigned i = lane; i < Count * 64; i += 32) matrices[i] = input[i];
  simt::sync_warp();
  std::uint32_t r[Count];
  if constexpr (Count == 4) {
    simt::ldmatrix_x4<Trans>(r, matrices + lane * 8);
  } else {
    simt::ldmatrix_x2<Trans>(r, matrices + lane % 16 * 8);
  }
  for (int i = 0; i < Count; ++i) output[lane * Count + i] = r[i];
}

// C [m,n] = A [m,k] B [k,n], one warp per 16 x 8 tile; sizes are multiples of the tile.
template <class T>
PW_KERNEL void gemm_kernel(const T* a, const T* b, int n, int k, float* c) {
  PW_SHARED(T, tile_a, 16 * 24);  // rows padded to 48 bytes keep 16-byte alignment
  PW_SHARED(T, tile_b, 16 * 8);
  const int row = blockIdx.y * 16, column = blockIdx.x * 8;
  const unsigned lane = simt::lane_id();
  float acc[4] = {};
  for (int k0 = 0; k0 < k; k0 += 16) {
    const unsigned r = lane / 2, h = lane % 2 * 8;
    simt::store_pack(tile_a + r * 24 + h, simt::load_pack<8>(a + (row + r) * k + k0 + h));
    if (lane < 16)
      simt::store_pack(tile_b + lane * 8, simt::load_pack<8>(b + (k0 + lane) * n + column));
    simt::sync_block();
    std::uint32_t ra[4], rb[2];
    simt::ldmatrix_x4(ra, tile_a + lane % 16 * 24 + lane / 16 * 8);
    simt::ldmatrix_x2<true>(rb, tile_b + lane % 16 * 8);
    simt::mma_m16n8k16<T>(acc, ra, rb, acc);
    simt::sync_block();
  }
  for (int i = 0; i < 4; ++i) {
    c[(row + lane / 4 + i / 2 * 8) * n + column + lane % 4 * 2 + i % 2] = acc[i];
  }
}

PW_KERNEL void gemm_tf32_kernel(const float* a, const float* b, int n, int k, float* c) {
  const int row = blockIdx.y * 16, column = blockIdx.x * 8;
  const unsigned lane = simt::lane_id(), group = lane / 4, quad = lane % 4;
  float acc[4] = {};
  for (int k0 = 0; k0 < k; k0 += 8) {
    std::uint32_t ra[4], rb[2];
    for (int i = 0; i < 4; ++i) {
      ra[i] = simt::to_tf32(a[(row + group + i % 2 * 8) * k + k0 + quad + i / 2 * 4]);
    }
    for (int i = 0; i < 2; ++i) rb[i] = simt::to_tf32(b[(k0 + quad + i * 4) * n + column + group]);
    simt::mma_m16n8k8_tf32(acc, ra, rb, acc);
  }
  for (int i = 0; i < 4; ++i) {
    c[(row + group + i / 2 * 8) * n + column + quad * 2 + i % 2] = acc[i];
  }
}

// Sums slices of 4 * blockDim floats per block through a two-stage cp.async ring in dynamic shared
// memory. Wait = 1 is right; Wait = 2 reads a slice that has not been waited for. Without the last
// barrier the next copy may land in a slice that others still read.
template <int Wait, bool LastBarrier>
PW_KERNEL void pipeline_kernel(const float* input, int slices, int count, float* output) {
  PW_DYNAMIC_SHARED(float, ring);
  const int width = 4 * blockDim.x;
  const auto fetch = [&](int slice) {
    const int at = slice * width + 4 * threadIdx.x;
    const int valid = slice < slices ? simt::min(simt::max(count - at, 0), 4) : 0;
    simt::cp_async<16>(ring + slice % 2 * width + 4 * threadIdx.x, valid > 0 ? input + at : input,
                       4 * valid);
    simt::cp_async_commit();
  };
  fetch(0);
  float sum = 0;
  for (int slice = 0; slice < slices; ++slice) {
    fetch(slice + 1);
    simt::cp_async_wait_group<Wait>();
    simt::sync_block();
    for (int i = 0; i < 4; ++i) {
      sum += ring[slice % 2 * width + (4 * threadIdx.x + 4 + i) % width];  // a neighbour's copy
    }
    if constexpr (LastBarrier) simt::sync_block();
  }
  simt::cp_async_wait_all();
  simt::atomic_add(output, sum);
}

// Warp 0 produces, warp 1 consumes, through named barriers 1 (full) and 2 (empty).
PW_KERNEL void named_barrier_kernel(const float* input, int rounds, float* output) {
  PW_SHARED(float, slot, 32);
  const unsigned lane = simt::lane_id();
  for (int round = 0; round < rounds; ++round) {
    if (simt::warp_id() == 0) {
      if (round > 0) simt::sync_named(2, 64);
      slot[lane] = input[round * 32 + lane];
      simt::arrive_named(1, 64);
    } else {
      simt::sync_named(1, 64);
      output[round * 32 + lane] = slot[31 - lane];
      if (round + 1 < rounds) simt::arrive_named(2, 64);
    }
  }
}

PW_KERNEL void spin_kernel(std::uint32_t* flag, std::uint32_t until) {
  if (threadIdx.x == 0) {
    while (simt::atomic_add(flag, 0u) < until) simt::spin_pause();
  } else {
    simt::atomic_add(flag, 1u);
  }
}

PW_KERNEL void convert_kernel(const float* input, int count, Half* half, BFloat16* bfloat,
                              float* half_back, float* bfloat_back) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  half[i] = patchword::from_float<Half>(input[i]);
  bfloat[i] = patchword::from_float<BFloat16>(input[i]);
  half_back[i] = to_float(half[i]);
  bfloat_back[i] = to_float(bfloat[i]);
}

}  // namespace

extern "C" {

int pw_selftest_block_reduce(int which, const float* input, int blocks, int count, int threads,
                             float* output, void* stream, char* message, std::size_t length) {
  simt::Status status;
  if (which == 0) {
    status = PW_LAUNCH(block_reduce_kernel<simt::Sum>, blocks, threads, 0, stream, input, count,
                       simt::Sum{}, 0.0f, output);
  } else {
    status = PW_LAUNCH(block_reduce_kernel<simt::Max>, blocks, threads, 0, stream, input, count,
                       simt::Max{}, -3e38f, output);
  }
  return status.report(message, length);
}

int pw_selftest_transpose(int barrier, const float* input, int rows, int columns, float* output,
                          void* stream, char* message, std::size_t length) {
  const dim3 grid(simt::ceil_div(columns, kTile), simt::ceil_div(rows, kTile));
  const dim3 block(kTile, kTile);
  const auto kernel = barrier ? transpose_kernel<true> : transpose_kernel<false>;
  return PW_LAUNCH(kernel, grid, block, 0, stream, input, rows, columns, output)
      .report(message, length);
}

int pw_selftest_atomics(const std::uint32_t* values, int count, AtomicResults* results,
                        void* stream, char* message, std::size_t length) {
  return PW_LAUNCH(atomics_kernel, simt::ceil_div(count, 96), 96, 0, stream, values, count, results)
      .report(message, length);
}

int pw_selftest_warp(const std::int32_t* input, std::int64_t* output, void* stream, char* message,
                     std::size_t length) {
  return PW_LAUNCH(warp_kernel, 1, 32, 0, stream, input, output).report(message, length);
}

int pw_selftest_mma_registers(int type, const std::uint32_t* a, const std::uint32_t* b,
                              const float* c, float* d, void* stream, char* message,
                              std::size_t length) {
  const auto kernel = type == 0   ? mma_registers_kernel<Half>
                      : type == 1 ? mma_registers_kernel<BFloat16>
                                  : mma_registers_kernel<float>;
  return PW_LAUNCH(kernel, 1, 32, 0, stream, a, b, c, d).report(message, length);
}

int pw_selftest_ldmatrix(int count, int trans, const std::uint16_t* input, std::uint32_t* output,
                         void* stream, char* message, std::size_t length) {
  const auto kernel = count == 4 ? (trans ? ldmatrix_kernel<4, true> : ldmatrix_kernel<4, false>)
                                 : (trans ? ldmatrix_kernel<2, true> : ldmatrix_kernel<2, false>);
  return PW_LAUNCH(kernel, 1, 32, 0, stream, input, output).report(message, length);
}

int pw_selftest_gemm(int type, const void* a, const void* b, int m, int n, int k, float* c,
                     void* stream, char* message, std::size_t length) {
  const dim3 grid(n / 8, m / 16);
  simt::Status status;
  if (type == 0) {
    status = PW_LAUNCH(gemm_kernel<Half>, grid, 32, 0, stream, static_cast<const Half*>(a),
                       static_cast<const Half*>(b), n, k, c);
  } else if (type == 1) {
    status = PW_LAUNCH(gemm_kernel<BFloat16>, grid, 32, 0, stream, static_cast<const BFloat16*>(a),
                       static_cast<const BFloat16*>(b), n, k, c);
  } else {
    status = PW_LAUNCH(gemm_tf32_kernel, grid, 32, 0, stream, static_cast<const float*>(a),
                       static_cast<const float*>(b), n, k, c);
  }
  return status.report(message, length);
}

int pw_selftest_pipeline(int kind, const float* input, int count, int threads, float* output,
                         void* stream, char* message, std::size_t length) {
  const auto kernel = kind == 0   ? pipeline_kernel<1, true>
                      : kind == 1 ? pipeline_kernel<2, true>
                                  : pipeline_kernel<1, false>;
  const int slices = simt::ceil_div(count, 4 * threads);
  const std::size_t bytes = 2 * sizeof(float) * 4 * threads;
  return PW_LAUNCH(kernel, 1, threads, bytes, stream, input, slices, count, output)
      .report(message, length);
}

int pw_selftest_named_barrier(const float* input, int rounds, float* output, void* stream,
                              char* message, std::size_t length) {
  return PW_LAUNCH(named_barrier_kernel, 1, 64, 0, stream, input, rounds, output)
      .report(message, length);
}

int pw_selftest_spin(std::uint32_t* flag, int threads, void* stream, char* message,
                     std::size_t length) {
  return PW_LAUNCH(spin_kernel, 1, threads, 0, stream, flag, threads - 1u).report(message, length);
}

int pw_selftest_convert(const float* input, int count, Half* half, BFloat16* bfloat,
                        float* half_back, float* bfloat_back, void* stream, char* message,
                        std::size_t length) {
  return PW_LAUNCH(convert_kernel, simt::ceil_div(count, 128), 128, 0, stream, input, count, half,
                   bfloat, half_back, bfloat_back)
      .report(message, length);
}

// Makes the CPU treat denormal floats as zero; returns whether it can.
int pw_selftest_flush_denormals(int on) {
#if defined(PATCHWORD_SIMT_HOST) && defined(__SSE2__)
  constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  const unsigned modes = kFlushToZero | kDenormalsAreZero;
  _mm_setcsr(on ? _mm_getcsr() | modes : _mm_getcsr() & ~modes);
  return 1;
#else
  return static_cast<void>(on), 0;
#endif
}

int pw_selftest_sm90a_path() { return PW_SM90A_PATH; }

}  // extern "C"
