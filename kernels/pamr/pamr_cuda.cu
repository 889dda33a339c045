// SPDX-License-Identifier: Apache-2.0
// PAMR on CUDA: weights once, then either all steps of a few channels inside one block, masks in
// shared memory, or one launch per step with the weights read once for eight channels.
#include "kernels/common/simt.cuh"
#include "kernels/pamr/pamr.h"
#include "kernels/pamr/pamr_plan.h"

namespace patchword {
namespace {

constexpr int kThreads = 256;
constexpr int kStepChannels = 8;  // of one block of a step
constexpr int kResidentThreads = 512;
constexpr int kResidentChannels = 4;  // most of one block that keeps its masks
// Larger pictures have pixels enough to fill the device with one launch per step.
constexpr int64_t kResidentPixels = 4096;

// A stack of maps [B, C, h, w] with strides in elements.
struct Planes {
  const float* data;
  int64_t stride[4];

  PW_DEVICE const float* at(int64_t b, int64_t c) const {
    return data + b * stride[0] + c * stride[1];
  }
};

PW_DEVICE int64_t inside(int64_t value, int64_t size) {
  return value < 0 ? 0 : (value < size ? value : size - 1);
}

PW_DEVICE bool refined(const PamrParams& p, int64_t b, int64_t c) {
  return p.live == nullptr || p.live[b * p.channels + c] != 0;
}

// Writes the refined channels ranked [first, first + most) of image b into `list`, by one warp of
// the block; returns how many there are. `count` and `list` are shared.
PW_DEVICE int list_channels(const PamrParams& p, int64_t b, int64_t first, int most, int32_t* list,
                            int32_t* count) {
  if (simt::warp_id() == 0) {
    const int lane = static_cast<int>(simt::lane_id());
    int64_t before = 0;
    for (int64_t c0 = 0; c0 < p.channels && before < first + most; c0 += 32) {
      const bool mine = c0 + lane < p.channels && refined(p, b, c0 + lane);
      const unsigned votes = simt::ballot(mine);
      const int64_t rank = before + simt::set_bits(votes & ((1u << lane) - 1u));
      if (mine && rank >= first && rank < first + most) {
        list[rank - first] = static_cast<int32_t>(c0 + lane);
      }
      before += simt::set_bits(votes);
    }
    const int64_t found = before - first;
    if (lane == 0) *count = static_cast<int32_t>(found < 0 ? 0 : (found < most ? found : most));
  }
  simt::sync_block();
  return *count;
}

// weights [B, N, h, w]: one thread per pixel. Deviations are taken from the centre, see README.md.
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) weigh(const PamrParams p, float* weights) {
  const int64_t pixels = p.height * p.width;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.batch * pixels) return;
  const int64_t b = i / pixels;
  const int64_t y = (i - b * pixels) / p.width, x = (i - b * pixels) % p.width;
  const int neighbours = kPamrRing * p.dilation_count;
  float* mine = weights + b * neighbours * pixels + y * p.width + x;
  const float count = 9.0f * static_cast<float>(p.dilation_count);
  const float* image = p.image + b * p.image_stride[0];
  const auto colour = [&](int64_t k, int n) {
    const PamrStep step = pamr_step(p, n);
    return image[k * p.image_stride[1] + inside(y + step.dy, p.height) * p.image_stride[2] +
                 inside(x + step.dx, p.width) * p.image_stride[3]];
  };
  float best = -bit_cast<float>(0x7f800000u);
  for (int64_t k = 0; k < p.colours; ++k) {
    const float centre =
        image[k * p.image_stride[1] + y * p.image_stride[2] + x * p.image_stride[3]];
    float sum = 0.0f, squares = 0.0f;
    for (int n = 0; n < neighbours; ++n) {
      const float step = colour(k, n) - centre;
      sum += step;
      squares = fmaf(step, step, squares);
    }
    float variance = (squares - sum * sum / count) / (count - 1.0f);
    variance = variance < 0.0f ? 0.0f : variance;  // NaN stays
    const float scale = -1.4426950408889634f / static_cast<float>(p.colours) /
                        (kPamrSpread * sqrtf(variance) + kPamrEpsilon);
    for (int n = 0; n < neighbours; ++n) {
      const float before = k == 0 ? 0.0f : mine[n * pixels];
      const float value = fmaf(fabsf(colour(k, n) - centre), scale, before);
      mine[n * pixels] = value;
      if (k == p.colours - 1 && value > best) best = value;
    }
  }
  float total = 0.0f;
  for (int n = 0; n < neighbours; ++n) {
    const float weight = simt::fast_exp2(mine[n * pixels] - best);
    mine[n * pixels] = weight;
    total += weight;
  }
  const float scale = 1.0f / total;
  for (int n = 0; n < neighbours; ++n) mine[n * pixels] *= scale;
}

