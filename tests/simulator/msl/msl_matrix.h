// 8 x 8 simdgroup matrices.
#pragma once

#include "msl_lanes.h"

namespace metal {

// Positions of a lane's two elements of a matrix. The language does not specify them: a run can permute the lanes.
struct Fragment {
  int row, column;
};
SIMULATOR_APART inline Fragment fragment_of(int lane) {
  if (simulator::scrambled) lane = (lane * 11 + 5) % LANES;
  const int q = lane / 4;
  return {(q & 4) + lane / 2 % 4, (q & 2) * 2 + lane % 2 * 2};
}

template <class T, int R, int C>
struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "matrices are 8 x 8");
  vec<T, 2> elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    const Fragment at = fragment_of(int(simulator::own_place->lane));
    elements = {at.row == at.column ? diagonal : T(0), at.row == at.column + 1 ? diagonal : T(0)};
  }
  vec<T, 2>& thread_elements() { return elements; }
  const vec<T, 2>& thread_elements() const { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int R, int C = R>
inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.elements = vec<T, 2>(value);
  return m;
}

inline void nothing_done(const Meeting&) {}

template <class T, class P>
inline void simdgroup_load(
    simdgroup_matrix<T, 8, 8>& m, const P* from, ulong stride = 8, vec<ulong, 2> origin = 0, bool turned = false,
    SIMULATOR_HERE) {
  together(nothing_done, here, 0);
  const Fragment at = fragment_of(int(simulator::own_place->lane));
  for (int i = 0; i < 2; i++) {
    const ulong row = turned ? at.column + i : at.row, column = turned ? at.row : at.column + i;
    m.elements[i] = T(from[(origin.y + row) * stride + origin.x + column]);
  }
}

template <class T, class P>
inline void simdgroup_store(
    const simdgroup_matrix<T, 8, 8>& m, P* to, ulong stride = 8, vec<ulong, 2> origin = 0, bool turned = false,
    SIMULATOR_HERE) {
  together(nothing_done, here, 0);
  const Fragment at = fragment_of(int(simulator::own_place->lane));
  for (int i = 0; i < 2; i++) {
    const ulong row = turned ? at.column + i : at.row, column = turned ? at.row : at.column + i;
    to[(origin.y + row) * stride + origin.x + column] = P(m.elements[i]);
  }
}

template <class D, class A, class B, class C>
struct Operands {
  vec<A, 2> a;
  vec<B, 2> b;
  vec<C, 2> c;
  vec<D, 2> d;
};
template <class D, class A, class B, class C>
SIMULATOR_APART inline void multiplied(const Meeting& m) {
  float a[8][8], b[8][8];
  for (int i = 0; i < LANES; i++) {
    const auto all = m.get<Operands<D, A, B, C>>(i);
    const Fragment at = fragment_of(i);
    for (int e = 0; e < 2; e++) a[at.row][at.column + e] = float(all.a[e]), b[at.row][at.column + e] = float(all.b[e]);
  }
  for (int i = 0; i < LANES; i++) {
    auto all = m.get<Operands<D, A, B, C>>(i);
    const Fragment at = fragment_of(i);
    for (int e = 0; e < 2; e++) {
      float sum = float(all.c[e]);
      for (int k = 0; k < 8; k++) sum += a[at.row][k] * b[k][at.column + e];
      all.d[e] = D(sum);
    }
    m.put(i, all);
  }
}
template <class D, class A, class B, class C>
SIMULATOR_TOGETHER inline void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b,
    const simdgroup_matrix<C, 8, 8>& c, SIMULATOR_HERE) {
  const Operands<D, A, B, C> all{a.elements, b.elements, c.elements, {}};
  d.elements = together(multiplied<D, A, B, C>, here, all).d;
}
template <class D, class A, class B>
inline void simdgroup_multiply(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b, SIMULATOR_HERE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>(D(0)), here);
}

}  // namespace metal
