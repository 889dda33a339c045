// SPDX-License-Identifier: Apache-2.0
// Joins on CUDA: a warp per pair, 32 ids of the first list at a time looked up in the second.

#include "kernels/common/simt.cuh"
#include "kernels/keypoint_join/join_lists.h"

namespace patchword {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

// A warp per image: whether neighbours are equal or descend.
PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) inspect(const KeypointJoinCountParams q) {
  const int64_t image = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (image >= q.join.images) return;
  const IdList list = ids_of(q.join, image);
  bool equal = false, below = false;
  for (int64_t i = simt::lane_id() + 1; i < list.count; i += 32) {
    equal |= list.ids[i] == list.ids[i - 1];
    below |= list.ids[i] < list.ids[i - 1];
  }
  const bool any_equal = simt::any(equal), any_below = simt::any(below);
  if (simt::lane_id() == 0) {
    q.flags[image] =
        static_cast<uint8_t>((any_equal ? kJoinDuplicates : 0) | (any_below ? kJoinUnsorted : 0));
  }
}

PW_DEVICE int bits_set(unsigned mask) {
  int count = 0;
  for (; mask != 0; mask &= mask - 1) ++count;
  return count;
}

// Goes through a pair's matches in order; `found(place, row0, row1)` gets each, in lanes. Returns
// their number.
template <class Found>
PW_DEVICE int64_t join_pair(const KeypointJoinParams& p, int64_t pair, Found found) {
  const IdList list0 = ids_of(p, p.pairs[2 * pair]), list1 = ids_of(p, p.pairs[2 * pair + 1]);
  const int lane = static_cast<int>(simt::lane_id());
  int64_t total = 0, low = 0;
  for (int64_t base = 0; base < list0.count; base += 32) {
    const int64_t i = base + lane;
    bool same = false;
    int64_t j = low;
    if (i < list0.count) {
      j = lower_bound(list1.ids, low, list1.count, list0.ids[i]);
      const bool first = i == 0 || list0.ids[i - 1] != list0.ids[i];
      same = first && j < list1.count && list1.ids[j] == list0.ids[i];
    }
    const unsigned mask = simt::ballot(same);
    if (same) found(total + bits_set(mask & ((1u << lane) - 1u)), i, j);
    total += bits_set(mask);
    // What the first of these ids left behind, the next 32 need not search again.
    low = simt::shuffle(j, 0);
  }
  return total;
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) count_pairs(const KeypointJoinCountParams q) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (pair >= q.join.pair_count) return;
  const int64_t total = join_pair(q.join, pair, [](int64_t, int64_t, int64_t) {});
  const int lane = static_cast<int>(simt::lane_id());
  if (lane < kJoinParts) q.counts[kJoinParts * pair + lane] = lane == 0 ? total : 0;
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) fill_pairs(const KeypointJoinFillParams q) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kWarps + simt::warp_id();
  if (pair >= q.join.pair_count) return;
  const int64_t start = q.starts[kJoinParts * pair];
  join_pair(q.join, pair, [&](int64_t place, int64_t row0, int64_t row1) {
    if (start + place >= q.capacity) return;
    q.rows0[start + place] = row0;
    q.rows1[start + place] = row1;
  });
}

PW_KERNEL void PW_LAUNCH_BOUNDS(kThreads) fill_rest(const KeypointJoinFillParams q) {
  const int64_t first = q.starts[kJoinParts * q.join.pair_count];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < first || i >= q.capacity) return;
  q.rows0[i] = -1;
  q.rows1[i] = -1;
}

}  // namespace
}  // namespace patchword

PW_EXPORT int pw_cuda_keypoint_join_count(const patchword::KeypointJoinCountParams* q, void* stream,
                                          char* message, size_t length) {
  using namespace patchword;
  simt::Status status;
  if (q->join.images > 0) {
    status = PW_LAUNCH(inspect, simt::blocks_for(q->join.images, kWarps), kThreads, 0, stream, *q);
  }
  if (status.ok() && q->join.pair_count > 0) {
    status = PW_LAUNCH(count_pairs, simt::blocks_for(q->join.pair_count, kWarps), kThreads, 0,
                       stream, *q);
  }
  return status.report(message, length);
}

PW_EXPORT int pw_cuda_keypoint_join_fill(const patchword::KeypointJoinFillParams* q, void* stream,
                                         char* message, size_t length) {
  using namespace patchword;
  if (q->capacity == 0) return 0;
  simt::Status status;
  if (q->join.pair_count > 0) {
    status = PW_LAUNCH(fill_pairs, simt::blocks_for(q->join.pair_count, kWarps), kThreads, 0,
                       stream, *q);
  }
  if (status.ok()) {
    status = PW_LAUNCH(fill_rest, simt::blocks_for(q->capacity, kThreads), kThreads, 0, stream, *q);
  }
  return status.report(message, length);
}
