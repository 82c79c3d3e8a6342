// Threads that share the pieces of a job. A thread takes the next piece whenever it is free, and
// nobody waits for a thread that the system has not scheduled, unless it holds a piece.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class ThreadPool {
 public:
  // `threads` in all, the caller's among them.
  explicit ThreadPool(int threads) {
    for (int i = 1; i < threads; i++) helpers_.emplace_back([this] { help(); });
  }

  ~ThreadPool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
    }
    wake_.notify_all();
    for (auto& helper : helpers_) helper.join();
  }

  int threads() const { return (int)helpers_.size() + 1; }

  // Calls function(0), ..., function(pieces - 1), each once, and returns when all are done. For one
  // caller at a time; fewer than 65,536 pieces.
  template <class Function>
  void run(int64_t pieces, const Function& function) {
    if (helpers_.empty() || pieces <= 1) {
      for (int64_t i = 0; i < pieces; i++) function(i);
      return;
    }
    context_.store((void*)&function, std::memory_order_relaxed);
    call_.store([](void* f, int64_t i) { (*(const Function*)f)(i); }, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    job_++;
    next_.store((uint64_t)job_ << 32 | (uint64_t)pieces << 16);
    if (sleeping_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    take();
    for (int spins = 0; done_.load(std::memory_order_acquire) < pieces; spins++) {
      pause();
      if (spins > 2000) std::this_thread::yield();  // whoever holds the last piece may need the core
    }
  }

 private:
  static constexpr auto PATIENCE = std::chrono::microseconds(100);  // then a helper sleeps

  bool is_work() const {
    uint64_t next = next_.load();
    return (next & 0xFFFF) < (next >> 16 & 0xFFFF);
  }

  // Takes pieces until none is left.
  void take() {
    uint64_t next = next_.load(std::memory_order_acquire);
    while ((next & 0xFFFF) < (next >> 16 & 0xFFFF)) {
      // subtle: it fails if the job has changed, whose number is in the same word; a job does not
      // end before its last piece is done, so what call_ and context_ hold then is this job's
      if (!next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel)) continue;
      auto call = call_.load(std::memory_order_relaxed);
      call(context_.load(std::memory_order_relaxed), (int64_t)(next & 0xFFFF));
      done_.fetch_add(1, std::memory_order_release);
      next = next_.load(std::memory_order_acquire);
    }
  }

  void help() {
    while (!stop_.load()) {
      take();
      auto start = std::chrono::steady_clock::now();
      for (int spins = 0; !is_work() && !stop_.load(); spins++) {
        pause();
        if (spins % 64 || std::chrono::steady_clock::now() - start < PATIENCE) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [this] { return is_work() || stop_.load(); });
        sleeping_.fetch_sub(1);
      }
    }
  }

  std::atomic<uint64_t> next_{0};  // the job's number (32 bits), its pieces (16), the next (16)
  std::atomic<int64_t> done_{0};
  std::atomic<void (*)(void*, int64_t)> call_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> sleeping_{0};
  std::atomic<bool> stop_{false};
  uint32_t job_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> helpers_;
};
