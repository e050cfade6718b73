#include <cmath>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace macllm {
namespace {

void turn(const Rope& r, const float* x, int64_t stride, const float* cosine, const float* sine, float* y) {
  const int64_t pairs = r.turned / 2, gap = r.interleaved ? 1 : pairs, next = r.interleaved ? 2 : 1;
  if (stride == 1 && !r.interleaved) {
    map(pairs, y, [](vf a, vf b, vf c, vf s) { return a * c - b * s; }, x, x + pairs, cosine, sine);
    map(pairs, y + pairs, [](vf a, vf b, vf c, vf s) { return a * s + b * c; }, x, x + pairs, cosine, sine);
  } else {
    for (int64_t i = 0; i < pairs; i++) {
      float a = x[i * next * stride], b = x[(i * next + gap) * stride];
      y[i * next] = a * cosine[i] - b * sine[i];
      y[i * next + gap] = a * sine[i] + b * cosine[i];
    }
  }
  for (int64_t d = r.turned; d < r.D; d++) y[d] = x[d * stride];
}

}  // namespace

void rope(const Rope& r, const View& x, float* out) {
  const int64_t pairs = r.turned / 2;
  // All rows share their angles unless each has an offset.
  const int64_t tables = r.offset_stride ? r.B : 1;
  std::vector<float> cosine(tables * r.L * pairs), sine(cosine.size());
  parallel_range(tables * r.L, pairs * 8, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const int64_t table = row / r.L, position = r.offsets[table * r.offset_stride] + row % r.L;
      for (int64_t i = 0; i < pairs; i++) {
        const float angle = float(position) / r.wavelengths[i];
        cosine[row * pairs + i] = std::cos(angle);
        sine[row * pairs + i] = r.back ? -std::sin(angle) : std::sin(angle);
      }
    }
  });
  parallel_range(r.B * r.L, r.H * (r.D / W + 4), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const int64_t b = row / r.L, l = row % r.L, at = ((r.offset_stride ? b : 0) * r.L + l) * pairs;
      for (int64_t h = 0; h < r.H; h++) {
        const float* from = x.data + b * x.batch + h * x.head + l * x.position;
        turn(r, from, x.channel, cosine.data() + at, sine.data() + at, out + (row * r.H + h) * r.D);
      }
    }
  });
}

}  // namespace macllm
