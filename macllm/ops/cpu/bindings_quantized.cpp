// Products with packed matrices as MLX operations.
#include <nanobind/nanobind.h>

#include "bindings.h"
#include "kernels.h"
#include "primitive.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

// How a matrix is packed, and how its product with x is wanted.
struct Wanted {
  int group, bits;
  bool back, int8;  // back: x w instead of x w^T
};

Real type_of(const mx::array& a) {
  if (a.dtype() == mx::float32) return Real::float32;
  if (a.dtype() == mx::float16) return Real::float16;
  if (a.dtype() == mx::bfloat16) return Real::bfloat16;
  throw std::invalid_argument("[macllm] scales are float32, float16 or bfloat16.");
}

PackedMatrix packed(const mx::array& words, const mx::array& scales, Wanted wanted) {
  const int64_t K = int64_t(words.shape(-1)) * 32 / wanted.bits;
  return {nullptr, nullptr, nullptr, type_of(scales), words.shape(-2), K, wanted.bits, wanted.group,
          words.ndim() == 3 ? words.shape(0) : 1};
}

void check(const mx::array& x, const mx::array& words, const mx::array& scales, const mx::array& biases,
           Wanted wanted) {
  const int bits = wanted.bits, group = wanted.group;
  auto refuse = [](const char* why) { throw std::invalid_argument(std::string("[macllm] quantized matmul: ") + why); };
  if (x.dtype() != mx::float32 || words.dtype() != mx::uint32) refuse("x is float32, the matrix is packed in uint32.");
  if (bits < 2 || bits > 8 || bits == 7) refuse("2, 3, 4, 5, 6 or 8 bits.");
  if (group != 32 && group != 64 && group != 128) refuse("groups of 32, 64 or 128.");
  if (words.ndim() < 2 || words.ndim() > 3 || x.ndim() < 1) refuse("a matrix or a stack of them.");
  const PackedMatrix w = packed(words, scales, wanted);
  if (w.K * bits != int64_t(words.shape(-1)) * 32 || w.K % group) refuse("rows are whole groups.");
  mx::Shape expected(words.shape().begin(), words.shape().end());
  expected.back() = int(w.groups());
  if (scales.shape() != expected || biases.shape() != expected || biases.dtype() != scales.dtype())
    refuse("a scale and a bias for each group.");
  if (x.shape(-1) != (wanted.back ? w.N : w.K)) refuse("x and the matrix differ in width.");
}

// A packed matrix in memory for as long as this lives.
class Held {
 public:
  Held(const mx::array& words, const mx::array& scales, const mx::array& biases, Wanted wanted)
      : words_(words), narrow_(scales.dtype() != mx::float32), packed_(packed(words, scales, wanted)) {
    packed_.words = words_;
    packed_.scales = hold(scales, scales16_, scales32_);
    packed_.biases = hold(biases, biases16_, biases32_);
  }

  const PackedMatrix& operator*() const { return packed_; }

 private:
  using Narrow = std::unique_ptr<Dense<uint16_t>>;
  using Wide = std::unique_ptr<Dense<float>>;

  const void* hold(const mx::array& a, Narrow& narrow, Wide& wide) {
    if (narrow_) {
      narrow = std::make_unique<Dense<uint16_t>>(a);
      return static_cast<const uint16_t*>(*narrow);
    }
    wide = std::make_unique<Dense<float>>(a);
    return static_cast<const float*>(*wide);
  }

  Dense<uint32_t> words_;
  bool narrow_;
  Narrow scales16_, biases16_;
  Wide scales32_, biases32_;
  PackedMatrix packed_;
};

// Inputs are x, words, scales, biases, and the choices of matrices where there is a stack.
mx::array product(const Arrays& inputs, Wanted wanted) {
  auto forward = [wanted](const Arrays& in, Arrays& out) {
    const Held w(in[1], in[2], in[3], wanted);
    const Dense x(in[0]);
    const int64_t rows = in[0].size() / std::max(in[0].shape(-1), 1);
    float* y = out[0].data<float>();
    if (in.size() == 5) {
      const Dense<int32_t> chosen(in[4]);
      if (wanted.back) return quantized_gather_back(*w, rows, x, chosen, y);
      return quantized_gather(*w, rows, x, chosen, wanted.int8, y);
    }
    if (wanted.back) return quantized_matmul_back(*w, rows, x, y);
    quantized_matmul(*w, rows, x, wanted.int8, y);
  };
  auto vjp = [wanted](const Arrays& in, const Arrays& g, const Arrays&) {
    Arrays inputs = in;
    inputs[0] = g[0];
    return Arrays{product(inputs, {wanted.group, wanted.bits, !wanted.back, false})};
  };
  mx::Shape shape = inputs[0].shape();
  const PackedMatrix w = packed(inputs[1], inputs[2], wanted);
  shape.back() = int(wanted.back ? w.K : w.N);
  auto primitive = std::make_shared<Native>(mx::to_stream({}), "quantized_matmul", std::move(forward), std::move(vjp));
  return mx::array(shape, mx::float32, primitive, inputs);
}

mx::array native_quantized_matmul(const mx::array& x, const mx::array& words, const mx::array& scales,
                                  const mx::array& biases, int group, int bits, bool int8) {
  // Where a gradient is taken, the product is what it is the gradient of.
  const Wanted wanted{group, bits, false, int8 && !x.is_tracer()};
  check(x, words, scales, biases, wanted);
  if (words.ndim() != 2) throw std::invalid_argument("[macllm] quantized matmul: one matrix.");
  return product({x, words, scales, biases}, wanted);
}

mx::array native_quantized_gather(const mx::array& x, const mx::array& words, const mx::array& scales,
                                  const mx::array& biases, const mx::array& chosen, int group, int bits, bool int8) {
  // Where a gradient is taken, the product is what it is the gradient of.
  const Wanted wanted{group, bits, false, int8 && !x.is_tracer()};
  check(x, words, scales, biases, wanted);
  const mx::Shape rows(x.shape().begin(), x.shape().end() - 1);
  if (words.ndim() != 3 || chosen.shape() != rows)
    throw std::invalid_argument("[macllm] quantized matmul: a stack of matrices and a choice for each row.");
  return product({x, words, scales, biases, mx::astype(chosen, mx::int32)}, wanted);
}

}  // namespace

void bind_quantized(nb::module_& m) {
  m.def("quantized_matmul", &native_quantized_matmul, "x"_a, "words"_a, "scales"_a, "biases"_a, "group"_a, "bits"_a,
        "int8"_a = false);
  m.def("quantized_gather", &native_quantized_gather, "x"_a, "words"_a, "scales"_a, "biases"_a, "chosen"_a, "group"_a,
        "bits"_a, "int8"_a = false);
}

}  // namespace macllm
