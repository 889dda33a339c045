// SPDX-License-Identifier: Apache-2.0
// Which form of the CUDA kernels a call takes, and where partial results lie in its workspace: pure
// functions of shapes, so that equal calls on one device give equal bits.
#pragma once

#include <cstdlib>
#include <cstring>

#include "kernels/attention/attention.h"
#include "kernels/common/portable.h"

namespace patchword {

constexpr int kRows = 64;      // of the tile that a block owns: 16 a warp
constexpr int kWarpRows = 16;  // of the tile that a warp owns where every set is tiny
// Blocks that share the keys of a tile take them in runs of this many.
constexpr std::int64_t kKeyRun = 64;
constexpr std::int64_t kMostSplits = 64;

struct AttentionForm {
  bool warps;  // a warp per tile of 16 rows, nothing in shared memory
  std::int64_t splits[kAttentionMaxStreams];  // blocks that share the keys of one tile
};

// Rows of a set in the order [batch, row]; a ragged set is one run of rows.
PW_PORTABLE std::int64_t attention_rows(const std::int64_t* offsets, std::int64_t batch,
                                        std::int64_t rows) {
  return offsets == nullptr ? batch * rows : rows;
}

// Rows of one set: ragged ones on average, since their offsets lie in device memory.
PW_PORTABLE std::int64_t attention_mean_rows(const std::int64_t* offsets, std::int64_t batch,
                                             std::int64_t rows) {
  return offsets == nullptr || batch == 0 ? rows : (rows + batch - 1) / batch;
}

PW_PORTABLE bool attention_is_tiny(const AttentionParams& p) {
  for (int i = 0; i < p.num_streams; ++i) {
    const AttentionStream& s = p.streams[i];
    if (attention_mean_rows(s.query_offsets, p.batch, s.num_queries) > kWarpRows ||
        attention_mean_rows(s.key_offsets, p.batch, s.num_keys) > kWarpRows) {
      return false;
    }
  }
  return true;
}

// PATCHWORD_ATTENTION_FORM: `warps`, or `tiles` with `:count` splits. False: not set.
inline bool attention_forced_form(AttentionForm& form) {
  const char* text = std::getenv("PATCHWORD_ATTENTION_FORM");
  if (text == nullptr) return false;
  if (std::strcmp(text, "warps") == 0) {
    form = AttentionForm{true, {1, 1}};
    return true;
  }
  if (std::strncmp(text, "tiles:", 6) != 0) return false;
  const std::int64_t count = std::strtol(text + 6, nullptr, 10);
  if (count < 1 || count > kMostSplits) return false;
  form = AttentionForm{false, {count, count}};
  return true;
}

// Time is counted in runs of keys per block: a block costs its runs and one more for its start and
// end, the device works on two blocks per multiprocessor at once, and merging costs a launch.
inline AttentionForm attention_form(const AttentionParams& p, int multiprocessors) {
  constexpr std::int64_t kMerge = 4;
  AttentionForm form{attention_is_tiny(p), {1, 1}};
  if (attention_forced_form(form) || form.warps) return form;
  const std::int64_t slots = 2 * static_cast<std::int64_t>(multiprocessors);
  std::int64_t tiles[kAttentionMaxStreams] = {0, 0}, runs[kAttentionMaxStreams] = {0, 0}, most = 0;
  for (int i = 0; i < p.num_streams; ++i) {
    const AttentionStream& s = p.streams[i];
    const std::int64_t queries = attention_mean_rows(s.query_offsets, p.batch, s.num_queries);
    tiles[i] = p.batch * p.heads * ((queries + kRows - 1) / kRows);
    runs[i] = (attention_mean_rows(s.key_offsets, p.batch, s.num_keys) + kKeyRun - 1) / kKeyRun;
    if (tiles[i] > 0 && runs[i] > most) most = runs[i];
  }
  if (tiles[0] + tiles[1] >= slots) return form;
  std::int64_t least = most + 1;
  for (std::int64_t count = 2; count <= kMostSplits && count <= most; ++count) {
    const std::int64_t share = (most + count - 1) / count;
    std::int64_t splits[kAttentionMaxStreams], blocks = 0;
    for (int i = 0; i < kAttentionMaxStreams; ++i) {
      splits[i] = runs[i] <= share ? 1 : (runs[i] + share - 1) / share;
      blocks += tiles[i] * splits[i];
    }
    const std::int64_t rounds = (blocks + slots - 1) / slots;
    const std::int64_t cost = rounds * (share + 1) + kMerge + count / 4;
    if (cost < least) {
      least = cost;
      form.splits[0] = splits[0];
      form.splits[1] = splits[1];
    }
  }
  return form;
}

// Partial results of one stream: for each split, head and row the sums of weighted values, `pitch`
// floats, and (maximum, total). Offsets in floats from the workspace's start.
struct AttentionPartials {
  std::int64_t splits, rows;
  std::int64_t sums_at, states_at;
};

struct AttentionWorkspace {
  AttentionPartials streams[kAttentionMaxStreams];
  std::int64_t floats;
};

PW_PORTABLE std::int64_t attention_pitch(const AttentionParams& p) { return (p.dim + 7) / 8 * 8; }

inline AttentionWorkspace attention_workspace(const AttentionParams& p, const AttentionForm& form) {
  AttentionWorkspace w{};
  for (int i = 0; i < p.num_streams; ++i) {
    const AttentionStream& s = p.streams[i];
    AttentionPartials& mine = w.streams[i];
    mine.splits = form.splits[i];
    mine.rows = attention_rows(s.query_offsets, p.batch, s.num_queries);
    if (mine.splits == 1) continue;
    const std::int64_t slots = mine.splits * p.heads * mine.rows;
    mine.sums_at = w.floats;
    mine.states_at = mine.sums_at + slots * attention_pitch(p);
    w.floats = (mine.states_at + 2 * slots + 3) / 4 * 4;  // vectors of four stay aligned
  }
  return w;
}

}  // namespace patchword
