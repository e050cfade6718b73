// All parts of the language that kernels call.
#pragma once

#include "msl_atomic.h"
#include "msl_matrix.h"
