// Rows of keys or values, dense or packed: eight numbers of a row at a time, those of `part`.

constant constexpr int EIGHT = 8;

// MLX puts small arrays into constant memory, so pointer types are template parameters.
template <typename Numbers>
struct Plain {
  Numbers numbers;
  long step;  // numbers from a row to the next
};

template <typename Numbers>
inline Plain<Numbers> plain_rows(Numbers numbers, long step) {
  return {numbers, step};
}

// As mx.quantize packs them. Codes are multiplied at their place in a word: instead of shifting every code, the other factor
// is scaled down once (`unshifted`).
template <int BITS, int GROUP, typename Words, typename Scales>
struct Packed {
  Words words;
  Scales scales, biases;
  long word_step, scale_step, bias_step;
};

template <int BITS, int GROUP, typename Words, typename Scales>
inline Packed<BITS, GROUP, Words, Scales> packed_rows(
    Words words, Scales scales, Scales biases, long word_step, long scale_step, long bias_step) {
  return {words, scales, biases, word_step, scale_step, bias_step};
}

template <typename Numbers>
inline float unshifted(const thread Plain<Numbers>& rows, int i) {
  return 1.0f;
}
template <int BITS, int GROUP, typename Words, typename Scales>
inline float unshifted(const thread Packed<BITS, GROUP, Words, Scales>& rows, int i) {
  return 1.0f / float(1u << (BITS * (i % (32 / BITS))));
}

template <int BITS>
inline float code_in_place(uint word, int i) {
  return float(word & (((1u << BITS) - 1u) << (BITS * i)));
}

// The dot products of eight numbers of a row, read once, with R rows of q, unshifted, whose sums are q_sums.
template <int R, typename Numbers>
inline void dot_eight(
    const thread Plain<Numbers>& rows, long row, int part, const thread float (*q)[EIGHT], const thread float* q_sums,
    thread float* products) {
  const Numbers x = rows.numbers + row * rows.step + EIGHT * part;
  for (int r = 0; r < R; r++) products[r] = 0.0f;
  for (int i = 0; i < EIGHT; i++) {
    const float number = float(x[i]);
    for (int r = 0; r < R; r++) products[r] += q[r][i] * number;
  }
}
template <int R, int BITS, int GROUP, typename Words, typename Scales>
inline void dot_eight(
    const thread Packed<BITS, GROUP, Words, Scales>& rows, long row, int part, const thread float (*q)[EIGHT],
    const thread float* q_sums, thread float* products) {
  constexpr int PER_WORD = 32 / BITS, WORDS = EIGHT / PER_WORD;
  const Words words = rows.words + row * rows.word_step + part * WORDS;
  const int group = EIGHT * part / GROUP;
  const float scale = float(rows.scales[row * rows.scale_step + group]);
  const float bias = float(rows.biases[row * rows.bias_step + group]);
  for (int r = 0; r < R; r++) products[r] = 0.0f;
  for (int w = 0; w < WORDS; w++) {
    const uint word = words[w];
    for (int i = 0; i < PER_WORD; i++) {
      const float number = code_in_place<BITS>(word, i);
      for (int r = 0; r < R; r++) products[r] += q[r][w * PER_WORD + i] * number;
    }
  }
  for (int r = 0; r < R; r++) products[r] = scale * products[r] + bias * q_sums[r];
}

// Adds weight * eight numbers of a row to R sums: to o, which the caller unshifts, and to `all`, the part equal for all eight.
template <int R, typename Numbers, typename S>
inline void add_eight(const thread Plain<Numbers>& rows, long row, int part, const thread float* weights, thread S* sums) {
  const Numbers x = rows.numbers + row * rows.step + EIGHT * part;
  for (int i = 0; i < EIGHT; i++) {
    const float number = float(x[i]);
    for (int r = 0; r < R; r++) sums[r].o[i] += weights[r] * number;
  }
}
template <int R, int BITS, int GROUP, typename Words, typename Scales, typename S>
inline void add_eight(
    const thread Packed<BITS, GROUP, Words, Scales>& rows, long row, int part, const thread float* weights, thread S* sums) {
  constexpr int PER_WORD = 32 / BITS, WORDS = EIGHT / PER_WORD;
  const Words words = rows.words + row * rows.word_step + part * WORDS;
  const int group = EIGHT * part / GROUP;
  const float scale = float(rows.scales[row * rows.scale_step + group]);
  const float bias = float(rows.biases[row * rows.bias_step + group]);
  for (int r = 0; r < R; r++) sums[r].all += weights[r] * bias;
  for (int w = 0; w < WORDS; w++) {
    const uint word = words[w];
    for (int i = 0; i < PER_WORD; i++) {
      const float number = scale * code_in_place<BITS>(word, i);
      for (int r = 0; r < R; r++) sums[r].o[w * PER_WORD + i] += weights[r] * number;
    }
  }
}
