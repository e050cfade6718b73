// Sixteen-bit floats read as vectors of float32.
#pragma once

#include "kernels.h"
#include "simd.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace macllm {

typedef uint16_t vh __attribute__((vector_size(W * 2)));

inline vf bits_to_float(vu bits) {
  vf v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

struct Bfloat {
  static vf widen(vh h) {
#if defined(__AVX512F__)
    return bits_to_float((vu)_mm512_cvtepu16_epi32((__m256i)h) << 16);  // GCC compiles the general form to four instructions
#else
    return bits_to_float(__builtin_convertvector(h, vu) << 16);
#endif
  }
};

struct Float16 {
  static vf widen(vh h) {
#if defined(__AVX512F__)
    __m256i packed;
    std::memcpy(&packed, &h, sizeof packed);
    return (vf)_mm512_cvtph_ps(packed);
#elif defined(__F16C__)
    __m128i packed;
    std::memcpy(&packed, &h, sizeof packed);
    return (vf)_mm256_cvtph_ps(packed);
#else
    // The exponent's bias grows by 112, by a product so that subnormal numbers come out right too.
    vu wide = __builtin_convertvector(h, vu);
    vf size = bits_to_float((wide & 0x7fff) << 13) * 0x1p112f;
    vu bits;
    std::memcpy(&bits, &size, sizeof bits);
    bits |= (vu)(size >= 65536.f) & 0x7f800000;  // infinities and NaN
    return bits_to_float(bits | (wide & 0x8000) << 16);
#endif
  }
};

template <class T>
inline vf load_half(const uint16_t* p) {
  vh h;
  std::memcpy(&h, p, sizeof h);
  return T::widen(h);
}

template <class T>
inline vf load_half(const uint16_t* p, int64_t count) {
  vh h{};
  std::memcpy(&h, p, count * sizeof *p);
  return T::widen(h);
}

// Calls f with the type of the numbers.
template <class F>
inline void halves(Half kind, F f) {
  if (kind == Half::bfloat16) {
    f(Bfloat{});
  } else {
    f(Float16{});
  }
}

}  // namespace macllm
