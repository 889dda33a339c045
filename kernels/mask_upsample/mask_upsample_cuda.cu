// SPDX-License-Identifier: Apache-2.0
// Upsampling on CUDA: one kernel family, a block per tile of output pixels, classes in chunks
// through shared memory, four neighbouring pixels per thread in registers. See README.md.
#include "kernels/mask_upsample/class_candidates.cuh"
#include "kernels/mask_upsample/pixel_sinks.cuh"

namespace patchword {
namespace {

// A block decides kTileRows x kTileColumns pixels (fewer when downsampling) for classes
// [blockIdx.y * classes_per_block, ..) of image first_image + blockIdx.z. Traffic: the tile's cells
// once per chunk (from L2 after the first tile), the output once. Sink: what becomes of the values.
template <int kTaps, class Sink>
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads, Sink::kBlocks)
    upsample(const MaskUpsampleParams p, bool sparse, bool prune, int64_t classes_per_block,
             int64_t first_image) {
  PW_SHARED(float, arena, kArena);
  PW_SHARED(uint16_t, list, kGroup);
  PW_SHARED(int32_t, row_slot, kTileRows);
  PW_SHARED(float, row_weight, kTileRows * 4);
  PW_SHARED(int32_t, column_slot, kTileColumns);
  PW_SHARED(float, column_weight, kTileColumns * 4);
  PW_SHARED(int32_t, source_row, kMaxRowCells);
  PW_SHARED(int32_t, source_column, kMaxColumnCells);
  PW_SHARED(float, warp_values, kWarps);
  PW_SHARED(int32_t, warp_counts, kWarps);
  PW_SHARED(int32_t, unbounded, 1);
  const TileTables tables{row_slot,   row_weight,    column_slot, column_weight,
                          source_row, source_column, arena};
  const CandidateScratch scratch{warp_values, warp_counts, unbounded, list};
  const Tile tile = make_tile(p, first_image + blockIdx.z, sparse, tables);
  simt::sync_block();
  // Sparse tiles have fewer pixels than threads; the others only help to stage.
  const bool owns = tile.my_row() < tile.rows;
  const PixelTaps<kTaps> pixels(tile, tables);
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * classes_per_block;
  const int64_t end = simt::min<int64_t>(begin + classes_per_block, p.channels);
  Sink sink(p, tile, owns, ClassSpan{begin, end});
  const int chunk = chunk_classes(tile);
  for (int pass = 0; pass < Sink::kPasses; ++pass) {
    sink.start(pass);
    for (int64_t group = begin; group < end; group += kGroup) {
      const int count =
          list_candidates(p, tile, tables, group, simt::min<int64_t>(group + kGroup, end), prune,
                          Sink::margin(p), scratch);
      for (int first = 0; first < count; first += chunk) {
        const int now = simt::min(chunk, count - first);
        const float* mixed = stage_classes<kTaps>(p, tile, tables, list + first, group, now);
        if (owns) {
          for (int k = 0; k < now; ++k) {
            float value[kPixels];
            pixels.mix(mixed + (k * tile.rows + tile.my_row()) * tile.column_cells, value);
            sink.take(group + list[first + k], value, pass);
          }
        }
        simt::sync_block();
      }
    }
  }
  sink.finish();
}

template <class Sink>
simt::Status launch(const MaskUpsampleParams& p, int64_t classes_per_block, bool prune,
                    void* stream) {
  const bool sparse = sparse_tiles(p);
  const int64_t tiles =
      simt::ceil_div<int64_t>(p.out_height, sparse ? kSparseRows : kTileRows) *
      simt::ceil_div<int64_t>(p.out_width, sparse ? kSparseColumns : kTileColumns);
  const int64_t spans =
      simt::ceil_div<int64_t>(simt::max<int64_t>(p.channels, 1), classes_per_block);
  for (int64_t image = 0; image < p.batch; image += simt::kMostBlocksYZ) {
    const dim3 grid(
        static_cast<unsigned>(tiles), static_cast<unsigned>(spans),
        static_cast<unsigned>(simt::min<int64_t>(p.batch - image, simt::kMostBlocksYZ)));
    const simt::Status status = p.mode == UpsampleMode::kBilinear
                                    ? PW_LAUNCH((upsample<2, Sink>), grid, dim3(kThreads), 0,
                                                stream, p, sparse, prune, classes_per_block, image)
                                    : PW_LAUNCH((upsample<4, Sink>), grid, dim3(kThreads), 0,
                                                stream, p, sparse, prune, classes_per_block, image);
    if (!status.ok()) return status;
  }
  return {};
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads)
    fill_words(uint32_t* words, int64_t count, uint32_t even, uint32_t odd) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) words[i] = i % 2 == 0 ? even : odd;
}

simt::Status fill(void* memory, int64_t words, uint32_t even, uint32_t odd, void* stream) {
  if (words == 0) return {};
  return PW_LAUNCH(fill_words, simt::blocks_for(words, kThreads), dim3(kThreads), 0, stream,
                   static_cast<uint32_t*>(memory), words, even, odd);
}

simt::Status run_maps(const MaskUpsampleParams& p, void* stream) {
  // Several classes share the tile's tables, few enough for small batches to fill the chip.
  constexpr int64_t kClassesPerBlock = 8;
  if (p.output == UpsampleOutput::kMinMax) {
    const simt::Status filled =
        fill(p.workspace, 2 * p.batch * p.channels, 0xffffffffu, 0u, stream);
    if (!filled.ok()) return filled;
    const simt::Status measured = launch<MeasureSink>(p, kClassesPerBlock, false, stream);
    if (!measured.ok()) return measured;
  }
  return launch<MapSink>(p, kClassesPerBlock, false, stream);
}

simt::Status run(const MaskUpsampleParams& p, void* stream) {
  const bool prune = prunes_cells(p.height, p.width, p.out_height, p.out_width);
  const int64_t all = simt::max<int64_t>(p.channels, 1);
  switch (p.output) {
    case UpsampleOutput::kLabels: return launch<LabelSink>(p, all, prune, stream);
    case UpsampleOutput::kConfidence: return launch<ConfidenceSink>(p, all, prune, stream);
    case UpsampleOutput::kSoftmax: return launch<SoftmaxSink>(p, all, false, stream);
    case UpsampleOutput::kConfusion: {
      const simt::Status filled = fill(p.confusion, 2 * p.channels * p.channels, 0u, 0u, stream);
      return filled.ok() ? launch<ConfusionSink>(p, all, prune, stream) : filled;
    }
    default: return run_maps(p, stream);
  }
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_mask_upsample(const patchword::MaskUpsampleParams* p, void* stream,
                                    char* message, size_t message_len) {
  return patchword::run(*p, stream).report(message, message_len);
}
