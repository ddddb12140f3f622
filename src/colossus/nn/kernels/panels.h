// Products of a few rows with weights that were packed once: the weights stream by in the order they lie in memory.
//
// A matrix (K x N) lies as panels of 32 columns: float32 and bfloat16 as [panel][K][32]; int8 as [panel][K / 4][32][4] of
// w + 128, with a scale for every group of inputs and column, [panel][K / group][32]. The rows it meets lie as strips of
// MRP rows: [K][MRP], or for int8 [K / 4][MRP][4] with scales and sums [K / group][MRP].
// Every output is one chain of sums over k, whatever the number of rows: no answer depends on its neighbours.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "simd.h"

namespace colossus {

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef float v16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t h16u __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t u16w __attribute__((vector_size(64)));
typedef int8_t b16u __attribute__((vector_size(16), aligned(1), may_alias));

constexpr long PN = 32;  // columns of a panel
#if defined(__AVX512F__)
constexpr long MRP = 12, MRQ = 6;
#elif defined(__aarch64__)
constexpr long MRP = 3, MRQ = 1;
#elif defined(__AVX2__) || defined(__AVX__)
constexpr long MRP = 3, MRQ = 3;
#else
constexpr long MRP = 1, MRQ = 1;
#endif

COLOSSUS_INLINE v16 load16(const float* p) { return *reinterpret_cast<const v16u*>(p); }
COLOSSUS_INLINE v16 load16(const uint16_t* p) {  // bfloat16: the upper half of a float
  return (v16)(__builtin_convertvector(*reinterpret_cast<const h16u*>(p), u16w) << 16);
}
COLOSSUS_INLINE v16 load16(const int8_t* p) { return __builtin_convertvector(*reinterpret_cast<const b16u*>(p), v16); }
COLOSSUS_INLINE void store16(float* p, v16 x) { *reinterpret_cast<v16u*>(p) = x; }

enum class Kind { f32, bf16, int8 };

// A packed matrix K x N; `group` inputs share a scale with int8.
struct Panels {
  Kind kind;
  const void* data;
  const float* scales;
  long inputs, outputs, group;
  long panels() const { return (outputs + PN - 1) / PN; }
  long groups() const { return inputs / group; }
  const char* panel(long p) const {
    return static_cast<const char*>(data) + p * inputs * PN * (kind == Kind::f32 ? 4 : kind == Kind::bf16 ? 2 : 1);
  }
};

// Rows made ready for a product: `count` of them, in strips of at most `width`.
struct Strips {
  Kind kind;
  long count, inputs, group, strips, width;
  float* values;    // [strip][inputs][width], a vector's room after each
  int8_t* bytes;    // [strip][inputs / 4][width][4]
  float* scales;    // [strip][inputs / group][width]
  int32_t* sums;    // the same, -128 times the sum of a group's bytes
  // Near-equal shares: the rows of strip s are [first(s), first(s + 1)).
  long first(long s) const { return count * s / strips; }
  float* strip(long s) const { return values + s * (inputs * width + VL); }
};

// A row's group, rounded to 127 steps of its largest, into its place among the `width` rows of a strip; gives the step.
inline float put_group(const float* x, long group, long width, int8_t* out, int32_t* sum) {
  v16 top = {};
  for (long k = 0; k < group; k += 16) {
    const v16 a = load16(x + k);
    const v16 b = a < 0 ? -a : a;
    top = b > top ? b : top;
  }
  float largest = 0;
  for (int lane = 0; lane < 16; ++lane) largest = std::max(largest, top[lane]);
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  const v16 magic = v16{} + 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to whole numbers
  i16 total = {};
  for (long k = 0; k < group; k += 16) {
    const i16 whole = (i16)(load16(x + k) * inverse + magic) - (i16)magic;
    total += whole;
    const auto bytes = __builtin_convertvector(whole, b16u);
    for (long i = 0; i < 4; ++i) std::memcpy(out + (k / 4 + i) * 4 * width, reinterpret_cast<const char*>(&bytes) + i * 4, 4);
  }
  *sum = 0;
  for (int lane = 0; lane < 16; ++lane) *sum -= 128 * total[lane];
  return largest / 127.0f;
}

// The rows of a strip, contiguous at `rows`, into their places.
inline void put_rows(const Strips& s, long strip, const float* rows) {
  const long count = s.first(strip + 1) - s.first(strip);
  if (s.kind != Kind::int8) {
    float* out = s.strip(strip);
    if (s.width == 1) std::memcpy(out, rows, s.inputs * 4);
    else if (count < VL / 2)
      for (long k = 0; k < s.inputs; ++k)
        for (long r = 0; r < count; ++r) out[k * s.width + r] = rows[r * s.inputs + k];
    else transpose_block(rows, s.inputs, count, s.inputs, 1.0f, out, s.width);  // lanes past the width: written over by the next input
    return;
  }
  const long groups = s.inputs / s.group;
  for (long r = 0; r < count; ++r)
    for (long g = 0; g < groups; ++g) {
      const long place = (strip * groups + g) * s.width + r;
      int8_t* out = s.bytes + ((strip * s.inputs + g * s.group) * s.width) + r * 4;
      s.scales[place] = put_group(rows + r * s.inputs + g * s.group, s.group, s.width, out, s.sums + place);
    }
}

// c (M x 32, row stride ldc) (+)= strip (from k0) times a panel (from k0), over `k` inputs.
template <int M, class T>
void float_tile(long k, const float* __restrict a, long lda, const T* __restrict b, float* __restrict c, long ldc, bool add) {
  v16 sum[M][2];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) sum[i][j] = add ? load16(c + i * ldc + j * 16) : v16{};
  for (long p = 0; p < k; ++p, a += lda, b += PN) {
    __builtin_prefetch(b + 24 * PN);
    if (sizeof(T) == 4) __builtin_prefetch(b + 24 * PN + 16);
    const v16 b0 = load16(b), b1 = load16(b + 16);
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      sum[i][0] += b0 * a[i];
      sum[i][1] += b1 * a[i];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) store16(c + i * ldc + j * 16, sum[i][j]);
}

