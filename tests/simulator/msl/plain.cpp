// Stubs for a kernel without instrumentation.
#include "kernel.h"

namespace simulator {
const bool INSTRUMENTED = false;
}
