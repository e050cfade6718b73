// A thread pool that runs one parallel loop at a time.
#pragma once

#include <cstdint>
#include <functional>

namespace macllm {

void set_threads(int count);
int threads();

// Run body(i) for every i < tasks, each once, on all threads; returns when all are done.
void parallel(int64_t tasks, const std::function<void(int64_t)>& body);

// Run body(first, last) over disjoint ranges that cover [0, count); `cost` is the rough number of vector operations per
// item: loops too small to divide run on one thread.
void parallel_range(int64_t count, int64_t cost, const std::function<void(int64_t, int64_t)>& body);

// Run body(first row, last row, first column, last column) over disjoint blocks that cover an M x N matrix, each
// element of which takes K multiplications: blocks about square, some for every thread, edges on multiples of 32.
using BlockBody = std::function<void(int64_t, int64_t, int64_t, int64_t)>;
void parallel_blocks(int64_t M, int64_t N, int64_t K, const BlockBody& body);

}  // namespace macllm
