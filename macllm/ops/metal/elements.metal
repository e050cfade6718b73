// What kernels that hold 8 x 8 matrices, two numbers a lane, have in common.

#define UNROLLED _Pragma("clang loop unroll(full)")

// Which elements of a matrix a lane has. The language leaves that open, so one that holds 0 to 63 is asked.
struct Elements {
  int row[2], column[2];
};

inline Elements elements_in(const threadgroup float* numbers) {
  simdgroup_float8x8 asked;
  simdgroup_load(asked, numbers, 8);
  Elements own;
  UNROLLED for (int e = 0; e < 2; e++) {
    const int number = int(asked.thread_elements()[e]);
    own.row[e] = number / 8;
    own.column[e] = number % 8;
  }
  return own;
}
