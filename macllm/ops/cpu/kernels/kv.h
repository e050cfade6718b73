// Rows of keys and values of a quantized cache.
#pragma once

#include <cstdint>

namespace macllm {

// [B, K, positions, D] as mx.quantize packs it along D, each row padded with zeros to whole groups: scale q + bias
// with q in 4 or 8 bits, the first in the lowest bits of a word.
struct PackedRows {
  const uint32_t* words = nullptr;
  const float *scales = nullptr, *biases = nullptr;
  int64_t batch = 0, head = 0;  // strides in rows; positions follow one another
  int64_t groups = 0;           // in a row
  int bits = 0, group = 0;

  int64_t width() const { return groups * group; }
  int64_t words_per_row() const { return width() * bits / 32; }
  PackedRows from(int64_t b, int64_t h, int64_t position) const {
    PackedRows rows = *this;
    const int64_t before = b * batch + h * head + position;
    rows.words += before * words_per_row();
    rows.scales += before * groups;
    rows.biases += before * groups;
    return rows;
  }
};

// The first `count` rows as floats: to[s * stride + d].
void unpack(const PackedRows& rows, int64_t count, float* to, int64_t stride);

// The same as to[d * stride + s]; to[d * stride] is written up to a multiple of W, with finite numbers beyond `count`.
void unpack_transposed(const PackedRows& rows, int64_t count, float* to, int64_t stride);

// A query in the form that `packed_scores` reads: its number of floats, and its making from q [D].
int64_t ready_floats(const PackedRows& rows);
void ready_query(const PackedRows& rows, int64_t D, const float* q, float* to);

// to[m * stride + s] = query m . row s for s < count; written up to a multiple of W, with finite numbers beyond `count`.
void packed_scores(const PackedRows& rows, int64_t count, int64_t queries, const float* ready, float* to, int64_t stride);

// data[m * stride + d] (+)= the sum over s < count of weights[m * stride + s] row_s[d].
struct Sums {
  float* data;
  int64_t stride;
  bool add;
};
void packed_sums(const PackedRows& rows, int64_t count, int64_t queries, const float* weights, int64_t stride, Sums to);

// Destination of one row.
struct PackedRow {
  uint32_t* words;
  float *scales, *biases;
  int64_t groups;
  int bits, group;
};

// x [D], bit for bit as mx.quantize packs it.
void pack_row(const float* x, int64_t D, const PackedRow& to);

}  // namespace macllm
