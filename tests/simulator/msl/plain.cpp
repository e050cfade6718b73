// A kernel that is not watched.
#include "kernel.h"

namespace simulator {
const bool INSTRUMENTED = false;
}
