// The residual branches of a decode step: hidden states to hidden states, for one new token in each of a few rows.
#pragma once

#include <cstdint>

#include "attention.h"
#include "kernels.h"
#include "linear.h"

namespace macllm {

struct Norm {
  enum Kind : int { none, rms, layer } kind = none;
  float eps = 0;
  bool unit_offset = false;       // scale by 1 + weight
  const float* weight = nullptr;  // null: no weight
  const float* bias = nullptr;
};

// The norms of a residual connection: sum(x + branch(f(pre(x)))).
struct Residual {
  Norm pre, branch, sum;
};

// Rotation of pairs of channels (RoPE).
struct Rotation {
  const float *cosine = nullptr, *sine = nullptr;  // [B, pairs], times their magnitude
  int64_t pairs = 0;
  bool interleaved = false;
};

struct AttentionStep {
  int64_t B, D, H, K, Dh;  // rows, model, query heads, key heads, head
  float scale, softcap;    // softcap 0: none
  // Queries are scaled by 1 + temperature_scale log(1 + floor((position + 1) / temperature_floor)); a floor of 0: not.
  float temperature_floor, temperature_scale;
  Rotation rotation;
  Norm q_norm, k_norm, q_head_norm, k_head_norm;
  Linear q, k, v, o;
  Buffer keys, values;
  int64_t capacity, at;  // slots of keys and values, and the slot of the new token
  const int64_t* first;  // for each row, the oldest slot it sees
  const int64_t* position;
};

struct MlpStep {
  int64_t B, D;
  Unary activation;
  bool gated;
  Linear gate, up, down;
};

// x, out [B, D], not the same memory. Writes slot `at` of keys and values. `int8` allows rounding inputs of packed layers.
void attention_step(const AttentionStep& s, const Residual& norms, bool int8, const float* x, float* out);
void mlp_step(const MlpStep& s, const Residual& norms, bool int8, const float* x, float* out);

}  // namespace macllm
