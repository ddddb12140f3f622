// The largest logit of a row, a token drawn from it, and log-probabilities: what nn/sampling.py says in plain JAX, a row a task.
#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace ffi = xla::ffi;

namespace colossus {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Words = ffi::Buffer<ffi::U32>;

typedef uint32_t vu __attribute__((vector_size(VL * 4)));

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float LOWEST = -87.33f;   // e^x is 0 below
constexpr long GRAIN = 1 << 15;     // logits below which a second thread does not pay
constexpr long BLOCK = 128 * VL;    // floats summed in float32 before they go to a double
constexpr int NUM_STEPS = 7;        // thresholds tried in one pass
constexpr long FEW = 256;           // what is sorted outright

COLOSSUS_INLINE bool any(vi x) {
  typedef long long v64 __attribute__((vector_size(VL * 4)));
  const v64 wide = (v64)x;
  long long out = 0;
  for (int i = 0; i < VL / 2; ++i) out |= wide[i];
  return out != 0;
}

// Natural logarithm of normal positive x to about 1 ulp (Cephes polynomial).
COLOSSUS_INLINE vf vlog(vf x) {
  const vi bits = (vi)x - 0x3f3504f3;  // of sqrt(1/2): the mantissa comes to lie between it and sqrt(2)
  const vi exponent = bits >> 23;
  const vf f = (vf)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f, e = __builtin_convertvector(exponent, vf), z = f * f;
  vf p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  return f + (p * f * z + e * -2.12194440e-4f - 0.5f * z) + e * 0.693359375f;
}

// f(row) for all rows, on as many threads as pay.
template <class F>
void for_each_row(ffi::ThreadPool pool, long rows, long width, F f) {
  const long parts = std::clamp<long>(rows * width / GRAIN, 1, std::max(rows, 1L));
  parallel_for(pool, parts, [&](long i) {
    for (long r = rows * i / parts; r < rows * (i + 1) / parts; ++r) f(r);
  });
}

// First `n` floats of p, -inf after them.
COLOSSUS_INLINE vf load_logits(const float* p, long n) {
  if (n >= VL) return load(p);
  const vf x = load_first(p, n);
  return lanes() < (int)std::max(n, 0L) ? x : splat(-INF);
}

// The first of the largest; 0 where all are -inf or NaN.
long largest(const float* x, long n) {
  vf best = splat(-INF);
  vi where = {};
  for (long i = 0; i < n; i += VL) {
    const vf a = load_logits(x + i, n - i);
    const vi better = a > best;
    best = better ? a : best;
    where = better ? lanes() + (int)i : where;
  }
  long at = where[0];
  float top = best[0];
  for (int i = 1; i < VL; ++i)
    if (best[i] > top || (best[i] == top && where[i] < at && top > -INF)) at = where[i], top = best[i];
  return at;
}

ffi::Error argmax(ffi::ThreadPool pool, Floats logits, ffi::Result<Ints> tokens) {
  const long rows = tokens->element_count(), width = logits.dimensions()[1];
  for_each_row(pool, rows, width, [&](long r) { tokens->typed_data()[r] = largest(logits.typed_data() + r * width, width); });
  return ffi::Error::Success();
}

// Tokens of a row: logits less the largest over temperature, and their exponentials.
struct Tokens {
  const float *z, *w;
  long n;
};

// What a cut leaves: logits above `least`, and those equal to it of the tokens below `limit`.
struct Cut {
  float least = -INF;
  long limit = std::numeric_limits<int32_t>::max();
};

template <bool COUNT>
COLOSSUS_INLINE vf shares(vf w) { return COUNT ? splat(1.0f) : w; }

// sums[j] = shares of the tokens at or above steps[j]; sums[NUM_STEPS] those at or above `low`.
template <bool COUNT>
void sums_above(Tokens t, float low, const float* steps, double* sums) {
  std::fill(sums, sums + NUM_STEPS + 1, 0.0);
  for (long block = 0; block < t.n; block += BLOCK) {
    vf part[NUM_STEPS + 1] = {};
    for (long i = block; i < std::min(block + BLOCK, t.n); i += VL) {
      const vf z = load_logits(t.z + i, t.n - i), share = shares<COUNT>(load_first(t.w + i, t.n - i));
#pragma GCC unroll 8
      for (int j = 0; j < NUM_STEPS; ++j) part[j] += z >= splat(steps[j]) ? share : vf{};
      part[NUM_STEPS] += z >= splat(low) ? share : vf{};
    }
    for (int j = 0; j <= NUM_STEPS; ++j) sums[j] += hsum(part[j]);
  }
}

// The tokens with low <= z < high below `limit` among those equal to low, one after the other in `z` and `w`; these may be where
// they come from.
long gather(Tokens t, Cut low, float high, float* z, float* w) {
  long n = 0;
  for (long i = 0; i < t.n; i += VL) {
    const vf x = load_logits(t.z + i, t.n - i);
    if (!any((x >= splat(low.least)) & (x < splat(high)))) continue;
    for (long j = i; j < std::min(i + VL, t.n); ++j) {
      const float a = t.z[j], b = t.w[j];
      z[n] = a, w[n] = b;
      n += (a > low.least || (a == low.least && j < low.limit)) && a < high;
    }
  }
  return n;
}

// Place of the first token that lies beyond the first `count` equal to `value`.
long limit_of(const float* z, long n, float value, long count) {
  for (long i = 0; i < n; i += VL)
    if (any(load_logits(z + i, n - i) == splat(value)))
      for (long j = i; j < std::min(i + VL, n); ++j)
        if (z[j] == value && --count == 0) return j + 1;
  return n;
}

// Where the shares of a few tokens, added from the likeliest, reach `target`; `before` is the share of those above them.
template <bool COUNT>
Cut cut_among_few(Tokens few, Tokens all, double before, double target) {
  std::vector<std::pair<float, float>> order(few.n);
  for (long i = 0; i < few.n; ++i) order[i] = {few.z[i], COUNT ? 1.0f : few.w[i]};
  std::sort(order.begin(), order.end(), [](auto a, auto b) { return a.first > b.first; });
  for (long i = 0, end; i < few.n; i = end) {
    const auto [value, share] = order[i];
    for (end = i; end < few.n && order[end].first == value;) ++end;
    const double needed = std::max(std::ceil((target - before) / share), 1.0);
    if (needed < end - i) return {value, limit_of(all.z, all.n, value, (long)needed)};
    before += (double)share * (end - i);
    if (needed == end - i || before >= target || end == few.n) return {value, all.n};  // the last of them by rounding
  }
  return {};
}

// The fewest likeliest of `some` whose shares reach `target`: the range of the least of them is narrowed to an eighth or so in
// each pass, until it holds few. `all` is the row. Tokens of weight 0 are left out: none is ever drawn.
template <bool COUNT>
Cut fewest(Tokens some, Tokens all, double target, float* z, float* w) {
  float low = LOWEST, high = INF;
  float steps[NUM_STEPS] = {-0.5f, -1, -2, -4, -8, -16, -32};
  double before = 0, sums[NUM_STEPS + 1];
  for (;;) {
    sums_above<COUNT>(some, low, steps, sums);
    if (before + sums[NUM_STEPS] < target) return {low, all.n};  // by rounding, after the first pass
    int at = 0;
    while (at < NUM_STEPS && before + sums[at] < target) ++at;
    if (at < NUM_STEPS) low = steps[at];
    if (at > 0) high = steps[at - 1], before += sums[at - 1];
    some = {z, w, gather(some, {low}, high, z, w)};
    const auto [least, most] = std::minmax_element(z, z + some.n);
    if (some.n <= FEW || *least == *most) return cut_among_few<COUNT>(some, all, before, target);
    low = *least, high = INF;
    for (int j = 0; j < NUM_STEPS; ++j) steps[j] = *most - (*most - *least) * (j / float(NUM_STEPS));
  }
}

COLOSSUS_INLINE vu mixed(vu x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}
COLOSSUS_INLINE uint32_t mixed(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The token that wins the race w / E; see nn/sampling.py for E, the hash of (seed, place, token).
long winner(Tokens t, Cut cut, float min_p, uint32_t seed, uint32_t place) {
  const uint32_t first = mixed(mixed(place + 0x9e3779b9u) ^ seed);
  const uint32_t second = mixed(mixed(first + place) + seed * 0x85ebca6bu);
  float best = -1;
  long at = 0;
  for (long i = 0; i < t.n; i += VL) {
    const vf z = load_logits(t.z + i, t.n - i), w = load_first(t.w + i, t.n - i);
    const vi ids = lanes() + (int)i;
    const vi kept = ((z > splat(cut.least)) | ((z == splat(cut.least)) & (ids < (int)cut.limit))) & (w >= splat(min_p)) & (ids < (int)t.n);
    if (!any(kept)) continue;
    const vu hash = mixed(mixed(((vu)ids * 0x9e3779b9u) ^ first) + second);
    vf x = (__builtin_convertvector((vi)(hash >> 16), vf) * 65536.0f + __builtin_convertvector((vi)(hash & 0xffff), vf) + 0.5f) * 0x1p-32f;
    x = x < 1 - 0x1p-24f ? x : splat(1 - 0x1p-24f);
    // E > x, so that most vectors hold no winner and need no logarithm.
    if (!any(kept & (w * 1.000001f > splat(best) * x))) continue;
    const vf series = x * (1.0f + x * (0.5f + x * (1.0f / 3))), exact = -vlog(1.0f - x);
    const vf score = kept ? w / (x < 0x1p-6f ? series : exact) : splat(-1);
    for (int j = 0; j < VL; ++j)
      if (score[j] > best) best = score[j], at = i + j;
  }
  return at;
}

struct Controls {
  uint32_t seed, place;
  float temperature;
  long top_k;
  float top_p, min_p;
};

// Scratch: 4 rows of floats.
long draw(const float* logits, long n, Controls c, float* scratch) {
  const long likeliest = largest(logits, n), stride = round_up(n, VL);
  if (!(c.temperature > 0)) return likeliest;
  const float top = logits[likeliest];
  float *z = scratch, *w = z + stride, *few_z = w + stride, *few_w = few_z + stride;
  for (long i = 0; i < n; i += VL) {
    const vf a = load_logits(logits + i, n - i), scaled = a == splat(top) ? vf{} : (a - top) / c.temperature;
    store(z + i, scaled);
    store(w + i, a > splat(-INF) ? vexp(scaled) : vf{});
  }
  const Tokens all{z, w, n};
  Tokens left = all;
  Cut cut;
  if (c.top_k < n) {
    cut = fewest<true>(all, all, std::max(c.top_k, 1L), few_z, few_w);
    if (c.top_p < 1) left = {few_z, few_w, gather(all, cut, INF, few_z, few_w)};
  }
  if (c.top_p < 1) {
    double total = 0;
    for (long block = 0; block < left.n; block += BLOCK) {
      vf part = {};
      for (long i = block; i < std::min(block + BLOCK, left.n); i += VL) part += load_first(left.w + i, left.n - i);
      total += hsum(part);
    }
    const Cut narrower = fewest<false>(left, all, std::max(c.top_p * total, 1e-38), few_z, few_w);
    if (narrower.least > cut.least) cut = narrower;
    else if (narrower.least == cut.least) cut.limit = std::min(cut.limit, narrower.limit);
  }
  return winner(all, cut, c.min_p, c.seed, c.place);
}

ffi::Error sample(ffi::ThreadPool pool, Floats logits, Words seed, Ints place, Floats temperature, Ints top_k, Floats top_p,
                  Floats min_p, ffi::Result<Ints> tokens) {
  const long rows = tokens->element_count(), width = logits.dimensions()[1];
  for_each_row(pool, rows, width, [&](long r) {
    thread_local Scratch scratch;
    const Controls controls{seed.typed_data()[r],  (uint32_t)place.typed_data()[r], temperature.typed_data()[r],
                            top_k.typed_data()[r], top_p.typed_data()[r],           min_p.typed_data()[r]};
    tokens->typed_data()[r] = draw(logits.typed_data() + r * width, width, controls, scratch.get(4 * round_up(width, VL)));
  });
  return ffi::Error::Success();
}

// ln of the sum of e^x.
float log_sum_exp(const float* x, long n, float top) {
  double total = 0;
  for (long block = 0; block < n; block += BLOCK) {
    vf part = {};
    for (long i = block; i < std::min(block + BLOCK, n); i += VL) {
      const vf e = vexp(load_logits(x + i, n - i) - top);
      part += lanes() < (int)std::min(n - i, (long)VL) ? e : vf{};
    }
    total += hsum(part);
  }
  return top + std::log(total);
}

// How many tokens go before `token`.
long rank_of(const float* x, long n, long token) {
  const vf own = splat(x[token]);
  vi count = {};
  for (long i = 0; i < n; i += VL) {
    const vf a = load_logits(x + i, n - i);
    count -= (a > own) | ((a == own) & (lanes() + (int)i < (int)token));
  }
  long total = 0;
  for (int i = 0; i < VL; ++i) total += count[i];
  return total;
}

// The k likeliest, in order.
void likeliest(const float* x, long n, long k, int32_t* ids, float* values) {
  long held = 0;
  for (long i = 0; i < n; i += VL) {
    if (held == k && !any(load_logits(x + i, n - i) > splat(values[k - 1]))) continue;
    for (long j = i; j < std::min(i + VL, n); ++j) {
      if (held == k && !(x[j] > values[k - 1])) continue;
      held = std::min(held + 1, k);
      long at = held - 1;
      for (; at > 0 && x[j] > values[at - 1]; --at) values[at] = values[at - 1], ids[at] = ids[at - 1];
      values[at] = x[j], ids[at] = j;
    }
  }
}

ffi::Error logprobs(ffi::ThreadPool pool, Floats logits, Ints tokens, ffi::Result<Floats> own, ffi::Result<Ints> rank,
                    ffi::Result<Ints> top_ids, ffi::Result<Floats> top_logprobs) {
  const long rows = tokens.element_count(), width = logits.dimensions()[1], k = top_ids->dimensions()[1];
  for_each_row(pool, rows, width, [&](long r) {
    const float* x = logits.typed_data() + r * width;
    const long token = std::clamp<long>(tokens.typed_data()[r], 0, width - 1);
    const float norm = log_sum_exp(x, width, x[largest(x, width)]);
    own->typed_data()[r] = x[token] - norm;
    rank->typed_data()[r] = rank_of(x, width, token);
    if (k == 0) return;
    float* values = top_logprobs->typed_data() + r * k;
    likeliest(x, width, k, top_ids->typed_data() + r * k, values);
    for (long i = 0; i < k; ++i) values[i] -= norm;
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace colossus

#define COLOSSUS_BIND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<colossus::Floats>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_argmax, colossus::argmax, COLOSSUS_BIND.Ret<colossus::Ints>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_sample, colossus::sample,
                              COLOSSUS_BIND.Arg<colossus::Words>().Arg<colossus::Ints>().Arg<colossus::Floats>().Arg<colossus::Ints>()
                                  .Arg<colossus::Floats>().Arg<colossus::Floats>().Ret<colossus::Ints>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_logprobs, colossus::logprobs,
                              COLOSSUS_BIND.Arg<colossus::Ints>().Ret<colossus::Floats>().Ret<colossus::Ints>().Ret<colossus::Ints>()
                                  .Ret<colossus::Floats>());
