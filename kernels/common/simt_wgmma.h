// SPDX-License-Identifier: Apache-2.0
// Warpgroup products (wgmma) of the block that the host SIMT engine runs: state and operand
// layouts.
//
// Each warp multiplies its own 16 rows when its own lanes have issued or waited, so that a kernel
// cannot lean on an order between warps that the hardware does not promise. Accumulators of
// products in flight hold a NaN pattern until the wait. Included by simt_lane.h only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/common/simt_host.h"

namespace patchword::simt::host {

// One product that a lane has issued and that no wait has covered.
struct WgmmaProduct {
  WgmmaOperands operands;
  std::uint32_t a[4];
  std::size_t group;
  Site site;
  std::vector<double> sums;  // empty until multiplied
};

// The value of accumulators whose registers are poisoned, after the products that are complete.
struct WgmmaAccumulator {
  float* registers;
  std::vector<float> value;
};

constexpr std::uint32_t kInFlight = 0xffffa5a5u;  // a NaN

struct WgmmaLane {
  std::vector<WgmmaProduct> products;
  std::vector<WgmmaAccumulator> accumulators;
  std::size_t group = 0;
  bool fenced = false;

  // Takes the registers of `product` away; false: they were touched while in flight.
  bool claim(const WgmmaProduct& product) {
    float* registers = product.operands.d;
    const auto count = static_cast<std::size_t>(product.operands.columns) / 2;
    for (const WgmmaAccumulator& held : accumulators) {
      if (held.registers == registers) return held.value.size() == count && untouched(held);
    }
    accumulators.push_back({registers, std::vector<float>(registers, registers + count)});
    for (std::size_t i = 0; i < count; ++i) std::memcpy(registers + i, &kInFlight, 4);
    return true;
  }

  // Completes the oldest product; false: its registers were touched while in flight.
  bool complete() {
    const WgmmaProduct product = std::move(products.front());
    products.erase(products.begin());
    std::size_t at = 0;
    while (accumulators[at].registers != product.operands.d) ++at;
    WgmmaAccumulator& held = accumulators[at];
    for (std::size_t i = 0; i < held.value.size(); ++i) {
      const double before = product.operands.accumulate ? held.value[i] : 0.0;
      held.value[i] = static_cast<float>(product.sums[i] + before);
    }
    for (const WgmmaProduct& later : products) {
      if (later.operands.d == held.registers) return true;
    }
    const bool intact = untouched(held);
    std::memcpy(held.registers, held.value.data(), 4 * held.value.size());
    accumulators.erase(accumulators.begin() + static_cast<std::ptrdiff_t>(at));
    return intact;
  }

 private:
  static bool untouched(const WgmmaAccumulator& held) {
    for (std::size_t i = 0; i < held.value.size(); ++i) {
      if (std::memcmp(held.registers + i, &kInFlight, 4) != 0) return false;
    }
    return true;
  }
};

// What the warps of a warpgroup must agree on, product by product.
struct WgmmaSignature {
  std::uint64_t a_descriptor, b_descriptor;
  int columns;
  bool from_registers, transposed_b, accumulate;

  explicit WgmmaSignature(const WgmmaOperands& o)
      : a_descriptor(o.a == nullptr ? o.a_descriptor : 0),
        b_descriptor(o.b_descriptor),
        columns(o.columns),
        from_registers(o.a != nullptr),
        transposed_b(o.transposed_b),
        accumulate(o.accumulate) {}
  bool operator==(const WgmmaSignature&) const = default;
};

// A matrix descriptor: where element (mn, k) of a 16-bit operand with 16 columns along k lies.
class WgmmaMatrix {
 public:
  WgmmaMatrix(std::uint64_t descriptor, bool transposed)
      : start_(field(descriptor, 0)),
        leading_(field(descriptor, 16)),
        stride_(field(descriptor, 32)),
        transposed_(transposed) {
    const unsigned mode = static_cast<unsigned>(descriptor >> 62);
    width_ = mode == 1 ? 128 : mode == 2 ? 64 : 0;
    // The pattern repeats every 8 rows. A start inside a row is a step along k of a K-major matrix.
    const unsigned inside = width_ == 0 ? 0 : start_ % (8 * width_);
    if (width_ == 0) {
      problem_ = "has a swizzle mode that the host does not know: 128 (1) and 64 bytes (2) only";
    } else if ((descriptor >> 49 & 7) != 0) {
      problem_ = "has a base offset, which aligned panels do not need";
    } else if (transposed ? inside != 0 : inside + 32 > width_) {
      problem_ = "does not start where the swizzle pattern does";
    } else if (stride_ % (8 * width_) != 0 || (transposed && leading_ % (8 * width_) != 0)) {
      problem_ = "steps by less than the swizzle pattern";
    }
  }

  // What is wrong with the descriptor, or null.
  const char* problem() const { return problem_; }

  // Byte address in shared memory.
  unsigned address(unsigned mn, unsigned k) const {
    unsigned linear = start_;
    if (transposed_) {
      const unsigned across = width_ / 2;
      linear += mn / across * leading_ + mn % across * 2 + k / 8 * stride_ + k % 8 * width_;
    } else {
      linear += mn / 8 * stride_ + mn % 8 * width_ + k * 2;
    }
    // Bits 4 to 6 (4 and 5 with 64 bytes) meet the three (two) bits from bit 7 on.
    return linear ^ (linear >> 7 & (width_ / 16 - 1)) << 4;
  }

 private:
  static unsigned field(std::uint64_t descriptor, int bit) {
    return static_cast<unsigned>(descriptor >> bit & 0x3fff) << 4;
  }

  unsigned start_, leading_, stride_, width_;
  bool transposed_;
  const char* problem_ = nullptr;
};

}  // namespace patchword::simt::host
