#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace macllm {
namespace {

// log sum e^x of one row. An infinite maximum is the result, unless a number is NaN: the sum covers both.
float lse_of(int64_t n, const float* x) {
  float top = largest(n, x);
  if (std::abs(top) == INFINITE) return accumulate(n, 0.f, [](vf a) { return a; }, x);
  float total = accumulate(n, -INFINITE, [&](vf a) { return exp(a - top); }, x);
  return top + std::log(total);
}

template <class F>
void each_row(int64_t rows, int64_t n, F run) {
  parallel_range(rows, n / W * 16 + 16, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) run(r);
  });
}

}  // namespace

void softmax(int64_t rows, int64_t n, const float* x, float* y) {
  each_row(rows, n, [&](int64_t r) {
    const float* in = x + r * n;
    float* out = y + r * n;
    float top = largest(n, in);
    vf total{};
    int64_t i = 0;
    for (; i + W <= n; i += W) {
      vf e = exp(load(in + i) - top);
      store(out + i, e);
      total += e;
    }
    if (i < n) {
      vf e = exp(load(in + i, n - i, -INFINITE) - top);
      store(out + i, e, n - i);
      total += e;
    }
    float inverse = 1.f / sum(total);
    map(n, out, [&](vf a) { return a * inverse; }, out);
  });
}

void softmax_vjp(int64_t rows, int64_t n, const float* y, const float* gy, float* gx) {
  each_row(rows, n, [&](int64_t r) {
    const float *p = y + r * n, *g = gy + r * n;
    float inner = accumulate(n, 0.f, [](vf a, vf b) { return a * b; }, p, g);
    map(n, gx + r * n, [&](vf a, vf b) { return a * (b - inner); }, p, g);
  });
}

void logsumexp(int64_t rows, int64_t n, const float* x, float* y) {
  each_row(rows, n, [&](int64_t r) { y[r] = lse_of(n, x + r * n); });
}

void logsumexp_vjp(int64_t rows, int64_t n, const float* x, const float* y, const float* gy, float* gx) {
  each_row(rows, n, [&](int64_t r) {
    float lse = y[r], g = gy[r];
    map(n, gx + r * n, [&](vf a) { return exp(a - lse) * g; }, x + r * n);
  });
}

void cross_entropy(int64_t rows, int64_t n, const float* logits, const int32_t* targets, float* loss, float* lse) {
  each_row(rows, n, [&](int64_t r) {
    const float* x = logits + r * n;
    lse[r] = lse_of(n, x);
    loss[r] = targets[r] < 0 || targets[r] >= n ? 0.f : lse[r] - x[targets[r]];
  });
}

void cross_entropy_vjp(int64_t rows, int64_t n, const float* logits, const int32_t* targets, const float* lse,
                       const float* gloss, const float* glse, float* glogits) {
  each_row(rows, n, [&](int64_t r) {
    bool counted = targets[r] >= 0 && targets[r] < n;
    float g = (counted ? gloss[r] : 0.f) + glse[r], shift = lse[r];
    float* out = glogits + r * n;
    if (g == 0.f) {
      std::fill(out, out + n, 0.f);
    } else {
      map(n, out, [&](vf a) { return exp(a - shift) * g; }, logits + r * n);
    }
    if (counted) out[targets[r]] -= gloss[r];
  });
}

namespace {

float inverse_rms(int64_t n, float eps, const float* x) {
  return 1.f / std::sqrt(accumulate(n, 0.f, [](vf a) { return a * a; }, x) / n + eps);
}

// Runs row(r, sums) for every row, which adds to `sums` of n floats each, and writes their totals to `totals`. The number
// of parts does not depend on the number of threads, so that the sum over rows is always the same.
template <class F>
void sum_over_rows(int64_t rows, int64_t n, const std::vector<float*>& totals, F row) {
  const int64_t parts = std::clamp<int64_t>(rows * n / 4096, 1, std::clamp<int64_t>(rows, 1, 16)), kinds = totals.size();
  std::vector<float> partial(parts * kinds * n, 0.f);
  auto at = [&](int64_t part, int64_t kind) { return partial.data() + (part * kinds + kind) * n; };
  parallel(parts, [&](int64_t part) {
    std::vector<float*> sums;
    for (int64_t kind = 0; kind < kinds; kind++) sums.push_back(at(part, kind));
    for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; r++) row(r, sums);
  });
  for (int64_t kind = 0; kind < kinds; kind++) {
    std::fill(totals[kind], totals[kind] + n, 0.f);
    for (int64_t part = 0; part < parts; part++)
      map(n, totals[kind], [](vf a, vf b) { return a + b; }, totals[kind], at(part, kind));
  }
}

}  // namespace

