// Products of 8-bit integers, four in each lane of a vector, and rounding of floats to them.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "simd.h"

namespace macllm {

#if defined(__AVX512VNNI__)
constexpr bool WHOLE_BYTES = true;  // dot4 takes unsigned bytes up to 255
#else
constexpr bool WHOLE_BYTES = false;
#endif

// sums[l] += the sum over the four bytes of lane l, u unsigned and below 128 unless WHOLE_BYTES, s signed.
inline vi dot4(vi sums, vi u, vi s) {
#if defined(__AVX512VNNI__)
  return vi(_mm512_dpbusd_epi32(__m512i(sums), __m512i(u), __m512i(s)));
#elif defined(__AVX512BW__)
  return sums + vi(_mm512_madd_epi16(_mm512_maddubs_epi16(__m512i(u), __m512i(s)), _mm512_set1_epi16(1)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return sums + vi(_mm256_madd_epi16(_mm256_maddubs_epi16(__m256i(u), __m256i(s)), _mm256_set1_epi16(1)));
#elif defined(__SSSE3__) && !defined(__AVX__)
  return sums + vi(_mm_madd_epi16(_mm_maddubs_epi16(__m128i(u), __m128i(s)), _mm_set1_epi16(1)));
#elif defined(__ARM_FEATURE_DOTPROD)
  return vi(vdotq_s32(int32x4_t(sums), int8x16_t(u), int8x16_t(s)));
#elif defined(__aarch64__)
  const int16x8_t low = vmull_s8(vget_low_s8(int8x16_t(u)), vget_low_s8(int8x16_t(s)));
  const int16x8_t high = vmull_high_s8(int8x16_t(u), int8x16_t(s));
  return sums + vi(vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#else
  for (int shift = 24; shift >= 0; shift -= 8) sums += ((u << shift >> 24) & 255) * (s << shift >> 24);
  return sums;
#endif
}

constexpr float ROUNDER = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer and leaves that in the low bits
constexpr float SMALLEST = 1e-30f;  // smaller magnitudes count as 0, since 127 divided by them is not finite

inline vi load_words(const void* p) {
  vi v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline vf magnitude(vf x) { return x < 0.f ? -x : x; }

inline vf as_float(vi v) { return __builtin_convertvector(v, vf); }

template <class To, class From>
inline To bits_of(From v) {
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}

}  // namespace macllm
