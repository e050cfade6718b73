#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace macllm {
namespace {

constexpr float GELU_A = 0.79788456f, GELU_B = 0.044715f, ROOT_TWO_PI_INVERSE = 0.39894228f;

// Each function with its derivative.
struct Exp {
  static vf value(vf x) { return exp(x); }
  static void both(vf x, vf& y, vf& dy) { y = dy = exp(x); }
};

struct Sigmoid {
  static vf value(vf x) { return sigmoid(x); }
  static void both(vf x, vf& y, vf& dy) {
    y = sigmoid(x);
    dy = y * (1.f - y);
  }
};

struct Silu {
  static vf value(vf x) { return x * sigmoid(x); }
  static void both(vf x, vf& y, vf& dy) {
    vf s = sigmoid(x);
    y = x * s;
    dy = s * (1.f + x * (1.f - s));
  }
};

// 0.5 x (1 + tanh u) = x sigmoid(2u), which is exact for negative x, too.
struct GeluTanh {
  static vf twice(vf x) { return (2.f * GELU_A) * (x + GELU_B * x * x * x); }
  static vf value(vf x) { return x * sigmoid(twice(x)); }
  static void both(vf x, vf& y, vf& dy) {
    vf s = sigmoid(twice(x));
    y = x * s;
    dy = s + x * s * (1.f - s) * ((2.f * GELU_A) * (1.f + (3.f * GELU_B) * x * x));
  }
};

struct Gelu {
  static vf value(vf x) { return x * normal_cdf(x, exp(-0.5f * x * x)); }
  static void both(vf x, vf& y, vf& dy) {
    vf gauss = exp(-0.5f * x * x), cdf = normal_cdf(x, gauss);
    y = x * cdf;
    dy = cdf + x * gauss * ROOT_TWO_PI_INVERSE;
  }
};

struct GeluQuick {
  static vf value(vf x) { return x * sigmoid(1.702f * x); }
  static void both(vf x, vf& y, vf& dy) {
    vf s = sigmoid(1.702f * x);
    y = x * s;
    dy = s * (1.f + 1.702f * x * (1.f - s));
  }
};

template <class F>
void with_function(Unary kind, F run) {
  switch (kind) {
    case Unary::exp: return run(Exp{});
    case Unary::sigmoid: return run(Sigmoid{});
    case Unary::silu: return run(Silu{});
    case Unary::gelu_tanh: return run(GeluTanh{});
    case Unary::gelu: return run(Gelu{});
    case Unary::gelu_quick: return run(GeluQuick{});
  }
}

template <class F>
void spans(int64_t n, F run) {
  constexpr int64_t SPAN = 1024;
  parallel_range((n + SPAN - 1) / SPAN, SPAN / W * 8, [&](int64_t first, int64_t last) {
    int64_t end = last * SPAN < n ? last * SPAN : n;
    run(first * SPAN, end - first * SPAN);
  });
}

}  // namespace

void unary(Unary kind, int64_t n, const float* x, float* y) {
  with_function(kind, [&](auto f) {
    spans(n, [&](int64_t at, int64_t count) { map(count, y + at, [&](vf a) { return f.value(a); }, x + at); });
  });
}

void unary_vjp(Unary kind, int64_t n, const float* x, const float* gy, float* gx) {
  with_function(kind, [&](auto f) {
    auto derivative = [&](vf a, vf g) {
      vf y, dy;
      f.both(a, y, dy);
      return g * dy;
    };
    spans(n, [&](int64_t at, int64_t count) { map(count, gx + at, derivative, x + at, gy + at); });
  });
}

void gate(Unary kind, int64_t n, const float* gate, const float* up, float* y) {
  with_function(kind, [&](auto f) {
    auto product = [&](vf a, vf b) { return f.value(a) * b; };
    spans(n, [&](int64_t at, int64_t count) { map(count, y + at, product, gate + at, up + at); });
  });
}

void gate_vjp(Unary kind, int64_t n, const float* gate, const float* up, const float* gy, float* ggate, float* gup) {
  with_function(kind, [&](auto f) {
    spans(n, [&](int64_t at, int64_t count) {
      for (int64_t i = at; i < at + count; i += W) {
        int64_t left = at + count - i;
        bool whole = left >= W;
        vf a = whole ? load(gate + i) : load(gate + i, left, 0.f);
        vf b = whole ? load(up + i) : load(up + i, left, 0.f);
        vf g = whole ? load(gy + i) : load(gy + i, left, 0.f);
        vf y, dy;
        f.both(a, y, dy);
        if (whole) {
          store(ggate + i, g * b * dy);
          store(gup + i, g * y);
        } else {
          store(ggate + i, g * b * dy, left);
          store(gup + i, g * y, left);
        }
      }
    });
  });
}

void adamw(int64_t n, const AdamW& a, const float* p, const float* g, const float* m, const float* v, float* p_out,
           float* m_out, float* v_out) {
  const float keep1 = float(a.beta1), keep2 = float(a.beta2), rest1 = float(1 - a.beta1), rest2 = float(1 - a.beta2);
  auto first = [&](vf old, vf grad) { return keep1 * old + rest1 * a.scale * grad; };
  auto second = [&](vf old, vf grad) {
    grad *= a.scale;
    return keep2 * old + rest2 * grad * grad;
  };
  auto step = [&](vf old, vf mean, vf square) {
    return old * a.decay - a.step * mean / (sqrt(square) * a.root + a.eps);
  };
  spans(n, [&](int64_t at, int64_t count) {
    map(count, m_out + at, first, m + at, g + at);
    map(count, v_out + at, second, v + at, g + at);
    map(count, p_out + at, step, p + at, m_out + at, v_out + at);
  });
}

}  // namespace macllm
