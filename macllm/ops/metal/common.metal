// Included by every kernel.
#include <metal_stdlib>
using namespace metal;
