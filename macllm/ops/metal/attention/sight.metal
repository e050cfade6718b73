// Who sees what. Whatever the rules, the keys that a query sees lie side by side, and so do the queries that see a key; and
// neither end of such an interval falls from one row to the next, so a tile's first and last row tell what the tile sees.

constant constexpr float LOWEST = -1e30f;  // of a maximum: below any score, and no infinity to subtract

// The last of `length` queries stands at the last of `count` keys. Keys before `first` are padding, and chunks begin there; it
// is negative where the first keys have gone. A window or a chunk of 0 is none; both ways if not causal.
struct Sight {
  int length, count, first, window, chunk;
};

// How many ids are below one: they never fall.
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

// The keys that a query at a position sees: from x to before y.
template <bool CAUSAL, bool SEGMENTED, typename Ids>
inline int2 keys_of(const thread Sight& sight, Ids ids, int at) {
  int begin = max(sight.first, 0), end = CAUSAL ? at + 1 : sight.count;
  if (sight.window > 0) {
    begin = max(begin, at - sight.window + 1);
    end = min(end, at + sight.window);
  }
  if (sight.chunk > 0) {
    const int from = max(at - sight.first, 0) / sight.chunk * sight.chunk + sight.first;
    begin = max(begin, from);
    end = min(end, from + sight.chunk);
  }
  if (SEGMENTED) {
    const int id = ids[max(at, 0)];
    begin = max(begin, below(ids, sight.count, id));
    end = min(end, below(ids, sight.count, id + 1));
  }
  return int2(begin, end);
}

// The positions of the queries that see a key: from x to before y.
template <bool CAUSAL, bool SEGMENTED, typename Ids>
inline int2 queries_of(const thread Sight& sight, Ids ids, int key) {
  const int lowest = sight.count - sight.length;
  int begin = CAUSAL ? max(key, lowest) : lowest, end = sight.count;
  if (sight.window > 0) {
    begin = max(begin, key - sight.window + 1);
    end = min(end, key + sight.window);
  }
  if (sight.chunk > 0) {
    const int from = max(key - sight.first, 0) / sight.chunk * sight.chunk + sight.first;
    if (from > sight.first) begin = max(begin, from);
    end = min(end, from + sight.chunk);
  }
  if (SEGMENTED) {
    begin = max(begin, below(ids, sight.count, ids[key]));
    end = min(end, below(ids, sight.count, ids[key] + 1));
  }
  return int2(begin, key < sight.first ? lowest : end);
}
