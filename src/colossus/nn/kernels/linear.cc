// Matrix products of whole arrays, op(a) op(b), over XLA's thread pool.
#include "gemm.h"
#include "parallel.h"

namespace ffi = xla::ffi;

namespace colossus {
namespace {

using In = ffi::Buffer<ffi::F32>;
using Out = ffi::Result<In>;

// c(m x n) = op(a) op(b), where op transposes the stored array if its flag says so. Threads share the longer side of c.
ffi::Error matmul(ffi::ThreadPool pool, In a, In b, Out c, bool transpose_a, bool transpose_b) {
  const long m = c->dimensions()[0], n = c->dimensions()[1], k = a.dimensions()[transpose_a ? 0 : 1];
  const Matrix left{a.typed_data(), a.dimensions()[1], transpose_a}, right{b.typed_data(), b.dimensions()[1], transpose_b};
  float* out = c->typed_data();
  const bool by_rows = m >= n;
  const long unit = by_rows ? MR : NR, units = ((by_rows ? m : n) + unit - 1) / unit;
  const long parts = std::clamp<long>(pool.num_threads(), 1, units);
  parallel_for(pool, parts, [&](long part) {
    const long begin = units * part / parts * unit, end = std::min(units * (part + 1) / parts * unit, by_rows ? m : n);
    if (by_rows) sgemm(end - begin, n, k, left.at(begin, 0), right, out + begin * n, n, false);
    else sgemm(m, end - begin, k, left, right.at(0, begin), out + begin, n, false);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace colossus

XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_matmul, colossus::matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::In>()
                                  .Ret<colossus::In>()
                                  .Attr<bool>("transpose_a")
                                  .Attr<bool>("transpose_b"));
