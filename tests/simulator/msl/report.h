// Faults of a kernel, once for each site and kind.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace simulator {

struct Fault {
  std::string kind, message;
  const void* site;
};

class Faults {
 public:
  void add(const char* kind, const void* site, std::string message) {
    if (seen_.emplace(kind, site).second && all.size() < MOST) all.push_back({kind, std::move(message), site});
  }
  std::vector<Fault> all;

 private:
  static constexpr size_t MOST = 40;
  std::set<std::pair<std::string, const void*>> seen_;
};

Faults& faults();

[[noreturn]] void give_up();  // reports the faults so far, without results

}  // namespace simulator
