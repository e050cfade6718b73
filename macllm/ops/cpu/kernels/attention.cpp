// Attention in one pass over keys and values, a tile at a time, with a running maximum (Dao et al. 2022,
// "FlashAttention", algorithm 1): neither the T x S matrix nor unpacked or transposed keys exist beyond a tile.
#include "attention.h"

#include <cmath>
#include <vector>

#include "linear.h"
#include "matmul.h"
#include "parallel.h"
#include "transpose.h"

namespace macllm {
namespace {

constexpr int64_t FEW_QUERIES = 8;  // per key head: for more, tiles of unpacked keys pay
constexpr int64_t CHUNK = 512;      // positions of one task of few queries, at most and at least
constexpr int64_t LEAST_CHUNK = 64;
constexpr int64_t FEW_SLOTS = 64;   // positions of a tile, for few queries and for many, which fit into L1 and L2
constexpr int64_t SLOTS = 128;
constexpr int64_t QUERIES = 256;  // that attend over a tile before the next is made
constexpr int64_t TOGETHER = 32;  // queries whose scores of a tile are computed together

struct Problem {
  const Attention& a;
  const View& q;
  const Stored &k, &v;

  int64_t group() const { return a.H / a.K; }
  // Floats of a row in tiles, zeros beyond D.
  int64_t width() const { return std::max({padded(a.D), k.packed.width(), v.packed.width()}); }
};

// Running softmax over the positions so far: the largest score, and the sum of e^(score - top).
struct RunningSoftmax {
  float top = -INFINITE, total = 0;
};

// Rows [first, first + count) of keys, transposed: to[d * stride + s].
void key_tile(const Stored& rows, int64_t D, Head at, int64_t first, int64_t count, float* to, int64_t stride) {
  if (!rows.floats.data) return unpack_transposed(rows.packed.from(at.b, at.h, first), count, to, stride);
  for (int64_t s = 0; s < count; s += W) {
    for (int64_t d = 0; d < D; d += W) {
      vi block[W];
      for (int64_t i = 0; i < W; i++) {
        const float* from = row_of(rows.floats, at.b, at.h, first + std::min(s + i, count - 1)) + d * rows.floats.channel;
        vf row;
        if (rows.floats.channel != 1) {
          for (int64_t l = 0; l < W; l++) row[l] = d + l < D ? from[l * rows.floats.channel] : 0.f;
        } else {
          row = d + W <= D ? load(from) : load(from, D - d, 0.f);
        }
        std::memcpy(block + i, &row, sizeof row);
      }
      transpose<W>(block);
      for (int64_t i = 0; i < std::min<int64_t>(W, D - d); i++)
        std::memcpy(to + (d + i) * stride + s, block + i, sizeof(vf));
    }
  }
}

// Rows [first, first + count) of keys or values: to[s * stride + d].
void row_tile(const Stored& rows, int64_t D, Head at, int64_t first, int64_t count, float* to, int64_t stride) {
  if (rows.floats.data) return pack(rows.floats, D, at, first, count, to, stride);
  unpack(rows.packed.from(at.b, at.h, first), count, to, stride);
}

// Scores to weights e^(score - top); rescales the sums so far when the maximum grows.
void add_scores(int64_t columns, float* scores, RunningSoftmax& part, int64_t width, float* sums) {
  const float peak = largest(columns, scores);
  if (peak > part.top) {
    const float factor = std::exp(part.top - peak);
    if (part.total > 0) map(width, sums, [&](vf a) { return a * factor; }, sums);
    part.total *= factor;
    part.top = peak;
  }
  if (part.top == -INFINITE) return std::fill(scores, scores + columns, 0.f);
  vf total{};
  for (int64_t j = 0; j < columns; j += W) {
    const vf e = exp(load(scores + j) - part.top);
    store(scores + j, e);
    total += e;
  }
  part.total += sum(total);
}

// Sums to the result, with the head's sink in the softmax.
void finish(const Attention& a, int64_t h, RunningSoftmax part, const float* sums, float* out, float* lse) {
  const float sink = a.sinks ? a.sinks[h] : -INFINITE, top = std::max(part.top, sink);
  if (top == -INFINITE) {
    std::fill(out, out + a.D, 0.f);
  } else {
    const float total = part.total * std::exp(part.top - top) + (a.sinks ? std::exp(sink - top) : 0.f);
    const float factor = std::exp(part.top - top) / total;
    map(a.D, out, [&](vf x) { return x * factor; }, sums);
    part = {top, total};
  }
  if (lse) *lse = part.top + std::log(part.total);
}

// True if a row is `width` contiguous floats.
bool plain(const Stored& rows, int64_t D, int64_t width) {
  return rows.floats.data && rows.floats.channel == 1 && D == width;
}

// Scores of the queries of one key head over positions [first, first + count), and their weighted sums of values.
void scores_of(const Problem& p, Head at, Span span, const float* queries, float* scores) {
  const int64_t R = p.group() * p.a.T, width = p.width(), count = span.last - span.first;
  if (!p.k.floats.data) {
    return packed_scores(p.k.packed.from(at.b, at.h, span.first), count, R, queries, scores, CHUNK);
  }
  const bool direct = plain(p.k, p.a.D, width) && p.k.floats.position == width;
  Scratch tile(direct ? 0 : FEW_SLOTS * width);
  for (int64_t s = 0; s < count; s += FEW_SLOTS) {
    const int64_t n = std::min(FEW_SLOTS, count - s);
    const float* rows = direct ? row_of(p.k.floats, at.b, at.h, span.first + s) : tile.take(0);
    if (!direct) row_tile(p.k, p.a.D, at, span.first + s, n, tile.take(0), width);
    linear({rows, nullptr, n, width}, {R, width, queries}, 0, n, scores + s, CHUNK);
  }
}

void sums_of(const Problem& p, Head at, Span span, const float* weights, float* sums) {
  const int64_t R = p.group() * p.a.T, width = p.width(), count = span.last - span.first;
  if (count == 0) return std::fill(sums, sums + R * width, 0.f);
  if (!p.v.floats.data) {
    return packed_sums(p.v.packed.from(at.b, at.h, span.first), count, R, weights, CHUNK, {sums, width, false});
  }
  const bool direct = plain(p.v, p.a.D, width);
  Scratch tile(direct ? 0 : FEW_SLOTS * width);
  for (int64_t s = 0; s < count; s += FEW_SLOTS) {
    const int64_t n = std::min(FEW_SLOTS, count - s);
    const float* rows = direct ? row_of(p.v.floats, at.b, at.h, span.first + s) : tile.take(0);
    if (!direct) row_tile(p.v, p.a.D, at, span.first + s, n, tile.take(0), width);
    few_rows(R, width, n, weights + s, CHUNK, rows, direct ? p.v.floats.position : width, sums, width, s > 0);
  }
}

// The queries of one key head over positions [first, first + count).
void attend(const Problem& p, Head at, Span span, const float* queries, RunningSoftmax* parts, float* sums) {
  const Attention& a = p.a;
  const int64_t count = span.last - span.first, columns = padded(count);
  Scratch scratch(p.group() * a.T * CHUNK);
  float* scores = scratch.take(0);
  scores_of(p, at, span, queries, scores);
  for (int64_t r = 0; r < p.group() * a.T; r++) {
    float* row = scores + r * CHUNK;
    cap(a.softcap, columns, row);
    apply_mask(a, {at.b, at.h * p.group() + r / a.T}, r % a.T, span.first, count, row);
    std::fill(row + count, row + columns, -INFINITE);
    add_scores(columns, row, parts[r], 0, nullptr);
  }
  sums_of(p, at, span, scores, sums);
}

void append(const NewToken& n, const float* rows, const Buffer& to) {
  for (int64_t kh = 0; kh < n.K; kh++, rows += n.D) {
    const int64_t slot = (n.b * n.K + kh) * n.capacity + n.at;
    if (to.floats) {
      std::copy(rows, rows + n.D, to.floats + slot * n.D);
      continue;
    }
    PackedRow row = to.packed;
    row.words += slot * row.groups * row.group * row.bits / 32;
    row.scales += slot * row.groups, row.biases += slot * row.groups;
    pack_row(rows, n.D, row);
  }
}

// The rows of a buffer that the token sees.
Stored visible_of(const NewToken& n, const Buffer& buffer) {
  const int64_t before = n.b * n.K * n.capacity + n.first;
  if (buffer.floats) return {{buffer.floats + before * n.D, 0, n.capacity * n.D, n.D, 1}, {}};
  const PackedRow& row = buffer.packed;
  const PackedRows all{row.words, row.scales, row.biases, 0, n.capacity, row.groups, row.bits, row.group};
  return {{}, all.from(0, 0, before)};
}

// Queries [t0, t0 + count) of the heads of one key head.
struct Task {
  Head at;
  int64_t t0, count;
};

// A task's queries [group, count, width], their sums and running softmax, and scratch memory.
struct Progress {
  const float* queries;
  float* sums;
  RunningSoftmax* parts;
  float *keys, *values, *scores;  // one tile
};

void take_queries(const Problem& p, const Task& task, float* to) {
  const int64_t width = p.width();
  for (int64_t g = 0; g < p.group(); g++, to += task.count * width) {
    pack(p.q, p.a.D, {task.at.b, task.at.h * p.group() + g}, task.t0, task.count, to, width);
    map(task.count * width, to, [&](vf x) { return x * p.a.scale; }, to);
  }
}

// Queries [i, i + m) of the task, all of one head, over the tile of positions [first, last).
void visit(const Problem& p, const Task& task, Span tile, int64_t i, int64_t m, const Progress& at) {
  const Attention& a = p.a;
  const int64_t width = p.width(), g = i / task.count, t = task.t0 + i % task.count;
  const int64_t end = std::min(tile.last, visible(a, t + m - 1).last), columns = padded(end - tile.first);
  if (end <= tile.first || visible(a, t).first >= end) return;
  matmul(m, columns, a.D, {at.queries + i * width, width, 1}, at.keys, SLOTS, at.scores, SLOTS, false);
  for (int64_t r = 0; r < m; r++) {
    float* row = at.scores + r * SLOTS;
    const Span span = visible(a, t + r);
    cap(a.softcap, columns, row);
    if (a.mask || span.first > tile.first || span.last < tile.first + columns)
      apply_mask(a, {task.at.b, task.at.h * p.group() + g}, t + r, tile.first, end - tile.first, row);
    std::fill(row + end - tile.first, row + columns, -INFINITE);
    add_scores(columns, row, at.parts[i + r], width, at.sums + (i + r) * width);
  }
  matmul(m, width, end - tile.first, {at.scores, SLOTS, 1}, at.values, width, at.sums + i * width, width, true);
}

void attend_many(const Problem& p, const Task& task, float* out, float* lse) {
  const Attention& a = p.a;
  const int64_t width = p.width(), rows = p.group() * task.count;
  Scratch scratch(2 * rows * width + 2 * SLOTS * width + TOGETHER * SLOTS);
  std::vector<RunningSoftmax> parts(rows);
  float *queries = scratch.take(rows * width), *sums = scratch.take(rows * width), *keys = scratch.take(SLOTS * width);
  const Progress progress{queries, sums, parts.data(), keys, scratch.take(SLOTS * width), scratch.take(0)};
  take_queries(p, task, queries);
  std::fill(sums, sums + rows * width, 0.f);
  const int64_t first = visible(a, task.t0).first, last = visible(a, task.t0 + task.count - 1).last;
  for (int64_t s = first; s < last; s += SLOTS) {
    const Span tile{s, std::min(last, s + SLOTS)};
    key_tile(p.k, a.D, task.at, s, tile.last - s, progress.keys, SLOTS);
    row_tile(p.v, a.D, task.at, s, tile.last - s, progress.values, width);
    for (int64_t g = 0; g < p.group(); g++)
      for (int64_t i = 0; i < task.count; i += TOGETHER)
        visit(p, task, tile, g * task.count + i, std::min(TOGETHER, task.count - i), progress);
  }
  for (int64_t r = 0; r < rows; r++) {
    const int64_t b = task.at.b, h = task.at.h * p.group() + r / task.count, t = task.t0 + r % task.count;
    finish(a, h, parts[r], sums + r * width, out + ((b * a.T + t) * a.H + h) * a.D, lse + (b * a.H + h) * a.T + t);
  }
}

}  // namespace

void attention_few(const Attention& a, const View& q, const Stored& k, const Stored& v, float* out, float* lse) {
  const Problem p{a, q, k, v};
  const int64_t R = p.group() * a.T, width = p.width(), first = visible(a, 0).first, last = visible(a, a.T - 1).last;
  const int64_t heads = a.B * a.K;
  const int64_t chunk = std::clamp(padded((last - first) * heads / (threads() * 4)), LEAST_CHUNK, CHUNK);
  const int64_t chunks = std::max<int64_t>((last - first + chunk - 1) / chunk, 1);
  const int64_t size = k.floats.data ? width : ready_floats(k.packed);
  Scratch scratch(heads * R * (width + size) + heads * chunks * R * width);
  float *dense = scratch.take(heads * R * width), *queries = dense;
  for (int64_t i = 0; i < heads; i++) take_queries(p, {{i / a.K, i % a.K}, 0, a.T}, dense + i * R * width);
  if (!k.floats.data) {
    queries = scratch.take(heads * R * size);
    for (int64_t i = 0; i < heads * R; i++) ready_query(k.packed, a.D, dense + i * width, queries + i * size);
  }
  float* sums = scratch.take(0);
  std::vector<RunningSoftmax> parts(heads * chunks * R);
  parallel_range(heads * chunks, std::min(last - first, chunk) * (R + 2) * (width / W + 2), [&](int64_t from, int64_t to) {
    for (int64_t task = from; task < to; task++) {
      const int64_t i = task / chunks, s = first + task % chunks * chunk;
      attend(p, {i / a.K, i % a.K}, {s, std::min(last, s + chunk)}, queries + i * R * size, &parts[task * R],
             sums + task * R * width);
    }
  });
  for (int64_t i = 0; i < heads * R; i++) {
    const int64_t b = i / R / a.K, h = i / R % a.K * p.group() + i % R / a.T, t = i % a.T, at = i / R * chunks * R + i % R;
    RunningSoftmax all = parts[at];
    float* total = sums + at * width;
    for (int64_t c = 1; c < chunks; c++) {
      const RunningSoftmax& part = parts[at + c * R];
      const float top = std::max(all.top, part.top), mine = top == -INFINITE ? 0.f : std::exp(all.top - top);
      const float other = top == -INFINITE ? 0.f : std::exp(part.top - top);
      map(width, total, [&](vf x, vf y) { return x * mine + y * other; }, total, sums + (at + c * R) * width);
      all = {top, all.total * mine + part.total * other};
    }
    finish(a, h, all, total, out + ((b * a.T + t) * a.H + h) * a.D, lse ? lse + (b * a.H + h) * a.T + t : nullptr);
  }
}

void append_and_attend(const NewToken& n, const NewRows& rows, const Buffer& keys, const Buffer& values, float* out) {
  append(n, rows.k, keys);
  append(n, rows.v, values);
  Attention a{1, n.H, n.K, 1, n.at + 1 - n.first, n.D, 1.f, false, 0, 0, 0, nullptr, {}, n.softcap, n.sinks};
  attention_few(a, {rows.q, 0, n.D, 0, 1}, visible_of(n, keys), visible_of(n, values), out, nullptr);
}

void attention(const Attention& a, const View& q, const Stored& k, const Stored& v, float* out, float* lse) {
  const Problem p{a, q, k, v};
  if (p.group() * a.T <= FEW_QUERIES) return attention_few(a, q, k, v, out, lse);
  // Each task makes the tiles that it reads, so heads are divided only as far as needed to occupy all threads.
  const int64_t heads = a.B * a.K, enough = (a.T * heads + 4 * threads() - 1) / (4 * threads());
  const int64_t most = std::max(QUERIES / p.group(), TOGETHER);
  const int64_t count = std::clamp<int64_t>((enough + TILE - 1) / TILE * TILE, TILE, most), cuts = (a.T + count - 1) / count;
  parallel(heads * cuts, [&](int64_t task) {
    const int64_t i = task / cuts, t0 = task % cuts * count;
    attend_many(p, {{i / a.K, i % a.K}, t0, std::min(count, a.T - t0)}, out, lse);
  });
}

}  // namespace macllm
