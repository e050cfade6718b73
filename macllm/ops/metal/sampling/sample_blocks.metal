// The first half of a draw: of each block of the vocabulary the 32 largest logits, in order, the largest, and the sums of
// exponentials with and without the temperature. Stock MLX sorts the whole vocabulary, or reads it once for each filter.
//
// Layout. logits (B, V). Out: values and indices (B, BLOCKS, 32); sums (B, BLOCKS, 3) float32: largest, sum of
// exp(x - largest), sum of exp((x - largest) / temperature). Block b holds V's numbers from b * SIZE on.
// Grid. A threadgroup of eight simdgroups for each block: (256 * BLOCKS, B) threads. A simdgroup keeps 32 sorted numbers in
// its lanes and merges 32 more into them, unless all of those are smaller.
// Traffic. The logits are read once; 2048 candidates are written.
#include "../common.metal"
#include "rank.metal"

//: threadgroup Ranked scratch[8][32];
//: threadgroup float parts[8][3];
//: const int lane = int(thread_index_in_simdgroup), simdgroup = int(simdgroup_index_in_threadgroup), V = logits_shape[1];
//: const int block = int(threadgroup_position_in_grid.x), batch = int(threadgroup_position_in_grid.y);
//: const int size = (V + BLOCKS - 1) / BLOCKS, end = min(V, (block + 1) * size);
//: const float inverse = 1.0f / temperature;
//: Ranked top = {-INFINITY, 2147483647};
//: float largest = -1e30f, plain = 0.0f, scaled = 0.0f;
//: for (int base = block * size + simdgroup * 32; base < end; base += 256) {
//:   const int i = base + lane;
//:   const Ranked next = {i < end ? number(logits[long(batch) * V + i]) : -INFINITY, i < end ? i : 2147483647};
//:   const float above = max(largest, next.value);
//:   plain = plain * fast::exp2((largest - above) * M_LOG2E_F) + fast::exp2((next.value - above) * M_LOG2E_F);
//:   scaled = scaled * fast::exp2((largest - above) * inverse * M_LOG2E_F) + fast::exp2((next.value - above) * inverse * M_LOG2E_F);
//:   largest = above;
//:   const Ranked last = {simd_shuffle(top.value, 31), simd_shuffle(top.index, 31)};
//:   if (simd_any(before(next, last))) top = first_of_both(top, ordered(next, lane), lane);
//: }
//: const float above = simd_max(largest);
//: plain = simd_sum(plain * fast::exp2((largest - above) * M_LOG2E_F));
//: scaled = simd_sum(scaled * fast::exp2((largest - above) * inverse * M_LOG2E_F));
//: scratch[simdgroup][lane] = top;
//: if (lane < 3) parts[simdgroup][lane] = lane == 0 ? above : lane == 1 ? plain : scaled;
//: threadgroup_barrier(mem_flags::mem_threadgroup);
//: if (simdgroup == 0) {
//:   for (int s = 1; s < 8; s++) top = first_of_both(top, scratch[s][lane], lane);
//:   const long at = (long(batch) * BLOCKS + block) * 32 + lane;
//:   values[at] = top.value;
//:   indices[at] = top.index;
//:   const float own = lane < 8 ? parts[lane][0] : -1e30f, all = simd_max(own);
//:   const float total = simd_sum(lane < 8 ? parts[lane][1] * fast::exp2((own - all) * M_LOG2E_F) : 0.0f);
//:   const float scaled_total = simd_sum(lane < 8 ? parts[lane][2] * fast::exp2((own - all) * inverse * M_LOG2E_F) : 0.0f);
//:   if (lane < 3) sums[(long(batch) * BLOCKS + block) * 3 + lane] = lane == 0 ? all : lane == 1 ? total : scaled_total;
//: }
