// Rows in threadgroup memory, and products of them. A threadgroup keeps its rows, 8 to a block, and reads the others N at a
// time; SIDES simdgroups share a block and divide the columns of its products. Heads are padded with zeros to W. Matrices are
// 8 x 8; the elements that a lane holds are looked up, not assumed.
#include "../elements.metal"
#include "rows.metal"

template <typename T, int D_, int BLOCKS, int SIDES_, int N_>
struct Form {
  static constant constexpr int D = D_, SIDES = SIDES_, N = N_;
  static constant constexpr int ROWS = 8 * BLOCKS, THREADS = 32 * BLOCKS * SIDES_;
  static constant constexpr int SUMS = (D_ + 8 * SIDES_ - 1) / (8 * SIDES_), W = 8 * SIDES_ * SUMS;  // matrices of a side
  static constant constexpr int STEP = W + 16 / int(sizeof(T)), HELD = N_ + 4;  // so that rows begin in other banks
  static constant constexpr int PARTS = 4 * SIDES_, EACH = (N_ + PARTS - 1) / PARTS;  // lanes of a row, and columns of a lane
};

// A thread's simdgroup, and its row of the block, which PARTS threads share: every PARTS-th column from `part` on.
struct Place {
  int index, block, side, row, part;
};

template <typename F>
inline Place place_of(int simdgroup, int lane) {
  const int side = simdgroup % F::SIDES;
  return Place{32 * simdgroup + lane, simdgroup / F::SIDES, side, side * (8 / F::SIDES) + lane / F::PARTS, lane % F::PARTS};
}

// The elements of a matrix that a lane holds.
template <typename F>
inline Elements elements_of(threadgroup float* scratch, int index) {
  for (int i = index; i < 64; i += F::THREADS) scratch[i] = float(i);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const Elements own = elements_in(scratch);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return own;
}

// Eight numbers of a row.
template <typename Numbers>
inline void eight_of(const thread Plain<Numbers>& rows, long row, int part, thread float* x) {
  const Numbers from = rows.numbers + row * rows.step + EIGHT * part;
  for (int i = 0; i < EIGHT; i++) x[i] = float(from[i]);
}
template <int BITS, int GROUP, typename Words, typename Scales>
inline void eight_of(const thread Packed<BITS, GROUP, Words, Scales>& rows, long row, int part, thread float* x) {
  constexpr int PER_WORD = 32 / BITS, WORDS = EIGHT / PER_WORD;
  const Words words = rows.words + row * rows.word_step + part * WORDS;
  const float scale = float(rows.scales[row * rows.scale_step + EIGHT * part / GROUP]);
  const float bias = float(rows.biases[row * rows.bias_step + EIGHT * part / GROUP]);
  for (int w = 0; w < WORDS; w++) {
    const uint word = words[w];
    for (int i = 0; i < PER_WORD; i++) {
      x[w * PER_WORD + i] = scale * float((word >> (BITS * i)) & ((1u << BITS) - 1u)) + bias;
    }
  }
}

// Reads COUNT rows from `row` on; zeros from `end` on.
template <typename F, int COUNT, typename T, typename Rows>
inline void read_tile(const thread Rows& rows, int row, int end, int index, threadgroup T* tile) {
  constexpr int EIGHTS = F::W / EIGHT;
  for (int i = index; i < COUNT * EIGHTS; i += F::THREADS) {
    const int at = i / EIGHTS, part = i % EIGHTS;
    float x[EIGHT] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (row + at < end && part < F::D / EIGHT) eight_of(rows, row + at, part, x);
    for (int j = 0; j < EIGHT; j++) tile[at * F::STEP + EIGHT * part + j] = T(x[j]);
  }
}

// products (8, N) = block (8, W) tile (N, W)^T.
template <typename F, typename T>
inline void multiply_tile(const threadgroup T* block, const threadgroup T* tile, int side, threadgroup float* products) {
  constexpr int SHARE = F::N / 8 > F::SIDES ? F::N / 8 / F::SIDES : 1;
  if (side * SHARE < F::N / 8) {
    simdgroup_float8x8 sums[SHARE];
    UNROLLED for (int s = 0; s < SHARE; s++) sums[s] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (int d = 0; d < F::W; d += 8) {
      simdgroup_matrix<T, 8, 8> a, b;
      simdgroup_load(a, block + d, F::STEP);
      UNROLLED for (int s = 0; s < SHARE; s++) {
        simdgroup_load(b, tile + 8 * (side * SHARE + s) * F::STEP + d, F::STEP, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(sums[s], a, b, sums[s]);
      }
    }
    UNROLLED for (int s = 0; s < SHARE; s++) simdgroup_store(sums[s], products + 8 * (side * SHARE + s), F::HELD);
  }
}

template <typename F>
inline void clear_sums(thread simdgroup_float8x8* sums) {
  UNROLLED for (int i = 0; i < F::SUMS; i++) sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
}

// sums += weights (8, N) tile (N, W), in the columns of this side.
template <typename F, typename T>
inline void add_tile(const threadgroup float* weights, const threadgroup T* tile, int side, thread simdgroup_float8x8* sums) {
  for (int n = 0; n < F::N; n += 8) {
    simdgroup_float8x8 a;
    simdgroup_load(a, weights + n, F::HELD);
    UNROLLED for (int i = 0; i < F::SUMS; i++) {
      simdgroup_matrix<T, 8, 8> b;
      simdgroup_load(b, tile + n * F::STEP + 8 * (side * F::SUMS + i), F::STEP);
      simdgroup_multiply_accumulate(sums[i], a, b, sums[i]);
    }
  }
}

template <typename F>
inline void scale_rows(const threadgroup float* factors, const thread Elements& own, thread simdgroup_float8x8* sums) {
  UNROLLED for (int e = 0; e < 2; e++) {
    const float factor = factors[own.row[e]];
    UNROLLED for (int i = 0; i < F::SUMS; i++) sums[i].thread_elements()[e] *= factor;
  }
}

// Writes the first `count` rows of sums.
template <typename F, typename T>
inline void write_sums(thread simdgroup_float8x8* sums, const thread Elements& own, int count, int side, device T* to) {
  UNROLLED for (int e = 0; e < 2; e++) {
    UNROLLED for (int i = 0; i < F::SUMS; i++) {
      const int column = 8 * (side * F::SUMS + i) + own.column[e];
      if (own.row[e] < count && column < F::D) to[own.row[e] * F::D + column] = T(sums[i].thread_elements()[e]);
    }
  }
}
