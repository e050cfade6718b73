// Products with matrices of 16-bit floats, which are not converted in memory. For few rows, which are bound by reading the
// weights, linear.h.
#include "half.h"

#include <algorithm>

#include "gemm.h"
#include "linear.h"

namespace macllm {

void half_product(const HalfProduct& p, const float* x, float* y) {
  if (p.M <= FEW_ROWS && p.K > 0) return linear({p.w, nullptr, p.N, p.K, p.kind}, p.M, x, y);
  gemm({p.M, p.N, p.K, {x, p.K, 1}, {p.w, p.K, 1, p.kind}, y, p.N});
}

void half_product_vjp(const HalfProduct& p, const float* gy, float* gx) {
  gemm({p.M, p.K, p.N, {gy, p.N, 1}, {p.w, 1, p.K, p.kind}, gx, p.K});
}

}  // namespace macllm
