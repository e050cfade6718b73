// Memory that a thread keeps for its next call: allocating megabytes anew costs a page fault for every four kilobytes.
#pragma once

#include <cstdint>
#include <new>

namespace macllm {

// Values of no particular value, where no vector crosses a cache line.
template <class T>
class Kept {
 public:
  ~Kept() { operator delete[](data_, LINE); }

  T* room(int64_t count) {
    if (count > size_) {
      operator delete[](data_, LINE);
      data_ = nullptr, size_ = 0;
      data_ = static_cast<T*>(operator new[](count * sizeof(T), LINE));
      size_ = count;
    }
    return data_;
  }

 private:
  static constexpr std::align_val_t LINE{64};
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace macllm
