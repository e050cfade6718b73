// A kernel's memory: buffers that end at a guard page, and threadgroup memory. Every access is checked.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernel.h"

namespace simulator {

constexpr uint64_t LINE = 128;  // bytes of a cache line

// The lane of an access, and its time: epochs advance at barriers that order this kind of memory.
struct Toucher {
  uint32_t group = 0;      // threadgroup, from 1; 0: no access
  uint32_t simdgroup = 0;  // in the threadgroup
  uint32_t lane = 0;       // in the threadgroup
  uint32_t epoch = 0;      // threadgroup barriers so far
  uint32_t step = 0;       // simdgroup barriers so far
};

// The last accesses to bytes that may be written.
struct Shadow {
  Toucher writer, reader, other;  // the last of each; `other` read in the same epoch from another simdgroup
  bool written = false, atomic = false;
  bool begun = false;    // holds the buffer's initial value
  bool several = false;  // several lanes of the reader's simdgroup have read it since its last collective operation

  void read_by(const Toucher& now);
  // A reader that is not ordered with a write now; null if there is none.
  const Toucher* crossed_by(const Toucher& now) const;
};

// Shadows of bytes; four bytes that are always accessed together share one.
class Shadows {
 public:
  void resize(uint64_t bytes) {
    bytes_ = bytes, words_.resize(bytes / 4 + 1), parts_of_.resize(bytes / 4 + 1);
  }
  // Calls f for each shadow of some bytes, until it returns false.
  template <class F>
  void each(uint64_t at, uint64_t bytes, F f) {
    for (uint64_t i = at, end = at + bytes; i < end;) {
      const bool together = i % 4 == 0 && end - i >= 4 && !parts_of_[i / 4];
      if (!f(together ? words_[i / 4] : part(i))) return;
      i += together ? 4 : 1;
    }
  }
  // The number of unwritten bytes, and the first of them.
  std::pair<uint64_t, uint64_t> unwritten() const;
  void clear(uint64_t bytes);  // from the beginning
  void begin_all();            // marks all as holding the buffer's initial value

 private:
  Shadow& part(uint64_t at) {
    uint32_t& number = parts_of_[at / 4];
    if (!number) {
      const Shadow& whole = words_[at / 4];
      parts_.push_back({whole, whole, whole, whole}), number = uint32_t(parts_.size());
    }
    return parts_[number - 1][at % 4];
  }
  uint64_t bytes_ = 0;
  std::vector<Shadow> words_;
  std::vector<uint32_t> parts_of_;  // from 1; 0: none
  std::vector<std::array<Shadow, 4>> parts_;
};

// Bytes [begin, end).
struct Segment {
  uint64_t begin, end;
};

struct Region {
  std::string name;
  uint8_t* data = nullptr;
  uint64_t size = 0;
  bool writable = false;
  std::vector<Segment> shown;    // in order, the segments of the memory that a view shows
  Shadows shadow;                // of memory that may be written
  std::vector<bool> lines;       // lines accessed at least once
  uint64_t read_bytes = 0, written_bytes = 0, read_lines = 0, written_lines = 0;  // as instructions request them

  bool shows(uint64_t at, uint64_t bytes) const;
  bool near(const void* at) const;
  bool holds(const void* at, uint64_t bytes) const;
};

// All memory of one dispatch.
class Memory {
 public:
  // Adds a buffer, which may be read in `shown`; a buffer that may be written is filled with poison.
  Region& add(std::string name, uint64_t size, std::vector<Segment> shown, bool writable);
  // Tells the compiler's address sanitizer, in programs built with it, which parts of a buffer are accessible.
  void fence(const Region& region) const;
  // An array in threadgroup memory, shared by all its lanes.
  uint8_t* shared(int site, uint64_t size, uint64_t alignment);
  uint64_t shared_bytes() const { return shared_bytes_; }
  void begin_group(uint32_t simdgroups);  // resets threadgroup memory

  void touch(const void* at, uint64_t bytes, bool writes, bool atomic, const void* site);
  void flush(uint32_t simdgroup);  // counts the lines of instructions that its lanes have executed together

  std::vector<Region> regions;
  Region group;  // threadgroup memory
  Toucher now, now_in_group;  // the running lane, for buffers and for threadgroup memory: barriers may order only one
  bool watching = false;
  bool counting = true;  // of bytes and lines
  const void* stray = nullptr;  // the last access outside of buffers: to a lane's variables, or out of bounds

 private:
  void check(Region& region, uint64_t at, uint64_t bytes, bool writes, bool atomic, const void* site);

  struct Asked {
    const void* site;
    uint32_t turn;  // this lane's executions of the instruction since the last flush
    uint64_t line;
    int region;
    bool writes;
    bool operator<(const Asked& o) const;
  };
  std::map<int, uint64_t> sites_;
  uint64_t shared_bytes_ = 0;
  std::vector<std::vector<Asked>> asked_;                              // by simdgroup
  std::vector<std::unordered_map<const void*, uint32_t>> turns_;       // by lane
};

constexpr uint64_t GROUP_BYTES = 32768;

}  // namespace simulator
