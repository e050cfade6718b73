// Rows grouped by the matrix of a stack (an expert) that was chosen for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace macllm {

// Calls run(matrix, its rows) for each of `stack` matrices that was chosen; skips rows with an invalid choice.
template <class F>
void by_matrix(int64_t rows, const int32_t* chosen, int64_t stack, F run) {
  std::vector<int64_t> order(rows);
  std::iota(order.begin(), order.end(), int64_t(0));
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return chosen[a] < chosen[b]; });
  for (int64_t begin = 0, end; begin < rows; begin = end) {
    const int64_t matrix = chosen[order[begin]];
    for (end = begin; end < rows && chosen[order[end]] == matrix; end++) {}
    if (0 <= matrix && matrix < stack) run(matrix, std::vector<int64_t>(order.begin() + begin, order.begin() + end));
  }
}

inline std::vector<float> gathered(const std::vector<int64_t>& rows, int64_t width, const float* x) {
  std::vector<float> all(rows.size() * width);
  for (size_t i = 0; i < rows.size(); i++) std::copy_n(x + rows[i] * width, width, all.data() + i * width);
  return all;
}

struct Widths {
  int64_t from, to;
};

// Rows y [to] of rows x [from] by run(matrix, count, its x, its y); NaN for an invalid choice.
template <class F>
void map_by_matrix(int64_t rows, const int32_t* chosen, int64_t stack, Widths width, const float* x, float* y, F run) {
  std::fill_n(y, rows * width.to, std::numeric_limits<float>::quiet_NaN());
  by_matrix(rows, chosen, stack, [&](int64_t matrix, const std::vector<int64_t>& mine) {
    const auto in = gathered(mine, width.from, x);
    std::vector<float> out(mine.size() * width.to);
    run(matrix, int64_t(mine.size()), in.data(), out.data());
    for (size_t i = 0; i < mine.size(); i++) std::copy_n(out.data() + i * width.to, width.to, y + mine[i] * width.to);
  });
}

}  // namespace macllm
