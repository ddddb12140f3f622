// Threads that go together through many short phases: one call into the pool for a whole network, not one for each product.
// The leader runs the program; each phase is cut into chunks that whoever is there claims one by one. Nobody waits for a
// thread that has not come, so a pool that is full or single-threaded only makes it slower.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace colossus {

class Crew {
 public:
  explicit Crew(xla::ffi::ThreadPool pool) : state_(std::make_shared<State>()), size_(std::max<long>(1, pool.num_threads())) {
    for (long helper = 1; helper < size_; ++helper)
      pool.Schedule(std::function<void()>([state = state_] { state->follow(); }));
  }
  ~Crew() { state_->closed.store(true, std::memory_order_release); }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  long size() const { return size_; }

  // Calls f(i) for i in [0, n), each once; returns when all are done. n is below 2^20.
  template <class F>
  void phase(long n, const F& f) {
    if (n <= 0) return;
    if (n == 1 || size_ == 1) {
      for (long i = 0; i < n; ++i) f(i);
      return;
    }
    State& s = *state_;
    s.work = &f;
    s.call = [](const void* work, long i) { (*static_cast<const F*>(work))(i); };
    s.done.store(0, std::memory_order_relaxed);
    const uint64_t number = (s.ticket.load(std::memory_order_relaxed) >> 40) + 1;
    s.ticket.store(number << 40 | static_cast<uint64_t>(n) << 20, std::memory_order_release);
    while (s.take()) {
    }
    for (long spins = 0; s.done.load(std::memory_order_acquire) < n; ++spins) pause(spins);
  }

 private:
  // Spins for a few microseconds only: the host, a server and its clients may be on the same cores.
  static void pause(long spins) {
    if (spins > 64) return std::this_thread::yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  struct State {
    alignas(64) std::atomic<uint64_t> ticket{0};  // number of the phase << 40 | its chunks << 20 | the next chunk
    alignas(64) std::atomic<long> done{0};
    std::atomic<bool> closed{false};
    void (*call)(const void*, long) = nullptr;
    const void* work = nullptr;

    // Does a chunk of the phase that is open; false when none is left. A claimed chunk keeps its phase open.
    bool take() {
      uint64_t ticket_now = ticket.load(std::memory_order_acquire);
      constexpr uint64_t low = (1 << 20) - 1;
      const uint64_t next = ticket_now & low;
      if (next >= (ticket_now >> 20 & low)) return false;
      if (ticket.compare_exchange_weak(ticket_now, ticket_now + 1, std::memory_order_acq_rel)) {
        call(work, next);
        done.fetch_add(1, std::memory_order_release);
      }
      return true;
    }

    void follow() {
      for (long idle = 0; !closed.load(std::memory_order_acquire); ++idle) {
        if (take()) idle = 0;
        else pause(idle);
      }
    }
  };

  std::shared_ptr<State> state_;
  long size_;
};

}  // namespace colossus
