// Few rows of x against a packed matrix, which is read once and unpacked in registers. Lane l of a vector of words holds
// 32 / bits neighbours of a row, extracted by masks and shifts; x is reordered to match, and scales and biases are spread
// over the lanes of their groups. x is multiplied in float32, or rounded to int8 with a scale for each lane of each chunk,
// and integers are multiplied four at a time.
#include <algorithm>

#include "int8.h"
#include "parallel.h"
#include "quantized.h"

namespace macllm {
namespace {

constexpr int64_t ROWS = 16;  // of w, whose scales are widened together
constexpr int64_t AHEAD = 512;  // words: with hardware prefetching alone, a core reads at 7 of 9 GB/s

// p[index[l]] for each lane; may read p[W - 1] in any case.
inline vf spread(const float* p, vi index) {
#if defined(__AVX512F__)
  return vf(_mm512_permutexvar_ps(__m512i(index), __m512(load(p))));
#elif defined(__AVX2__)
  return vf(_mm256_permutevar8x32_ps(__m256(load(p)), __m256i(index)));
#else
  vf v;
  for (int l = 0; l < W; l++) v[l] = p[index[l]];
  return v;
#endif
}

inline vi load_first(const uint32_t* p, int64_t count) {
#if defined(__AVX512F__)
  return vi(_mm512_maskz_loadu_epi32(__mmask16((1 << count) - 1), p));
#else
  int32_t all[W] = {};
  for (int64_t l = 0; l < count; l++) all[l] = int32_t(p[l]);
  vi v;
  std::memcpy(&v, all, sizeof v);
  return v;
#endif
}

template <int BITS>
struct Layout {
  static constexpr int PER_LANE = 32 / BITS, CHUNK = W * PER_LANE;
  static constexpr int PLANES = 8 / BITS;  // of bytes in a word: plane p has elements p, p + PLANES, ...
  static constexpr uint32_t MASK = BITS == 8 ? 0xffffffffu : BITS == 4 ? 0x0f0f0f0fu : 0x03030303u;

  static int64_t chunks(int64_t K) { return (K + CHUNK - 1) / CHUNK; }
};

// One chunk of x: to[j][l] is element j of lane l.
template <int BITS>
void gather_chunk(const float* x, int64_t count, vf* to) {
  constexpr int PER = Layout<BITS>::PER_LANE;
  float all[Layout<BITS>::CHUNK];
  if (count < Layout<BITS>::CHUNK) {
    std::fill(all, all + Layout<BITS>::CHUNK, 0.f);
    for (int64_t i = 0; i < count; i++) all[i % PER * W + i / PER] = x[i];
  } else {
    for (int j = 0; j < PER; j++)
      for (int l = 0; l < W; l++) all[j * W + l] = x[l * PER + j];
  }
  for (int j = 0; j < PER; j++) to[j] = load(all + j * W);
}

// x in the order of the kernel, chunk by chunk: its elements and their sum in each lane.
template <int BITS>
struct Floats {
  static constexpr int VECTORS = Layout<BITS>::PER_LANE + 1;

  static void ready(const vf* x, float* to) {
    vf total{};
    for (int j = 0; j < VECTORS - 1; j++) {
      store(to + j * W, x[j]);
      total += x[j];
    }
    store(to + (VECTORS - 1) * W, total);
  }

  template <int M>
  static void dots(vi w, const float* x, int64_t stride, vf* to) {
    vf total[M] = {};
    for (int j = 0; j < VECTORS - 1; j++) {
      vf q = as_float((w >> (BITS * j)) & ((1 << BITS) - 1));
      for (int m = 0; m < M; m++) total[m] += q * load(x + m * stride + j * W);
    }
    for (int m = 0; m < M; m++) to[m] = total[m];
  }
};

// The same in bytes: planes of rounded elements, the scale of each lane, and the sum of the rounded elements times it.
template <int BITS>
struct Bytes {
  static constexpr int PER = Layout<BITS>::PER_LANE, PLANES = Layout<BITS>::PLANES, VECTORS = PLANES + 2;

