// Few queries over packed rows, each read once, in place. Scores: W rows become W lanes; with instructions for dot products
// of four bytes, a query is three signed bytes per element, 23 bits in all, so that the products are exact; without, rows
// are unpacked a tile at a time. Sums: codes become floats in registers.
#include <cmath>
#include <vector>

#include "kv_lanes.h"
#include "matmul.h"

namespace macllm {
namespace {

constexpr int PARTS = 3;
constexpr float LARGEST = 4.1e6f;  // below 2^22, which `ROUNDER` rounds
constexpr int64_t TILE_ROWS = 64;
constexpr int MOST = W == 8 ? 2 : 4;  // queries whose sums fit into registers

constexpr int planes(int bits) { return 8 / bits; }

int64_t query_words(const PackedRows& rows) { return rows.words_per_row() * planes(rows.bits) * PARTS; }

// A query in bytes: for each word of a row its planes in three parts; then its sum in each group; then its unit.
void to_bytes(const PackedRows& rows, int64_t D, const float* q, float* to) {
  const int64_t n = query_words(rows);
  const int per = 32 / rows.bits, count = planes(rows.bits);
  std::vector<int8_t> bytes(4 * n);
  std::vector<double> sums(rows.groups);
  float top = 0, unsound = 0;
  for (int64_t d = 0; d < D; d++) top = std::max(top, std::abs(q[d])), unsound += q[d] * 0.f;
  const float inverse = top > SMALLEST ? LARGEST / top : 0.f;
  for (int64_t d = 0; d < D; d++) {
    int32_t whole = unsound == 0 ? int32_t(std::lrint(q[d] * inverse)) : 0;
    sums[d / rows.group] += whole;
    const int64_t element = d % per, word = (d / per * count + element % count) * PARTS;
    for (int part = 0; part < PARTS; part++) {
      const int8_t low = int8_t(whole);
      bytes[(word + part) * 4 + element / count] = low;
      whole = (whole - low) >> 8;
    }
  }
  std::memcpy(to, bytes.data(), 4 * n);
  const float unit = top / LARGEST + unsound;
  for (int64_t g = 0; g < rows.groups; g++) to[n + g] = float(sums[g] * unit);
  to[n + rows.groups] = unit;
}

template <int BITS, int P, int M>
void byte_scores(const PackedRows& rows, int64_t count, const float* queries, float* to, int64_t stride) {
  constexpr int PER = 32 / BITS, PLANES = planes(BITS);
  const int64_t words = rows.words_per_row(), n = query_words(rows), size = ready_floats(rows);
  const int64_t room = (count + W - 1) / W * W;
  const Numbers numbers(rows, count);
  const auto* bytes = reinterpret_cast<const int32_t*>(queries);
  for (int64_t s = 0; s < room; s += W) {
    vf scaled[M] = {}, biased[M] = {};
    for (int64_t w = 0; w < words; w += P) {
      vi block[P], acc[M][PARTS] = {};
      columns_of<P>(rows.words + s * words + w, words, count - s, block);
      for (int i = 0; i < P; i++) {
        for (int p = 0; p < PLANES; p++) {
          const vi codes = BITS == 8 ? block[i] : (block[i] >> (4 * p)) & 0x0f0f0f0f;
          const int32_t* q = bytes + ((w + i) * PLANES + p) * PARTS;
          for (int m = 0; m < M; m++)
            for (int part = 0; part < PARTS; part++) acc[m][part] = dot4(acc[m][part], codes, vi{} + q[m * size + part]);
        }
      }
      const int64_t g = w * PER / rows.group;
      const vf scale = numbers.scales(g, s), bias = w * PER % rows.group ? vf{} : numbers.biases(g, s);
      for (int m = 0; m < M; m++) {
        scaled[m] += scale * ((as_float(acc[m][2]) * 256.f + as_float(acc[m][1])) * 256.f + as_float(acc[m][0]));
        biased[m] += bias * queries[m * size + n + g];
      }
    }
    for (int m = 0; m < M; m++) store(to + m * stride + s, scaled[m] * queries[m * size + size - 1] + biased[m]);
  }
}

// Two vectors of codes from element `at` on: neighbours, or those at even and at odd places.
template <int BITS>
inline void two(const uint32_t* row, int64_t at, vf* x) {
  if constexpr (BITS == 8) {
    for (int i = 0; i < 2; i++) x[i] = as_float(codes<8>(row, at + i * W));
  } else {
    const vi both = widened(reinterpret_cast<const uint8_t*>(row) + at / 2);
    x[0] = as_float(both & 15), x[1] = as_float(both >> 4);
  }
}

// Sums [first, first + N * W) of a group; `weights` [M, count up to W] include the scale.
template <int BITS, int M, int N>
void code_sums(const PackedRows& rows, int64_t count, int64_t first, const float* weights, const float* biased, Sums to) {
  const int64_t words = rows.words_per_row(), room = (count + W - 1) / W * W;
  vf acc[M][N] = {};
  const uint32_t* row = rows.words;
  for (int64_t s = 0; s < count; s++, row += words) {
    __builtin_prefetch(reinterpret_cast<const char*>(row + first * BITS / 32) + AHEAD);
    for (int n = 0; n < N; n += 2) {
      vf x[2];
      two<BITS>(row, first + n * W, x);
      for (int m = 0; m < M; m++)
        for (int i = 0; i < 2; i++) acc[m][n + i] += weights[m * room + s] * x[i];
    }
  }
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < N; n++) {
      float* at = to.data + m * to.stride + first + (BITS == 8 ? n * W : n / 2 * 2 * W + n % 2);
      float lanes[W];
      store(lanes, acc[m][n] + biased[m]);
      for (int l = 0; l < W; l++, at += 8 / BITS) *at = (to.add ? *at : 0.f) + lanes[l];
    }
  }
}

