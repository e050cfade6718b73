// Scratch buffers that a thread reuses: newly allocated memory costs a page fault for every four kilobytes.
#pragma once

#include <cstdint>
#include <new>

namespace macllm {

// Uninitialised values, aligned to cache lines.
template <class T>
class ThreadScratch {
 public:
  ~ThreadScratch() { operator delete[](data_, LINE); }

  T* reserve(int64_t count) {
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
