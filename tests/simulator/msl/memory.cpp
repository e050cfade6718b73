// Checks of every memory access.
#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "report.h"

// The address sanitizer's functions, in programs built with it.
extern "C" {
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* at, size_t bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* at, size_t bytes);
}

namespace simulator {
namespace {

constexpr uint64_t PAGE = 4096, MARGIN = 1 << 16, GAP = 64;
constexpr uint8_t POISON = 0x7f;  // two and four of them are large numbers in 16 bits, and 3.4e38 in 32

uint64_t up(uint64_t size, uint64_t to) { return (size + to - 1) / to * to; }

// Memory that ends at an inaccessible page, and begins after one.
uint8_t* guarded(uint64_t size) {
  const uint64_t body = up(std::max<uint64_t>(size, 1), PAGE);
  auto from = static_cast<uint8_t*>(
      mmap(nullptr, body + 2 * MARGIN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (from == MAP_FAILED) throw std::bad_alloc();
  mprotect(from + MARGIN, body, PROT_READ | PROT_WRITE);
  return from + MARGIN + (body - size) / 16 * 16;
}

std::string place(const Region& region, uint64_t at, uint64_t bytes) {
  return std::to_string(bytes) + " bytes at " + std::to_string(int64_t(at)) + " of " + region.name;
}

std::string lane(const Toucher& t) {
  return "lane " + std::to_string(t.lane) + " of threadgroup " + std::to_string(t.group - 1);
}

// True if two accesses to one byte of threadgroup memory, or of a buffer, are unordered.
bool unordered(const Toucher& before, const Toucher& now) {
  if (before.group == 0 || (before.group == now.group && before.lane == now.lane)) return false;
  if (before.group != now.group) return true;
  if (before.epoch != now.epoch) return false;
  return before.simdgroup != now.simdgroup || before.step == now.step;
}

}  // namespace

void Shadow::read_by(const Toucher& now) {
  if (!unordered(reader, now)) {
    const bool together = reader.epoch == now.epoch && reader.step == now.step;
    several = several && together && reader.group == now.group && reader.lane == now.lane;
    reader = now;
    if (!unordered(other, now)) other = {};
  } else if (reader.group == now.group && reader.simdgroup == now.simdgroup) {
    reader = now, several = true;
  } else {
    other = now;
  }
}

const Toucher* Shadow::crossed_by(const Toucher& now) const {
  if (unordered(reader, now)) return &reader;
  if (unordered(other, now)) return &other;
  const bool together = reader.group == now.group && reader.epoch == now.epoch && reader.step == now.step;
  return several && together ? &reader : nullptr;
}

std::pair<uint64_t, uint64_t> Shadows::unwritten() const {
  uint64_t missing = 0, first = 0;
  for (uint64_t i = 0; i < bytes_; i++) {
    const uint32_t parts = parts_of_[i / 4];
    if (!(parts ? parts_[parts - 1][i % 4] : words_[i / 4]).written && missing++ == 0) first = i;
  }
  return {missing, first};
}

void Shadows::clear(uint64_t bytes) {
  std::fill_n(words_.begin(), bytes / 4 + 1, Shadow{});
  std::fill_n(parts_of_.begin(), bytes / 4 + 1, 0u);
  parts_.clear();
}

void Shadows::begin_all() {
  for (auto& word : words_) word.written = word.begun = true;
}

bool Region::shows(uint64_t at, uint64_t bytes) const {
  const auto earlier = [](uint64_t x, const Segment& s) { return x < s.begin; };
  const auto after = std::upper_bound(shown.begin(), shown.end(), at, earlier);
  return after != shown.begin() && at + bytes <= std::prev(after)->end;
}

bool Region::near(const void* at) const {
  const auto a = static_cast<const uint8_t*>(at);
  return a >= data - MARGIN && a < data + size + MARGIN;
}

bool Region::holds(const void* at, uint64_t bytes) const {
  const auto a = static_cast<const uint8_t*>(at);
  return a >= data && a + bytes <= data + size;
}

bool Memory::Asked::operator<(const Asked& o) const {
  return std::tie(site, turn, region, line, writes) < std::tie(o.site, o.turn, o.region, o.line, o.writes);
}

Region& Memory::add(std::string name, uint64_t size, std::vector<Segment> shown, bool writable) {
  Region region{std::move(name)};
  region.data = guarded(size), region.size = size, region.shown = std::move(shown), region.writable = writable;
  if (writable) std::memset(region.data, POISON, size), region.shadow.resize(size);
  region.lines.resize(size / LINE + 2);
  regions.push_back(std::move(region));
  return regions.back();
}

void Memory::fence(const Region& region) const {
  if (!__asan_poison_memory_region) return;
  uint64_t after = 0;
  for (auto& s : region.shown) {
    __asan_poison_memory_region(region.data + after, s.begin - after);
    after = s.end;
  }
  if (region.writable) after = region.size;
  __asan_poison_memory_region(region.data + after, up(region.size, PAGE) + PAGE - after);  // into the guard's page
}

uint8_t* Memory::shared(int site, uint64_t size, uint64_t alignment) {
  if (!group.data) {
    group.name = "threadgroup memory", group.data = guarded(2 * GROUP_BYTES), group.size = 2 * GROUP_BYTES;
    group.writable = true;
    group.shadow.resize(group.size), group.lines.resize(group.size / LINE + 2);
    std::memset(group.data, POISON, group.size);
    if (__asan_poison_memory_region) __asan_poison_memory_region(group.data, group.size);
  }
  auto [found, fresh] = sites_.emplace(site, 0);
  if (fresh) {
    // With a gap to its neighbour, so that an overrun is detected.
    const uint64_t before = group.shown.empty() ? 0 : group.shown.back().end + GAP;
    found->second = up(before, std::max<uint64_t>(alignment, 16));
    group.shown.push_back({found->second, found->second + size});
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(group.data + found->second, size);
    shared_bytes_ = up(shared_bytes_, alignment) + size;
    if (shared_bytes_ > GROUP_BYTES) {
      faults().add("limit", nullptr, std::to_string(shared_bytes_) + " bytes of threadgroup memory, of 32768");
      give_up();
    }
  }
  return group.data + found->second;
}

void Memory::begin_group(uint32_t simdgroups) {
  if (asked_.size() < simdgroups) asked_.resize(simdgroups), turns_.resize(simdgroups * LANES);
  if (!group.data) return;
  const uint64_t used = group.shown.empty() ? 0 : group.shown.back().end;
  for (auto& s : group.shown) std::memset(group.data + s.begin, POISON, s.end - s.begin);
  group.shadow.clear(used);
}

void Memory::touch(const void* at, uint64_t bytes, bool writes, bool atomic, const void* site) {
  if (!watching || bytes == 0) return;
  if (group.data && group.near(at)) {
    return check(group, static_cast<const uint8_t*>(at) - group.data, bytes, writes, atomic, site);
  }
  for (size_t i = 0; i < regions.size(); i++) {
    Region& region = regions[i];
    if (!region.near(at)) continue;
    const uint64_t offset = static_cast<const uint8_t*>(at) - region.data;
    check(region, offset, bytes, writes, atomic, site);
    if (region.holds(at, bytes)) {
      if (!counting) return;
      (writes ? region.written_bytes : region.read_bytes) += bytes;
      for (uint64_t line = offset / LINE; line <= (offset + bytes - 1) / LINE; line++) {
        region.lines[line] = true;
        auto& lane = turns_[now.lane];
        asked_[now.simdgroup].push_back({site, lane[site], line, int(i), writes});
      }
      turns_[now.lane][site]++;
    }
    return;
  }
  stray = site;
}

void Memory::flush(uint32_t simdgroup) {
  auto& asked = asked_[simdgroup];
  std::sort(asked.begin(), asked.end());
  for (size_t i = 0; i < asked.size(); i++) {
    if (i && !(asked[i - 1] < asked[i])) continue;
    Region& region = regions[asked[i].region];
    (asked[i].writes ? region.written_lines : region.read_lines)++;
  }
  asked.clear();
  for (uint32_t lane = simdgroup * LANES; lane < (simdgroup + 1) * LANES; lane++) turns_[lane].clear();
}

void Memory::check(Region& region, uint64_t at, uint64_t bytes, bool writes, bool atomic, const void* site) {
  const Toucher& now = &region == &group ? now_in_group : this->now;
  const auto wrong = [&](const char* kind, const std::string& more = "") {
    faults().add(kind, site, lane(now) + (writes ? " writes " : " reads ") + place(region, at, bytes) + more);
  };
  if (int64_t(at) < 0 || at + bytes > region.size || (&region == &group && !region.shows(at, bytes)))
    return wrong("out-of-bounds");
  if (at % std::min<uint64_t>(bytes, 16) && (bytes & (bytes - 1)) == 0) wrong("unaligned");
  if (writes && !region.writable) return wrong("read-only");
  if (!region.writable && !region.shows(at, bytes)) return wrong("stale-view", ", which the view does not show");
  if (!region.writable) return;
  region.shadow.each(at, bytes, [&](Shadow& part) {
    const bool alone = atomic && part.atomic;
    const auto wrong_here = [&](const char* kind, const std::string& more) {
      wrong(kind, more);
      return false;
    };
    if (!writes && !part.written) return wrong_here("uninitialised", " before anybody writes it");
    if (part.written && !alone && unordered(part.writer, now))
      return wrong_here("race", ", which " + lane(part.writer) + " wrote without a barrier between");
    if (const Toucher* reader = writes && !alone ? part.crossed_by(now) : nullptr)
      return wrong_here("race", ", which " + lane(*reader) + " read without a barrier between");
    if (writes && part.written && !part.begun && !atomic && &region != &group) wrong("written-twice", " again");
    if (writes) part.written = true, part.begun = false, part.writer = now, part.atomic = atomic;
    else part.read_by(now);
    return true;
  });
}

}  // namespace simulator