  static void ready(const vf* x, float* to) {
    vf top{}, unsound{}, total{};
    for (int j = 0; j < PER; j++) {
      top = max(magnitude(x[j]), top);
      unsound += x[j] * 0.f;  // NaN where an element is not finite
    }
    const vf inverse = top > SMALLEST ? 127.f / top : vf{};
    vi planes[PLANES] = {};
    for (int j = 0; j < PER; j++) {
      const vf rounded = x[j] * inverse + ROUNDER;
      total += rounded - ROUNDER;
      planes[j % PLANES] |= (bits_of<vi>(rounded) & 255) << (j / PLANES * 8);
    }
    const vf scale = (top > SMALLEST ? top * (1 / 127.f) : vf{}) + unsound;
    for (int p = 0; p < PLANES; p++) store(to + p * W, bits_of<vf>(planes[p]));
    store(to + PLANES * W, scale);
    store(to + (PLANES + 1) * W, total * scale);
  }

  template <int M>
  static void dots(vi w, const float* x, int64_t stride, vf* to) {
    auto plane = [&](int m, int p) { return bits_of<vi>(load(x + m * stride + p * W)); };
    vi total[M] = {};
    if constexpr (BITS == 8 && !WHOLE_BYTES) {
      const vi low = w & 0x0f0f0f0f, high = (w >> 4) & 0x0f0f0f0f;
      for (int m = 0; m < M; m++) total[m] = dot4(dot4(vi{}, high, plane(m, 0)) << 4, low, plane(m, 0));
    } else {
      for (int p = 0; p < PLANES; p++) {
        const vi q = BITS == 8 ? w : (w >> (BITS * p)) & int32_t(Layout<BITS>::MASK);
        for (int m = 0; m < M; m++) total[m] = dot4(total[m], q, plane(m, p));
      }
    }
    for (int m = 0; m < M; m++) to[m] = as_float(total[m]) * load(x + m * stride + PLANES * W);
  }
};

// Scales and biases of a row, and the group of each lane in a chunk.
struct Groups {
  const float *scales, *biases;
  vi index;
  int shift;  // log2 of the elements in a group
};

// y[m * next] = row . x[m].
template <int BITS, int M, template <int> class Form>
void one_row(const uint32_t* row, int64_t words, Groups g, const float* x, int64_t stride, float* y, int64_t next) {
  vf scaled[M] = {}, biased[M] = {};
  auto add = [&](int64_t chunk, vi w, auto shown) {
    const int64_t group = chunk * Layout<BITS>::CHUNK >> g.shift;
    const vf scale = shown(spread(g.scales + group, g.index)), bias = shown(spread(g.biases + group, g.index));
    const float* at = x + chunk * Form<BITS>::VECTORS * W;
    vf dots[M];
    Form<BITS>::template dots<M>(w, at, stride, dots);
    for (int m = 0; m < M; m++) {
      scaled[m] += scale * dots[m];
      biased[m] += bias * load(at + m * stride + (Form<BITS>::VECTORS - 1) * W);
    }
  };
  const int64_t whole = words / W;
  for (int64_t c = 0; c < whole; c++) {
    __builtin_prefetch(row + c * W + AHEAD);
    add(c, load_words(row + c * W), [](vf v) { return v; });
  }
  if (words % W) {  // groups of the next row follow
    const int32_t left = int32_t(words % W);
    vi lanes;
    for (int l = 0; l < W; l++) lanes[l] = l;
    add(whole, load_first(row + whole * W, left), [&](vf v) { return bits_of<vf>(bits_of<vi>(v) & (lanes < left)); });
  }
  for (int m = 0; m < M; m++) y[m * next] = sum(scaled[m] + biased[m]);
}

// Floats for the scales of a block, or for its biases.
int64_t room(const PackedMatrix& w) { return ROWS * w.groups() + W; }

// Rows [first, first + count) of w, count <= ROWS; `scratch` is zero except for numbers of w.
template <int BITS, template <int> class Form>
void block_of_rows(const PackedMatrix& w, int64_t first, int64_t count, const ReadyRows& x, float* scratch, float* y,
                   int64_t next) {
  const int64_t G = w.groups(), stride = Layout<BITS>::chunks(w.K) * Form<BITS>::VECTORS * W;
  widen(w.type, w.scales, first * G, count * G, scratch);
  widen(w.type, w.biases, first * G, count * G, scratch + room(w));
  Groups g{scratch, scratch + room(w), {}, __builtin_ctz(w.group)};
  for (int l = 0; l < W; l++) g.index[l] = l * Layout<BITS>::PER_LANE >> g.shift;
  const int64_t words = w.K * BITS / 32;
  const uint32_t* rows = w.words + first * words;
  if (BITS != w.bits) {
    auto bytes = reinterpret_cast<uint8_t*>(scratch + 2 * room(w));
    for (int64_t i = 0; i < count; i++) unpack(w, first + i, 0, w.K, bytes + i * w.K);
    rows = reinterpret_cast<const uint32_t*>(bytes);
  }
  auto each = [&](auto run) {
    for (int64_t i = 0; i < count; i++)
      run(rows + i * words, Groups{g.scales + i * G, g.biases + i * G, g.index, g.shift}, i);
  };
  int64_t m = 0;
  auto take = [&]<int TAKEN>() {
    each([&](const uint32_t* row, Groups of, int64_t i) {
      one_row<BITS, TAKEN, Form>(row, words, of, x.data() + m * stride, stride, y + m * next + first + i, next);
    });
    m += TAKEN;
  };
  while (m + 4 <= x.M) take.template operator()<4>();
  while (m + 2 <= x.M) take.template operator()<2>();
  if (m < x.M) take.template operator()<1>();
}

template <int BITS, template <int> class Form>
void make_ready(int64_t M, int64_t K, const float* x, float* to) {
  constexpr int VECTORS = Form<BITS>::VECTORS;
  const int64_t chunks = Layout<BITS>::chunks(K);
  parallel_range(M * chunks, 8 * VECTORS, [&](int64_t from, int64_t last) {
    for (int64_t i = from; i < last; i++) {
      const int64_t m = i / chunks, at = i % chunks * Layout<BITS>::CHUNK;
      vf elements[Layout<BITS>::PER_LANE];
      gather_chunk<BITS>(x + m * K + at, std::min<int64_t>(K - at, Layout<BITS>::CHUNK), elements);
      Form<BITS>::ready(elements, to + i * VECTORS * W);
    }
  });
}

template <int BITS, template <int> class Form>
void columns(const PackedMatrix& w, const ReadyRows& x, int64_t first, int64_t last, float* y, int64_t next) {
  const int64_t scales = 2 * room(w), bytes = BITS == w.bits ? 0 : ROWS * w.K / 4;
  const Aligned<float> scratch(scales + bytes);
  for (int64_t n = first; n < last; n += ROWS)
    block_of_rows<BITS, Form>(w, n, std::min(ROWS, last - n), x, scratch.get(), y, next);
}

// Calls f with the width in which a matrix is read, and the form of x.
template <class F>
auto in_form(int bits, bool int8, F f) {
  auto form = [&]<int BITS>() {
    if (int8) return f.template operator()<BITS, Bytes>();
    return f.template operator()<BITS, Floats>();
  };
  if (bits == 2) return form.template operator()<2>();
  if (bits == 4) return form.template operator()<4>();
  return form.template operator()<8>();
}

// Floats of M rows in this form.
int64_t floats(int bits, bool int8, int64_t M, int64_t K) {
  return in_form(bits, int8, [&]<int BITS, template <int> class Form>() {
    return M * Layout<BITS>::chunks(K) * Form<BITS>::VECTORS * W;
  });
}

}  // namespace

ReadyRows::ReadyRows(int bits, bool int8, int64_t M, int64_t K, const float* x)
    : int8(int8), M(M), data_(floats(bits, int8, M, K)) {
  in_form(bits, int8, [&]<int BITS, template <int> class Form>() { make_ready<BITS, Form>(M, K, x, data_.get()); });
}

void quantized_columns(const PackedMatrix& w, const ReadyRows& x, int64_t first, int64_t last, float* y, int64_t stride) {
  in_form(w.bits, x.int8, [&]<int BITS, template <int> class Form>() { columns<BITS, Form>(w, x, first, last, y, stride); });
}

void quantized_few_rows(const PackedMatrix& w, int64_t M, const float* x, bool int8, float* y) {
  const ReadyRows ready(w.bits, int8, M, w.K, x);
  const int64_t blocks = (w.N + ROWS - 1) / ROWS;
  parallel_range(blocks, ROWS * w.K / 16 * (M + 1), [&](int64_t from, int64_t to) {
    quantized_columns(w, ready, from * ROWS, std::min(to * ROWS, w.N), y, w.N);
  });
}

}  // namespace macllm
