// SPDX-License-Identifier: Apache-2.0
// Joins on the CPU: branch-free merges, four of them side by side since one waits for its loads.
#include "kernels/common/cpu_levels.h"
#include "kernels/common/simd.h"
#include "kernels/common/threads.h"
#include "kernels/keypoint_join/join_lists.h"

namespace patchword {
namespace PW_LEVEL {
namespace {

// A list this many times as long as the other is searched rather than walked.
constexpr int64_t kGallop = 16;
// Fewer steps than this are not worth setting four merges up for.
constexpr int64_t kFewSteps = 16, kMostSteps = 1024;

// A part of a join: [i, end0) of the first list with [j, end1) of the second.
struct Part {
  const int64_t *ids0, *ids1;
  int64_t i, end0, j, end1;
  int64_t found;  // counts: matches so far; fills: where the next one goes
  int64_t steps() const {
    const int64_t left0 = end0 - i, left1 = end1 - j;
    return left0 < left1 ? left0 : left1;
  }
};

struct Target {
  int64_t *rows0, *rows1;
  int64_t capacity;

  PW_INLINE void write(int64_t at, int64_t row0, int64_t row1) const {
    if (at >= capacity) return;
    rows0[at] = row0;
    rows1[at] = row1;
  }
  PW_INLINE void write_all(int64_t at, int64_t count, const int64_t* from0,
                           const int64_t* from1) const {
    if (count > capacity - at) count = capacity - at;
    if (count <= 0) return;
    __builtin_memcpy(rows0 + at, from0, static_cast<uint64_t>(count) * 8);
    __builtin_memcpy(rows1 + at, from1, static_cast<uint64_t>(count) * 8);
  }
};

template <bool Fill>
void merge(Part& part, const Target& target) {
  while (part.i < part.end0 && part.j < part.end1) {
    const int64_t a = part.ids0[part.i], b = part.ids1[part.j];
    if (a == b) {
      if constexpr (Fill) target.write(part.found, part.i, part.j);
      ++part.found;
    }
    part.i += a <= b;
    part.j += b <= a;
  }
}

// 0 or 1 in a register: the compiler must not turn it back into a jump, which would be mispredicted
// at every other step.
PW_INLINE int64_t number(bool condition) {
  int64_t value = condition;
  asm("" : "+r"(value));
  return value;
}

// All parts side by side, kMostSteps at a time: no part can run over an end within the smallest
// number of steps that any of them has left. Matches are noted in a row of the stack, where the
// next note simply covers one that was none.
template <bool Fill>
void merge_together(Part (&parts)[kJoinParts], const Target& target) {
  int64_t noted0[kJoinParts][kMostSteps + 1], noted1[kJoinParts][kMostSteps + 1];
  const int64_t *const ids0 = parts[0].ids0, *const ids1 = parts[0].ids1;
  for (;;) {
    int64_t steps = kMostSteps;
    for (const Part& part : parts) steps = part.steps() < steps ? part.steps() : steps;
    if (steps < kFewSteps) break;
    int64_t i[kJoinParts], j[kJoinParts], found[kJoinParts] = {};
#pragma GCC unroll 4
    for (int k = 0; k < kJoinParts; ++k) i[k] = parts[k].i, j[k] = parts[k].j;
    for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 4
      for (int k = 0; k < kJoinParts; ++k) {
        const int64_t a = ids0[i[k]], b = ids1[j[k]];
        if constexpr (Fill) {
          noted0[k][found[k]] = i[k];
          noted1[k][found[k]] = j[k];
        }
        const int64_t first = number(a <= b), second = number(b <= a);
        if constexpr (Fill) found[k] += first & second;
        i[k] += first;
        j[k] += second;
      }
    }
    for (int k = 0; k < kJoinParts; ++k) {
      // A step with a match advances two lists, any other step one.
      if constexpr (!Fill) found[k] = i[k] - parts[k].i + j[k] - parts[k].j - steps;
      if constexpr (Fill) target.write_all(parts[k].found, found[k], noted0[k], noted1[k]);
      parts[k].i = i[k], parts[k].j = j[k];
      parts[k].found += found[k];
    }
  }
  for (Part& part : parts) merge<Fill>(part, target);
}

// As merge, past repetitions of an id: only its first occurrences are joined.
template <bool Fill>
void merge_distinct(Part& part, const Target& target) {
  while (part.i < part.end0 && part.j < part.end1) {
    const int64_t a = part.ids0[part.i], b = part.ids1[part.j];
    if (a == b) {
      if constexpr (Fill) target.write(part.found, part.i, part.j);
      ++part.found;
    }
    if (a <= b) {
      do ++part.i;
      while (part.i < part.end0 && part.ids0[part.i] == a);
    }
    if (b <= a) {
      do ++part.j;
      while (part.j < part.end1 && part.ids1[part.j] == b);
    }
  }
}

// The first place from `from` on whose id is not below `id`, by steps that double.
int64_t gallop(const int64_t* ids, int64_t from, int64_t end, int64_t id) {
  int64_t low = from, width = 1;
  while (low + width < end && ids[low + width] < id) {
    low += width;
    width *= 2;
  }
  const int64_t high = low + width < end ? low + width + 1 : end;
  return lower_bound(ids, low, high, id);
}

template <bool Fill, bool FirstIsShort>
void search(Part& part, const Target& target) {
  const int64_t* few = FirstIsShort ? part.ids0 : part.ids1;
  const int64_t* many = FirstIsShort ? part.ids1 : part.ids0;
  int64_t at = FirstIsShort ? part.i : part.j;
  int64_t place = FirstIsShort ? part.j : part.i;
  const int64_t few_end = FirstIsShort ? part.end0 : part.end1;
  const int64_t many_end = FirstIsShort ? part.end1 : part.end0;
  for (; at < few_end; ++at) {
    place = gallop(many, place, many_end, few[at]);
    if (place == many_end) return;
    if (many[place] != few[at]) continue;
    if constexpr (Fill) {
      target.write(part.found, FirstIsShort ? at : place, FirstIsShort ? place : at);
    }
    ++part.found;
  }
}

// Cuts a join at quarters of its first list. Equal ids never come to lie in two parts.
void cut(const IdList& list0, const IdList& list1, Part (&parts)[kJoinParts]) {
  int64_t i = 0, j = 0;
  for (int k = 0; k < kJoinParts; ++k) {
    Part part{list0.ids, list1.ids, i, list0.count, j, list1.count, 0};
    if (k + 1 < kJoinParts && list0.count > 0) {
      const int64_t id = list0.ids[list0.count * (k + 1) / kJoinParts];
      part.end0 = lower_bound(list0.ids, i, list0.count, id);
      part.end1 = lower_bound(list1.ids, j, list1.count, id);
    }
    i = part.end0;
    j = part.end1;
    parts[k] = part;
  }
}

uint8_t flags_of(const uint8_t* flags, const KeypointJoinParams& p, int64_t image) {
  return image < 0 || image >= p.images ? uint8_t{0} : flags[image];
}

// `starts` holds where each part's matches go, or is null for a count; `counts` gets the numbers.
template <bool Fill>
void join(const KeypointJoinParams& p, const uint8_t* flags, int64_t pair, const int64_t* starts,
          int64_t* counts, const Target& target) {
  const int64_t image0 = p.pairs[2 * pair], image1 = p.pairs[2 * pair + 1];
  const IdList list0 = ids_of(p, image0), list1 = ids_of(p, image1);
  Part parts[kJoinParts];
  cut(list0, list1, parts);
  for (int k = 0; k < kJoinParts; ++k) parts[k].found = Fill ? starts[k] : 0;
  if ((flags_of(flags, p, image0) | flags_of(flags, p, image1)) != 0) {
    for (Part& part : parts) merge_distinct<Fill>(part, target);
  } else if (list0.count > kGallop * list1.count) {
    for (Part& part : parts) search<Fill, false>(part, target);
  } else if (list1.count > kGallop * list0.count) {
    for (Part& part : parts) search<Fill, true>(part, target);
  } else {
    merge_together<Fill>(parts, target);
  }
  if constexpr (!Fill) {
    for (int k = 0; k < kJoinParts; ++k) counts[k] = parts[k].found;
  }
}

uint8_t inspect(const IdList& list) {
  int64_t equal = 0, below = 0;
  for (int64_t i = 1; i < list.count; ++i) {
    equal += list.ids[i] == list.ids[i - 1];
    below += list.ids[i] < list.ids[i - 1];
  }
  return static_cast<uint8_t>((equal ? kJoinDuplicates : 0) | (below ? kJoinUnsorted : 0));
}

double expected_ns(const KeypointJoinParams& p) {
  const double mean =
      p.images == 0 ? 0.0 : static_cast<double>(p.total) / static_cast<double>(p.images);
  return static_cast<double>(p.pair_count) * (50.0 + mean);
}

Status count(const KeypointJoinCountParams& q, int threads) {
  const KeypointJoinParams& p = q.join;
  parallel_for(useful_threads(threads, p.images, 0.5 * static_cast<double>(p.total)), p.images,
               [&](int64_t begin, int64_t end, int) {
                 for (int64_t i = begin; i < end; ++i) q.flags[i] = inspect(ids_of(p, i));
               });
  parallel_for(useful_threads(threads, p.pair_count, expected_ns(p)), p.pair_count,
               [&](int64_t begin, int64_t end, int) {
                 const Target nowhere{};
                 for (int64_t i = begin; i < end; ++i) {
                   join<false>(p, q.flags, i, nullptr, q.counts + kJoinParts * i, nowhere);
                 }
               });
  return ok_status();
}

Status fill(const KeypointJoinFillParams& q, int threads) {
  const KeypointJoinParams& p = q.join;
  parallel_for(useful_threads(threads, p.pair_count, expected_ns(p)), p.pair_count,
               [&](int64_t begin, int64_t end, int) {
                 const Target target{q.rows0, q.rows1, q.capacity};
                 for (int64_t i = begin; i < end; ++i) {
                   join<true>(p, q.flags, i, q.starts + kJoinParts * i, nullptr, target);
                 }
               });
  for (int64_t i = q.starts[kJoinParts * p.pair_count]; i < q.capacity; ++i) {
    q.rows0[i] = q.rows1[i] = -1;
  }
  return ok_status();
}

}  // namespace
}  // namespace PW_LEVEL

extern const KeypointJoinTable PW_LEVEL_TABLE(kKeypointJoin);
const KeypointJoinTable PW_LEVEL_TABLE(kKeypointJoin) = {&PW_LEVEL::count, &PW_LEVEL::fill};

}  // namespace patchword
