// Vectors of floats at the width of this machine, a fast exp, transposes and a register-blocked product.
// Only GCC/Clang vector extensions: the same source serves AVX-512, AVX2, SSE and NEON.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace colossus {

#if defined(__AVX512F__)
constexpr int VL = 16, MR = 12, NV = 2;  // 24 of 32 registers hold sums
#elif defined(__AVX2__) || defined(__AVX__)
constexpr int VL = 8, MR = 6, NV = 2;  // 12 of 16 registers
#elif defined(__aarch64__)
constexpr int VL = 4, MR = 8, NV = 2;  // NEON: 16 of 32 registers, and 8 for a; of 24 GCC spills some
#else
constexpr int VL = 4, MR = 6, NV = 2;  // SSE: 12 of 16 registers
#endif
static_assert(NV == 2, "a tile that is not NV vectors wide is one vector wide");
constexpr int NR = NV * VL;
constexpr int AHEAD = 16;  // rows of b that a product fetches ahead: 200 cycles of work, the way from the second cache

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef float vfu __attribute__((vector_size(VL * 4), aligned(4), may_alias));

#define COLOSSUS_INLINE inline __attribute__((always_inline))

COLOSSUS_INLINE vf load(const float* p) { return *reinterpret_cast<const vfu*>(p); }
COLOSSUS_INLINE void store(float* p, vf x) { *reinterpret_cast<vfu*>(p) = x; }
COLOSSUS_INLINE vf splat(float x) { return x - vf{}; }
COLOSSUS_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }  // a NaN gives b
COLOSSUS_INLINE long round_up(long n, long to) { return (n + to - 1) / to * to; }

COLOSSUS_INLINE vi lanes() {
  vi out;
  for (int i = 0; i < VL; ++i) out[i] = i;
  return out;
}

// First `n` floats of p, zeros after them: never touches p[n] and beyond.
COLOSSUS_INLINE vf load_first(const float* p, long n) {
  if (n >= VL) return load(p);
  vf out = {};
  std::memcpy(&out, p, n > 0 ? n * 4 : 0);
  return out;
}

COLOSSUS_INLINE void store_first(float* p, vf x, long n) {
  if (n >= VL) return store(p, x);
  if (n > 0) std::memcpy(p, &x, n * 4);
}

