// Products with packed matrices as MLX operations.
#include <nanobind/nanobind.h>

#include "bindings.h"
#include "../kernels/kernels.h"
#include "packed.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

// Which product with x is wanted.
struct Wanted {
  Packing packing;
  bool back, int8;  // back: x w instead of x w^T
};

void check(const mx::array& x, const mx::array& words, const mx::array& scales, const mx::array& biases,
           Wanted wanted) {
  check_packed(words, scales, biases, wanted.packing);
  const PackedMatrix w = packed(words, scales, wanted.packing);
  if (x.dtype() != mx::float32 || x.ndim() < 1 || x.shape(-1) != (wanted.back ? w.N : w.K))
    throw std::invalid_argument("[macllm] quantized matmul: x is float32, its width the width of the matrix.");
}

// Inputs are x, words, scales, biases, and the choices of matrices where there is a stack.
mx::array product(const Arrays& inputs, Wanted wanted) {
  auto forward = [wanted](const Arrays& in, Arrays& out) {
    Held held;
    const PackedMatrix w = packed(in[1], in[2], in[3], wanted.packing, held);
    const Dense x(in[0]);
    const int64_t rows = in[0].size() / std::max(in[0].shape(-1), 1);
    float* y = out[0].data<float>();
    if (in.size() == 5) {
      const Dense<int32_t> chosen(in[4]);
      if (wanted.back) return quantized_gather_back(w, rows, x, chosen, y);
      return quantized_gather(w, rows, x, chosen, wanted.int8, y);
    }
    if (wanted.back) return quantized_matmul_back(w, rows, x, y);
    quantized_matmul(w, rows, x, wanted.int8, y);
  };
  auto vjp = [wanted](const Arrays& in, const Arrays& g, const Arrays&) {
    Arrays inputs = in;
    inputs[0] = g[0];
    return Arrays{product(inputs, {wanted.packing, !wanted.back, false})};
  };
  mx::Shape shape = inputs[0].shape();
  const PackedMatrix w = packed(inputs[1], inputs[2], wanted.packing);
  shape.back() = int(wanted.back ? w.K : w.N);
  auto primitive = std::make_shared<Native>(mx::to_stream({}), "quantized_matmul", std::move(forward), std::move(vjp));
  return mx::array(shape, mx::float32, primitive, inputs);
}

mx::array native_quantized_matmul(const mx::array& x, const mx::array& words, const mx::array& scales,
                                  const mx::array& biases, int group, int bits, bool int8) {
  // Where a gradient is taken, the product is what it is the gradient of.
  const Wanted wanted{{group, bits}, false, int8 && !x.is_tracer()};
  check(x, words, scales, biases, wanted);
  if (words.ndim() != 2) throw std::invalid_argument("[macllm] quantized matmul: one matrix.");
  return product({x, words, scales, biases}, wanted);
}

mx::array native_quantized_gather(const mx::array& x, const mx::array& words, const mx::array& scales,
                                  const mx::array& biases, const mx::array& chosen, int group, int bits, bool int8) {
  // Where a gradient is taken, the product is what it is the gradient of.
  const Wanted wanted{{group, bits}, false, int8 && !x.is_tracer()};
  check(x, words, scales, biases, wanted);
  const mx::Shape rows(x.shape().begin(), x.shape().end() - 1);
  if (words.ndim() != 3 || chosen.shape() != rows)
    throw std::invalid_argument("[macllm] quantized matmul: a stack of matrices and a choice for each row.");
  return product({x, words, scales, biases, mx::astype(chosen, mx::int32)}, wanted);
}

mx::array native_quantized_rows(const mx::array& words, const mx::array& scales, const mx::array& biases,
                                const mx::array& rows, int group, int bits) {
  const Packing packing{group, bits};
  check_packed(words, scales, biases, packing);
  if (words.ndim() != 2) throw std::invalid_argument("[macllm] quantized rows: one matrix.");
  auto forward = [packing](const Arrays& in, Arrays& out) {
    Held held;
    const Dense<int32_t> rows(in[3]);
    quantized_rows(packed(in[0], in[1], in[2], packing, held), in[3].size(), rows, out[0].data<float>());
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
