// Linear attention in chunks (arXiv:2006.16236, 3.2 and 3.3; arXiv:2307.08621, 2.3): eight rows of a result, whose sum over
// earlier rows (or later ones, REVERSE) is a product with a state before their chunk, and products of rows within it.
#include "squares.metal"

// sums = x state + sum of (x y_t) values_t over rows t in [begin, end) that the eight rows from `own` on see. x and y have P
// numbers, values U, of which W are summed; a TRANSPOSED state is (U, P), else (P, U). With SIDE 1 or 2, rows have one more
// number: `extra` in x and 1 in y (SIDE 1), or the reverse (SIDE 2), and `norm` is the state's part for it. With SIDE 0,
// `norm` (P) belongs to a column of ones in the values, and `total` becomes its sum, distributed over the row's lanes.
template <int P, int U, int W, bool WITHIN, bool REVERSE, bool TRANSPOSED, int SIDE, typename X, typename Y, typename V>
inline void attend_chunk(
    const device X* x, const device Y* y, const device V* values, const device float* extra, const device float* state,
    const device float* norm, int own, int begin, int end, const thread Elements& at, thread Square& total, thread Square* sums) {
  clear<W / 8>(sums);
  clear<1>(&total);
  for (int p = 0; p < P; p += 8) {
    Square a = read_square<false>(x + long(own) * P + p, P);
    UNROLLED for (int i = 0; i < W / 8; i++) {
      const Square b = TRANSPOSED ? read_square<true>(state + 8 * i * P + p, P) : read_square<false>(state + p * U + 8 * i, U);
      simdgroup_multiply_accumulate(sums[i], a, b, sums[i]);
    }
    if (SIDE == 0) {
      for (int e = 0; e < 2; e++) total.thread_elements()[e] += a.thread_elements()[e] * norm[p + at.column[e]];
    }
  }
  if (SIDE != 0) {
    for (int e = 0; e < 2; e++) {
      const float factor = SIDE == 1 ? extra[own + at.row[e]] : 1.0f;
      UNROLLED for (int i = 0; i < W / 8; i++) sums[i].thread_elements()[e] += factor * norm[8 * i + at.column[e]];
    }
  }
  for (int t = begin; WITHIN && t < end; t += 8) {
    Square dots[1];
    clear<1>(dots);
    add_dots<P, 1>(x + long(own) * P, y + long(t) * P, dots);
    for (int e = 0; e < 2; e++) {
      const int row = own + at.row[e], other = t + at.column[e];
      const float more = SIDE == 0 ? 0.0f : extra[SIDE == 1 ? row : other];
      const float weight = (REVERSE ? other >= row : other <= row) ? dots[0].thread_elements()[e] + more : 0.0f;
      dots[0].thread_elements()[e] = weight;
      total.thread_elements()[e] += weight;
    }
    add_rows<W, 1>(dots, values + long(t) * U, U, sums);
  }
}
