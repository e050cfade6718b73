// Lanes run until barriers and collective operations; divergence there is a fault.
#include "machine.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "report.h"

namespace simulator {
namespace {

uint32_t parts(uint32_t size, uint32_t of) { return (size + of - 1) / of; }

constexpr uint32_t ORDERS_DEVICE = 1, ORDERS_GROUP = 2;  // mem_flags

// State of this thread of the operating system, shared by all its fibers.
void flush_small_numbers() {
#if defined(__x86_64__)
  constexpr uint32_t RESULTS = 1 << 15, OPERANDS = 1 << 6;  // of MXCSR
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | RESULTS | OPERANDS);
#elif defined(__aarch64__)
  uint64_t control;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0" ::"r"(control | 1 << 24));
#endif
}

}  // namespace

Machine* Machine::running = nullptr;
const Place* own_place = nullptr;
bool scrambled = false;

void meet(Meet how, const void* site, const void* in, size_t in_bytes, void* out, size_t out_bytes, uint32_t argument) {
  Machine::running->meet(how, site, in, in_bytes, out, out_bytes, argument);
}
void simdgroup_barrier(uint32_t flags, const void* site) { Machine::running->simdgroup_barrier(flags, site); }
void threadgroup_barrier(uint32_t flags, const void* site) { Machine::running->threadgroup_barrier(flags, site); }
uint8_t* shared_memory(int site, uint64_t size, uint64_t alignment) {
  return Machine::running->memory.shared(site, size, alignment);
}
void unset(const char* constant, const void* site) {
  faults().add("unset", site, std::string(constant) + " has no value, and MLX gives none to a kernel of this kind");
  give_up();
}
void touched_atomically(const void* at, uint64_t bytes, bool writes, const void* site) {
  if (INSTRUMENTED) Machine::running->memory.touch(at, bytes, writes, true, site);
}

Faults& faults() {
  static Faults all;
  return all;
}

void Machine::Ordered::count(uint32_t flags) {
  device += (flags & ORDERS_DEVICE) != 0;
  group += (flags & ORDERS_GROUP) != 0;
}

Machine::Machine(Dispatch dispatch, Memory& memory, void (*kernel)())
    : memory(memory), dispatch(dispatch), kernel_(kernel), random_(dispatch.seed) {}

