// Products with packed matrices as MLX operations.
#include <nanobind/nanobind.h>

#include "bindings.h"
#include "../kernels/kernels.h"
#include "packed.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

// The kind of product with x.
struct Options {
  Packing packing;
  bool back, int8;  // back: x w instead of x w^T
};

void check(const mx::array& x, const mx::array& words, const mx::array& scales, const mx::array& biases,
           Options options) {
  check_packed(words, scales, biases, options.packing);
  const PackedMatrix w = packed(words, scales, options.packing);
  if (x.dtype() != mx::float32 || x.ndim() < 1 || x.shape(-1) != (options.back ? w.N : w.K))
    throw std::invalid_argument("[macllm] quantized matmul: x is float32, its width the width of the matrix.");
}

// Inputs are x, words, scales, biases, and for a stack the chosen matrices.
mx::array product(const Arrays& inputs, Options options) {
  auto forward = [options](const Arrays& in, Arrays& out) {
    DenseArrays dense;
    const PackedMatrix w = packed(in[1], in[2], in[3], options.packing, dense);
    const Dense x(in[0]);
    const int64_t rows = in[0].size() / std::max(in[0].shape(-1), 1);
    float* y = out[0].data<float>();
    if (in.size() == 5) {
      const Dense<int32_t> chosen(in[4]);
      if (options.back) return quantized_gather_back(w, rows, x, chosen, y);
      return quantized_gather(w, rows, x, chosen, options.int8, y);
    }
    if (options.back) return quantized_matmul_back(w, rows, x, y);
    quantized_matmul(w, rows, x, options.int8, y);
  };
  auto vjp = [options](const Arrays& in, const Arrays& g, const Arrays&) {
    Arrays inputs = in;
    inputs[0] = g[0];
    return Arrays{product(inputs, {options.packing, !options.back, false})};
  };
  mx::Shape shape = inputs[0].shape();
  const PackedMatrix w = packed(inputs[1], inputs[2], options.packing);
  shape.back() = int(options.back ? w.K : w.N);
  auto primitive = std::make_shared<Native>(mx::to_stream({}), "quantized_matmul", std::move(forward), std::move(vjp));
  return mx::array(shape, mx::float32, primitive, inputs);
}

mx::array native_quantized_matmul(const mx::array& x, const mx::array& words, const mx::array& scales,
                                  const mx::array& biases, int group, int bits, bool int8) {
  // Where a gradient is taken, the product is what it is the gradient of.
  const Options options{{group, bits}, false, int8 && !x.is_tracer()};
  check(x, words, scales, biases, options);
  if (words.ndim() != 2) throw std::invalid_argument("[macllm] quantized matmul: one matrix.");
  return product({x, words, scales, biases}, options);
}

mx::array native_quantized_gather(const mx::array& x, const mx::array& words, const mx::array& scales,
                                  const mx::array& biases, const mx::array& chosen, int group, int bits, bool int8) {
  // Where a gradient is taken, the product is what it is the gradient of.
  const Options options{{group, bits}, false, int8 && !x.is_tracer()};
  check(x, words, scales, biases, options);
  const mx::Shape rows(x.shape().begin(), x.shape().end() - 1);
  if (words.ndim() != 3 || chosen.shape() != rows)
    throw std::invalid_argument("[macllm] quantized matmul: a stack of matrices and a choice for each row.");
  return product({x, words, scales, biases, mx::astype(chosen, mx::int32)}, options);
}

mx::array native_quantized_rows(const mx::array& words, const mx::array& scales, const mx::array& biases,
                                const mx::array& rows, int group, int bits) {
  const Packing packing{group, bits};
  check_packed(words, scales, biases, packing);
  if (words.ndim() != 2) throw std::invalid_argument("[macllm] quantized rows: one matrix.");
  auto forward = [packing](const Arrays& in, Arrays& out) {
    DenseArrays dense;
    const Dense<int32_t> rows(in[3]);
    quantized_rows(packed(in[0], in[1], in[2], packing, dense), in[3].size(), rows, out[0].data<float>());
  };
  mx::Shape shape = rows.shape();
  shape.push_back(int(packed(words, scales, packing).K));
  auto primitive = std::make_shared<Native>(mx::to_stream({}), "quantized_rows", std::move(forward), nullptr);
  return mx::array(shape, mx::float32, primitive, {words, scales, biases, mx::astype(rows, mx::int32)});
}

}  // namespace

void bind_quantized(nb::module_& m) {
  m.def("quantized_matmul", &native_quantized_matmul, "x"_a, "words"_a, "scales"_a, "biases"_a, "group"_a, "bits"_a,
        "int8"_a = false);
  m.def("quantized_gather", &native_quantized_gather, "x"_a, "words"_a, "scales"_a, "biases"_a, "chosen"_a, "group"_a,
        "bits"_a, "int8"_a = false);
  m.def("quantized_rows", &native_quantized_rows, "words"_a, "scales"_a, "biases"_a, "rows"_a, "group"_a, "bits"_a);
}

}  // namespace macllm
