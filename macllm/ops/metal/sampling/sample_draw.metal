// The second half of a draw: a token by a number between 0 and 1, from the top_k largest logits, of these the fewest likeliest
// that hold the mass top_p, of these those at least min_p times as likely as the likeliest; and its log-probability over all
// logits. Candidates are those of sample_blocks; filters that could keep more than these read all logits instead.
//
// Layout. As sample_blocks writes; logits (B, V), uniform (B). Out: token (B) uint32, logprob (B) float32.
// Grid. A threadgroup of 1024 for each row: (1024, B) threads. Candidates are sorted in threadgroup memory (Batcher 1968);
// without filters a block is drawn by its sum, and a token in it.
// Traffic. Candidates are read once, or one block of logits. If more than 32 tokens of a block are kept, all logits are read
// about seventy times, which takes a very flat distribution.
#include "../common.metal"
#include "rank.metal"
#include "boundary.metal"

//: threadgroup float values_held[FILTERED ? COUNT : 1];
//: threadgroup int indices_held[FILTERED ? COUNT : 1];
//: threadgroup float parts[32];
//: const int thread_ = int(thread_position_in_threadgroup.x), lane = int(thread_index_in_simdgroup);
//: const int simdgroup = int(simdgroup_index_in_threadgroup), batch = int(threadgroup_position_in_grid.y), V = logits_shape[1];
//: const int size = (V + BLOCKS - 1) / BLOCKS;
//: const float inverse_temperature = M_LOG2E_F / temperature;
//: const auto own = sums + long(batch) * BLOCKS * 3;
//: float largest = -1e30f;
//: for (int b = lane; b < BLOCKS; b += 32) largest = max(largest, own[3 * b]);
//: largest = simd_max(largest);
//: float plain = 0.0f, scaled = 0.0f;
//: for (int b = lane; b < BLOCKS; b += 32) {
//:   plain += own[3 * b + 1] * fast::exp2((own[3 * b] - largest) * M_LOG2E_F);
//:   scaled += own[3 * b + 2] * fast::exp2((own[3 * b] - largest) * inverse_temperature);
//: }
//: plain = simd_sum(plain);
//: scaled = simd_sum(scaled);
//: int chosen = 0;
//: float logit = 0.0f;
//: if (FILTERED) {
//:   float bound = -INFINITY;
//:   if (size > 32) for (int b = lane; b < BLOCKS; b += 32) bound = max(bound, values[(long(batch) * BLOCKS + b) * 32 + 31]);
//:   bound = simd_max(bound);
//:   for (int i = thread_; i < COUNT; i += 1024) {
//:     values_held[i] = i < BLOCKS * 32 ? values[long(batch) * BLOCKS * 32 + i] : -INFINITY;
//:     indices_held[i] = i < BLOCKS * 32 ? indices[long(batch) * BLOCKS * 32 + i] : 2147483647;
//:   }
//:   for (int run = 2; run <= COUNT; run *= 2) {
//:     for (int by = run / 2; by > 0; by /= 2) {
//:       threadgroup_barrier(mem_flags::mem_threadgroup);
//:       for (int pair = thread_; pair < COUNT / 2; pair += 1024) {
//:         const int i = 2 * by * (pair / by) + pair % by, j = i + by;
//:         const Ranked a = {values_held[i], indices_held[i]}, b = {values_held[j], indices_held[j]};
//:         if (before(b, a) == ((i & run) == 0)) {
//:           values_held[i] = b.value;
//:           indices_held[i] = b.index;
//:           values_held[j] = a.value;
//:           indices_held[j] = a.index;
//:         }
//:       }
//:     }
//:   }
//:   threadgroup_barrier(mem_flags::mem_threadgroup);
//:   constexpr int EACH = (COUNT + 1023) / 1024;
//:   float weights[EACH], mass = 0.0f, ranked = 0.0f;
//:   for (int e = 0; e < EACH; e++) {
//:     const int i = thread_ * EACH + e;
//:     const bool counts = i < COUNT && (top_k == 0 || i < top_k);
//:     weights[e] = counts ? fast::exp2((values_held[min(i, COUNT - 1)] - largest) * inverse_temperature) : 0.0f;
//:     mass += weights[e];
//:   }
//:   float before_own = sum_before(mass, parts, lane, simdgroup, ranked);
//:   const float all = top_k == 0 ? scaled : ranked;
//:   float sum = before_own, kept = 0.0f, reaches = 0.0f;
//:   for (int e = 0; e < EACH; e++) {
//:     const int i = thread_ * EACH + e;
//:     const bool keeps = i == 0 || (weights[e] > 0.0f && weights[e] >= min_p && sum < top_p * all);
//:     sum += weights[e];
//:     if (!keeps) weights[e] = 0.0f;
//:     kept += weights[e];
//:     if (keeps && values_held[min(i, COUNT - 1)] <= bound) reaches = 1.0f;
//:   }
//:   float total = 0.0f, beyond = 0.0f;
//:   float at = sum_before(kept, parts, lane, simdgroup, total);
//:   sum_before(reaches, parts, lane, simdgroup, beyond);
//:   float passed = 0.0f, all_passed = 0.0f;
//:   for (int e = 0; e < EACH; e++) {
//:     at += weights[e];
//:     if (weights[e] > 0.0f && at <= uniform[batch] * total) passed += 1.0f;
//:   }
//:   float candidates = 0.0f, held_back = 0.0f;
//:   for (int e = 0; e < EACH; e++) held_back += weights[e] > 0.0f ? 1.0f : 0.0f;
//:   sum_before(passed, parts, lane, simdgroup, all_passed);
//:   sum_before(held_back, parts, lane, simdgroup, candidates);
//:   const int rank = min(int(all_passed), int(candidates) - 1);
//:   chosen = indices_held[rank];
//:   if (beyond > 0.0f) {
//:     const auto row = row_of(logits + long(batch) * V, V, largest, inverse_temperature);
//:     const Boundary last = boundary(row, top_k, top_p, scaled, parts, thread_, lane, simdgroup);
//:     chosen = drawn_by_index(row, last, min_p, uniform[batch], parts, thread_, lane, simdgroup);
//:   }
//:   logit = number(logits[long(batch) * V + chosen]);
//: } else {
//:   float running = 0.0f, target = uniform[batch] * scaled, block_start = 0.0f;
//:   int block = BLOCKS - 1;
//:   for (int b = 0; b < BLOCKS; b++) {
//:     const float next = running + own[3 * b + 2] * fast::exp2((own[3 * b] - largest) * inverse_temperature);
//:     if (next > target && b < block) { block = b; block_start = running; }
//:     if (b == BLOCKS - 1 && block == b) block_start = running;
//:     running = next;
//:   }
//:   const int begin = block * size, count = min(V, begin + size) - begin, each = (count + 1023) / 1024;
//:   float mass = 0.0f, all = 0.0f, passed = 0.0f, all_passed = 0.0f;
//:   for (int i = thread_ * each; i < min(count, (thread_ + 1) * each); i++)
//:     mass += fast::exp2((number(logits[long(batch) * V + begin + i]) - largest) * inverse_temperature);
//:   float at = sum_before(mass, parts, lane, simdgroup, all);
//:   for (int i = thread_ * each; i < min(count, (thread_ + 1) * each); i++) {
//:     at += fast::exp2((number(logits[long(batch) * V + begin + i]) - largest) * inverse_temperature);
//:     if (at <= target - block_start) passed += 1.0f;
//:   }
//:   sum_before(passed, parts, lane, simdgroup, all_passed);
//:   chosen = begin + min(int(all_passed), count - 1);
//:   logit = number(logits[long(batch) * V + chosen]);
//: }
//: if (thread_ == 0) {
//:   token[batch] = uint(chosen);
//:   logprob[batch] = logit - largest - precise::log(plain);
//: }
