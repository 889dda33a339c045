// SPDX-License-Identifier: Apache-2.0
// The order in which the host SIMT engine runs threads and blocks.
//
// Included by simt_host.cpp only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

namespace patchword::simt::host {

class Order {
 public:
  // Reads forward (null), reverse or random:<seed>; returns whether it is one of them.
  bool parse(const char* text) {
    if (text == nullptr || std::strcmp(text, "forward") == 0) return true;
    if (std::strcmp(text, "reverse") == 0) {
      reverse_ = true;
      return true;
    }
    if (std::strncmp(text, "random:", 7) != 0) return false;
    char* end = nullptr;
    generator_.seed(static_cast<unsigned>(std::strtoul(text + 7, &end, 10)));
    random_ = true;
    return end != text + 7 && *end == '\0';
  }

  // 0 to count - 1 in this order.
  std::vector<std::size_t> first(std::size_t count) {
    std::vector<std::size_t> order(count);
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (reverse_) std::reverse(order.begin(), order.end());
    next(order);
    return order;
  }

  // The order of the next round of the scheduler.
  void next(std::vector<std::size_t>& order) {
    if (random_) std::shuffle(order.begin(), order.end(), generator_);
  }

 private:
  bool reverse_ = false, random_ = false;
  std::mt19937 generator_;
};

}  // namespace patchword::simt::host
