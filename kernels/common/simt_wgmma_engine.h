// SPDX-License-Identifier: Apache-2.0
// Warpgroup products (wgmma) in the host SIMT engine: rules, operands, sums.
//
// Included by simt_host.cpp only.
#pragma once

#include "kernels/common/simt_engine.h"

namespace patchword::simt::host {
namespace {

// The warps of a warpgroup must have issued the same products.
void Engine::check_warpgroups() {
  for (std::size_t w = 0; w < warps_.size(); ++w) {
    const std::size_t issued = w / 4 < products_.size() ? products_[w / 4].size() : 0;
    if (warps_[w].products == issued) continue;
    message = format("kernel %s, block ", config_.name) + triple(lanes_[0].block) +
              format(", warp %zu issued %zu wgmma, another warp of its warpgroup %zu", w,
                     warps_[w].products, issued);
    failed_ = true;
    return;
  }
}

// Called by the last lane of a warp that issues; a slot is the lane itself.
void Engine::issue_product(void* const* slots, unsigned) {
  const auto& first = *static_cast<const Lane*>(slots[0]);
  const WgmmaProduct& product = first.wgmma.products.back();
  const WgmmaSignature signature(product.operands);
  const unsigned warp = first.linear / 32;
  const std::string here = "wgmma at " + where(product.site);
  for (unsigned l = 1; l < 32; ++l) {
    const WgmmaProduct& other = static_cast<const Lane*>(slots[l])->wgmma.products.back();
    if (WgmmaSignature(other.operands) != signature) {
      fail(here + format(": lanes 0 and %u differ in descriptors or form", l));
    }
  }
  if (warp / 4 >= products_.size()) {
    fail(here + ": a warpgroup is four whole warps, the first with a number divisible by 4");
  }
  std::vector<WgmmaSignature>& issued = products_[warp / 4];
  const std::size_t index = warps_[warp].products++;
  if (index == issued.size()) issued.push_back(signature);
  if (issued[index] != signature) {
    fail(here + format(": warp %u differs from its warpgroup in descriptors or form", warp));
  }
  if (early_copies) multiply(warp, first.wgmma.products.size() - 1);
}

// A 16-bit element of an operand, which the asynchronous proxy must be able to see.
std::uint16_t Engine::read_operand(unsigned address, const Site& site) {
  const SharedMemory::Array* array = memory_.array_at(address, 2);
  if (array == nullptr) {
    fail("wgmma at " + where(site) +
         format(" reads address %u, outside the block's shared memory", address));
  }
  const std::size_t offset = address - array->address;
  if (!array->marks.empty()) {
    const CopyMark& mark = array->marks[offset / 16];
    if (mark.thread < threads_ && lanes_[mark.thread].fences == mark.fences) {
      fail("wgmma at " + where(site) + " reads what " + describe(lanes_[mark.thread]) +
           " copied without fence_async_proxy after the wait");
    }
  }
  std::uint16_t bits;
  std::memcpy(&bits, array->begin() + offset, 2);
  return bits;
}

// The products of a warp's 16 rows, for the product with number `index` of its lanes.
void Engine::multiply(unsigned warp, std::size_t index) {
  const WgmmaProduct& shape = lane_of(warp, 0).wgmma.products[index];
  const WgmmaOperands& o = shape.operands;
  const auto columns = static_cast<unsigned>(o.columns);
  const auto check = [&](const char* name, const WgmmaMatrix& matrix) {
    if (matrix.problem() == nullptr) return;
    fail("wgmma at " + where(shape.site) + format(": the descriptor of %s ", name) +
         matrix.problem());
  };
  double a[16][16];
  if (o.a == nullptr) {
    const WgmmaMatrix matrix(o.a_descriptor, false);
    check("A", matrix);
    for (unsigned row = 0; row < 16; ++row) {
      for (unsigned k = 0; k < 16; ++k) {
        a[row][k] = o.decode(read_operand(matrix.address(warp % 4 * 16 + row, k), shape.site));
      }
    }
  }
  const WgmmaMatrix matrix(o.b_descriptor, o.transposed_b);
  check("B", matrix);
  std::vector<double> b(columns * 16);
  for (unsigned n = 0; n < columns; ++n) {
    for (unsigned k = 0; k < 16; ++k) {
      b[n * 16 + k] = o.decode(read_operand(matrix.address(n, k), shape.site));
    }
  }
  for (unsigned l = 0; l < 32 && o.a != nullptr; ++l) {
    const WgmmaProduct& product = lane_of(warp, l).wgmma.products[index];
    for (unsigned i = 0; i < 8; ++i) {
      a[l / 4 + i / 2 % 2 * 8][2 * (l % 4) + i % 2 + i / 4 * 8] =
          o.decode(static_cast<std::uint16_t>(product.a[i / 2] >> 16 * (i % 2)));
    }
  }
  for (unsigned l = 0; l < 32; ++l) {
    std::vector<double>& sums = lane_of(warp, l).wgmma.products[index].sums;
    sums.resize(columns / 2);
    for (unsigned i = 0; i < columns / 2; ++i) {
      const unsigned row = l / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * (l % 4) + i % 2;
      double sum = 0;
      for (unsigned k = 0; k < 16; ++k) sum += a[row][k] * b[column * 16 + k];
      sums[i] = sum;
    }
  }
}

}  // namespace

unsigned shared_address(const void* pointer, const Site& site) {
  const SharedMemory::Array* array = engine->memory().array_of(pointer, 0);
  if (array == nullptr) {
    engine->fail("shared_address at " + where(site) + " of what is no shared memory");
  }
  return array->address +
         static_cast<unsigned>(static_cast<const unsigned char*>(pointer) - array->begin());
}

void fence_async_proxy() { ++engine->lane().fences; }

void wgmma_issue(const WgmmaOperands& operands, const Site& site) {
  Lane& lane = engine->lane();
  if (!lane.wgmma.fenced) {
    engine->fail("wgmma at " + where(site) +
                 ": no wgmma_fence since the registers were free for other use");
  }
  lane.wgmma.products.push_back({operands, {}, lane.wgmma.group, site, {}});
  WgmmaProduct& product = lane.wgmma.products.back();
  if (operands.a != nullptr) std::memcpy(product.a, operands.a, sizeof(product.a));
  if (!lane.wgmma.claim(product)) {
    engine->fail("wgmma at " + where(site) + ": its accumulators were touched while in flight");
  }
  warp_collective(
      "wgmma", ~0u, &lane,
      [](void* const* slots, unsigned mask) { engine->issue_product(slots, mask); }, site);
}

void wgmma_fence(const Site& site) {
  vote("wgmma_fence", ~0u, false, site);
  engine->lane().wgmma.fenced = true;
}

void wgmma_commit(const Site& site) {
  vote("wgmma_commit", ~0u, false, site);
  ++engine->lane().wgmma.group;
}

void wgmma_wait(std::size_t groups_left, const Site& site) {
  Lane& lane = engine->lane();
  WgmmaLane& own = lane.wgmma;
  std::size_t done = 0;
  while (done < own.products.size() && own.products[done].group + groups_left < own.group) ++done;
  warp_collective(
      "wgmma_wait", ~0u, &done,
      [](void* const* slots, unsigned) {
        const unsigned warp = engine->lane().linear / 32;
        for (std::size_t i = 0; i < *static_cast<const std::size_t*>(slots[0]); ++i) {
          if (engine->lane_of(warp, 0).wgmma.products[i].sums.empty()) engine->multiply(warp, i);
        }
      },
      site);
  for (; done > 0; --done) {
    const std::string issued = where(own.products.front().site);
    if (!own.complete()) {
      engine->fail("the accumulators of the wgmma at " + issued +
                   " were touched before the wait at " + where(site));
    }
  }
  own.fenced = false;
}

}  // namespace patchword::simt::host
