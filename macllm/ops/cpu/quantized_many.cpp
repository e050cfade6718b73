// Many rows of x, rounded to int8 in groups of 32, against a packed matrix: strips of its rows are laid out with a row
// in each lane, so that a sum of integers is an element of the result.
#include <algorithm>
#include <memory>
#include <vector>

#include "int8.h"
#include "parallel.h"
#include "quantized.h"

namespace macllm {
namespace {

constexpr int64_t GROUP = 32;  // of x, with a scale of its own
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TALL = 6, WIDE = 2;  // a tile of the result: rows, and vectors of columns
#else
constexpr int TALL = 3, WIDE = 2;
#endif
constexpr int STRIP = WIDE * W;  // rows of w

// x in int8, a scale for each group, and for each group of w the sum of what the integers stand for.
struct Rounded {
  Rounded(const PackedMatrix& w, int64_t M, const float* x)
      : K(w.K),
        groups(w.groups()),
        q(new int8_t[M * K]),
        scales(new float[M * K / GROUP]),
        sums(new float[M * groups]()) {
    parallel_range(M, K / W * 4, [&](int64_t first, int64_t last) {
      for (int64_t m = first; m < last; m++)
        for (int64_t k = 0; k < K; k += GROUP) round(x + m * K + k, m, k, w.group);
    });
  }

  void round(const float* x, int64_t m, int64_t k, int group) {
    vf top{}, unsound{}, total{};
    for (int64_t i = 0; i < GROUP; i += W) {
      top = max(magnitude(load(x + i)), top);
      unsound += load(x + i) * 0.f;  // NaN where an element is not finite
    }
    const float most = max(top), inverse = most > SMALLEST ? 127.f / most : 0.f;
    int32_t bits[GROUP];
    for (int64_t i = 0; i < GROUP; i += W) {
      const vf rounded = load(x + i) * inverse + ROUNDER;
      total += rounded - ROUNDER;
      std::memcpy(bits + i, &rounded, sizeof rounded);
    }
    int8_t* to = q.get() + m * K + k;
    for (int64_t i = 0; i < GROUP; i++) to[i] = int8_t(bits[i]);
    const float scale = (most > SMALLEST ? most / 127 : 0.f) + sum(unsound);
    scales[(m * K + k) / GROUP] = scale;
    sums[m * groups + k / group] += sum(total) * scale;
  }

  int64_t K, groups;
  std::unique_ptr<int8_t[]> q;
  std::unique_ptr<float[]> scales, sums;
};

// STRIP rows of w: words[k / 4] has four elements of each row, scales and biases one of each row for each group.
struct Strip {
  explicit Strip(const PackedMatrix& w)
      : group(w.group),
        words(w.K / 4 * STRIP),
        scales(w.groups() * STRIP),
        biases(w.groups() * STRIP),
        row_(w.K),
        line_(w.groups()) {}

  void fill(const PackedMatrix& w, int64_t first) {
    const int64_t rows = std::min<int64_t>(STRIP, w.N - first), G = w.groups();
    for (int64_t r = 0; r < rows; r++) {
      unpack(w, first + r, 0, w.K, row_.data());
      for (int64_t i = 0; i < w.K / 4; i++) std::memcpy(&words[i * STRIP + r], &row_[i * 4], 4);
      widen(w.type, w.scales, (first + r) * G, G, line_.data());
      for (int64_t g = 0; g < G; g++) scales[g * STRIP + r] = line_[g];
      widen(w.type, w.biases, (first + r) * G, G, line_.data());
      for (int64_t g = 0; g < G; g++) biases[g * STRIP + r] = line_[g];
    }
  }

  int64_t group;
  Aligned<uint32_t> words;
  Aligned<float> scales, biases;

 private:
  std::vector<uint8_t> row_;
  std::vector<float> line_;
};

// The integers' products over one group of x.
template <int M>
void dots(const uint32_t* words, const int8_t* q, int64_t K, vi (*to)[WIDE]) {
  for (int m = 0; m < M; m++)
    for (int n = 0; n < WIDE; n++) to[m][n] = vi{};
  for (int64_t i = 0; i < GROUP / 4; i++) {
    vi w[WIDE];
    for (int n = 0; n < WIDE; n++) w[n] = load_words(words + i * STRIP + n * W);
    for (int m = 0; m < M; m++) {
      int32_t four;
      std::memcpy(&four, q + m * K + i * 4, 4);
      const vi x = four - vi{};
      for (int n = 0; n < WIDE; n++) to[m][n] = dot4(to[m][n], w[n], x);
    }
  }
}

// Rows [row, row + M) of x times the strip: y [M, STRIP].
template <int M>
void tile(const Strip& s, const Rounded& x, int64_t row, float* y) {
  vf total[M][WIDE] = {};
  const int64_t K = x.K;
  for (int64_t g = 0; g < x.groups; g++) {
    vf scale[WIDE], bias[WIDE];
    for (int n = 0; n < WIDE; n++) {
      scale[n] = load(&s.scales[g * STRIP + n * W]);
      bias[n] = load(&s.biases[g * STRIP + n * W]);
    }
    for (int64_t k = g * s.group; k < (g + 1) * s.group; k += GROUP) {
      vi sums[M][WIDE];
      dots<M>(&s.words[k / 4 * STRIP], x.q.get() + row * K + k, K, sums);
      for (int m = 0; m < M; m++) {
        const float of_x = x.scales[((row + m) * K + k) / GROUP];
        for (int n = 0; n < WIDE; n++) total[m][n] += as_float(sums[m][n]) * (scale[n] * of_x);
      }
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < WIDE; n++) total[m][n] += bias[n] * x.sums[(row + m) * x.groups + g];
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < WIDE; n++) store(y + m * STRIP + n * W, total[m][n]);
}

// All rows of x times rows [n, n_end) of w.
void columns_of(const PackedMatrix& w, const Rounded& x, int64_t M, int64_t n, int64_t n_end, float* y) {
  Strip strip(w);
  float result[TALL * STRIP];
  for (; n < n_end; n += STRIP) {
    strip.fill(w, n);
    const int64_t columns = std::min<int64_t>(STRIP, n_end - n);
    auto take = [&]<int HEIGHT>(int64_t row) {
      tile<HEIGHT>(strip, x, row, result);
      for (int i = 0; i < HEIGHT; i++) std::copy_n(result + i * STRIP, columns, y + (row + i) * w.N + n);
    };
    int64_t row = 0;
    for (; row + TALL <= M; row += TALL) take.template operator()<TALL>(row);
    for (; row < M; row++) take.template operator()<1>(row);
  }
}

}  // namespace

bool quantized_many_rows(const PackedMatrix& w, int64_t M, const float* x, float* y) {
  if (w.bits == 8 && !WHOLE_BYTES) return false;
  const Rounded rounded(w, M, x);
  // Rows of x are cheap to read again, a strip is dear to make: whole columns of the result, then.
  const int64_t strips = (w.N + STRIP - 1) / STRIP;
  parallel_range(strips, M * w.K, [&](int64_t first, int64_t last) {
    columns_of(w, rounded, M, first * STRIP, std::min(last * STRIP, w.N), y);
  });
  return true;
}

}  // namespace macllm
