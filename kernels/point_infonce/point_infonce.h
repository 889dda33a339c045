// SPDX-License-Identifier: Apache-2.0
// InfoNCE at points of feature maps: the contract shared by the CPU levels, CUDA and the binding.
#pragma once

#include "kernels/common/types.h"

namespace patchword {

// Points are numbered query by query: query t is point t (1 + keys), its keys follow.
struct PointInfonceParams {
  const void* features;         // [B, C, h, w], any strides, dtype `dtype`
  const int64_t* query_images;  // [T]
  const int64_t* key_images;    // [T, keys], the first key is the positive
  const float* query_points;    // [T, 2], x before y
  const float* key_points;      // [T, keys, 2]
  float* losses;                // [T], contiguous; not used by the backward
  float* dots;                  // [T, keys], contiguous: products of the (normalised) vectors
  float* norms;                 // [T, 1 + keys], contiguous: of the vectors as they were read
  void* workspace;              // CPU: the bytes that the workspace function asks for
  DType dtype;
  int32_t normalize;  // divide each vector by its norm plus kInfonceNormEpsilon
  float sharpness;    // what the products are multiplied by: one over the temperature
  int64_t batch, channels, height, width, queries, keys;
  int64_t features_stride[4];  // b, c, y, x; elements, as all strides
  int64_t query_images_stride, key_images_stride[2];
  int64_t query_points_stride[2], key_points_stride[3];
  // Cell index of a coordinate: x * scale + shift, a whole number at a cell's centre.
  double scale_x, shift_x, scale_y, shift_y;
};

constexpr float kInfonceNormEpsilon = 1e-6f;

struct PointInfonceBackwardParams {
  PointInfonceParams forward;  // with `dots` and `norms` as the forward left them
  const float* grad;           // [T], contiguous
  void* grad_features;         // [B, C, h, w], every element written; or null
  int64_t grad_stride[4];
  float* grad_query_points;  // [T, 2], contiguous, every element written; null with the next
  float* grad_key_points;    // [T, keys, 2], likewise
  // CUDA: factors of each point's gradient, and the gradients of a block of channels.
  float* weights;  // [T, 1 + keys]
  float* pulls;    // [T, 1 + keys]
  float* vectors;  // [T, 1 + keys, kInfonceCudaBlock]
  // CUDA, for grad_features: all points ordered by first cell, equal cells in order of the points,
  // and where each of the B * h * w cells begins (one more entry at the end).
  const int64_t* order;
  const int64_t* starts;
};

// Channels whose gradients are in memory at a time.
constexpr int64_t kInfonceCudaBlock = 64;

// CUDA: the first cell of each point, what `order` is sorted by; a point of no map gets B * h * w.
struct PointInfonceCellsParams {
  PointInfonceParams forward;
  int64_t* cells;  // [T, 1 + keys]
};

struct PointInfonceTable {
  // Neither allocates. `threads` is what the workspace function was asked with. Both return
  // kInvalidArgument when an image is not in 0..B-1, and nothing else does.
  Status (*forward)(const PointInfonceParams& params, int threads);
  Status (*backward)(const PointInfonceBackwardParams& params, int threads);
};

const PointInfonceTable& point_infonce_table();
// Bytes of workspace of the CPU functions, the backward's more.
int64_t point_infonce_workspace(const PointInfonceParams& params, int threads, bool backward);

}  // namespace patchword
