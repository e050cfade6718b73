// 8 x 8 simdgroup matrices, two elements per lane, and products with rows of them. Inputs are widened to float32: Apple's
// matrix units are as fast with either.

#include "elements.metal"

typedef simdgroup_matrix<float, 8, 8> Square;

template <int N>
inline void clear(thread Square* squares) {
  UNROLLED for (int i = 0; i < N; i++) squares[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}

// Eight numbers of each of eight rows, `step` apart; TRANSPOSED, rows become columns.
template <bool TRANSPOSED, typename T>
inline Square read_square(const device T* from, int step) {
  simdgroup_matrix<T, 8, 8> narrow;
  simdgroup_load(narrow, from, step, ulong2(0), TRANSPOSED);
  Square wide;
  for (int e = 0; e < 2; e++) wide.thread_elements()[e] = float(narrow.thread_elements()[e]);
  return wide;
}

// Writes W columns of eight rows, `step` apart.
template <int W, typename T>
inline void write_rows(thread Square* squares, const thread Elements& at, int step, device T* to) {
  UNROLLED for (int i = 0; i < W / 8; i++) {
    for (int e = 0; e < 2; e++) to[at.row[e] * step + 8 * i + at.column[e]] = T(squares[i].thread_elements()[e]);
  }
}

// sums[j] += the dot products of eight rows of `a` with rows 8 j to 8 j + 7 of `b`, D numbers each.
template <int D, int N, typename A, typename B>
inline void add_dots(const device A* a, const device B* b, thread Square* sums) {
  for (int d = 0; d < D; d += 8) {
    const Square x = read_square<false>(a + d, D);
    UNROLLED for (int j = 0; j < N; j++) {
      simdgroup_multiply_accumulate(sums[j], x, read_square<true>(b + 8 * j * D + d, D), sums[j]);
    }
  }
}

// sums += N squares of weights times 8 N rows of W numbers, `step` apart.
template <int W, int N, typename T>
inline void add_rows(const thread Square* weights, const device T* rows, int step, thread Square* sums) {
  UNROLLED for (int j = 0; j < N; j++) {
    UNROLLED for (int i = 0; i < W / 8; i++) {
      simdgroup_multiply_accumulate(sums[i], weights[j], read_square<false>(rows + 8 * j * step + 8 * i, step), sums[i]);
    }
  }
}

// Each row's sum, in all columns.
inline Square row_sums(const thread Square& x) {
  Square sums;
  simdgroup_multiply(sums, x, make_filled_simdgroup_matrix<float, 8, 8>(1.0f));
  return sums;
}
