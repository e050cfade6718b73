// The hooks of the compiler's thread sanitizer, which report every access to the machine's memory, not to the sanitizer.
#include <cstring>

#include "kernel.h"
#include "machine.h"

namespace simulator {

const bool INSTRUMENTED = true;

namespace {

void touched(const void* at, uint64_t bytes, bool writes, const void* site) {
  if (Machine* m = Machine::running) m->memory.touch(at, bytes, writes, false, site);
}

}  // namespace
}  // namespace simulator

#define TELL(N)                                                                                                   \
  void __tsan_read##N(void* at) { simulator::touched(at, N, false, __builtin_return_address(0)); }                \
  void __tsan_write##N(void* at) { simulator::touched(at, N, true, __builtin_return_address(0)); }                \
  void __tsan_unaligned_read##N(void* at) { simulator::touched(at, N, false, __builtin_return_address(0)); }      \
  void __tsan_unaligned_write##N(void* at) { simulator::touched(at, N, true, __builtin_return_address(0)); }      \
  void __tsan_volatile_read##N(void* at) { simulator::touched(at, N, false, __builtin_return_address(0)); }       \
  void __tsan_volatile_write##N(void* at) { simulator::touched(at, N, true, __builtin_return_address(0)); }

extern "C" {
TELL(1)
TELL(2)
TELL(4)
TELL(8)
TELL(16)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_read_range(void* at, uint64_t bytes) { simulator::touched(at, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* at, uint64_t bytes) { simulator::touched(at, bytes, true, __builtin_return_address(0)); }
void* __tsan_memcpy(void* to, const void* from, uint64_t bytes) {
  simulator::touched(from, bytes, false, __builtin_return_address(0));
  simulator::touched(to, bytes, true, __builtin_return_address(0));
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, uint64_t bytes) {
  simulator::touched(to, bytes, true, __builtin_return_address(0));
  return std::memset(to, value, bytes);
}
}
