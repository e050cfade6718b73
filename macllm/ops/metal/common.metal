// What every kernel needs.
#include <metal_stdlib>
using namespace metal;
