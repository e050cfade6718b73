#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace macllm {
namespace {

// The cosines and sines of [rows, L, pairs] angles; one row if all rows have the same offset.
class Angles {
 public:
  // The angles of r, cached since all layers of a model share them.
  static const Angles& of(const Rope& r) {
    static thread_local Angles cached;
    if (!cached.are_of(r)) cached.fill(r);
    return cached;
  }

  std::vector<float> cosine, sine;

 private:
  static int64_t rows(const Rope& r) { return r.offset_stride ? r.B : 1; }

  bool are_of(const Rope& r) const {
    return length_ == r.L &&
           std::equal(wavelengths_.begin(), wavelengths_.end(), r.wavelengths, r.wavelengths + r.rotated / 2) &&
           std::equal(offsets_.begin(), offsets_.end(), r.offsets, r.offsets + rows(r));
  }

  void fill(const Rope& r) {
    const int64_t pairs = r.rotated / 2;
    length_ = r.L;
    wavelengths_.assign(r.wavelengths, r.wavelengths + pairs);
    offsets_.assign(r.offsets, r.offsets + rows(r));
    cosine.resize(rows(r) * r.L * pairs);
    sine.resize(cosine.size());
    parallel_range(rows(r) * r.L, pairs * 8, [&](int64_t first, int64_t last) {
      for (int64_t at = first; at < last; at++) {
        const int64_t position = offsets_[at / r.L] + at % r.L;
        for (int64_t i = 0; i < pairs; i++) {
          const float angle = float(position) / r.wavelengths[i];
          cosine[at * pairs + i] = std::cos(angle);
          sine[at * pairs + i] = std::sin(angle);
        }
      }
    });
  }

  int64_t length_ = -1;
  std::vector<float> wavelengths_;
  std::vector<int32_t> offsets_;
};

void rotate(const Rope& r, const float* x, int64_t stride, const float* cosine, const float* sine, float* y) {
  const float sign = r.back ? -1.f : 1.f;
  const int64_t pairs = r.rotated / 2, gap = r.interleaved ? 1 : pairs, next = r.interleaved ? 2 : 1;
  if (stride == 1 && !r.interleaved) {
    map(pairs, y, [&](vf a, vf b, vf c, vf s) { return a * c - b * (s * sign); }, x, x + pairs, cosine, sine);
    map(pairs, y + pairs, [&](vf a, vf b, vf c, vf s) { return a * (s * sign) + b * c; }, x, x + pairs, cosine, sine);
  } else {
    for (int64_t i = 0; i < pairs; i++) {
      float a = x[i * next * stride], b = x[(i * next + gap) * stride];
      y[i * next] = a * cosine[i] - b * (sine[i] * sign);
      y[i * next + gap] = a * (sine[i] * sign) + b * cosine[i];
    }
  }
  for (int64_t d = r.rotated; d < r.D; d++) y[d] = x[d * stride];
}

}  // namespace

void rope(const Rope& r, const View& x, float* out) {
  const int64_t pairs = r.rotated / 2;
  const Angles& angles = Angles::of(r);
  parallel_range(r.B * r.L, r.H * (r.D / W + 4), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const int64_t b = row / r.L, l = row % r.L, at = ((r.offset_stride ? b : 0) * r.L + l) * pairs;
      for (int64_t h = 0; h < r.H; h++) {
        const float* from = x.data + b * x.batch + h * x.head + l * x.position;
        rotate(r, from, x.channel, angles.cosine.data() + at, angles.sine.data() + at, out + (row * r.H + h) * r.D);
      }
    }
  });
}

}  // namespace macllm
