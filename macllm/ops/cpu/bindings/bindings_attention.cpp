// Attention, and packing of rows for a quantized cache, as MLX operations.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "../kernels/attention.h"
#include "bindings.h"
#include "../kernels/parallel.h"
#include "primitive.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace macllm {
namespace {

struct Options {
  float scale, softcap;
  bool causal;
  int64_t window, chunk, begin;
};

// The order of inputs: q, then keys and values in `parts` arrays each, sinks if any, a mask if any.
struct Layout {
  size_t parts;
  bool has_sinks, has_mask;
  size_t sinks() const { return 1 + 2 * parts; }
  size_t mask() const { return sinks() + has_sinks; }
  size_t count() const { return mask() + has_mask; }
};

[[noreturn]] void refuse(const char* why) { throw std::invalid_argument(std::string("[macllm] attention: ") + why); }

// The fields that do not depend on the form of keys and values; positions are the second dimension from the end.
Attention problem(const Arrays& in, const Options& options, const Layout& layout) {
  auto &q = in[0], &k = in[1];
  Attention a{q.shape(0), q.shape(1), k.shape(1), q.shape(2), k.shape(2), q.shape(3), options.scale, options.causal,
              options.window, options.chunk, options.begin, nullptr, {}, options.softcap};
  if (layout.has_sinks) a.sinks = in[layout.sinks()].data<float>();
  if (layout.has_mask) {
    auto& mask = in[layout.mask()];
    a.mask = mask.data<bool>();
    std::copy(mask.strides().begin(), mask.strides().end(), a.mask_strides);
  }
  return a;
}

void add_options(Arrays& inputs, const std::optional<mx::array>& sinks, const std::optional<mx::array>& mask) {
  auto &q = inputs[0], &k = inputs[1];
  if (q.ndim() != 4 || k.ndim() != 4 || q.shape(0) != k.shape(0) || k.shape(1) == 0 || q.shape(1) % k.shape(1))
    refuse("queries are (B, H, T, Dh), keys and values (B, K, S, Dh).");
  const mx::Shape scores{q.shape(0), q.shape(1), q.shape(2), k.shape(2)};
  if (sinks) {
    if (sinks->shape() != mx::Shape{q.shape(1)}) refuse("one sink for each head.");
    inputs.push_back(mx::contiguous(*sinks));
  }
  if (mask) {
    if (mask->dtype() != mx::bool_) refuse("a mask is of bool.");
    inputs.push_back(mx::broadcast_to(*mask, scores));
  }
}

mx::Shape swapped(const mx::array& x) { return {x.shape(0), x.shape(2), x.shape(1), x.shape(3)}; }

Arrays native_attention_vjp(const Arrays& in, const Arrays& g, const Arrays& out, Options options, Layout layout) {
  Arrays inputs = in;
  inputs.insert(inputs.end(), {out[0], out[1], g[0]});
  auto backward = [options, layout](const Arrays& in, Arrays& to) {
    const size_t at = layout.count();
    Dense lse(in[at + 1]);
    attention_vjp(problem(in, options, layout), view(in[0]), view(in[1]), view(in[2]), view(in[at], true), lse,
                  view(in[at + 2], true),
                  {to[0].data<float>(), to[1].data<float>(), to[2].data<float>(),
                   layout.has_sinks ? to[3].data<float>() : nullptr});
  };
  std::vector<mx::Shape> shapes{swapped(in[0]), swapped(in[1]), swapped(in[2])};
  if (layout.has_sinks) shapes.push_back(in[3].shape());
  Arrays all = make("attention_vjp", inputs, shapes, backward);
  for (int i = 0; i < 3; i++) all[i] = heads_first(all[i]);
  return all;
}

mx::array native_attention(const mx::array& q, const mx::array& k, const mx::array& v, float scale, bool causal,
                           int64_t window, int64_t chunk, int64_t begin, const std::optional<mx::array>& mask,
                           float softcap, const std::optional<mx::array>& sinks) {
  if (k.shape() != v.shape() || q.ndim() != k.ndim() || q.shape(-1) != k.shape(-1)) refuse("heads of one width.");
  const Options options{scale, softcap, causal, window, chunk, begin};
  const Layout layout{1, sinks.has_value(), mask.has_value()};
  Arrays inputs{q, k, v};
  add_options(inputs, sinks, mask);
  auto forward = [options, layout](const Arrays& in, Arrays& out) {
    attention(problem(in, options, layout), view(in[0]), {view(in[1])}, {view(in[2])}, out[0].data<float>(),
              out[1].data<float>());
  };
  auto vjp = [options, layout](const Arrays& in, const Arrays& g, const Arrays& out) {
    return native_attention_vjp(in, g, out, options, layout);
  };
  const mx::Shape lse{q.shape(0), q.shape(1), q.shape(2)};
  return heads_first(make("attention", inputs, {swapped(q), lse}, forward, vjp)[0]);
}

// Words, scales and biases of keys or of values: in place if the rows of a head follow one another, else copied.
class PackedView {
 public:
  PackedView(const mx::array& words, const mx::array& scales, const mx::array& biases, int bits, int group) {
    rows_.bits = bits, rows_.group = group, rows_.groups = scales.shape(-1);
    rows_.batch = stride(scales, 0), rows_.head = stride(scales, 1);
    if (lies(words, rows_.words_per_row()) && lies(scales, rows_.groups) && lies(biases, rows_.groups)) {
      rows_.words = words.data<uint32_t>(), rows_.scales = scales.data<float>(), rows_.biases = biases.data<float>();
      return;
    }
    rows_.head = scales.shape(2), rows_.batch = rows_.head * scales.shape(1);
    rows_.words = words_.emplace(words);
    rows_.scales = scales_.emplace(scales);
    rows_.biases = biases_.emplace(biases);
  }
  Stored rows() const { return {{}, rows_}; }