// One step for kStepChannels channels of image blockIdx.z, one thread per pixel. Traffic: the
// weights once; the masks mostly from L1, since neighbouring pixels share neighbours.
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    mix_step(const PamrParams p, const float* weights, const Planes from, float* to,
             int64_t first_image) {
  PW_SHARED(int32_t, list, kStepChannels);
  PW_SHARED(int32_t, listed, 1);
  const int64_t b = first_image + blockIdx.z;
  const int count = list_channels(p, b, static_cast<int64_t>(blockIdx.y) * kStepChannels,
                                  kStepChannels, list, listed);
  const int64_t pixels = p.height * p.width;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (count == 0 || i >= pixels) return;
  const int64_t y = i / p.width, x = i - y * p.width;
  const int neighbours = kPamrRing * p.dilation_count;
  const float* weight = weights + b * neighbours * pixels + i;
  const float* plane[kStepChannels];
  PW_UNROLL
  for (int c = 0; c < kStepChannels; ++c) plane[c] = from.at(b, list[c < count ? c : 0]);
  float sum[kStepChannels] = {};
  for (int n = 0; n < neighbours; ++n) {
    const PamrStep step = pamr_step(p, n);
    const int64_t at = inside(y + step.dy, p.height) * from.stride[2] +
                       inside(x + step.dx, p.width) * from.stride[3];
    const float w = weight[n * pixels];
    float value[kStepChannels];  // the loads go out together
    PW_UNROLL
    for (int c = 0; c < kStepChannels; ++c) value[c] = c < count ? plane[c][at] : 0.0f;
    PW_UNROLL
    for (int c = 0; c < kStepChannels; ++c) sum[c] = fmaf(w, value[c], sum[c]);
  }
  PW_UNROLL
  for (int c = 0; c < kStepChannels; ++c) {
    if (c < count) to[(b * p.channels + list[c]) * pixels + i] = sum[c];
  }
}

// All steps of `most` channels of image blockIdx.y; the masks go to and fro in shared memory.
PW_KERNEL void PW_LAUNCH_BOUNDS(kResidentThreads)
    mix_resident(const PamrParams p, const float* weights, int most, int64_t first_image) {
  PW_SHARED(int32_t, list, kResidentChannels);
  PW_SHARED(int32_t, listed, 1);
  PW_DYNAMIC_SHARED(float, masks);
  const int64_t b = first_image + blockIdx.y;
  const int count =
      list_channels(p, b, static_cast<int64_t>(blockIdx.x) * most, most, list, listed);
  if (count == 0) return;
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  const int pixels = height * width;
  const int neighbours = kPamrRing * p.dilation_count;
  const float* weight = weights + b * neighbours * pixels;
  float* from = masks;
  float* to = masks + count * pixels;
  for (int c = 0; c < count; ++c) {
    const float* plane = p.masks + b * p.masks_stride[0] + list[c] * p.masks_stride[1];
    for (int i = static_cast<int>(threadIdx.x); i < pixels; i += kResidentThreads) {
      from[c * pixels + i] = plane[i / width * p.masks_stride[2] + i % width * p.masks_stride[3]];
    }
  }
  for (int t = 0; t < p.iterations; ++t) {
    simt::sync_block();
    for (int i = static_cast<int>(threadIdx.x); i < pixels; i += kResidentThreads) {
      const int y = i / width, x = i - y * width;
      float sum[kResidentChannels] = {};
      for (int n = 0; n < neighbours; ++n) {
        const PamrStep step = pamr_step(p, n);
        const int at = static_cast<int>(inside(y + step.dy, height)) * width +
                       static_cast<int>(inside(x + step.dx, width));
        const float w = weight[static_cast<int64_t>(n) * pixels + i];
        PW_UNROLL
        for (int c = 0; c < kResidentChannels; ++c) {
          if (c < count) sum[c] = fmaf(w, from[c * pixels + at], sum[c]);
        }
      }
      PW_UNROLL
      for (int c = 0; c < kResidentChannels; ++c) {
        if (c < count) to[c * pixels + i] = sum[c];
      }
    }
    float* swap = from;
    from = to;
    to = swap;
  }
  // Each thread wrote the pixels that it now reads.
  for (int c = 0; c < count; ++c) {
    float* out = p.out + (b * p.channels + list[c]) * pixels;
    for (int i = static_cast<int>(threadIdx.x); i < pixels; i += kResidentThreads) {
      out[i] = from[c * pixels + i];
    }
  }
}

