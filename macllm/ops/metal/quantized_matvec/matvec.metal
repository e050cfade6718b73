// Dot products of a few rows of x with rows of a packed matrix: a simdgroup loops over K, each lane with VALUES numbers at a
// time. MLX puts small arrays into constant memory, so pointer types are template parameters.

// VALUES numbers of a row of x from `k` on, scaled, and their sum; zeros after the end.
template <bool NORMED, int VALUES, typename Row, typename Norm>
inline float read_values(Row x, Norm norm, float shift, float scale, int k, int K, thread float* values) {
  float sum = 0.0f;
  for (int i = 0; i < VALUES; i++) {
    float value = k < K ? scale * float(x[k + i]) : 0.0f;
    if (NORMED) value *= k < K ? float(norm[k + i]) + shift : 0.0f;
    values[i] = value;
    sum += value;
  }
  return sum;
}

// 1 / sqrt(mean(x^2) + eps) of a row, in every lane.
template <typename Row>
inline float inverse_rms(Row x, int K, float eps, int lane) {
  float squares = 0.0f;
  for (int k = lane; k < K; k += 32) squares += float(x[k]) * float(x[k]);
  return precise::rsqrt(simd_sum(squares) / float(K) + eps);
}

// Adds the products of VALUES numbers of a row of the matrix with those of M rows of x. Codes are multiplied at their place
// in the word, and x is scaled down to match (exactly, by powers of two).
template <int BITS, int GROUP, int VALUES, int M, typename Words, typename Scales>
inline void add_products(
    Words words, Scales scales, Scales biases, long row, int k, int K,
    const thread float (*x)[VALUES], const thread float* x_sums, thread float* sums) {
  if (k >= K) return;
  constexpr int PER_WORD = 32 / BITS;
  const Words own = words + row * (K / PER_WORD) + k / PER_WORD;
  const long group = row * (K / GROUP) + k / GROUP;
  const float scale = float(scales[group]), bias = float(biases[group]);
  float dots[M];
  for (int m = 0; m < M; m++) dots[m] = 0.0f;
  for (int w = 0; w < VALUES / PER_WORD; w++) {
    const uint word = own[w];
    for (int i = 0; i < PER_WORD; i++) {
      const float code = float(word & (((1u << BITS) - 1u) << (BITS * i)));
      for (int m = 0; m < M; m++) dots[m] += code * (x[m][w * PER_WORD + i] / float(1u << (BITS * i)));
    }
  }
  for (int m = 0; m < M; m++) sums[m] += scale * dots[m] + bias * x_sums[m];
}

// 0 identity, 1 SiLU, 2 GELU by tanh (arXiv:1606.08415).
template <int ACTIVATION>
inline float activated(float x) {
  if (ACTIVATION == 1) return x / (1.0f + precise::exp(-x));
  if (ACTIVATION == 2) return 0.5f * x * (1.0f + precise::tanh(0.7978845608f * (x + 0.044715f * x * x * x)));
  return x;
}
