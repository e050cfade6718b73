// Fibers: stacks that run alternately on one thread of the operating system.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

namespace simulator {

constexpr int SAVED = 6;  // (x86-64) saved words before the return address

// Saves the callee-saved registers and the stack at *from, and continues with those saved at `to`.
extern "C" void simulator_switch(void** from, void* to);

// A stack with an inaccessible page below it.
class Stack {
 public:
  static constexpr size_t BYTES = 256 << 10, PAGE = 4096;

  Stack() {
    memory_ = mmap(nullptr, BYTES + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, PAGE, PROT_NONE);
  }
  ~Stack() { munmap(memory_, BYTES + PAGE); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  bool ends_at(const void* at) const {
    return at >= memory_ && at < static_cast<const char*>(memory_) + PAGE;
  }

  // A state to switch to that starts `run` at the top of the stack; `run` must not return.
  void* start(void (*run)()) const {
    auto top = reinterpret_cast<uintptr_t>(memory_) + PAGE + BYTES;
#if defined(__x86_64__)
    auto word = reinterpret_cast<uint64_t*>(top & ~uintptr_t(15));
    *--word = 0;  // where `run` would return to
    *--word = reinterpret_cast<uint64_t>(run);
    for (int i = 0; i < SAVED; i++) *--word = 0;
#else
    auto word = reinterpret_cast<uint64_t*>((top & ~uintptr_t(15)) - 176);
    for (int i = 0; i < 22; i++) word[i] = 0;
    word[11] = reinterpret_cast<uint64_t>(run);
#endif
    return word;
  }

 private:
  void* memory_;
};

}  // namespace simulator
