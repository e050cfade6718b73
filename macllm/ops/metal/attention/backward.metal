// Helpers of attention's gradients: weights are recomputed from scores and their logsumexp (arXiv:2205.14135, B.2).
#include "attention_mask.metal"
#include "tiles.metal"

// The weight, and the gradient of q k, from q k, dout v, the row's logsumexp in base 2, and dout out.
template <bool CAPPED>
inline float2 weight_and_gradient(float product, float along, float lse, float delta, float scale, float softcap) {
  float score = scale * product, slope = scale;
  if (CAPPED) {
    const float bent = precise::tanh(score / softcap);
    score = softcap * bent;
    slope *= 1.0f - bent * bent;
  }
  const float weight = fast::exp2(score * M_LOG2E_F - lse);
  return float2(weight, weight * (along - delta) * slope);
}

// a_products = a x^T and b_products = b y^T, for rows [row, end) of x and y, staged in `tile`.
template <typename F, typename T, typename X, typename Y>
inline void multiply_both(
    const threadgroup T* a, const threadgroup T* b, const thread X& x, const thread Y& y, int row, int end,
    const thread Place& place, threadgroup T* tile, threadgroup float* a_products, threadgroup float* b_products) {
  threadgroup_barrier(mem_flags::mem_threadgroup);
  read_tile<F, F::N>(x, row, end, place.index, tile);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  multiply_tile<F>(a, tile, place.side, a_products);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  read_tile<F, F::N>(y, row, end, place.index, tile);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  multiply_tile<F>(b, tile, place.side, b_products);
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
