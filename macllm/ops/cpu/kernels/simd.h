// Vectors of floats as wide as the machine, and the transcendental functions the kernels need on them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace macllm {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));

constexpr float INFINITE = std::numeric_limits<float>::infinity();

inline vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

inline vf splat(float x) { return x - vf{}; }

// The same for the first `count` lanes; the others are `rest`, or unchanged.
#if defined(__AVX512F__)
inline __mmask16 first(int64_t count) { return __mmask16((1u << count) - 1); }

inline vf load(const float* p, int64_t count, float rest) { return _mm512_mask_loadu_ps(splat(rest), first(count), p); }

inline void store(float* p, vf v, int64_t count) { _mm512_mask_storeu_ps(p, first(count), v); }
#else
inline vf load(const float* p, int64_t count, float rest) {
  float all[W];
  for (int i = 0; i < W; i++) all[i] = i < count ? p[i] : rest;
  return load(all);
}

inline void store(float* p, vf v, int64_t count) {
  float all[W];
  store(all, v);
  for (int i = 0; i < count; i++) p[i] = all[i];
}
#endif

inline vf sqrt(vf v) {
  for (int i = 0; i < W; i++) v[i] = std::sqrt(v[i]);
  return v;
}

template <int N>
struct Lanes {
  typedef float type __attribute__((vector_size(N * 4)));
};

// Folds the lanes in halves: log2 N steps in a row instead of N.
template <int N, class F>
inline float fold(typename Lanes<N>::type v, F f) {
  if constexpr (N == 2) {
    return f(v[0], v[1]);
  } else {
    typename Lanes<N / 2>::type low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return fold<N / 2>(f(low, high), f);
  }
}

inline float sum(vf v) {
  return fold<W>(v, [](auto a, auto b) { return a + b; });
}

inline float max(vf v) {
  return fold<W>(v, [](auto a, auto b) { return a > b ? a : b; });
}

inline vf max(vf a, vf b) { return a > b ? a : b; }

// out[i] = f(in[i]...) for i < n.
template <class F, class... In>
inline void map(int64_t n, float* out, F f, const In*... in) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, f(load(in + i)...));
  if (i < n) store(out + i, f(load(in + i, n - i, 0.f)...), n - i);
}

// The sum over i < n of f(in[i]...); f must give 0 for inputs of `rest`.
template <class F, class... In>
inline float accumulate(int64_t n, float rest, F f, const In*... in) {
  vf a{}, b{};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    a += f(load(in + i)...);
    b += f(load(in + i + W)...);
  }
  for (; i + W <= n; i += W) a += f(load(in + i)...);
  if (i < n) b += f(load(in + i, n - i, rest)...);
  return sum(a + b);
}

inline float largest(int64_t n, const float* x) {
  vf best = splat(-INFINITE);
  int64_t i = 0;
  for (; i + W <= n; i += W) best = max(load(x + i), best);
  if (i < n) best = max(load(x + i, n - i, -INFINITE), best);
  return max(best);
}

// e^x within 2 ulp: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial in r, and 2^n in two factors so that neither
// the largest results nor the subnormal ones pass through infinity or zero.
inline vf exp(vf x) {
  x = x > 89.f ? splat(89.f) : x;
  x = x < -104.f ? splat(-104.f) : x;
  vf shifted = x * 1.44269504f + 12582912.f;  // adding 1.5 * 2^23 rounds to an integer
  vf n = shifted - 12582912.f;
  vf r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  vi whole = __builtin_convertvector(n, vi);
  vi half = whole >> 1;
  vi low = (half + 127) << 23, high = (whole - half + 127) << 23;
  vf first, second;
  std::memcpy(&first, &low, sizeof first);
  std::memcpy(&second, &high, sizeof second);
  return p * first * second;
}

// ln x of normal positive x within 2 ulp: x = 2^n (1 + f) with f about 0, and a polynomial in f (Moshier's).
inline vf log(vf x) {
  vi bits;
  std::memcpy(&bits, &x, sizeof bits);
  vi whole = (bits - 0x3f3504f3) >> 23;  // 1 + f begins at sqrt(1/2)
  bits -= whole << 23;
  vf f, n = __builtin_convertvector(whole, vf);
  std::memcpy(&f, &bits, sizeof f);
  f -= 1.f;
  vf p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  vf square = f * f;
  vf y = p * f * square + n * -2.12194440e-4f - 0.5f * square;
  return f + y + n * 0.693359375f;
}

inline vf sigmoid(vf x) { return 1.f / (1.f + exp(-x)); }

// The normal distribution function: erfc(z) = e^(-z^2) times a polynomial in 1 / (1 + 0.3 z), z = |x| / sqrt 2,
// fitted to a relative error of 2.3e-8.
inline vf normal_cdf(vf x, vf gauss) {
  vf z = (x < 0.f ? -x : x) * 0.70710678f;
  vf t = 1.f / (1.f + 0.3f * z);
  vf p = t * -0.13036112f + 0.48974276f;
  p = p * t - 0.52116741f;
  p = p * t + 0.55823255f;
  p = p * t - 0.10219656f;
  p = p * t + 0.21828606f;
  p = p * t + 0.14743438f;
  p = p * t + 0.17084975f;
  p = p * t + 0.16917956f;
  vf tail = 0.5f * p * t * gauss;
  return x < 0.f ? tail : 1.f - tail;
}

}  // namespace macllm
