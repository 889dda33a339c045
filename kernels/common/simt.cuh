// SPDX-License-Identifier: Apache-2.0
// The thin layer every CUDA kernel is written against: CUDA under nvcc, the CPU under g++.
//
// SIMT.md is the guide. Compiled by nvcc each name is the CUDA feature itself. Compiled with
// -x c++ -std=c++20 -DPATCHWORD_SIMT_HOST the same source runs on the CPU with every rule checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "kernels/common/half.h"
#include "kernels/common/simt_launch.cuh"
#include "kernels/common/simt_primitives.cuh"
#include "kernels/common/simt_words.cuh"
#include "kernels/common/types.h"

namespace patchword::simt {

struct Sum {
  template <class T>
  PW_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  PW_DEVICE T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Min {
  template <class T>
  PW_DEVICE T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// Reduction over groups of `width` neighbouring lanes; every lane gets its group's result.
template <class T, class Op>
PW_DEVICE T warp_reduce(T value, Op op, unsigned width = 32 PW_SITE_PARAM) {
  for (unsigned step = width / 2; step > 0; step /= 2) {
    value = op(value, shuffle_xor(value, step, kFullMask, 32 PW_SITE_ARG));
  }
  return value;
}

// Reduction over the block (a multiple of 32 threads); every thread gets the result. `scratch` is
// shared memory for one value per warp and may be reused at once.
template <class T, class Op>
PW_DEVICE T block_reduce(T value, Op op, T* scratch PW_SITE_PARAM) {
  value = warp_reduce(value, op, 32 PW_SITE_ARG);
  const unsigned warps = blockDim.x * blockDim.y * blockDim.z / 32u;
  if (lane_id() == 0) scratch[warp_id()] = value;
  sync_block(PW_SITE_ONLY);
  value = scratch[0];
  for (unsigned warp = 1; warp < warps; ++warp) value = op(value, scratch[warp]);
  sync_block(PW_SITE_ONLY);
  return value;
}

}  // namespace patchword::simt
