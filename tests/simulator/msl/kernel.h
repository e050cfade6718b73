// What ties a kernel's text to the machine that runs it.
#pragma once

#include <cstdint>
#include <vector>

namespace simulator {

extern std::vector<uint8_t*> buffers;  // by number
extern const bool INSTRUMENTED;        // whether the kernel tells of every access

}  // namespace simulator

extern "C" void simulator_kernel();  // one lane of it
