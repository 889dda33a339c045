// SPDX-License-Identifier: Apache-2.0
// PAMR on the CPU: pixels of a row in lanes, the weights of a pixel vector next to each other and
// used for a block of channels at once, rows padded so that no neighbour needs a test.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/exp2_nonpositive.h"
#include "kernels/common/simd.h"
#include "kernels/common/threads.h"
#include "kernels/pamr/pamr.h"
#include "kernels/pamr/pamr_plan.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

constexpr int kMostNeighbours = kPamrRing * kPamrMostDilations;
constexpr int kMostChannels = 8;  // sums that fit into registers beside weight and mask
constexpr float kLog2E = 1.4426950408889634f;

PW_INLINE int64_t clamp(int64_t value, int64_t most) {
  return value < 0 ? 0 : (value > most ? most : value);
}

// Repeats the first and the last pixel of a padded row into its pads and its unused columns.
PW_INLINE void pad_row(float* row, const PamrPlan& plan, int64_t width) {
  const float first = row[plan.pad], last = row[plan.pad + width - 1];
  for (int64_t i = 0; i < plan.pad; ++i) row[i] = first;
  for (int64_t i = plan.pad + width; i < plan.pitch; ++i) row[i] = last;
}

PW_INLINE void read_row(const float* from, int64_t stride, int64_t width, const PamrPlan& plan,
                        float* row) {
  float* to = row + plan.pad;
  if (stride == 1) {
    __builtin_memcpy(to, from, static_cast<size_t>(width) * sizeof(float));
  } else {
    for (int64_t x = 0; x < width; ++x) to[x] = from[x * stride];
  }
  pad_row(row, plan, width);
}

// One image on its way: the channels that are refined and this image's part of the workspace.
struct Image {
  const PamrParams& p;
  const PamrPlan& plan;
  PamrStep steps[kMostNeighbours];
  float *rows[2], *weights;
  int64_t b;
  int64_t live;  // refined channels

  PW_INLINE bool refined(int64_t c) const {
    return p.live == nullptr || p.live[b * p.channels + c] != 0;
  }
  PW_INLINE float* row(int side, int64_t y, int64_t planes) const {
    return rows[side] + y * planes * plan.pitch;
  }
  // Where the neighbours of pixel (y, 0) begin, from rows[] on.
  PW_INLINE void neighbours(int64_t y, int64_t planes, int64_t (&offset)[kMostNeighbours]) const {
    for (int n = 0; n < plan.neighbours; ++n) {
      offset[n] =
          clamp(y + steps[n].dy, p.height - 1) * planes * plan.pitch + plan.pad + steps[n].dx;
    }
  }
};

// What a distance of one colour is multiplied by, from the deviation around kLanes pixels. Steps
// are taken from the centre: of the 9 values per dilation one is the centre, so at most a ninth of
// the squares can cancel.
PW_INLINE VecF colour_scale(const Image& image, const float* plane, VecF middle,
                            const int64_t (&offset)[kMostNeighbours]) {
  const float count = 9.0f * static_cast<float>(image.p.dilation_count);
  VecF sum[2] = {}, squares[2] = {};  // two chains: the neighbours are even in number
  for (int n = 0; n < image.plan.neighbours; n += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const VecF step = load(plane + offset[n + i]) - middle;
      sum[i] += step;
      squares[i] = fma(step, step, squares[i]);
    }
  }
  const VecF total = sum[0] + sum[1];
  VecF variance = (squares[0] + squares[1] - total * total * (1.0f / count)) / (count - 1.0f);
  variance = select(variance < VecF{}, VecF{}, variance);  // NaN stays
  VecF sigma;
  for (int i = 0; i < kLanes; ++i) sigma[i] = __builtin_sqrtf(variance[i]);
  return splat(-kLog2E / static_cast<float>(image.p.colours)) /
         (kPamrSpread * sigma + kPamrEpsilon);
}

