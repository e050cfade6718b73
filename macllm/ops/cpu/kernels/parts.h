// A range cut into even parts.
#pragma once

#include <algorithm>
#include <cstdint>

namespace macllm {

// [0, size) in as few parts as are no larger than `most`; they differ in length by one at most. Where a part begins takes
// no division, which is as slow as a hundred products.
class Parts {
 public:
  Parts(int64_t size, int64_t most)
      : count((size + most - 1) / most), least_(count ? size / count : 0), longer_(count ? size % count : 0) {}

  int64_t begin(int64_t i) const { return i * least_ + std::min(i, longer_); }
  int64_t length(int64_t i) const { return least_ + (i < longer_); }

  int64_t count;

 private:
  int64_t least_, longer_;
};

}  // namespace macllm
