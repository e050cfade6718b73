#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace macllm {
namespace {

constexpr int64_t WORTH_DIVIDING = 20000;  // vector operations: some tens of microseconds, what waking a thread costs

class Pool {
 public:
  explicit Pool(int count) {
    for (int i = 1; i < count; i++) helpers_.emplace_back([this] { serve(); });
  }

  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    for (auto& helper : helpers_) helper.join();
  }

  int size() const { return int(helpers_.size()) + 1; }

  void run(int64_t tasks, const std::function<void(int64_t)>& body) {
    std::lock_guard one_loop_at_a_time(loop_);
    {
      std::lock_guard lock(mutex_);
      body_ = &body;
      tasks_ = tasks;
      next_ = 0;
      busy_ = int(helpers_.size());
      round_++;
    }
    wake_.notify_all();
    work();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void work() {
    for (int64_t i; (i = next_.fetch_add(1)) < tasks_;) (*body_)(i);
  }

  void serve() {
    uint64_t seen = 0;
    while (true) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return closing_ || round_ != seen; });
        if (closing_) return;
        seen = round_;
      }
      work();
      std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> helpers_;
  std::mutex loop_, mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t tasks_ = 0;
  std::atomic<int64_t> next_{0};
  int busy_ = 0;
  uint64_t round_ = 0;
  bool closing_ = false;
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
  int64_t parts = std::min<int64_t>({count, int64_t(wanted) * 4, count * std::max<int64_t>(cost, 1) / WORTH_DIVIDING + 1});
  if (parts <= 1) return body(0, count);
  parallel(parts, [&](int64_t part) { body(count * part / parts, count * (part + 1) / parts); });
}

}  // namespace macllm