void rms_norm(int64_t rows, int64_t n, float eps, const float* x, const float* weight, float* y) {
  parallel_range(rows, n / W * 4 + 16, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
      float scale = inverse_rms(n, eps, x + r * n);
      map(n, y + r * n, [&](vf a, vf w) { return a * scale * w; }, x + r * n, weight);
    }
  });
}

void rms_norm_vjp(int64_t rows, int64_t n, float eps, const float* x, const float* weight, const float* gy, float* gx,
                  float* gweight) {
  sum_over_rows(rows, n, {gweight}, [&](int64_t r, const std::vector<float*>& sums) {
    const float *in = x + r * n, *g = gy + r * n;
    float scale = inverse_rms(n, eps, in);
    float inner = accumulate(n, 0.f, [](vf a, vf b, vf w) { return a * b * w; }, in, g, weight);
    float back = inner * scale * scale / n;
    map(n, gx + r * n, [&](vf a, vf b, vf w) { return scale * (b * w - a * back); }, in, g, weight);
    map(n, sums[0], [&](vf sum, vf a, vf b) { return sum + a * b * scale; }, sums[0], in, g);
  });
}

namespace {

struct Moments {
  float mean, scale;
};

Moments moments(int64_t n, float eps, const float* x) {
  const float mean = accumulate(n, 0.f, [](vf a) { return a; }, x) / n;
  const float variance = accumulate(n, mean, [&](vf a) { return (a - mean) * (a - mean); }, x) / n;
  return {mean, 1.f / std::sqrt(variance + eps)};
}

}  // namespace

void layer_norm(int64_t rows, int64_t n, float eps, const float* x, const float* weight, const float* bias, float* y) {
  parallel_range(rows, n / W * 6 + 16, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
      const float* in = x + r * n;
      const Moments m = moments(n, eps, in);
      if (bias) {
        map(n, y + r * n, [&](vf a, vf w, vf b) { return (a - m.mean) * m.scale * w + b; }, in, weight, bias);
      } else {
        map(n, y + r * n, [&](vf a, vf w) { return (a - m.mean) * m.scale * w; }, in, weight);
      }
    }
  });
}

void layer_norm_vjp(int64_t rows, int64_t n, float eps, const float* x, const float* weight, const float* gy, float* gx,
                    float* gweight, float* gbias) {
  sum_over_rows(rows, n, {gweight, gbias}, [&](int64_t r, const std::vector<float*>& sums) {
    const float *in = x + r * n, *g = gy + r * n;
    const Moments m = moments(n, eps, in);
    const float mean = accumulate(n, 0.f, [](vf b, vf w) { return b * w; }, g, weight) / n;
    auto along = [&](vf a, vf b, vf w) { return (a - m.mean) * m.scale * b * w; };
    const float inner = accumulate(n, 0.f, along, in, g, weight) / n;
    auto back = [&](vf a, vf b, vf w) { return m.scale * (b * w - mean - (a - m.mean) * m.scale * inner); };
    map(n, gx + r * n, back, in, g, weight);
    map(n, sums[0], [&](vf sum, vf a, vf b) { return sum + (a - m.mean) * m.scale * b; }, sums[0], in, g);
    map(n, sums[1], [](vf sum, vf b) { return sum + b; }, sums[1], g);
  });
}

double sum_of_squares(int64_t n, const float* x) {
  constexpr int64_t SPAN = 16384;
  std::vector<float> partial((n + SPAN - 1) / SPAN);
  parallel_range(partial.size(), SPAN / W, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
      partial[i] = accumulate(std::min(SPAN, n - i * SPAN), 0.f, [](vf a) { return a * a; }, x + i * SPAN);
  });
  return std::accumulate(partial.begin(), partial.end(), 0.);
}

void add_to_rows(int64_t rows, int64_t n, const float* bias, float* y) {
  parallel_range(rows, n / W + 4, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) map(n, y + r * n, [](vf a, vf b) { return a + b; }, y + r * n, bias);
  });
}

}  // namespace macllm