std::vector<uint32_t> Machine::shuffled(uint32_t count) {
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (dispatch.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (dispatch.order == Order::random) std::shuffle(order.begin(), order.end(), random_);
  return order;
}

bool Machine::overflows(const void* at) const { return current_ < stacks_.size() && stacks_[current_]->ends_at(at); }

void Machine::run() {
  if (dispatch.flushed) flush_small_numbers();
  Three groups;
  uint32_t count = 1;
  for (int i = 0; i < 3; i++) count *= groups[i] = parts(dispatch.grid[i], dispatch.threadgroup[i]);
  for (uint32_t n : shuffled(count)) {
    run_group({n % groups[0], n / groups[0] % groups[1], n / groups[0] / groups[1]});
    if (broken_) return;
  }
}

void Machine::run_group(Three group) {
  Three size, groups;
  for (int i = 0; i < 3; i++) {
    groups[i] = parts(dispatch.grid[i], dispatch.threadgroup[i]);
    size[i] = std::min(dispatch.threadgroup[i], dispatch.grid[i] - group[i] * dispatch.threadgroup[i]);
  }
  const uint32_t count = size[0] * size[1] * size[2], simdgroups = parts(count, LANES);
  while (stacks_.size() < count) stacks_.push_back(std::make_unique<Stack>());
  lanes_.assign(count, {});
  steps_.assign(simdgroups, {});
  group_++, epoch_ = {};
  memory.begin_group(simdgroups);
  for (uint32_t i = 0; i < count; i++) {
    Lane& lane = lanes_[i];
    lane.stack = stacks_[i]->start(begin);
    Place& p = lane.place;
    p.in_group = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
    for (int d = 0; d < 3; d++) p.in_grid[d] = group[d] * dispatch.threadgroup[d] + p.in_group[d];
    p.group = group, p.group_size = size, p.groups = groups, p.grid = dispatch.grid;
    p.whole_size = dispatch.threadgroup, p.origin = {};
    p.lane = i % LANES, p.simdgroup = i / LANES, p.simdgroups = simdgroups, p.index = i;
  }
  do {
    for (uint32_t simdgroup : shuffled(simdgroups))
      while (!broken_ && run_simdgroup(simdgroup)) {}
  } while (!broken_ && release());
  for (uint32_t simdgroup = 0; simdgroup < simdgroups; simdgroup++) memory.flush(simdgroup);
}

bool Machine::run_simdgroup(uint32_t simdgroup) {
  const uint32_t first = simdgroup * LANES, count = std::min<uint32_t>(LANES, uint32_t(lanes_.size()) - first);
  for (uint32_t i : shuffled(count)) {
    Lane& lane = lanes_[first + i];
    if (lane.state != State::running) continue;
    current_ = first + i, own_place = &lane.place;
    memory.now = {group_, simdgroup, current_, epoch_.device, steps_[simdgroup].device};
    memory.now_in_group = {group_, simdgroup, current_, epoch_.group, steps_[simdgroup].group};
    memory.watching = true;
    simulator_switch(&scheduler_, lane.stack);
    memory.watching = false;
  }
  return meet_up(simdgroup);
}

bool Machine::meet_up(uint32_t simdgroup) {
  const uint32_t first = simdgroup * LANES, count = std::min<uint32_t>(LANES, uint32_t(lanes_.size()) - first);
  Lane* leader = nullptr;
  uint32_t ended = 0, elsewhere = 0;
  for (uint32_t i = first; i < first + count; i++) {
    const State state = lanes_[i].state;
    ended += state == State::ended;
    elsewhere += state == State::threadgroup_barrier;
    if (!leader && (state == State::meeting || state == State::simdgroup_barrier)) leader = &lanes_[i];
  }
  if (!leader) return false;
  uint32_t active = 0;
  for (uint32_t i = 0; i < count; i++) {
    const Lane& lane = lanes_[first + i];
    if (lane.state == leader->state && lane.site == leader->site && lane.how == leader->how) active |= 1u << i;
  }
  const uint32_t all = uint32_t(__builtin_popcount(active));
  if (all < count && !dispatch.relaxed) {
    fail("divergent-simd", leader->site,
         std::to_string(all) + " of " + std::to_string(count) + " lanes meet, " + std::to_string(ended) +
             " have ended and " + std::to_string(elsewhere) + " wait at a barrier");
    return false;
  }
  memory.flush(simdgroup);
  if (leader->state == State::simdgroup_barrier) {
    steps_[simdgroup].count(leader->flags);
  } else {
    Meeting meeting{{}, {}, active, leader->argument};
    for (uint32_t i = 0; i < count; i++) {
      meeting.in[i] = lanes_[first + i].in, meeting.out[i] = lanes_[first + i].out;
      if ((active >> i & 1) && lanes_[first + i].argument != leader->argument)
        fail("divergent-simd", leader->site, "lanes meet with arguments that differ");
    }
    for (uint32_t i = count; i < LANES; i++) meeting.in[i] = nullptr, meeting.out[i] = nullptr;
    leader->how(meeting);
    counts.simd++;
  }
  for (uint32_t i = 0; i < count; i++)
    if (active >> i & 1) lanes_[first + i].state = State::running;
  return true;
}

// Resumes all lanes after a threadgroup barrier; false if they have ended.
bool Machine::release() {
  const Lane* leader = nullptr;
  uint32_t waiting = 0;
  for (auto& lane : lanes_)
    if (lane.state == State::threadgroup_barrier) {
      if (!leader) leader = &lane;
      waiting += lane.site == leader->site;
    }
  if (!leader) return false;
  if (waiting < lanes_.size() && !dispatch.relaxed) {
    fail("divergent-barrier", leader->site,
         std::to_string(waiting) + " of " + std::to_string(lanes_.size()) + " lanes come to a barrier");
    return false;
  }
  epoch_.count(leader->flags);
  counts.barriers++;
  for (auto& lane : lanes_)
    if (lane.state == State::threadgroup_barrier) lane.state = State::running;
  return true;
}

void Machine::begin() {
  Machine* m = running;
  m->kernel_();
  m->wait(State::ended, nullptr);
}

void Machine::wait(State state, const void* site) {
  Lane& lane = lanes_[current_];
  lane.state = state, lane.site = site;
  simulator_switch(&lane.stack, scheduler_);
}

void Machine::meet(
    Meet how, const void* site, const void* in, size_t in_bytes, void* out, size_t out_bytes, uint32_t argument) {
  Lane& lane = lanes_[current_];
  lane.how = how, lane.argument = argument;
  std::memcpy(lane.in, in, in_bytes);
  wait(State::meeting, site);
  std::memcpy(out, lanes_[current_].out, out_bytes);
}

void Machine::simdgroup_barrier(uint32_t flags, const void* site) {
  Lane& lane = lanes_[current_];
  lane.how = nullptr, lane.flags = flags;
  wait(State::simdgroup_barrier, site);
}

void Machine::threadgroup_barrier(uint32_t flags, const void* site) {
  lanes_[current_].flags = flags;
  wait(State::threadgroup_barrier, site);
}

void Machine::fail(const char* kind, const void* site, const std::string& message) {
  faults().add(kind, site, message);
  broken_ = true;
}

}  // namespace simulator
