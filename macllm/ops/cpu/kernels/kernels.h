// The kernels: float32, dense rows unless stated otherwise, multithreaded. A `_vjp` takes the inputs of the forward kernel
// and the cotangent of its result, and computes the cotangents of the inputs.
#pragma once

#include <cstdint>

namespace macllm {

// The interface of cblas_sgemm.
using Sgemm = void (*)(int order, int ta, int tb, int M, int N, int K, float alpha, const float* A, int lda,
                       const float* B, int ldb, float beta, float* C, int ldc);
void set_sgemm(Sgemm single_threaded);
void sgemm(int order, int ta, int tb, int M, int N, int K, float alpha, const float* A, int lda, const float* B, int ldb,
           float beta, float* C, int ldc);
// The function that was set, or null.
Sgemm serial_sgemm();

enum class Half : int { bfloat16, float16 };

// y = x w^T for x [M, K] and w [N, K] of 16-bit floats.
struct HalfProduct {
  Half kind;
  int64_t M, N, K;
  const uint16_t* w;
};
void half_product(const HalfProduct& p, const float* x, float* y);
void half_product_vjp(const HalfProduct& p, const float* gy, float* gx);

enum class Unary : int { exp, sigmoid, silu, gelu_tanh, gelu, gelu_quick };

void unary(Unary kind, int64_t n, const float* x, float* y);
void unary_vjp(Unary kind, int64_t n, const float* x, const float* gy, float* gx);

// y = f(gate) * up.
void gate(Unary kind, int64_t n, const float* gate, const float* up, float* y);
void gate_vjp(Unary kind, int64_t n, const float* gate, const float* up, const float* gy, float* ggate, float* gup);

void softmax(int64_t rows, int64_t n, const float* x, float* y);
void softmax_vjp(int64_t rows, int64_t n, const float* y, const float* gy, float* gx);
void logsumexp(int64_t rows, int64_t n, const float* x, float* y);
void logsumexp_vjp(int64_t rows, int64_t n, const float* x, const float* y, const float* gy, float* gx);

// loss = lse - logits[target]; a negative target is ignored: loss and gradient 0.
void cross_entropy(int64_t rows, int64_t n, const float* logits, const int32_t* targets, float* loss, float* lse);
void cross_entropy_vjp(int64_t rows, int64_t n, const float* logits, const int32_t* targets, const float* lse,
                       const float* gloss, const float* glse, float* glogits);

void rms_norm(int64_t rows, int64_t n, float eps, const float* x, const float* weight, float* y);
void rms_norm_vjp(int64_t rows, int64_t n, float eps, const float* x, const float* weight, const float* gy, float* gx,
                  float* gweight);

// `bias` may be null.
void layer_norm(int64_t rows, int64_t n, float eps, const float* x, const float* weight, const float* bias, float* y);
void layer_norm_vjp(int64_t rows, int64_t n, float eps, const float* x, const float* weight, const float* gy, float* gx,
                    float* gweight, float* gbias);

// Independent of the number of threads.
double sum_of_squares(int64_t n, const float* x);

// y[row] += bias.
void add_to_rows(int64_t rows, int64_t n, const float* bias, float* y);

// p, m, v -> p_out, m_out, v_out, which may be the same memory:
// p_out = decay p - step m_out / (root sqrt(v_out) + eps), the means taken over scale g.
struct AdamW {
  float scale, step, root, decay;
  double beta1, beta2;  // 1 - 0.999f differs from 0.001 by 1e-5 of it
  float eps;
};
void adamw(int64_t n, const AdamW& a, const float* p, const float* g, const float* m, const float* v, float* p_out,
           float* m_out, float* v_out);

// Element strides of one [B, heads, positions, Dh] array.
struct View {
  const float* data;
  int64_t batch, head, position, channel;
};

struct Rope {
  int64_t B, H, L, D, rotated;  // the first `rotated` channels rotate, in pairs
  bool interleaved;            // pairs are neighbours, else rotated / 2 apart
  bool back;                   // rotate by the negative angles: the transpose
  const float* wavelengths;    // rotated / 2
  const int32_t* offsets;      // position of the first token, one or B
  int64_t offset_stride;       // 0 for one
};

// out is [B, L, H, D] in memory.
void rope(const Rope& r, const View& x, float* out);

enum class Real : int { float32, float16, bfloat16 };

// A matrix [N, K] as MLX packs it: scale q + bias with q in `bits` bits, the first in the lowest bits of a word; a
// scale and a bias for every `group` along a row.
struct PackedMatrix {
  const uint32_t* words;
  const void *scales, *biases;
  Real type;  // of scales and biases
  int64_t N, K;
  int bits, group;
  int64_t stack = 1;  // number of matrices stored one after another

  int64_t words_per_row() const { return K * bits / 32; }
  int64_t groups() const { return K / group; }
  // Matrix `number` of the stack.
  PackedMatrix at(int64_t number) const {
    PackedMatrix one = *this;
    const int64_t before = number * N * groups() * (type == Real::float32 ? 4 : 2);
    one.words += number * N * words_per_row();
    one.scales = static_cast<const char*>(scales) + before;
    one.biases = static_cast<const char*>(biases) + before;
    one.stack = 1;
    return one;
  }
};

// y [M, N] = x w^T for x [M, K]; `int8` allows few rows of x to be rounded to 8 bits.
void quantized_matmul(const PackedMatrix& w, int64_t M, const float* x, bool int8, float* y);
// y [M, K] = x w for x [M, N].
void quantized_matmul_back(const PackedMatrix& w, int64_t M, const float* x, float* y);

// The same with matrix chosen[i] of the stack for row i of x; NaN for an invalid number.
void quantized_gather(const PackedMatrix& w, int64_t M, const float* x, const int32_t* chosen, bool int8, float* y);
void quantized_gather_back(const PackedMatrix& w, int64_t M, const float* x, const int32_t* chosen, float* y);

// Rows of w, [count, K]; a negative number counts from the end, and a row that does not exist is NaN.
void quantized_rows(const PackedMatrix& w, int64_t count, const int32_t* rows, float* y);

}  // namespace macllm
