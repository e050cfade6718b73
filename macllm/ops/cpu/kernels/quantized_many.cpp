// Many rows of x, rounded to int8 in groups of 32, against a packed matrix: strips of its rows have a row in each lane, so
// that a sum of integers is an element of the result.
#include <algorithm>

#include "int8.h"
#include "parallel.h"
#include "ranges.h"
#include "quantized.h"
#include "scratch.h"
#include "transpose.h"

namespace macllm {
namespace {

constexpr int64_t GROUP = 32;  // of x, with one scale
constexpr int64_t WORDS = GROUP / 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TALL = 6, WIDE = 2;  // a tile of the result: rows, and vectors of columns
#else
constexpr int TALL = 3, WIDE = 2;
#endif
constexpr int STRIP = WIDE * W;       // rows of w
constexpr int64_t DEPTH = 512;        // of a strip, which stays in L1: whole groups of any size
constexpr int64_t ROWS = 2048;        // of x that are rounded together

// Lane i of the result is `fold` over the lanes of v[i].
template <class F>
inline vf folded(vf* v, F fold) {
  transpose<W>(v);
  for (int i = 1; i < W; i++) v[0] = fold(v[0], v[i]);
  return v[0];
}

// W groups of x at a time, a group in each lane; a number that is not finite makes its group's scale NaN.
struct Rounding {
  vf scales, sums;  // sums of the integers times their scale

  // put(i, four neighbours each) of the group at x[i].
  template <class Put>
  Rounding(const float* const* x, Put put) {
    vf each[W];
    for (int i = 0; i < W; i++) {
      each[i] = magnitude(load(x[i]));
      for (int64_t k = W; k < GROUP; k += W) each[i] = max(magnitude(load(x[i] + k)), each[i]);
    }
    const vf most = folded(each, [](vf a, vf b) { return max(a, b); });
    const vf inverse = most > SMALLEST ? 127.f / most : vf{};
    for (int i = 0; i < W; i++) {
      int8_t bytes[GROUP];
      each[i] = vf{};
      for (int64_t k = 0; k < GROUP; k += W) {
        const vf integer = load(x[i] + k) * inverse[i] + ROUNDER;
        each[i] += integer - ROUNDER;
        const auto narrow = __builtin_convertvector(bits_of<vi>(integer), vb);
        std::memcpy(bytes + k, &narrow, sizeof narrow);
      }
      put(i, bytes);
    }
    sums = folded(each, [](vf a, vf b) { return a + b; });
    scales = (most > SMALLEST ? most * (1 / 127.f) : vf{}) + sums * 0.f;
    sums *= scales;
  }

 private:
  typedef int8_t vb __attribute__((vector_size(W)));
};

// Rows of x in panels of up to TALL, each in the order in which a tile reads it: four bytes of every row, then the next
// four. Each row has a scale for each group of x, and a sum for each group of w.
class Panels {
 public:
  Panels(const PackedMatrix& w, int64_t M) : rows(M, TALL), K_(w.K), group_(w.group) {
    static thread_local ThreadScratch<int32_t> q;
    static thread_local ThreadScratch<float> numbers;
    q_ = q.reserve(M * K_ / 4);
    scales_ = numbers.reserve(M * (K_ / GROUP + K_ / group_));
    sums_ = scales_ + M * (K_ / GROUP);
  }

  // The arrays of a panel, column by column.
  int32_t* words(int64_t panel) const { return q_ + rows.begin(panel) * (K_ / 4); }
  float* scales(int64_t panel) const { return scales_ + rows.begin(panel) * (K_ / GROUP); }
  float* sums(int64_t panel) const { return sums_ + rows.begin(panel) * (K_ / group_); }

