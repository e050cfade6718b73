// A threadgroup on one thread of the operating system: a fiber for each lane, run in turn until barriers and collectives.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "kernel.h"
#include "memory.h"

namespace simulator {

enum class Order { forward, reverse, random };

struct Dispatch {
  Three grid, threadgroup;  // in threads
  Order order = Order::forward;
  uint64_t seed = 0;
  bool relaxed = false;  // lanes that have ended or diverged are left out of the others' collective operations
  bool flushed = false;  // subnormal floats are flushed to 0
};

struct Counts {
  uint64_t simd = 0, barriers = 0;
};

class Machine {
 public:
  // `kernel` runs one lane, whose place `place` tells.
  Machine(Dispatch dispatch, Memory& memory, void (*kernel)());
  void run();

  // Called by the kernel, from the running lane.
  void meet(Meet how, const void* site, const void* in, size_t in_bytes, void* out, size_t out_bytes, uint32_t argument);
  void simdgroup_barrier(uint32_t flags, const void* site);
  void threadgroup_barrier(uint32_t flags, const void* site);
  bool overflows(const void* at) const;  // true if an access to this address overflows the lane's stack

  Memory& memory;
  const Dispatch dispatch;
  Counts counts;

  static Machine* running;

 private:
  static constexpr size_t MOST_BYTES = 256;
  enum class State { running, meeting, simdgroup_barrier, threadgroup_barrier, ended };
  struct Lane {
    State state = State::running;
    const void* site = nullptr;
    Meet how = nullptr;
    uint32_t argument = 0, flags = 0;
    void* stack = nullptr;
    Place place{};
    alignas(16) unsigned char in[MOST_BYTES], out[MOST_BYTES];
  };

  static void begin();
  void run_group(Three group);
  bool run_simdgroup(uint32_t simdgroup);  // false if the simdgroup waits for others
  bool meet_up(uint32_t simdgroup);
  bool release();
  void wait(State state, const void* site);
  void fail(const char* kind, const void* site, const std::string& message);
  std::vector<uint32_t> shuffled(uint32_t count);

  void (*kernel_)();
  std::vector<Lane> lanes_;
  std::vector<std::unique_ptr<Stack>> stacks_;
  struct Ordered {
    uint32_t device = 0, group = 0;
    void count(uint32_t flags);
  };
  std::vector<Ordered> steps_;  // simdgroup barriers, by simdgroup
  Ordered epoch_;               // threadgroup barriers
  uint32_t current_ = 0, group_ = 0;
  void* scheduler_ = nullptr;
  bool broken_ = false;
  std::mt19937_64 random_;
};

}  // namespace simulator
