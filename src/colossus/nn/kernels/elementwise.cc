// RMS norm, SwiGLU and rotary embedding, each forward and backward in one pass over memory.
#include <algorithm>

#include "parallel.h"
#include "simd.h"

namespace ffi = xla::ffi;

namespace colossus {
namespace {

using In = ffi::Buffer<ffi::F32>;
using Out = ffi::Result<In>;

constexpr long GRAIN = 1 << 15;  // floats below which a second thread does not pay

// In how many parts to cut n rows of `width` floats: as many as threads and GRAIN allow.
COLOSSUS_INLINE long parts_of(ffi::ThreadPool& pool, long n, long width) {
  return std::clamp<long>(std::min<long>(pool.num_threads(), n * width / GRAIN), 1, std::max(n, 1L));
}

// f(begin, end) over those parts of [0, n).
template <class F>
void for_rows(ffi::ThreadPool pool, long n, long width, F f) {
  const long parts = parts_of(pool, n, width);
  parallel_for(pool, parts, [&](long i) { f(n * i / parts, n * (i + 1) / parts); });
}

// y = scale x / sqrt(mean(x^2) + epsilon); inverse[row] keeps the reciprocal root.
ffi::Error rms_norm(ffi::ThreadPool pool, In x, In scale, Out y, Out inverse, float epsilon) {
  const long width = scale.element_count(), rows = inverse->element_count();
  const float* s = scale.typed_data();
  for_rows(pool, rows, width, [&](long begin, long end) {
    for (long r = begin; r < end; ++r) {
      const float* in = x.typed_data() + r * width;
      float* out = y->typed_data() + r * width;
      vf sum = {};
      for (long i = 0; i < width; i += VL) {
        const vf a = load_first(in + i, width - i);
        sum += a * a;
      }
      const float root = 1.0f / std::sqrt(hsum(sum) / width + epsilon);
      inverse->typed_data()[r] = root;
      for (long i = 0; i < width; i += VL)
        store_first(out + i, load_first(in + i, width - i) * root * load_first(s + i, width - i), width - i);
    }
  });
  return ffi::Error::Success();
}

// With h = x inverse: dx = inverse (dy scale - h mean(dy scale h)), dscale = sum over rows of dy h, by
// parts whose sums are added in index order: threads that added theirs as they end would not repeat a result bit for bit.
ffi::Error rms_norm_backward(ffi::ThreadPool pool, In x, In scale, In inverse, In dy, Out dx, Out dscale) {
  const long width = scale.element_count(), rows = inverse.element_count();
  const float* s = scale.typed_data();
  const long parts = parts_of(pool, rows, width), padded = round_up(width, VL);
  thread_local Scratch scratch;
  float* sums_of_parts = scratch.get(parts * padded);
  std::fill(sums_of_parts, sums_of_parts + parts * padded, 0.0f);
  parallel_for(pool, parts, [&](long part) {
    const long begin = rows * part / parts, end = rows * (part + 1) / parts;
    float* sums = sums_of_parts + part * padded;
    for (long r = begin; r < end; ++r) {
      const float *in = x.typed_data() + r * width, *d = dy.typed_data() + r * width;
      float* out = dx->typed_data() + r * width;
      const float root = inverse.typed_data()[r];
      vf dot = {};
      for (long i = 0; i < width; i += VL) {
        const vf dh = load_first(d + i, width - i), h = load_first(in + i, width - i) * root;
        dot += dh * load_first(s + i, width - i) * h;
        store(sums + i, load(sums + i) + dh * h);
      }
      const float mean = hsum(dot) / width;
      for (long i = 0; i < width; i += VL) {
        const vf h = load_first(in + i, width - i) * root;
        store_first(out + i, (load_first(d + i, width - i) * load_first(s + i, width - i) - h * mean) * root, width - i);
      }
    }
  });
  float* total = dscale->typed_data();
  std::copy(sums_of_parts, sums_of_parts + width, total);
  for (long part = 1; part < parts; ++part)
    for (long i = 0; i < width; ++i) total[i] += sums_of_parts[part * padded + i];
  return ffi::Error::Success();
}

COLOSSUS_INLINE vf sigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

// out = silu(gate) up
ffi::Error swiglu(ffi::ThreadPool pool, In gate, In up, Out out) {
  for_rows(pool, gate.element_count(), 1, [&](long begin, long end) {
    for (long i = begin; i < end; i += VL) {
      const vf g = load_first(gate.typed_data() + i, end - i), u = load_first(up.typed_data() + i, end - i);
      store_first(out->typed_data() + i, g * sigmoid(g) * u, end - i);
    }
  });
  return ffi::Error::Success();
}

// With s = sigmoid(gate): dgate = d up s (1 + gate (1 - s)), dup = d gate s.
ffi::Error swiglu_backward(ffi::ThreadPool pool, In gate, In up, In d_out, Out dgate, Out dup) {
  for_rows(pool, gate.element_count(), 1, [&](long begin, long end) {
    for (long i = begin; i < end; i += VL) {
      const vf g = load_first(gate.typed_data() + i, end - i), u = load_first(up.typed_data() + i, end - i);
      const vf ds = load_first(d_out.typed_data() + i, end - i) * sigmoid(g), s = sigmoid(g);
      store_first(dgate->typed_data() + i, ds * u * (1.0f + g * (1.0f - s)), end - i);
      store_first(dup->typed_data() + i, ds * g, end - i);
    }
  });
  return ffi::Error::Success();
}

// Turns each pair (i, i + K/2) of x (B,T,H,K) by `direction` times the angle whose cosine and sine are given (1 or B,T,K/2).
ffi::Error rope(ffi::ThreadPool pool, In x, In cosine, In sine, Out y, float direction) {
  const auto shape = x.dimensions();
  const long tokens = shape[0] * shape[1], heads = shape[2], half = shape[3] / 2, angles = cosine.element_count() / half;
  for_rows(pool, tokens, heads * 2 * half, [&](long begin, long end) {
    for (long t = begin; t < end; ++t) {
      const float *c = cosine.typed_data() + t % angles * half, *s = sine.typed_data() + t % angles * half;
      for (long h = t * heads; h < (t + 1) * heads; ++h) {
        const float *a = x.typed_data() + h * 2 * half, *b = a + half;
        float* out = y->typed_data() + h * 2 * half;
        for (long i = 0; i < half; i += VL) {
          const vf first = load_first(a + i, half - i), second = load_first(b + i, half - i);
          const vf cv = load_first(c + i, half - i), sv = load_first(s + i, half - i) * direction;
          store_first(out + i, first * cv - second * sv, half - i);
          store_first(out + half + i, second * cv + first * sv, half - i);
        }
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace colossus

#define COLOSSUS_BIND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
#define COLOSSUS_IN Arg<colossus::In>()
#define COLOSSUS_OUT Ret<colossus::In>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_rms_norm, colossus::rms_norm,
                              COLOSSUS_BIND.COLOSSUS_IN.COLOSSUS_IN.COLOSSUS_OUT.COLOSSUS_OUT.Attr<float>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_rms_norm_backward, colossus::rms_norm_backward,
                              COLOSSUS_BIND.COLOSSUS_IN.COLOSSUS_IN.COLOSSUS_IN.COLOSSUS_IN.COLOSSUS_OUT.COLOSSUS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_swiglu, colossus::swiglu, COLOSSUS_BIND.COLOSSUS_IN.COLOSSUS_IN.COLOSSUS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_swiglu_backward, colossus::swiglu_backward,
                              COLOSSUS_BIND.COLOSSUS_IN.COLOSSUS_IN.COLOSSUS_IN.COLOSSUS_OUT.COLOSSUS_OUT);
XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_rope, colossus::rope,
                              COLOSSUS_BIND.COLOSSUS_IN.COLOSSUS_IN.COLOSSUS_IN.COLOSSUS_OUT.Attr<float>("direction"));