// Zeros for channels that are not refined; with `copy`, the masks as they are for the others.
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) fill_rest(const PamrParams p, bool copy) {
  const int64_t pixels = p.height * p.width;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.batch * p.channels * pixels) return;
  const int64_t plane = i / pixels, at = i - plane * pixels;
  const int64_t b = plane / p.channels, c = plane % p.channels;
  if (!refined(p, b, c)) {
    p.out[i] = 0.0f;
  } else if (copy) {
    p.out[i] = p.masks[b * p.masks_stride[0] + c * p.masks_stride[1] +
                       at / p.width * p.masks_stride[2] + at % p.width * p.masks_stride[3]];
  }
}

// Channels per resident block: as many as fit, but rather more blocks than idle multiprocessors.
int resident_channels(const PamrParams& p) {
  const int64_t pixels = p.height * p.width;
  if (pixels > kResidentPixels) return 0;
  const int64_t fit = simt::max_dynamic_shared() / (2 * pixels * sizeof(float));
  int channels = kResidentChannels;
  while (channels > 1 &&
         (channels > fit ||
          p.batch * simt::ceil_div<int64_t>(p.channels, channels) < simt::multiprocessor_count())) {
    channels /= 2;
  }
  return channels <= fit ? channels : 0;
}

simt::Status run_resident(const PamrParams& p, const float* weights, int channels, void* stream) {
  const int64_t pixels = p.height * p.width;
  const size_t bytes = static_cast<size_t>(2 * channels * pixels) * sizeof(float);
  simt::Status status = PW_RAISE_DYNAMIC_SHARED((mix_resident), bytes);
  for (int64_t b = 0; b < p.batch && status.ok(); b += simt::kMostBlocksYZ) {
    const dim3 grid(simt::blocks_for(p.channels, channels),
                    static_cast<unsigned>(simt::min<int64_t>(p.batch - b, simt::kMostBlocksYZ)));
    status = PW_LAUNCH((mix_resident), grid, dim3(kResidentThreads), bytes, stream, p, weights,
                       channels, b);
  }
  return status;
}

simt::Status run_steps(const PamrParams& p, const float* weights, float* spare, void* stream) {
  const int64_t pixels = p.height * p.width;
  Planes from{p.masks, {}};
  for (int i = 0; i < 4; ++i) from.stride[i] = p.masks_stride[i];
  simt::Status status;
  for (int t = 0; t < p.iterations; ++t) {
    float* to = (p.iterations - t) % 2 == 1 ? p.out : spare;  // the last step writes the result
    for (int64_t b = 0; b < p.batch && status.ok(); b += simt::kMostBlocksYZ) {
      const dim3 grid(simt::blocks_for(pixels, kThreads),
                      simt::blocks_for(p.channels, kStepChannels),
                      static_cast<unsigned>(simt::min<int64_t>(p.batch - b, simt::kMostBlocksYZ)));
      status = PW_LAUNCH((mix_step), grid, dim3(kThreads), 0, stream, p, weights, from, to, b);
    }
    if (!status.ok()) break;
    from = Planes{to, {p.channels * pixels, pixels, p.width, 1}};
  }
  return status;
}

simt::Status run(const PamrParams& p, void* stream) {
  const int64_t pixels = p.height * p.width;
  float* weights = static_cast<float*>(p.workspace);
  float* spare = weights + p.batch * kPamrRing * p.dilation_count * pixels;
  simt::Status status;
  if (p.live != nullptr || p.iterations == 0) {
    status = PW_LAUNCH((fill_rest), dim3(simt::blocks_for(p.batch * p.channels * pixels, kThreads)),
                       dim3(kThreads), 0, stream, p, p.iterations == 0);
  }
  if (!status.ok() || p.iterations == 0) return status;
  status = PW_LAUNCH((weigh), dim3(simt::blocks_for(p.batch * pixels, kThreads)), dim3(kThreads), 0,
                     stream, p, weights);
  if (!status.ok()) return status;
  const int channels = resident_channels(p);
  return channels > 0 ? run_resident(p, weights, channels, stream)
                      : run_steps(p, weights, spare, stream);
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_pamr(const patchword::PamrParams* p, void* stream, char* message,
                           size_t length) {
  if (p->batch == 0 || p->channels == 0 || p->height == 0 || p->width == 0) return 0;
  return patchword::run(*p, stream).report(message, length);
}
