// Quantization equal to MLX's.

// Scale and bias of a group of numbers between `low` and `high` in BITS bits: the end farther from 0 is represented exactly,
// and so is 0.
template <int BITS>
inline float2 affine_rule(float low, float high) {
  const float largest = float((1 << BITS) - 1);
  const bool down = abs(low) > abs(high);
  const float step = max((high - low) / largest, 1e-7f);
  const float scale = down ? step : -step;
  const float edge = down ? low : high;
  const float steps = rint(edge / scale);
  return steps == 0.0f ? float2(scale, 0.0f) : float2(edge / steps, edge);
}

template <int BITS>
inline uint affine_code(float x, float2 rule) {
  return uint(clamp(rint((x - rule.y) / rule.x), 0.0f, float((1 << BITS) - 1)));
}
