#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

namespace macllm {
namespace {

constexpr int64_t MIN_PARALLEL_COST = 5000;  // vector operations: a few microseconds, the cost of starting a loop
constexpr auto SPIN_TIME = std::chrono::microseconds(60);  // longer than the time between two loops of a model

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  asm volatile("" ::: "memory");
#endif
}

// Spins until ready() or until SPIN_TIME is over. Does not yield: a busy scheduler gives the core back milliseconds later,
// while a thread that sleeps and is woken gets it at once.
template <class Ready>
bool spin(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + SPIN_TIME;
  do {
    for (int i = 0; i < 64; i++) {
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// A loop ends with its last task: it does not wait for helpers that are asleep or have lost their core. Helpers spin for
// the next loop before they sleep, since a model runs hundreds of short loops one after another.
class Pool {
 public:
  explicit Pool(int count) {
    for (int i = 1; i < count; i++) std::thread([this] { work_loop(); }).detach();
  }

  void run(int64_t tasks, const std::function<void(int64_t)>& body) {
    std::lock_guard one_loop_at_a_time(loop_);
    body_ = &body;
    unfinished_.store(int32_t(tasks), std::memory_order_relaxed);
    unclaimed_.store(tasks);
    round_.fetch_add(1);
    round_.notify_all();  // a system call only if a helper sleeps
    work();
    if (spin([&] { return unfinished_.load(std::memory_order_acquire) == 0; })) return;
    for (int32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) unfinished_.wait(left);
  }

 private:
  // A thread that claims a task has seen its body, which does not change until all tasks are finished.
  void work() {
    for (int64_t task; unclaimed_.load() > 0 && (task = unclaimed_.fetch_sub(1)) > 0;) {
      (*body_)(task - 1);
      if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_all();
    }
  }

  void work_loop() {
    for (uint32_t seen = 0;; work()) {
      if (!spin([&] { return round_.load() != seen; })) round_.wait(seen);
      seen = round_.load();
    }
  }

  std::mutex loop_;
  const std::function<void(int64_t)>* body_ = nullptr;
  std::atomic<int64_t> unclaimed_{0};
  std::atomic<int32_t> unfinished_{0};
  std::atomic<uint32_t> round_{0};
};

std::atomic<int> wanted{1};

// Never destroyed: at exit the stream's thread may still be inside a kernel.
Pool& pool() {
  static Pool* made = new Pool(wanted);
  return *made;
}

}  // namespace

void set_threads(int count) { wanted = std::max(1, count); }

int threads() { return wanted; }

void parallel(int64_t tasks, const std::function<void(int64_t)>& body) {
  if (tasks <= 1 || wanted == 1) {
    for (int64_t i = 0; i < tasks; i++) body(i);
    return;
  }
  pool().run(tasks, body);
}

void parallel_range(int64_t count, int64_t cost, const std::function<void(int64_t, int64_t)>& body) {
  int64_t parts = std::min<int64_t>({count, int64_t(wanted) * 4, count * std::max<int64_t>(cost, 1) / MIN_PARALLEL_COST + 1});
  if (parts <= 1) return body(0, count);
  parallel(parts, [&](int64_t part) { body(count * part / parts, count * (part + 1) / parts); });
}

}  // namespace macllm