// sum += over four inputs of (w + 128) x for 16 columns: `four` holds the row's four bytes, w its [16][4] weights.
COLOSSUS_INLINE i16 dot4(i16 sum, const uint8_t* w, const int8_t* four) {
#if defined(__AVX512VNNI__)
  int32_t x;
  std::memcpy(&x, four, 4);
  return (i16)_mm512_dpbusd_epi32((__m512i)sum, _mm512_loadu_si512(w), _mm512_set1_epi32(x));
#elif defined(__AVX2__)
  // Pairs of 255 * 127 overflow the 16 bits of AVX2's own product of bytes: widen first.
  int32_t x;
  std::memcpy(&x, four, 4);
  const __m256i x16 = _mm256_cvtepi8_epi16(_mm_set1_epi32(x));
  __m256i halves[2];
  for (int h = 0; h < 2; ++h) {
    const __m256i low = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(w + h * 32))), x16);
    const __m256i high = _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(w + h * 32 + 16))), x16);
    halves[h] = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xD8);
  }
  i16 products;
  std::memcpy(&products, halves, 64);
  return sum + products;
#else
  for (int j = 0; j < 16; ++j)
    for (int i = 0; i < 4; ++i) sum[j] += static_cast<int32_t>(w[j * 4 + i]) * four[i];
  return sum;
#endif
}

template <int M>
void int8_tile(const Panels& w, long panel, const Strips& x, long strip, float* __restrict c, long ldc, bool add) {
  constexpr int N = MRQ == 6 ? 2 : 1;
  const uint8_t* b = reinterpret_cast<const uint8_t*>(w.panel(panel));
  const int8_t* a = x.bytes + strip * x.inputs * x.width;
  const float* w_scales = w.scales + panel * w.groups() * PN;
  const float* x_scales = x.scales + strip * w.groups() * x.width;
  const int32_t* x_sums = x.sums + strip * w.groups() * x.width;
  for (int half = 0; half < 2; half += N) {
    v16 sum[M][N];
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < N; ++j) sum[i][j] = add ? load16(c + i * ldc + (half + j) * 16) : v16{};
    for (long g = 0; g < w.groups(); ++g) {
      i16 whole[M][N];
#pragma GCC unroll 6
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) whole[i][j] = x_sums[g * x.width + i] - i16{};
      const long quads = w.group / 4;
      const uint8_t* bg = b + g * w.group * PN + half * 64;
      const int8_t* ag = a + g * w.group * x.width;
      for (long q = 0; q < quads; ++q, bg += 4 * PN, ag += 4 * x.width) {
        __builtin_prefetch(bg + 12 * 4 * PN);
        if (N == 2) __builtin_prefetch(bg + 12 * 4 * PN + 64);
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j)
#pragma GCC unroll 6
          for (int i = 0; i < M; ++i) whole[i][j] = dot4(whole[i][j], bg + j * 64, ag + i * 4);
      }
