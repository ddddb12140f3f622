// Work sharing over XLA's own thread pool. The calling thread works too and never waits for a task that has not
// started, so it cannot deadlock on a full or single-threaded pool.
#pragma once
#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "xla/ffi/api/ffi.h"

namespace colossus {

// Calls f(i) for i in [0, n), each once, on whatever threads the pool has free.
template <class F>
void parallel_for(xla::ffi::ThreadPool pool, long n, F f) {
  const long helpers = std::min<long>(pool.num_threads(), n) - 1;
  if (helpers <= 0) {
    for (long i = 0; i < n; ++i) f(i);
    return;
  }
  struct State {
    std::atomic<long> next{0}, done{0};
  };
  auto state = std::make_shared<State>();
  // `f` lives on this stack; a late helper draws an index >= n and leaves without touching it.
  auto work = [state, n, f = &f] {
    for (long i; (i = state->next.fetch_add(1)) < n;) {
      (*f)(i);
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (long h = 0; h < helpers; ++h) pool.Schedule(std::function<void()>(work));
  work();
  while (state->done.load(std::memory_order_acquire) < n) std::this_thread::yield();
}

}  // namespace colossus
