// The gradient of qkv_post: the inverse rotation, the norm's gradient, and (B, H, L, D) to (B, L, H * D).
//
// Layout. In: qkv_post's inputs q (B, L, H * D) and k (B, L, K * D); gradients dq (B, H, L, D), dk and dv (B, K, L, D). Out:
// gradients with the layouts of q, k and v, and (CHUNKS, H + K, D) float32 parts of the norms' weights' gradients, to be summed.
// Grid. A simdgroup for each head of ROWS tokens: (32, H + 2 K, CHUNKS) threads; it sums its tokens' part of the weight's
// gradient in registers.
// Traffic. Every number is read once and written once; the parts add 1 / ROWS of it.
#include "../common.metal"
#include "head.metal"

// g becomes the gradient of a head that was x before its norm; `sum` grows by its part of the weight's gradient.
// With y = x r w, r = 1 / sqrt(mean(x^2) + eps): dx = r (w g - x r^2 mean(x w g)), dw = sum(x r g).
template <bool INTERLEAVED, typename T, typename Weight, int D, int PAIRS>
inline void norm_head_vjp(
    const device T* from, Weight weight, float eps, float shift, int lane, thread Head<D, PAIRS>& g, thread Head<D, PAIRS>& sum) {
  Head<D, PAIRS> x, w;
  read_head<INTERLEAVED>(from, lane, x);
  read_weight<INTERLEAVED>(weight, shift, lane, w);
  const float r = precise::rsqrt(head_dot(x, x) / float(D) + eps);
  for (int i = 0; i < (PAIRS + 31) / 32; i++) {
    sum.first[i] += r * x.first[i] * g.first[i];
    sum.second[i] += r * x.second[i] * g.second[i];
  }
  for (int i = 0; i < (D - 2 * PAIRS + 31) / 32; i++) sum.rest[i] += r * x.rest[i] * g.rest[i];
  scale_head(g, w, 1.0f);
  const float along = r * r * head_dot(x, g) / float(D);
  for (int i = 0; i < (PAIRS + 31) / 32; i++) {
    g.first[i] = r * (g.first[i] - along * x.first[i]);
    g.second[i] = r * (g.second[i] - along * x.second[i]);
  }
  for (int i = 0; i < (D - 2 * PAIRS + 31) / 32; i++) g.rest[i] = r * (g.rest[i] - along * x.rest[i]);
}

template <int D, int PAIRS>
inline void clear_head(thread Head<D, PAIRS>& x) {
  for (int i = 0; i < (PAIRS + 31) / 32; i++) x.first[i] = x.second[i] = 0.0f;
  for (int i = 0; i < (D - 2 * PAIRS + 31) / 32; i++) x.rest[i] = 0.0f;
}

//: const int head = int(thread_position_in_grid.y), lane = int(thread_index_in_simdgroup);
//: const int length = q_shape[1], rows = q_shape[0] * length, chunk = int(thread_position_in_grid.z);
//: Head<D, PAIRS> g, sum;
//: clear_head(sum);
//: for (int row = chunk * ROWS; row < min(rows, (chunk + 1) * ROWS); row++) {
//:   const int batch = row / length, token = row % length;
//:   const float position = float(offset[batch * OFFSETS] + token);
//:   if (head < H) {
//:     read_head<INTERLEAVED>(dq + ((long(batch) * H + head) * length + token) * D, lane, g);
//:     rotate_head(wavelengths, -position, magnitude, lane, g);
//:     const long at = (long(row) * H + head) * D;
//:     if (Q_NORM) norm_head_vjp<INTERLEAVED>(q + at, q_norm, eps, shift, lane, g, sum);
//:     write_head<INTERLEAVED>(q_out + at, lane, g);
//:   } else if (head < H + K) {
//:     read_head<INTERLEAVED>(dk + ((long(batch) * K + head - H) * length + token) * D, lane, g);
//:     rotate_head(wavelengths, -position, magnitude, lane, g);
//:     const long at = (long(row) * K + head - H) * D;
//:     if (K_NORM) norm_head_vjp<INTERLEAVED>(k + at, k_norm, eps, shift, lane, g, sum);
//:     write_head<INTERLEAVED>(k_out + at, lane, g);
//:   } else {
//:     read_head<INTERLEAVED>(dv + ((long(batch) * K + head - H - K) * length + token) * D, lane, g);
//:     write_head<INTERLEAVED>(v_out + (long(row) * K + head - H - K) * D, lane, g);
//:   }
//: }
//: if (head < H + K) write_head<INTERLEAVED>(parts + (long(chunk) * (H + K) + head) * D, lane, sum);