template <int W>
COLOSSUS_INLINE float sum_lanes(const float* x) {
  if constexpr (W == 1) return x[0];
  else return sum_lanes<W / 2>(x) + sum_lanes<W / 2>(x + W / 2);
}
COLOSSUS_INLINE float hsum(vf x) { return sum_lanes<VL>(reinterpret_cast<const float*>(&x)); }
COLOSSUS_INLINE float hmax(vf x) {
  float m = x[0];
  for (int i = 1; i < VL; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

// e^x for x <= 88 to about 1 ulp (Cody-Waite reduction, Cephes polynomial); below -87.33, where the result is
// subnormal, 0. NaN stays NaN; above 88 it stays at e^88.
COLOSSUS_INLINE vf vexp(vf x) {
  const vf low = splat(-87.33f), high = splat(88.0f), magic = splat(12582912.0f);
  vf z = x < low ? low : x;
  z = z > high ? high : z;
  vf shifted = z * 1.44269504088896341f + magic;
  vf n = shifted - magic;
  vf r = z - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  vi scale = ((vi)shifted - (vi)magic + 127) << 23;
  vf y = p * (vf)scale;
  return x < low ? vf{} : y;
}

// Lanes of (a, b) in the order given; GCC has Clang's builtin only from version 12 on.
#if defined(__clang__)
#define COLOSSUS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define COLOSSUS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vi{__VA_ARGS__})
#endif

template <int W, class F, int... I>
COLOSSUS_INLINE F interleave_(F a, F b, bool high, std::integer_sequence<int, I...>) {
  const F lo = COLOSSUS_SHUFFLE(a, b, (I % 2 ? W + I / 2 : I / 2)...);
  const F hi = COLOSSUS_SHUFFLE(a, b, (I % 2 ? W + W / 2 + I / 2 : W / 2 + I / 2)...);
  return high ? hi : lo;
}

// Transposes VL x VL in registers: log2(VL) rounds of interleaving row i with row i + VL/2.
COLOSSUS_INLINE void transpose(vf (&rows)[VL]) {
  for (int round = 1; round < VL; round *= 2) {
    vf next[VL];
    for (int i = 0; i < VL / 2; ++i) {
      next[2 * i] = interleave_<VL>(rows[i], rows[i + VL / 2], false, std::make_integer_sequence<int, VL>{});
      next[2 * i + 1] = interleave_<VL>(rows[i], rows[i + VL / 2], true, std::make_integer_sequence<int, VL>{});
    }
    for (int i = 0; i < VL; ++i) rows[i] = next[i];
  }
}

// out[c][r] = scale * in[r][c] for r < rows, c < cols; rows up to the next multiple of VL come out as zeros.
// ld_out must leave room for them.
inline void transpose_block(const float* in, long ld_in, long rows, long cols, float scale, float* out, long ld_out) {
  for (long r = 0; r < rows; r += VL)
    for (long c = 0; c < cols; c += VL) {
      vf block[VL];
      for (int i = 0; i < VL; ++i) block[i] = r + i < rows ? load_first(in + (r + i) * ld_in + c, cols - c) * scale : vf{};
      transpose(block);
      const long n = cols - c < VL ? cols - c : VL;
      for (int i = 0; i < n; ++i) store(out + (c + i) * ld_out + r, block[i]);
    }
}

// c[i][j] = (add ? c[i][j] : 0) + sum_p a(i, p) b[p][j] over M rows and N vectors of columns, sums held in registers.
// a(i, p) is a[i * LDA + p] when LDA > 0, else a[p * lda + i].
template <int M, int N, int LDA>
void tile(long k, const float* __restrict a, long lda, const float* __restrict b, long ldb, float* __restrict c, long ldc,
          bool add) {
  vf sum[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sum[i][j] = add ? load(c + i * ldc + j * VL) : vf{};
  for (long p = 0; p < k; ++p) {
    vf bv[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      __builtin_prefetch(b + AHEAD * ldb + j * VL);
      bv[j] = load(b + j * VL);
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const float x = LDA > 0 ? a[i * LDA] : a[i];
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sum[i][j] += bv[j] * x;
    }
    a += LDA > 0 ? 1 : lda;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store(c + i * ldc + j * VL, sum[i][j]);
}

using Tile = void (*)(long, const float*, long, const float*, long, float*, long, bool);

template <int N, int LDA, std::size_t... I>
COLOSSUS_INLINE Tile pick_tile_(int rows, std::index_sequence<I...>) {
  static constexpr Tile table[] = {tile<I + 1, N, LDA>...};
  return table[rows - 1];
}

// The tile function for `rows` <= MR rows and `vectors` <= NV vectors of columns.
template <int LDA>
COLOSSUS_INLINE Tile pick_tile(int rows, int vectors) {
  if (vectors == 1) return pick_tile_<1, LDA>(rows, std::make_index_sequence<MR>{});
  return pick_tile_<NV, LDA>(rows, std::make_index_sequence<MR>{});
}

// Cuts [begin, end) into the fewest ranges of at most MR rows, of near-equal size: f(first, count).
template <class F>
COLOSSUS_INLINE void for_tiles(long begin, long end, F&& f) {
  long left = (end - begin + MR - 1) / MR;
  for (long at = begin; at < end; --left) {
    const long count = (end - at + left - 1) / left;
    f(at, count);
    at += count;
  }
}

// Grow-only, 64-byte aligned scratch of one thread.
class Scratch {
 public:
  ~Scratch() { std::free(data_); }
  float* get(long floats) {
    if (floats > size_) {
      std::free(data_);
      data_ = static_cast<float*>(std::aligned_alloc(64, round_up(floats * 4, 64)));
      if (data_ == nullptr) std::abort();
      size_ = floats;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  long size_ = 0;
};

}  // namespace colossus