// Adds the distances of kColours colours, whose planes begin at `plane`, to those in `weights`, or
// writes them there, and returns the largest.
template <int kColours>
PW_INLINE VecF add_distances(const Image& image, const float* plane, int64_t centre,
                             const int64_t (&offset)[kMostNeighbours], bool first, float* weights) {
  const int64_t pitch = image.plan.pitch;
  VecF middle[kColours], scale[kColours];
#pragma GCC unroll 3
  for (int k = 0; k < kColours; ++k) {
    middle[k] = load(plane + k * pitch + centre);
    scale[k] = colour_scale(image, plane + k * pitch, middle[k], offset);
  }
  VecF best = splat(-__builtin_inff());
  for (int n = 0; n < image.plan.neighbours; ++n) {
    VecF sum = first ? VecF{} : load(weights + n * kLanes);
#pragma GCC unroll 3
    for (int k = 0; k < kColours; ++k) {
      sum = fma(abs(load(plane + k * pitch + offset[n]) - middle[k]), scale[k], sum);
    }
    store(weights + n * kLanes, sum);
    best = max(sum, best);
  }
  return best;
}

// Weights of kLanes pixels from the colours in `rows`.
void weigh_pixels(const Image& image, const float* rows, int64_t centre,
                  const int64_t (&offset)[kMostNeighbours], int64_t x, float* weights) {
  const PamrPlan& plan = image.plan;
  const float* plane = rows + x;
  VecF best{};
  if (image.p.colours == 3) {
    best = add_distances<3>(image, plane, centre, offset, true, weights);
  } else {
    for (int n = 0; n < plan.neighbours; ++n) store(weights + n * kLanes, VecF{});
    for (int64_t k = 0; k < image.p.colours; ++k) {
      best = add_distances<1>(image, plane + k * plan.pitch, centre, offset, false, weights);
    }
  }
  VecF total{};
  for (int n = 0; n < plan.neighbours; ++n) {
    const VecF weight = exp2_nonpositive(load(weights + n * kLanes) - best);
    store(weights + n * kLanes, weight);
    total += weight;
  }
  const VecF scale = 1.0f / total;
  for (int n = 0; n < plan.neighbours; ++n) {
    store(weights + n * kLanes, load(weights + n * kLanes) * scale);
  }
}

void weigh(const Image& image) {
  const PamrParams& p = image.p;
  const PamrPlan& plan = image.plan;
  parallel_for(plan.threads, p.height, [&](int64_t begin, int64_t end, int) {
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t k = 0; k < p.colours; ++k) {
        const float* from =
            p.image + image.b * p.image_stride[0] + k * p.image_stride[1] + y * p.image_stride[2];
        read_row(from, p.image_stride[3], p.width, plan,
                 image.row(0, y, p.colours) + k * plan.pitch);
      }
    }
  });
  parallel_for(plan.threads, p.height, [&](int64_t begin, int64_t end, int) {
    int64_t offset[kMostNeighbours];
    for (int64_t y = begin; y < end; ++y) {
      image.neighbours(y, p.colours, offset);
      const int64_t centre = y * p.colours * plan.pitch + plan.pad;
      for (int64_t x = 0; x < p.width; x += kLanes) {
        weigh_pixels(image, image.rows[0], centre, offset, x,
                     image.weights + (y * plan.columns + x) * plan.neighbours);
      }
    }
  });
}

