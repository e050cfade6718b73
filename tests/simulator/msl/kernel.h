// What a kernel's text sees of the machine that runs it: little, for it is compiled with every kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace simulator {

constexpr int LANES = 32;  // in a simdgroup

// Of what is no part of a kernel, though it is compiled with it: its accesses are not told of.
#define SIMULATOR_APART __attribute__((no_sanitize("thread", "address", "undefined")))

struct Three {
  uint32_t n[3];
  uint32_t& operator[](int i) { return n[i]; }
  const uint32_t& operator[](int i) const { return n[i]; }
};

// What a lane is told about itself.
struct Place {
  Three in_grid, in_group, group, group_size, groups, grid;
  Three whole_size, origin;  // of a threadgroup that is not at the edge; and where grids begin, which is at 0
  uint32_t lane, simdgroup, simdgroups, index;
};

// What the lanes of a simdgroup bring to an operation that they do together, and take from it.
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
extern bool scrambled;                  // whether elements of a matrix lie in other lanes than they do on Apple's GPUs
extern const bool INSTRUMENTED;         // whether the kernel tells of every access

void meet(Meet how, const void* site, const void* in, size_t in_bytes, void* out, size_t out_bytes, uint32_t argument);
void simdgroup_barrier(uint32_t flags, const void* site);
void threadgroup_barrier(uint32_t flags, const void* site);
uint8_t* shared_memory(int site, uint64_t size, uint64_t alignment);
[[noreturn]] void unset(const char* constant, const void* site);
void touched_atomically(const void* at, uint64_t bytes, bool writes, const void* site);

}  // namespace simulator

extern "C" void simulator_kernel();  // one lane of it
