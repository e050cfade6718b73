// The part of the machine that a kernel's source includes; small, since it is compiled with every kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace simulator {

constexpr int LANES = 32;  // in a simdgroup

// For code that is compiled with a kernel but is no part of it: its memory accesses are not instrumented.
#define SIMULATOR_APART __attribute__((no_sanitize("thread", "address", "undefined")))

struct Three {
  uint32_t n[3];
  uint32_t& operator[](int i) { return n[i]; }
  const uint32_t& operator[](int i) const { return n[i]; }
};

// Attributes of a lane.
struct Place {
  Three in_grid, in_group, group, group_size, groups, grid;
  Three whole_size, origin;  // the size of a full threadgroup; and the origin of grids, which is 0
  uint32_t lane, simdgroup, simdgroups, index;
};

// Inputs and outputs of a simdgroup's lanes in a collective operation.
struct Meeting {
  const unsigned char* in[LANES];
  unsigned char* out[LANES];
  uint32_t active;  // bit for each lane
  uint32_t argument;

  SIMULATOR_APART bool has(int lane) const { return active >> lane & 1; }
  template <class T>
  SIMULATOR_APART T get(int lane) const {
    T value;
    std::memcpy(&value, in[lane], sizeof value);
    return value;
  }
  template <class T>
  SIMULATOR_APART void put(int lane, const T& value) const {
    std::memcpy(out[lane], &value, sizeof value);
  }
};
using Meet = void (*)(const Meeting&);

constexpr int MOST_BUFFERS = 31;
extern uint8_t* buffers[MOST_BUFFERS];  // by number
extern const Place* own_place;          // of the lane that is running
extern bool scrambled;                  // true if matrices' elements are in other lanes than on Apple's GPUs
extern const bool INSTRUMENTED;         // true if the kernel reports every access

void meet(Meet how, const void* site, const void* in, size_t in_bytes, void* out, size_t out_bytes, uint32_t argument);
void simdgroup_barrier(uint32_t flags, const void* site);
void threadgroup_barrier(uint32_t flags, const void* site);
uint8_t* shared_memory(int site, uint64_t size, uint64_t alignment);
[[noreturn]] void unset(const char* constant, const void* site);
void touched_atomically(const void* at, uint64_t bytes, bool writes, const void* site);

}  // namespace simulator

extern "C" void simulator_kernel();  // one lane of it
