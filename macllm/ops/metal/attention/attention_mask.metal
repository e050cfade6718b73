// Attention masks as numbers. With any mask, the keys that a query sees are an interval, and so are the queries that see a
// key; both ends grow from row to row, so a tile's first and last row bound what the tile sees.

constant constexpr float LOWEST = -1e30f;  // of a maximum: below any score, and no infinity to subtract

// The last of `length` queries is at the last of `count` keys. Keys before `first` are padding, and chunks begin there; it is
// negative if the cache has dropped the first keys. 0 means no window or no chunks; a window is two-sided if not causal.
struct Mask {
  int length, count, first, window, chunk;
};

// The number of ids below one; ids are in ascending order.
template <typename Ids>
inline int below(Ids ids, int count, int id) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (ids[middle] < id) low = middle + 1;
    else high = middle;
  }
  return low;
}

// The keys that a query at a position sees: [x, y).
template <bool CAUSAL, bool SEGMENTED, typename Ids>
inline int2 keys_of(const thread Mask& mask, Ids ids, int at) {
  int begin = max(mask.first, 0), end = CAUSAL ? at + 1 : mask.count;
  if (mask.window > 0) {
    begin = max(begin, at - mask.window + 1);
    end = min(end, at + mask.window);
  }
  if (mask.chunk > 0) {
    const int from = max(at - mask.first, 0) / mask.chunk * mask.chunk + mask.first;
    begin = max(begin, from);
    end = min(end, from + mask.chunk);
  }
  if (SEGMENTED) {
    const int id = ids[max(at, 0)];
    begin = max(begin, below(ids, mask.count, id));
    end = min(end, below(ids, mask.count, id + 1));
  }
  return int2(begin, end);
}

// The positions of the queries that see a key: [x, y).
template <bool CAUSAL, bool SEGMENTED, typename Ids>
inline int2 queries_of(const thread Mask& mask, Ids ids, int key) {
  const int lowest = mask.count - mask.length;
  int begin = CAUSAL ? max(key, lowest) : lowest, end = mask.count;
  if (mask.window > 0) {
    begin = max(begin, key - mask.window + 1);
    end = min(end, key + mask.window);
  }
  if (mask.chunk > 0) {
    const int from = max(key - mask.first, 0) / mask.chunk * mask.chunk + mask.first;
    if (from > mask.first) begin = max(begin, from);
    end = min(end, from + mask.chunk);
  }
  if (SEGMENTED) {
    begin = max(begin, below(ids, mask.count, ids[key]));
    end = min(end, below(ids, mask.count, ids[key] + 1));
  }
  return int2(begin, key < mask.first ? lowest : end);
}