// kVectors * kLanes pixels of kChannels channels: each weight is loaded once for all of them.
template <int kVectors, int kChannels>
PW_INLINE void mix(const float* weights, int neighbours, const float* from, int64_t pitch,
                   const int64_t* offset, float* to) {
  VecF sum[kChannels][kVectors] = {};
  for (int n = 0; n < neighbours; ++n) {
    const float* at = from + offset[n];
    VecF weight[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weight[v] = load(weights + (v * neighbours + n) * kLanes);
#pragma GCC unroll 8
    for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[c][v] = fma(weight[v], load(at + c * pitch + v * kLanes), sum[c][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kChannels; ++c) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(to + c * pitch + v * kLanes, sum[c][v]);
  }
}

// A row of kChannels channels; `from` and `to` begin with the first of them.
template <int kChannels>
void mix_row(const Image& image, const float* weights, const float* from, const int64_t* offset,
             float* to) {
  // Few channels leave registers for more pixels, which hide the latency of the additions.
  constexpr int kVectors = kChannels <= 2 ? 4 : (kChannels <= 4 ? 2 : 1);
  const PamrPlan& plan = image.plan;
  int64_t x = 0;
  for (; x + kVectors * kLanes <= plan.columns && x < image.p.width; x += kVectors * kLanes) {
    mix<kVectors, kChannels>(weights + x * plan.neighbours, plan.neighbours, from + x, plan.pitch,
                             offset, to + plan.pad + x);
  }
  for (; x < image.p.width; x += kLanes) {
    mix<1, kChannels>(weights + x * plan.neighbours, plan.neighbours, from + x, plan.pitch, offset,
                      to + plan.pad + x);
  }
}

void step(const Image& image, int side, int64_t y) {
  const PamrPlan& plan = image.plan;
  int64_t offset[kMostNeighbours];
  image.neighbours(y, image.live, offset);
  const float* weights = image.weights + y * plan.columns * plan.neighbours;
  const int64_t blocks = (image.live + kMostChannels - 1) / kMostChannels;
  int64_t c = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    // Even blocks: 21 channels as 7 7 7, not as 8 8 5.
    const int64_t end = (block + 1) * image.live / blocks;
    const float* from = image.rows[side] + c * plan.pitch;
    float* to = image.row(1 - side, y, image.live) + c * plan.pitch;
    switch (end - c) {
      case 1: mix_row<1>(image, weights, from, offset, to); break;
      case 2: mix_row<2>(image, weights, from, offset, to); break;
      case 3: mix_row<3>(image, weights, from, offset, to); break;
      case 4: mix_row<4>(image, weights, from, offset, to); break;
      case 5: mix_row<5>(image, weights, from, offset, to); break;
      case 6: mix_row<6>(image, weights, from, offset, to); break;
      case 7: mix_row<7>(image, weights, from, offset, to); break;
      default: mix_row<8>(image, weights, from, offset, to); break;
    }
    for (; c < end; ++c) {
      pad_row(image.row(1 - side, y, image.live) + c * plan.pitch, plan, image.p.width);
    }
  }
}

void read_masks(const Image& image, int64_t y) {
  const PamrParams& p = image.p;
  float* row = image.row(0, y, image.live);
  for (int64_t c = 0; c < p.channels; ++c) {
    if (!image.refined(c)) continue;
    const float* from =
        p.masks + image.b * p.masks_stride[0] + c * p.masks_stride[1] + y * p.masks_stride[2];
    read_row(from, p.masks_stride[3], p.width, image.plan, row);
    row += image.plan.pitch;
  }
}

void write_masks(const Image& image, int side, int64_t y) {
  const PamrParams& p = image.p;
  const float* row = image.row(side, y, image.live) + image.plan.pad;
  const size_t bytes = static_cast<size_t>(p.width) * sizeof(float);
  for (int64_t c = 0; c < p.channels; ++c) {
    float* to = p.out + ((image.b * p.channels + c) * p.height + y) * p.width;
    if (image.refined(c)) {
      __builtin_memcpy(to, row, bytes);
      row += image.plan.pitch;
    } else {
      __builtin_memset(to, 0, bytes);
    }
  }
}

void refine_image(Image& image) {
  const PamrParams& p = image.p;
  image.live = 0;
  for (int64_t c = 0; c < p.channels; ++c) image.live += image.refined(c) ? 1 : 0;
  if (p.iterations > 0 && image.live > 0) weigh(image);
  for (int t = 0; t <= p.iterations; ++t) {  // a step needs all rows of the one before
    parallel_for(image.plan.threads, p.height, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        // To and fro: the weights that were read last are still in the cache.
        const int64_t y = t % 2 == 0 ? i : begin + end - 1 - i;
        if (t == 0) {
          read_masks(image, y);
        } else if (image.live > 0) {
          step(image, (t - 1) % 2, y);
        }
        if (t == p.iterations) write_masks(image, t % 2, y);
      }
    });
  }
}

Status refine(const PamrParams& p, int threads) {
  const PamrPlan plan = pamr_plan(p, threads);
  const uintptr_t start = (reinterpret_cast<uintptr_t>(p.workspace) + 63) / 64 * 64;
  parallel_for(plan.workers, p.batch, [&](int64_t begin, int64_t end, int worker) {
    float* base = reinterpret_cast<float*>(start) + worker * plan.floats;
    Image image{p, plan, {}, {base, base + plan.weights_at / 2}, base + plan.weights_at, 0, 0};
    for (int n = 0; n < plan.neighbours; ++n) image.steps[n] = pamr_step(p, n);
    for (image.b = begin; image.b < end; ++image.b) refine_image(image);
  });
  return ok_status();
}

}  // namespace
}  // namespace PW_LEVEL

extern const PamrTable PW_LEVEL_TABLE(kPamr);
const PamrTable PW_LEVEL_TABLE(kPamr) = {&PW_LEVEL::refine};

}  // namespace patchword
