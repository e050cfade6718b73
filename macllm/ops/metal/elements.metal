// Helpers for 8 x 8 simdgroup matrices, two elements per lane.

#define UNROLLED _Pragma("clang loop unroll(full)")

// The elements of a matrix that a lane holds. Metal does not specify them, so they are read from a matrix of 0 to 63.
struct Elements {
  int row[2], column[2];
};

inline Elements elements_in(const threadgroup float* numbers) {
  simdgroup_float8x8 probe;
  simdgroup_load(probe, numbers, 8);
  Elements own;
  UNROLLED for (int e = 0; e < 2; e++) {
    const int number = int(probe.thread_elements()[e]);
    own.row[e] = number / 8;
    own.column[e] = number % 8;
  }
  return own;
}
