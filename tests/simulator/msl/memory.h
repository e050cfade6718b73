// What a kernel may touch: buffers that end at a guard page, and a threadgroup's memory. Every access is looked at.
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

constexpr uint64_t LINE = 128;  // bytes that come from memory together

// Who touches memory, and since when: epochs grow at barriers that order this kind of memory.
struct Toucher {
  uint32_t group = 0;      // threadgroup, from 1; 0 is nobody
  uint32_t simdgroup = 0;  // in it
  uint32_t lane = 0;       // in the threadgroup
  uint32_t epoch = 0;      // barriers of the threadgroup so far
  uint32_t step = 0;       // barriers of the simdgroup alone so far
};

// Of bytes that may be written.
struct Shadow {
  Toucher writer, reader, other;  // the last of each; `other` reads in the same epoch from another simdgroup
  bool written = false, atomic = false;
  bool begun = false;    // holds what every element of the buffer begins with
  bool several = false;  // lanes of the reader's simdgroup have read it since that met last

  void read_by(const Toucher& now);
  // Who read it and may do so only after, or before, what is written now; null if nobody.
  const Toucher* crossed_by(const Toucher& now) const;
};

// Shadows of bytes; of four that are always touched together there is one.
class Shadows {
 public:
  void resize(uint64_t bytes) {
    bytes_ = bytes, words_.resize(bytes / 4 + 1), parts_of_.resize(bytes / 4 + 1);
  }
  // f of each shadow of some bytes, until it says no.
  template <class F>
  void each(uint64_t at, uint64_t bytes, F f) {
    for (uint64_t i = at, end = at + bytes; i < end;) {
      const bool together = i % 4 == 0 && end - i >= 4 && !parts_of_[i / 4];
      if (!f(together ? words_[i / 4] : part(i))) return;
      i += together ? 4 : 1;
    }
  }
  // How many bytes nobody has written, and the first of them.
  std::pair<uint64_t, uint64_t> unwritten() const;
  void clear(uint64_t bytes);  // from the beginning
  void begin_all();            // all hold what every element of the buffer begins with

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
  std::vector<uint32_t> parts_of_;  // from 1; 0 is none
  std::vector<std::array<Shadow, 4>> parts_;
};

// Bytes from `begin` to before `end`.
struct Segment {
  uint64_t begin, end;
};

struct Region {
  std::string name;
  uint8_t* data = nullptr;
  uint64_t size = 0;
  bool writable = false;
  std::vector<Segment> shown;    // in order, what a view shows of what is behind it
  Shadows shadow;                // where it may be written
  std::vector<bool> lines;       // touched at all
  uint64_t read_bytes = 0, written_bytes = 0, read_lines = 0, written_lines = 0;  // as instructions ask for them

  bool shows(uint64_t at, uint64_t bytes) const;
  bool near(const void* at) const;
  bool holds(const void* at, uint64_t bytes) const;
};

// All memory of one dispatch.
class Memory {
 public:
  // A buffer of a kernel that may be read where `shown` says; one that may be written is poisoned.
  Region& add(std::string name, uint64_t size, std::vector<Segment> shown, bool writable);
  // Tells the compiler's address sanitizer, where a program has it, what of a buffer may be touched.
  void fence(const Region& region) const;
  // An array in the threadgroup's memory, the same for all its lanes.
  uint8_t* shared(int site, uint64_t size, uint64_t alignment);
  uint64_t shared_bytes() const { return shared_bytes_; }
  void begin_group(uint32_t simdgroups);  // threadgroup memory is nobody's again

  void touch(const void* at, uint64_t bytes, bool writes, bool atomic, const void* site);
  void flush(uint32_t simdgroup);  // counts the lines of instructions that its lanes have gone through together

  std::vector<Region> regions;
  Region group;  // threadgroup memory
  Toucher now, now_in_group;  // whose turn it is, for buffers and for threadgroup memory: barriers may order one alone
  bool watching = false;
  bool counting = true;  // bytes and lines
  const void* stray = nullptr;  // where a lane last touched what is in no buffer: its own variables, or what it must not

 private:
  void check(Region& region, uint64_t at, uint64_t bytes, bool writes, bool atomic, const void* site);

  struct Asked {
    const void* site;
    uint32_t turn;  // how often this lane has been there since the last flush
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
