// Causal, windowed, grouped-query attention in float32: forward with log-sum-exp, and backward.
//
// Flash tiling (Dao et al. 2022): scores live only as a block of BQ queries x BK keys. Every product is tile() of
// simd.h, whose operands are packed per head: transposed ones as [block][dim][position], plain ones padded to whole
// vectors. Blocks, panels and reduction ranges that the mask hides are never computed.
#include <algorithm>
#include <limits>

#include "parallel.h"
#include "simd.h"

namespace ffi = xla::ffi;

namespace colossus {
namespace {

constexpr long BQ = 96, BK = 128;
constexpr int LDS = BK + VL;  // row stride of a block of scores; the extra vector keeps rows off the same cache sets

struct Shape {
  long batch, length, heads, kv_heads, dim;
  long window;  // query i sees keys j with i - window < j (and j <= i if causal)
  bool causal;
  float scale;
  long padded() const { return round_up(dim, VL); }
  long q_stride() const { return heads * dim; }
  long kv_stride() const { return kv_heads * dim; }
  // Keys that query i sees: [first_key(i), end_key(i)).
  long first_key(long i) const { return causal || window < length ? std::max(0L, i - window + 1) : 0; }
  long end_key(long i) const { return causal ? i + 1 : length; }
  // Queries that see key j: [first_query(j), end_query(j)).
  long first_query(long j) const { return causal ? j : 0; }
  long end_query(long j) const { return std::min(length, j + window); }
};

// A block of queries [q0, q1) against keys [k0, k1).
struct Block {
  long q0, q1, k0, k1;
};

// Rows of x (length x dim, row stride `stride`) as length x padded, times `scale`.
void pack_rows(const Shape& s, const float* x, long stride, float scale, float* out) {
  const long padded = s.padded();
  for (long t = 0; t < s.length; ++t)
    for (long d = 0; d < padded; d += VL) store(out + t * padded + d, load_first(x + t * stride + d, s.dim - d) * scale);
}

// x (length x dim) as [length / B][dim][B], times `scale`; positions past the end are zeros.
template <long B>
void pack_transposed(const Shape& s, const float* x, long stride, float scale, float* out) {
  for (long t = 0; t < s.length; t += B)
    transpose_block(x + t * stride, stride, std::min(B, s.length - t), s.dim, scale, out + t * s.dim, B);
}

// scores[q][k] = sum_d at[d][q] bt[d][k] for the pairs that some row or column of a panel can see.
void block_scores(const Shape& s, const Block& b, const float* at, const float* bt, float* scores) {
  for (long k = b.k0; k < b.k1; k += NR) {
    const long last = std::min(k + NR, b.k1) - 1;
    const long from = std::max(b.q0, s.first_query(k)), to = std::min(b.q1, s.end_query(last));
    const int vectors = last - k < VL ? 1 : NV;
    for_tiles(from, to, [&](long q, long rows) {
      pick_tile<0>(rows, vectors)(s.dim, at + (q - b.q0), BQ, bt + (k - b.k0), BK, scores + (q - b.q0) * LDS + (k - b.k0),
                                  LDS, false);
    });
  }
}

// out[q][d] += sum_k p[q][k] x[k][d], over the keys that the rows of a tile see.
void block_times_rows(const Shape& s, const Block& b, const float* p, const float* x, float* out) {
  const long padded = s.padded();
  for (long d = 0; d < padded; d += NR)
    for_tiles(b.q0, b.q1, [&](long q, long rows) {
      const long from = std::max(b.k0, s.first_key(q)), to = std::min(b.k1, s.end_key(q + rows - 1));
      if (from >= to) return;
      pick_tile<LDS>(rows, padded - d < NR ? 1 : NV)(to - from, p + (q - b.q0) * LDS + (from - b.k0), 0,
                                                     x + from * padded + d, padded, out + q * padded + d, padded, true);
    });
}

// out[k][d] += sum_q p[q][k] x[q][d], over the queries that see the rows of a tile.
void block_transposed_times_rows(const Shape& s, const Block& b, const float* p, const float* x, float* out) {
  const long padded = s.padded();
  for (long d = 0; d < padded; d += NR)
    for_tiles(b.k0, b.k1, [&](long k, long rows) {
      const long from = std::max(b.q0, s.first_query(k)), to = std::min(b.q1, s.end_query(k + rows - 1));
      if (from >= to) return;
      pick_tile<0>(rows, padded - d < NR ? 1 : NV)(to - from, p + (from - b.q0) * LDS + (k - b.k0), LDS,
                                                   x + from * padded + d, padded, out + k * padded + d, padded, true);
    });
}

// Calls f(offset, mask) for each vector of row q's keys in the block; mask is all ones inside the visible range, and
// vectors wholly outside go to hidden(offset).
template <class F, class G>
COLOSSUS_INLINE void for_row(const Shape& s, const Block& b, long q, F&& visible, G&& hidden) {
  const int first = std::max(b.k0, s.first_key(q)) - b.k0, end = std::min(b.k1, s.end_key(q)) - b.k0;
  const vi lane = lanes();
  for (int k = 0; k < b.k1 - b.k0; k += VL) {
    if (k + VL <= first || k >= end) hidden(k);
    else visible(k, (lane + k >= first) & (lane + k < end));
  }
}

// Turns scores into exp(score - max), updates the running max and sum of each row, rescales its output so far.
void block_softmax(const Shape& s, const Block& b, float* scores, float* row_max, float* row_sum, float* out) {
  const long padded = s.padded();
  for (long q = b.q0; q < b.q1; ++q) {
    float* row = scores + (q - b.q0) * LDS;
    const float old_max = row_max[q];
    vf top = splat(old_max);
    for_row(s, b, q, [&](int k, vi mask) {
      const vf x = mask ? load(row + k) : splat(old_max);
      top = vmax(x, top);
    }, [](int) {});
    const float new_max = hmax(top);
    vf sum = {};
    for_row(s, b, q, [&](int k, vi mask) {
      vf x = vexp(load(row + k) - new_max);
      x = mask ? x : vf{};
      store(row + k, x);
      sum += x;
    }, [&](int k) { store(row + k, vf{}); });
    const float shrink = vexp(splat(old_max - new_max))[0];
    row_sum[q] = row_sum[q] * shrink + hsum(sum);
    row_max[q] = new_max;
    if (shrink != 1.0f)
      for (long d = 0; d < padded; d += VL) store(out + q * padded + d, load(out + q * padded + d) * shrink);
  }
}

// p[q][k] = exp(score - lse[q]) and dp[q][k] = p (dp - delta[q]), both zero where hidden.
void block_softmax_backward(const Shape& s, const Block& b, const float* lse, const float* delta, float* p, float* dp) {
  for (long q = b.q0; q < b.q1; ++q) {
    float *p_row = p + (q - b.q0) * LDS, *dp_row = dp + (q - b.q0) * LDS;
    for_row(s, b, q, [&](int k, vi mask) {
      vf x = vexp(load(p_row + k) - lse[q]);
      vf y = x * (load(dp_row + k) - delta[q]);
      store(p_row + k, mask ? x : vf{});
      store(dp_row + k, mask ? y : vf{});
    }, [&](int k) {
      store(p_row + k, vf{});
      store(dp_row + k, vf{});
    });
  }
}

// Calls f(block) for every block of the mask that is not empty, key blocks outermost.
template <class F>
COLOSSUS_INLINE void for_blocks(const Shape& s, F&& f) {
  for (long k0 = 0; k0 < s.length; k0 += BK) {
    const long k1 = std::min(k0 + BK, s.length), last_query = s.end_query(k1 - 1);
    for (long q0 = s.first_query(k0) / BQ * BQ; q0 < last_query; q0 += BQ) f(Block{q0, std::min(q0 + BQ, s.length), k0, k1});
  }
}

// Forward of one query head. q, o: length x dim at stride q_stride; k, v: at kv_stride; lse: length.
void forward_head(const Shape& s, const float* q, const float* k, const float* v, float* o, float* lse) {
  thread_local Scratch scratch;
  const long T = s.length, padded = s.padded(), T_q = round_up(T, BQ), T_k = round_up(T, BK);
  float* qt = scratch.get(T_q * s.dim + T_k * s.dim + 2 * T * padded + 2 * round_up(T, VL) + BQ * LDS + 2 * VL);
  float *kt = qt + T_q * s.dim, *rows = kt + T_k * s.dim, *out = rows + T * padded;
  float *row_max = out + T * padded, *row_sum = row_max + round_up(T, VL), *scores = row_sum + round_up(T, VL);
  pack_transposed<BQ>(s, q, s.q_stride(), s.scale, qt);
  pack_transposed<BK>(s, k, s.kv_stride(), 1.0f, kt);
  pack_rows(s, v, s.kv_stride(), 1.0f, rows);
  std::fill(out, out + T * padded, 0.0f);
  std::fill(row_max, row_max + T, std::numeric_limits<float>::lowest());
  std::fill(row_sum, row_sum + T, 0.0f);
  for_blocks(s, [&](const Block& b) {
    block_scores(s, b, qt + b.q0 * s.dim, kt + b.k0 * s.dim, scores);
    block_softmax(s, b, scores, row_max, row_sum, out);
    block_times_rows(s, b, scores, rows, out);
  });
  for (long t = 0; t < T; ++t) {
    const float inverse = 1.0f / row_sum[t];
    lse[t] = row_max[t] + std::log(row_sum[t]);
    for (long d = 0; d < s.dim; d += VL)
      store_first(o + t * s.q_stride() + d, load(out + t * padded + d) * inverse, s.dim - d);
  }
}

// delta[t] = sum_d do[t][d] o[t][d]
void row_dots(const Shape& s, const float* o, const float* d_o, float* delta) {
  for (long t = 0; t < s.length; ++t) {
    vf sum = {};
    for (long d = 0; d < s.dim; d += VL)
      sum += load_first(o + t * s.q_stride() + d, s.dim - d) * load_first(d_o + t * s.q_stride() + d, s.dim - d);
    delta[t] = hsum(sum);
  }
}

void unpack_rows(const Shape& s, const float* x, float scale, float* out, long stride) {
  for (long t = 0; t < s.length; ++t)
    for (long d = 0; d < s.dim; d += VL) store_first(out + t * stride + d, load(x + t * s.padded() + d) * scale, s.dim - d);
}

// Tensors of the backward: q, o, d_o, dq (B,T,H,D); k, v, dk, dv (B,T,KV,D); lse (B,H,T).
struct Backward {
  const float *q, *k, *v, *o, *lse, *d_o;
  float *dq, *dk, *dv;
};

// Backward of one key/value head of one sequence, over the query heads that share it.
void backward_kv_head(const Shape& s, const Backward& t, long sequence, long kv_head) {
  thread_local Scratch scratch;
  const long T = s.length, padded = s.padded(), T_q = round_up(T, BQ), T_k = round_up(T, BK), group = s.heads / s.kv_heads;
  float* at = scratch.get(2 * (T_q + T_k) * s.dim + 6 * T * padded + round_up(T, VL) + 2 * BQ * LDS + 2 * VL);
  auto take = [&at](long n) { return std::exchange(at, at + n); };
  float *qt = take(T_q * s.dim), *dot = take(T_q * s.dim), *kt = take(T_k * s.dim), *vt = take(T_k * s.dim);
  float *q = take(T * padded), *d_o = take(T * padded), *k = take(T * padded);
  float *dq = take(T * padded), *dk = take(T * padded), *dv = take(T * padded);
  float *delta = take(round_up(T, VL)), *p = take(BQ * LDS), *dp = take(BQ * LDS);
  const long kv_at = sequence * T * s.kv_stride() + kv_head * s.dim;
  pack_transposed<BK>(s, t.k + kv_at, s.kv_stride(), 1.0f, kt);
  pack_transposed<BK>(s, t.v + kv_at, s.kv_stride(), 1.0f, vt);
  pack_rows(s, t.k + kv_at, s.kv_stride(), 1.0f, k);
  std::fill(dk, dk + 2 * T * padded, 0.0f);
  for (long head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const long q_at = sequence * T * s.q_stride() + head * s.dim;
    const float* lse = t.lse + (sequence * s.heads + head) * T;
    pack_transposed<BQ>(s, t.q + q_at, s.q_stride(), s.scale, qt);
    pack_transposed<BQ>(s, t.d_o + q_at, s.q_stride(), 1.0f, dot);
    pack_rows(s, t.q + q_at, s.q_stride(), s.scale, q);
    pack_rows(s, t.d_o + q_at, s.q_stride(), 1.0f, d_o);
    row_dots(s, t.o + q_at, t.d_o + q_at, delta);
    std::fill(dq, dq + T * padded, 0.0f);
    for_blocks(s, [&](const Block& b) {
      block_scores(s, b, qt + b.q0 * s.dim, kt + b.k0 * s.dim, p);
      block_scores(s, b, dot + b.q0 * s.dim, vt + b.k0 * s.dim, dp);
      block_softmax_backward(s, b, lse, delta, p, dp);
      block_transposed_times_rows(s, b, p, d_o, dv);
      block_transposed_times_rows(s, b, dp, q, dk);
      block_times_rows(s, b, dp, k, dq);
    });
    unpack_rows(s, dq, s.scale, t.dq + q_at, s.q_stride());
  }
  unpack_rows(s, dk, 1.0f, t.dk + kv_at, s.kv_stride());
  unpack_rows(s, dv, 1.0f, t.dv + kv_at, s.kv_stride());
}

using In = ffi::Buffer<ffi::F32>;
using Out = ffi::Result<In>;

Shape shape_of(const In& q, const In& k, float scale, bool causal, int64_t window) {
  const auto a = q.dimensions(), b = k.dimensions();
  return {a[0], a[1], a[2], b[2], a[3], std::min<long>(window, a[1]), causal, scale};
}

ffi::Error forward(ffi::ThreadPool pool, In q, In k, In v, Out o, Out lse, float scale, bool causal, int64_t window) {
  const Shape s = shape_of(q, k, scale, causal, window);
  parallel_for(pool, s.batch * s.heads, [&](long i) {
    const long sequence = i / s.heads, head = i % s.heads, kv_head = head / (s.heads / s.kv_heads);
    const long q_at = sequence * s.length * s.q_stride() + head * s.dim;
    const long kv_at = sequence * s.length * s.kv_stride() + kv_head * s.dim;
    forward_head(s, q.typed_data() + q_at, k.typed_data() + kv_at, v.typed_data() + kv_at, o->typed_data() + q_at,
                 lse->typed_data() + i * s.length);
  });
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, In q, In k, In v, In o, In lse, In d_o, Out dq, Out dk, Out dv, float scale,
                    bool causal, int64_t window) {
  const Shape s = shape_of(q, k, scale, causal, window);
  const Backward t{q.typed_data(),   k.typed_data(),   v.typed_data(),   o.typed_data(), lse.typed_data(),
                   d_o.typed_data(), dq->typed_data(), dk->typed_data(), dv->typed_data()};
  parallel_for(pool, s.batch * s.kv_heads, [&](long i) { backward_kv_head(s, t, i / s.kv_heads, i % s.kv_heads); });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace colossus

XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_attention_forward, colossus::forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::In>()
                                  .Ret<colossus::In>()
                                  .Ret<colossus::In>()
                                  .Attr<float>("scale")
                                  .Attr<bool>("causal")
                                  .Attr<int64_t>("window"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_attention_backward, colossus::backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::In>()
                                  .Arg<colossus::In>()
                                  .Ret<colossus::In>()
                                  .Ret<colossus::In>()
                                  .Ret<colossus::In>()
                                  .Attr<float>("scale")
                                  .Attr<bool>("causal")
                                  .Attr<int64_t>("window"));
