// Attention of up to 16 new queries over a cache of keys and values, read in place through its strides.
// Stock MLX reads keys again for each query head in its vector kernel, and copies a sliced cache for a dense mask.
//
// Layout. q (B, H, L, D); keys and values (B, K, S, D) with strides. Out: out (B, H, L, D) if there is one chunk, else
// (B, H, L, CHUNKS, D) float32 sums without division; and (B, H, L, CHUNKS, 2) largest scores (base 2) and sums of weights.
// Grid. A threadgroup for each chunk of keys, key head (times blocks of rows) and batch row: (32, TILES * SPLITS) threads. A
// tile is R of the rows G * L that share a key head; the simdgroups of a tile alternate over the keys. A simdgroup reads
// 32 / PARTS keys at a time, and D / 8 lanes hold eight numbers of each.
// Traffic. Each key and value that a query may see is read once per threadgroup, by tiles after the first from the cache.
#include "../common.metal"
#include "decode.metal"

//: threadgroup float scratch[SPLITS > 1 ? TILES * SPLITS * 32 * (EIGHT + 3) : 1];
//: const int lane = int(thread_index_in_simdgroup), simdgroup = int(simdgroup_index_in_threadgroup);
//: const int chunk = int(threadgroup_position_in_grid.x), chunks = int(threadgroups_per_grid.x), batch = int(threadgroup_position_in_grid.z);
//: const int own = int(threadgroup_position_in_grid.y) % K, block = int(threadgroup_position_in_grid.y) / K;
//: const int length = q_shape[2], count = keys_shape[2];
//: const long rows = (long(batch) * K + own) * G * length;
//: const DecodeMask mask = {length, count - 1, first[batch * FIRSTS], window, softcap};
//: const int begin = low + chunk * CHUNK, end = min(count, begin + CHUNK);
//: const auto k = plain_rows(keys + batch * keys_strides[0] + own * keys_strides[1], keys_strides[2]);
//: const auto v = plain_rows(values + batch * values_strides[0] + own * values_strides[1], values_strides[2]);
//: decode<G, D, PARTS, R, TILES, SPLITS, CAUSAL, CAPPED, WHOLE, HAS_SINKS>(
//:     q + rows * D, k, v, mask, scale, sinks + own * G, begin, end, chunk, chunks, block * TILES * R, simdgroup, lane, scratch,
//:     out + rows * chunks * D, stats + rows * chunks * 2);