 private:
  // In rows; the stride of a dimension of size 1 does not matter.
  int64_t stride(const mx::array& a, int axis) const { return a.shape(axis) > 1 ? a.strides()[axis] / a.shape(-1) : 0; }
  bool lies(const mx::array& a, int64_t width) const {
    const auto& s = a.strides();
    const bool close = (a.shape(3) == 1 || s[3] == 1) && (a.shape(2) == 1 || s[2] == width);
    return close && (a.shape(1) == 1 || s[1] == rows_.head * width) && (a.shape(0) == 1 || s[0] == rows_.batch * width);
  }

  PackedRows rows_;
  std::optional<Dense<uint32_t>> words_;
  std::optional<Dense<float>> scales_, biases_;
};

void check_packed(const Arrays& parts, int bits, int group, int64_t head_dim) {
  if ((bits != 4 && bits != 8) || (group != 32 && group != 64 && group != 128))
    refuse("4 or 8 bits, groups of 32, 64 or 128.");
  if (parts.size() != 6) refuse("words, scales and biases of keys, then of values.");
  const int64_t groups = (head_dim + group - 1) / group;
  for (size_t i = 0; i < 6; i++) {
    mx::Shape expected = parts[0].shape();
    if (expected.size() != 4) refuse("packed keys and values are (B, K, S, words).");
    expected[3] = int(i % 3 ? groups : groups * group * bits / 32);
    if (parts[i].shape() != expected || parts[i].dtype() != (i % 3 ? mx::float32 : mx::uint32)) refuse("shapes or types of packed keys and values do not match.");
  }
}

// nullopt if a gradient is taken.
std::optional<mx::array> native_attention_packed(const mx::array& q, const Arrays& parts, int bits, int group, float scale,
                                                 bool causal, int64_t window, int64_t chunk, int64_t begin,
                                                 const std::optional<mx::array>& mask, float softcap,
                                                 const std::optional<mx::array>& sinks) {
  check_packed(parts, bits, group, q.shape(-1));
  const Options options{scale, softcap, causal, window, chunk, begin};
  const Layout layout{3, sinks.has_value(), mask.has_value()};
  Arrays inputs{q};
  inputs.insert(inputs.end(), parts.begin(), parts.end());
  add_options(inputs, sinks, mask);
  for (auto& in : inputs)
    if (in.is_tracer()) return {};
  auto forward = [options, layout, bits, group](const Arrays& in, Arrays& out) {
    const PackedView k(in[1], in[2], in[3], bits, group), v(in[4], in[5], in[6], bits, group);
    Scratch lse(in[0].size() / std::max(in[0].shape(3), 1));
    attention(problem(in, options, layout), view(in[0]), k.rows(), v.rows(), out[0].data<float>(), lse.take(0));
  };
  return heads_first(make_of("attention_packed", inputs, {swapped(q)}, forward)[0]);
}

// (B, K, L, Dh) as mx.quantize packs it, padded to whole groups: words, scales, biases. nullopt if a gradient is taken.
std::optional<Arrays> native_pack(const mx::array& x, int bits, int group) {
  if (x.ndim() != 4 || x.dtype() != mx::float32) refuse("rows to pack are (B, K, L, Dh) of float32.");
  if (x.is_tracer()) return {};
  const int groups = (x.shape(3) + group - 1) / group;
  mx::Shape words = x.shape(), numbers = x.shape();
  words[3] = groups * group * bits / 32, numbers[3] = groups;
  Eval eval = [bits, group, groups](const Arrays& in, Arrays& out) {
    const int64_t K = in[0].shape(1), L = in[0].shape(2), D = in[0].shape(3);
    const View rows = view(in[0]);
    parallel_range(in[0].shape(0) * K * L, D, [&](int64_t first, int64_t last) {
      Scratch scratch(D);
      float* row = scratch.take(0);
      for (int64_t i = first; i < last; i++) {
        pack(rows, D, {i / L / K, i / L % K}, i % L, 1, row, D);
        pack_row(row, D, {out[0].data<uint32_t>() + i * groups * group * bits / 32, out[1].data<float>() + i * groups,
                          out[2].data<float>() + i * groups, groups, bits, group});
      }
    });
  };
  auto primitive = std::make_shared<Native>(mx::to_stream({}), "pack", std::move(eval), nullptr);
  return mx::array::make_arrays({words, numbers, numbers}, {mx::uint32, mx::float32, mx::float32}, primitive, {x});
}

}  // namespace

void bind_attention(nb::module_& m) {
  m.def("attention", &native_attention, "q"_a, "k"_a, "v"_a, "scale"_a, "causal"_a = false, "window"_a = 0,
        "chunk"_a = 0, "begin"_a = 0, "mask"_a = nb::none(), "softcap"_a = 0, "sinks"_a = nb::none());
  m.def("attention_packed", &native_attention_packed, "q"_a, "parts"_a, "bits"_a, "group"_a, "scale"_a,
        "causal"_a = false, "window"_a = 0, "chunk"_a = 0, "begin"_a = 0, "mask"_a = nb::none(), "softcap"_a = 0,
        "sinks"_a = nb::none());
  m.def("pack", &native_pack, "x"_a, "bits"_a, "group"_a);
}

}  // namespace macllm