template <int BITS, int M>
void sums_of(const PackedRows& rows, int64_t count, const float* weights, int64_t stride, Sums to) {
  const int64_t room = (count + W - 1) / W * W;
  const Numbers numbers(rows, count);
  std::vector<float> scaled(M * room);
  for (int64_t g = 0; g < rows.groups; g++) {
    float biased[M];
    for (int m = 0; m < M; m++) {
      vf total{};
      for (int64_t s = 0; s < room; s += W) {
        const vf weight = s + W <= count ? load(weights + m * stride + s) : load(weights + m * stride + s, count - s, 0.f);
        store(&scaled[m * room + s], weight * numbers.scales(g, s));
        total += weight * numbers.biases(g, s);
      }
      biased[m] = sum(total);
    }
    constexpr int N = W == 16 ? 2 : 4;
    int64_t d = g * rows.group;
    const int64_t end = d + rows.group;
    for (; d + 4 * W <= end; d += 4 * W) code_sums<BITS, M, 4>(rows, count, d, scaled.data(), biased, to);
    for (; d < end; d += N * W) code_sums<BITS, M, N>(rows, count, d, scaled.data(), biased, to);
  }
}

// Calls body<M>(first) for all of `count` in pieces of at most `most`.
template <int most, class Body>
void in_pieces(int64_t count, Body body) {
  int64_t m = 0;
  for (; m + most <= count; m += most) body.template operator()<most>(m);
  if (most > 3 && count - m == 3) return body.template operator()<3>(m);
  if (count - m == 2) return body.template operator()<2>(m);
  if (count - m == 1) body.template operator()<1>(m);
}

}  // namespace

int64_t ready_floats(const PackedRows& rows) { return WHOLE_BYTES ? query_words(rows) + rows.groups + 1 : rows.width(); }

void ready_query(const PackedRows& rows, int64_t D, const float* q, float* to) {
  if (WHOLE_BYTES) return to_bytes(rows, D, q, to);
  std::copy(q, q + D, to);
  std::fill(to + D, to + rows.width(), 0.f);
}

void packed_scores(const PackedRows& rows, int64_t count, int64_t queries, const float* ready, float* to, int64_t stride) {
  if constexpr (!WHOLE_BYTES) {
    std::vector<float> tile(rows.width() * TILE_ROWS);
    for (int64_t s = 0; s < count; s += TILE_ROWS) {
      const int64_t n = std::min(TILE_ROWS, count - s);
      unpack_transposed(rows.from(0, 0, s), n, tile.data(), TILE_ROWS);
      few_rows(queries, (n + W - 1) / W * W, rows.width(), ready, rows.width(), tile.data(), TILE_ROWS, to + s, stride,
               false);
    }
    return;
  }
  const int64_t size = ready_floats(rows);
  with_words(rows, [&]<int P>() {
    in_pieces<4>(queries, [&]<int M>(int64_t m) {
      const auto run = rows.bits == 8 ? byte_scores<8, P, M> : byte_scores<4, P, M>;
      run(rows, count, ready + m * size, to + m * stride, stride);
    });
  });
}

void packed_sums(const PackedRows& rows, int64_t count, int64_t queries, const float* weights, int64_t stride, Sums to) {
  in_pieces<MOST>(queries, [&]<int M>(int64_t m) {
    const auto run = rows.bits == 8 ? sums_of<8, M> : sums_of<4, M>;
    run(rows, count, weights + m * stride, stride, {to.data + m * to.stride, to.stride, to.add});
  });
}

}  // namespace macllm
