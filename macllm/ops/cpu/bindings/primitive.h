// One MLX primitive for all kernels, made of two functions: its evaluation and its vjp.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/utils.h"

namespace macllm {

namespace mx = mlx::core;
using Arrays = std::vector<mx::array>;

// Runs on the stream's thread, where every input is ready and every output allocated.
using Eval = std::function<void(const Arrays& inputs, Arrays& outputs)>;
// (inputs, cotangents, outputs) -> the cotangent of each input that has one, in order.
using Vjp = std::function<Arrays(const Arrays& inputs, const Arrays& cotangents, const Arrays& outputs)>;

class Native : public mx::Primitive {
 public:
  Native(mx::Stream stream, std::string name, Eval eval, Vjp vjp)
      : Primitive(stream), name_(std::move(name)), eval_(std::move(eval)), vjp_(std::move(vjp)) {}

  const char* name() const override { return name_.c_str(); }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    for (auto& out : outputs) out.set_data(mx::allocator::malloc(out.nbytes()));
    auto weak = [](const Arrays& arrays) {
      Arrays copies;
      for (auto& a : arrays) copies.push_back(mx::array::unsafe_weak_copy(a));
      return copies;
    };
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.dispatch([eval = eval_, in = weak(inputs), out = weak(outputs)]() mutable { eval(in, out); });
  }

  void eval_gpu(const Arrays&, Arrays&) override { throw std::runtime_error("[macllm] " + name_ + " runs on the CPU."); }

  Arrays vjp(const Arrays& primals, const Arrays& cotangents, const std::vector<int>& argnums,
             const Arrays& outputs) override {
    if (!vjp_) throw std::invalid_argument("[macllm] " + name_ + " has no gradient.");
    Arrays all = vjp_(primals, cotangents, outputs), wanted;
    for (int i : argnums) {
      if (i >= int(all.size())) throw std::invalid_argument("[macllm] " + name_ + " has no gradient for this input.");
      wanted.push_back(all[i]);
    }
    return wanted;
  }

 private:
  std::string name_;
  Eval eval_;
  Vjp vjp_;
};

// For inputs of any type, which the caller has checked.
inline Arrays make_of(const char* name, const Arrays& inputs, std::vector<mx::Shape> shapes, Eval eval, Vjp vjp = nullptr,
                      mx::Dtype type = mx::float32) {
  auto primitive = std::make_shared<Native>(mx::to_stream({}), name, std::move(eval), std::move(vjp));
  return mx::array::make_arrays(shapes, std::vector<mx::Dtype>(shapes.size(), type), primitive, inputs);
}

inline Arrays make(const char* name, const Arrays& inputs, std::vector<mx::Shape> shapes, Eval eval, Vjp vjp = nullptr) {
  for (auto& in : inputs)
    if (in.dtype() != mx::float32 && in.dtype() != mx::int32 && in.dtype() != mx::bool_)
      throw std::invalid_argument(std::string("[macllm] ") + name + " takes float32.");
  return make_of(name, inputs, std::move(shapes), std::move(eval), std::move(vjp));
}

// The elements of an array in row-major order: the array's memory, or a copy that lives as long as this.
template <class T = float>
class Dense {
 public:
  explicit Dense(const mx::array& a) {
    if (a.flags().row_contiguous) {
      data_ = a.data<T>();
      return;
    }
    copy_.reset(new T[a.size()]);
    data_ = copy_.get();
    T* to = copy_.get();
    if (a.size()) gather(a, 0, a.data<T>(), to);
  }

  operator const T*() const { return data_; }

 private:
  static void gather(const mx::array& a, int axis, const T* from, T*& to) {
    const int64_t stride = a.strides()[axis], count = a.shape(axis);
    if (axis + 1 == int(a.ndim())) {
      for (int64_t i = 0; i < count; i++) *to++ = from[i * stride];
      return;
    }
    for (int64_t i = 0; i < count; i++) gather(a, axis + 1, from + i * stride, to);
  }

  const T* data_ = nullptr;
  std::unique_ptr<T[]> copy_;
};

// The same for several arrays.
class DenseArrays {
 public:
  template <class T>
  const T* operator()(const mx::array& a) {
    if (a.flags().row_contiguous) return a.data<T>();
    auto copy = std::make_shared<Dense<T>>(a);
    copies_.push_back(copy);
    return *copy;
  }

 private:
  std::vector<std::shared_ptr<void>> copies_;
};

}  // namespace macllm