  void fill(int64_t panel, const float* x) const {
    const int64_t H = rows.length(panel), groups = K_ / GROUP * H;  // all rows' first, then all rows' second, ...
    const int64_t each = group_ / GROUP;
    int32_t* q = words(panel);
    float *scale = scales(panel), *total = sums(panel);
    x += rows.begin(panel) * K_;
    std::fill_n(total, K_ / group_ * H, 0.f);
    int64_t r = 0, g = 0, left = each;  // the next group's row and number, and groups of x in the group of w
    for (int64_t first = 0; first < groups; first += W) {
      const int64_t count = std::min<int64_t>(W, groups - first);
      const float* from[W];
      int32_t* to[W];
      float* sum[W];
      for (int i = 0; i < W; i++) {
        from[i] = i < count ? x + r * K_ + g * GROUP : x;
        to[i] = q + g * WORDS * H + r;
        sum[i] = total + r;
        if (++r < H) continue;
        r = 0, g++;
        if (--left == 0) left = each, total += H;
      }
      const Rounding done(from, [&](int i, const int8_t* bytes) {
        for (int64_t word = 0; word < WORDS && i < count; word++) std::memcpy(to[i] + word * H, bytes + word * 4, 4);
      });
      for (int64_t i = 0; i < count; i++) {
        scale[first + i] = done.scales[i];
        *sum[i] += done.sums[i];
      }
    }
  }

  const Ranges rows;

 private:
  int64_t K_, group_;
  int32_t* q_;
  float *scales_, *sums_;
};

// STRIP rows of w, DEPTH deep: words[k / 4] has four elements of each row; scales and biases have one number per row and
// group.
struct Strip {
  alignas(64) int32_t words[DEPTH / 4 * STRIP];
  alignas(64) float scales[DEPTH / GROUP * STRIP], biases[DEPTH / GROUP * STRIP];

  // Rows from `first` on, columns [k, end).
  void fill(const PackedMatrix& w, int64_t first, int64_t k, int64_t end) {
    for (int64_t r = 0; r < STRIP; r += W) {
      const int64_t rows = std::clamp<int64_t>(w.N - first - r, 0, W);
      fill_words(w, first + r, rows, k, end, words + r);
      fill_numbers(w, w.scales, first + r, rows, k, end, scales + r);
      fill_numbers(w, w.biases, first + r, rows, k, end, biases + r);
    }
  }

 private:
  static void fill_words(const PackedMatrix& w, int64_t first, int64_t rows, int64_t k, int64_t end, int32_t* to) {
    alignas(64) uint8_t bytes[W * DEPTH];
    for (int64_t r = 0; r < rows; r++) unpack(w, first + r, k, end, bytes + r * DEPTH);
    for (int64_t i = 0; i < end - k; i += 4 * W) {
      vi v[W];
      for (int r = 0; r < W; r++) v[r] = r < rows ? load_words(bytes + r * DEPTH + i) : vi{};
      transpose<W>(v);
      const int64_t count = std::min<int64_t>(W, (end - k - i) / 4);
      for (int64_t j = 0; j < count; j++) std::memcpy(to + (i / 4 + j) * STRIP, &v[j], sizeof v[j]);
    }
  }