#pragma GCC unroll 2
      for (int j = 0; j < N; ++j) {
        const v16 scale = load16(w_scales + g * PN + (half + j) * 16);
#pragma GCC unroll 6
        for (int i = 0; i < M; ++i) sum[i][j] += __builtin_convertvector(whole[i][j], v16) * (scale * x_scales[g * x.width + i]);
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < N; ++j) store16(c + i * ldc + (half + j) * 16, sum[i][j]);
  }
}

template <class T>
using FloatTile = void (*)(long, const float*, long, const T*, float*, long, bool);
using Int8Tile = void (*)(const Panels&, long, const Strips&, long, float*, long, bool);

template <class T, std::size_t... I>
COLOSSUS_INLINE FloatTile<T> pick_float_tile(long rows, std::index_sequence<I...>) {
  static constexpr FloatTile<T> table[] = {float_tile<I + 1, T>...};
  return table[rows - 1];
}

template <std::size_t... I>
COLOSSUS_INLINE Int8Tile pick_int8_tile(long rows, std::index_sequence<I...>) {
  static constexpr Int8Tile table[] = {int8_tile<I + 1>...};
  return table[rows - 1];
}

constexpr long DEPTH = 768;  // inputs of a panel that are read at a time: with a strip of rows, half of the second cache

// Strip s times panel p, over `inputs` inputs from k, into c, which is row 0, column 0 of the whole result; `width` columns of
// it exist: a last panel that is cut off goes through a buffer.
inline void multiply_one(const Strips& x, long s, const Panels& w, long p, long k, long inputs, float* c, long ldc, long width, bool add) {
  const long first = x.first(s), rows = x.first(s + 1) - first, columns = std::min(PN, width - p * PN);
  float edge[std::max(MRP, MRQ) * PN];
  float* out = c + first * ldc + p * PN;
  float* to = columns == PN ? out : edge;
  const long ld = columns == PN ? ldc : PN;
  if (columns < PN && add)
    for (long r = 0; r < rows; ++r) std::memcpy(edge + r * PN, out + r * ldc, columns * 4);
  if (x.kind == Kind::int8) {
    pick_int8_tile(rows, std::make_index_sequence<MRQ>{})(w, p, x, s, to, ld, add);
  } else {
    const float* a = x.strip(s) + k * x.width;
    if (w.kind == Kind::f32)
      pick_float_tile<float>(rows, std::make_index_sequence<MRP>{})(inputs, a, x.width,
                                                                    reinterpret_cast<const float*>(w.panel(p)) + k * PN, to, ld, add);
    else
      pick_float_tile<uint16_t>(rows, std::make_index_sequence<MRP>{})(
          inputs, a, x.width, reinterpret_cast<const uint16_t*>(w.panel(p)) + k * PN, to, ld, add);
  }
  if (columns < PN)
    for (long r = 0; r < rows; ++r) std::memcpy(out + r * ldc, edge + r * PN, columns * 4);
}

// c (+)= strips x panels, for the strips [s0, s1) and panels [p0, p1). Few strips: the weights stream by once, in the order they
// lie. Many: a part of each strip stays in the first cache for all panels, the panels' part in the second for all strips.
inline void multiply(const Strips& x, long s0, long s1, const Panels& w, long p0, long p1, float* c, long ldc, long width, bool add) {
  const long depth = x.kind == Kind::int8 ? w.inputs : DEPTH;
  const bool streams = s1 - s0 <= 4;
  const auto one = [&](long k, long s, long p) { multiply_one(x, s, w, p, k, std::min(depth, w.inputs - k), c, ldc, width, add || k > 0); };
  if (streams)
    for (long p = p0; p < p1; ++p)
      for (long k = 0; k < w.inputs; k += depth)
        for (long s = s0; s < s1; ++s) one(k, s, p);
  else
    for (long k = 0; k < w.inputs; k += depth)
      for (long s = s0; s < s1; ++s)
        for (long p = p0; p < p1; ++p) one(k, s, p);
}

}  // namespace colossus
