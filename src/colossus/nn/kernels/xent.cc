// Cross-entropy over the vocabulary head, with both gradients, on chunks of tokens: logits never exist in full.
#include <algorithm>

#include "gemm.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace colossus {
namespace {

using In = ffi::Buffer<ffi::F32>;
using Indices = ffi::Buffer<ffi::S32>;
using Out = ffi::Result<In>;

constexpr long CHUNK_FLOATS = 1 << 21;  // logits of a chunk: 8 MiB, a share of the L3

// Turns a row of logits into weight (softmax - one_hot(target)); gives weight (lse - logits[target]).
float row_loss(float* row, long n, int32_t target, float weight) {
  vf top = splat(-INFINITY);
  const long whole = n / VL * VL;
  for (long i = 0; i < whole; i += VL) top = vmax(load(row + i), top);
  float maximum = hmax(top);
  for (long i = whole; i < n; ++i) maximum = row[i] > maximum ? row[i] : maximum;
  const float wanted = target >= 0 && target < n ? row[target] : NAN;
  vf sums = {};
  for (long i = 0; i < whole; i += VL) {
    const vf e = vexp(load(row + i) - maximum);
    store(row + i, e);
    sums += e;
  }
  float sum = hsum(sums);
  for (long i = whole; i < n; ++i) sum += row[i] = std::exp(row[i] - maximum);
  const float factor = weight / sum;
  for (long i = 0; i < whole; i += VL) store(row + i, load(row + i) * factor);
  for (long i = whole; i < n; ++i) row[i] *= factor;
  if (target >= 0 && target < n) row[target] -= weight;
  return weight == 0.0f ? 0.0f : weight * (maximum + std::log(sum) - wanted);
}

// x (N,D), w (D,V), targets (N), weights (N) -> losses (N), dx (N,D), dw (D,V) of their sum. Threads share each product.
ffi::Error cross_entropy(ffi::ThreadPool pool, In x, In w, Indices targets, In weights, Out losses, Out dx, Out dw) {
  const long n = x.dimensions()[0], d = x.dimensions()[1], v = w.dimensions()[1];
  const long threads = std::max<long>(1, pool.num_threads()), chunk = std::max(MR * threads * 4L, CHUNK_FLOATS / v);
  thread_local Scratch scratch;
  float* logits = scratch.get(std::min(chunk, n) * v);
  if (n == 0) std::fill(dw->typed_data(), dw->typed_data() + d * v, 0.0f);
  for (long begin = 0; begin < n; begin += chunk) {
    const long rows = std::min(chunk, n - begin), parts = std::min(threads, rows);
    parallel_for(pool, parts, [&](long part) {
      const long from = rows * part / parts, count = rows * (part + 1) / parts - from, at = begin + from;
      float* z = logits + from * v;
      sgemm(count, v, d, {x.typed_data() + at * d, d, false}, {w.typed_data(), v, false}, z, v, false);
      for (long r = 0; r < count; ++r)
        losses->typed_data()[at + r] = row_loss(z + r * v, v, targets.typed_data()[at + r], weights.typed_data()[at + r]);
      sgemm(count, d, v, {z, v, false}, {w.typed_data(), v, true}, dx->typed_data() + at * d, d, false);
    });
    const long panels = (v + NR - 1) / NR, slices = std::min(threads, panels);
    parallel_for(pool, slices, [&](long slice) {
      const long from = panels * slice / slices * NR, to = std::min(panels * (slice + 1) / slices * NR, v);
      sgemm(d, to - from, rows, {x.typed_data() + begin * d, d, true}, {logits + from, v, false}, dw->typed_data() + from, v,
            begin > 0);
    });
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace colossus

XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_cross_entropy, colossus::cross_entropy,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::Indices>()
                                  .Arg<colossus::In>()
                                  .Ret<colossus::In>()
                                  .Ret<colossus::In>()
                                  .Ret<colossus::In>());
