// A range divided into parts of about equal length.
#pragma once

#include <algorithm>
#include <cstdint>

namespace macllm {

// [0, size) in as few parts as possible of at most `most`; their lengths differ by at most one. `begin` needs no division,
// which is as slow as a hundred products.
class Ranges {
 public:
  Ranges(int64_t size, int64_t most)
      : count((size + most - 1) / most), least_(count ? size / count : 0), longer_(count ? size % count : 0) {}

  int64_t begin(int64_t i) const { return i * least_ + std::min(i, longer_); }
  int64_t length(int64_t i) const { return least_ + (i < longer_); }

  int64_t count;

 private:
  int64_t least_, longer_;
};

}  // namespace macllm
