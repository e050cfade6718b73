// Runs one dispatch described by a file: `kernel JOB OUTPUTS`. Prints a report as a line of JSON.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include "kernel.h"
#include "machine.h"
#include "report.h"

namespace simulator {

uint8_t* buffers[MOST_BUFFERS];

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

Order order_of(const std::string& name) {
  return name == "reverse" ? Order::reverse : name == "random" ? Order::random : Order::forward;
}

template <class T>
void read_into(std::ifstream& file, T* to, uint64_t count) {
  file.read(reinterpret_cast<char*>(to), std::streamsize(count * sizeof(T)));
  if (!file) throw std::runtime_error("the job is cut short");
}

// Lines of words, up to `end`; then for each input the segments that a view shows, and their contents.
Dispatch read_job(const char* path, Memory& memory) {
  std::ifstream file(path, std::ios::binary);
  Dispatch d;
  struct Buffer {
    std::string name;
    uint64_t size, segments;
    bool in, begun;
  };
  std::vector<Buffer> all;
  for (std::string line; std::getline(file, line) && line != "end";) {
    std::istringstream words(line);
    std::string what, name;
    words >> what;
    if (what == "grid") words >> d.grid[0] >> d.grid[1] >> d.grid[2];
    if (what == "threadgroup") words >> d.threadgroup[0] >> d.threadgroup[1] >> d.threadgroup[2];
    if (what == "order") words >> name >> d.seed, d.order = order_of(name);
    if (what == "relaxed") words >> d.relaxed;
    if (what == "scrambled") words >> scrambled;
    if (what == "flushed") words >> d.flushed;
    if (what == "counted") words >> memory.counting;
    if (what == "buffer") {
      Buffer b;
      words >> b.name >> b.size >> b.in >> b.segments >> b.begun;
      all.push_back(b);
    }
  }
  int number = 0;
  for (auto& b : all) {
    std::vector<Segment> shown(b.segments);
    read_into(file, shown.data(), b.segments);
    Region& region = memory.add(b.name, b.size, shown, !b.in);
    for (auto& s : shown) read_into(file, region.data + s.begin, s.end - s.begin);
    memory.fence(region);
    if (b.begun) region.shadow.begin_all();
    buffers[number++] = region.data;
  }
  return d;
}

void look_for_unwritten(Memory& memory) {
  for (auto& region : memory.regions) {
    if (!region.writable) continue;
    const auto [missing, first] = region.shadow.unwritten();
    if (missing)
      faults().add("unwritten", region.data,
                   std::to_string(missing) + " bytes of " + region.name + " from " + std::to_string(first));
  }
}

void print_faults() {
  std::cout << "{\"faults\": [";
  for (size_t i = 0; i < faults().all.size(); i++) {
    auto& f = faults().all[i];
    std::cout << (i ? ", " : "") << "{\"kind\": " << quoted(f.kind) << ", \"message\": " << quoted(f.message)
              << ", \"site\": " << reinterpret_cast<uintptr_t>(f.site) << "}";
  }
  std::cout << "]";
}

void print(const Machine& machine, const Memory& memory) {
  print_faults();
  const Counts& c = machine.counts;
  std::cout << ", \"simd_operations\": " << c.simd << ", \"barriers\": " << c.barriers
            << ", \"threadgroup_bytes\": " << memory.shared_bytes() << ", \"buffers\": [";
  for (size_t i = 0; i < memory.regions.size(); i++) {
    auto& r = memory.regions[i];
    uint64_t lines = 0;
    for (bool touched : r.lines) lines += touched;
    std::cout << (i ? ", " : "") << "{\"name\": " << quoted(r.name) << ", \"read_bytes\": " << r.read_bytes
              << ", \"written_bytes\": " << r.written_bytes << ", \"read_lines\": " << r.read_lines
              << ", \"written_lines\": " << r.written_lines << ", \"lines\": " << lines << "}";
  }
  std::cout << "]}" << std::endl;
}

// Signal handler for access to a guard page and undefined operations; on a separate stack, since the lane's may be full.
void crashed(int signal, siginfo_t* info, void*) {
  Machine& machine = *Machine::running;
  machine.memory.watching = false;
  if (signal == SIGILL || signal == SIGTRAP || signal == SIGFPE) {
    faults().add("undefined", info->si_addr,
                 "an index, a shift, a division or an alignment that the language gives no meaning");
  } else if (machine.overflows(info->si_addr)) {
    faults().add("limit", nullptr, "a lane's variables need more than its stack");
  } else if (faults().all.empty()) {
    faults().add("out-of-bounds", machine.memory.stray, "an address that is in no buffer");
  }
  give_up();
}

}  // namespace

void give_up() {
  print_faults();
  std::cout << "}" << std::endl;
  _exit(1);
}

}  // namespace simulator

int main(int, char** arguments) {
  using namespace simulator;
  static char stack[1 << 16];
  stack_t alternative{};
  alternative.ss_sp = stack, alternative.ss_size = sizeof stack;
  sigaltstack(&alternative, nullptr);
  struct sigaction action {};
  action.sa_sigaction = crashed, action.sa_flags = SA_ONSTACK | SA_SIGINFO;
  for (int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}) sigaction(signal, &action, nullptr);
  Memory memory;
  Machine machine(read_job(arguments[1], memory), memory, simulator_kernel);
  Machine::running = &machine;
  machine.run();
  if (INSTRUMENTED && faults().all.empty()) look_for_unwritten(memory);
  std::ofstream out(arguments[2], std::ios::binary);
  for (auto& region : memory.regions)
    if (region.writable) out.write(reinterpret_cast<const char*>(region.data), std::streamsize(region.size));
  print(machine, memory);
  return faults().all.empty() ? 0 : 1;
}