  static void fill_numbers(const PackedMatrix& w, const void* from, int64_t first, int64_t rows, int64_t k, int64_t end,
                           float* to) {
    const int64_t G = w.groups(), begin = k / w.group, count = (end - k) / w.group;
    float line[DEPTH / GROUP];
    for (int64_t r = 0; r < W; r++) {
      if (r < rows) widen(w.type, from, (first + r) * G + begin, count, line);
      for (int64_t g = 0; g < count; g++) to[g * STRIP + r] = r < rows ? line[g] : 0.f;
    }
  }
};

// The integers' products over one group of x.
template <int M>
inline void dots(const int32_t* words, const int32_t* q, vi (*to)[WIDE]) {
  for (int m = 0; m < M; m++)
    for (int n = 0; n < WIDE; n++) to[m][n] = vi{};
  for (int64_t i = 0; i < WORDS; i++) {
    vi w[WIDE];
    for (int n = 0; n < WIDE; n++) w[n] = load_words(words + i * STRIP + n * W);
    for (int m = 0; m < M; m++) {
      vi x = q[i * M + m] - vi{};
#if defined(__AVX512F__)
      asm("" : "+v"(x));  // in a register: GCC would read it from memory once for each vector of the strip
#endif
      for (int n = 0; n < WIDE; n++) to[m][n] = dot4(to[m][n], w[n], x);
    }
  }
}

// The part of x that a tile reads, and the part of y [M, STRIP] that it writes.
struct Rows {
  const int32_t* q;
  const float *scales, *sums;
  float* y;
  int64_t stride;
};

// `depth` columns of M rows times the strip, added to y unless they are the first.
template <int M>
void tile(const Strip& s, const Rows& x, int64_t depth, int64_t group, bool first) {
  vf total[M][WIDE];
  for (int m = 0; m < M; m++)
    for (int n = 0; n < WIDE; n++) total[m][n] = first ? vf{} : load(x.y + m * x.stride + n * W);
  for (int64_t g = 0; g < depth / group; g++) {
    vf scale[WIDE];
    for (int n = 0; n < WIDE; n++) scale[n] = load(s.scales + g * STRIP + n * W);
    for (int64_t k = g * group; k < (g + 1) * group; k += GROUP) {
      vi integers[M][WIDE];
      dots<M>(s.words + k / 4 * STRIP, x.q + k / 4 * M, integers);
      for (int m = 0; m < M; m++) {
        const float of_x = x.scales[k / GROUP * M + m];
        for (int n = 0; n < WIDE; n++) total[m][n] += as_float(integers[m][n]) * (scale[n] * of_x);
      }
    }
    for (int n = 0; n < WIDE; n++) {
      const vf bias = load(s.biases + g * STRIP + n * W);
      for (int m = 0; m < M; m++) total[m][n] += bias * x.sums[g * M + m];
    }
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < WIDE; n++) store(x.y + m * x.stride + n * W, total[m][n]);
}

// All rows of x times STRIP rows of w, those from n on.
void columns_of(const PackedMatrix& w, const Panels& panels, int64_t n, float* y) {
  Strip strip;
  const int64_t columns = std::min<int64_t>(STRIP, w.N - n);
  for (int64_t k = 0; k < w.K; k += DEPTH) {
    const int64_t end = std::min(w.K, k + DEPTH);
    strip.fill(w, n, k, end);
    const int64_t group = k / w.group;
    for (int64_t p = 0; p < panels.rows.count; p++) {
      const int64_t height = panels.rows.length(p);
      float staged[TALL * STRIP], *to = y + panels.rows.begin(p) * w.N + n;
      const bool whole = columns == STRIP;
      Rows rows{panels.words(p) + k / 4 * height, panels.scales(p) + k / GROUP * height, panels.sums(p) + group * height,
                whole ? to : staged, whole ? w.N : STRIP};
      auto copy = [&](bool in) {
        for (int64_t m = 0; m < height && !whole; m++)
          in ? std::copy_n(to + m * w.N, columns, staged + m * STRIP)
             : std::copy_n(staged + m * STRIP, columns, to + m * w.N);
      };
      if (k > 0) copy(true);
      auto run = [&]<int M>(auto self) {
        if (height == M) return tile<M>(strip, rows, end - k, w.group, k == 0);
        if constexpr (M > 1) self.template operator()<M - 1>(self);
      };
      run.template operator()<TALL>(run);
      copy(false);
    }
  }
}

}  // namespace

bool quantized_many_rows(const PackedMatrix& w, int64_t M, const float* x, float* y) {
  if (w.bits == 8 && !WHOLE_BYTES) return false;
  for (int64_t done = 0; done < M; done += ROWS) {
    const Panels panels(w, std::min(ROWS, M - done));
    parallel_range(panels.rows.count, w.K / W * 4 * TALL, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; p++) panels.fill(p, x + done * w.K);
    });
    // Reading rows of x again is cheaper than making a strip again: a task computes whole columns of the result.
    parallel((w.N + STRIP - 1) / STRIP, [&](int64_t strip) {
      columns_of(w, panels, strip * STRIP, y + done * w.N);
    });
  }
  return true;
}

}  // namespace macllm
