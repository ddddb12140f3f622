// Single-precision matrix products in one thread, as packed panels and register tiles (Goto & van de Geijn 2008).
#pragma once
#include <unistd.h>

#include <algorithm>

#include "simd.h"

namespace colossus {

constexpr long KC = 384;              // depth of a block; a KC x block_columns() block of b fills half of a core's L2
constexpr int LDP = KC + VL;          // row stride of a packed strip of a
constexpr long STRIP = KC * MR + VL;  // stride between packed strips of a transposed a
constexpr long PANEL = KC * NR + NR;  // stride between packed panels; the extra row keeps them off the same cache sets

inline long block_columns() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const long columns = sysconf(_SC_LEVEL2_CACHE_SIZE) >= 2 << 20 ? 768 : 384;
  return columns;
#else
  return 384;
#endif
}

// A row-major matrix, or the transpose of one: element (i, j) is data[i * ld + j], transposed data[j * ld + i].
struct Matrix {
  const float* data;
  long ld;
  bool transposed;
  Matrix at(long i, long j) const { return {data + (transposed ? j * ld + i : i * ld + j), ld, transposed}; }
};

// b(k x n) as panels of NR columns: [panel][k][NR], zeros past column n.
inline void pack_panels(Matrix b, long k, long n, float* out) {
  if (b.transposed) {
    for (long j = 0; j < n; j += NR, out += PANEL)
      for (long v = 0; v < NR; v += VL) {
        const long rows = std::clamp(n - j - v, 0L, long(VL));
        transpose_block(b.data + (j + v) * b.ld, b.ld, rows, k, 1.0f, out + v, NR);
      }
    return;
  }
  for (long p = 0; p < k; ++p) {
    const float* row = b.data + p * b.ld;
    float* to = out + p * NR;
    for (long j = 0; j < n; j += NR, to += PANEL)
      for (long v = 0; v < NR; v += VL) store(to + v, load_first(row + j + v, n - j - v));
  }
}

template <int N>
COLOSSUS_INLINE void copy_vectors(const float* from, float* to) {
  store(to, load(from));
  if constexpr (N > 1) copy_vectors<N - 1>(from + VL, to + VL);
}

// Strips of MR rows of a(m x k), each [k][MR], which is what tile<.., 0> reads. `a` is stored transposed.
inline void pack_transposed_strips(Matrix a, long m, long k, float* out) {
  constexpr long GROUP = 16 * MR;  // few enough output streams for the first-level TLB
  constexpr long WIDE = (MR + VL - 1) / VL * VL;  // a strip's row as whole vectors: MR is above VL on SSE and NEON
  for (long g = 0; g < m; g += GROUP)
    for (long p = 0; p < k; ++p) {
      const float* row = a.data + p * a.ld;
      float* to = out + g / MR * STRIP + p * MR;
      for (long i = g; i < std::min(g + GROUP, m); i += MR, to += STRIP) {
        if (i + WIDE <= m) copy_vectors<WIDE / VL>(row + i, to);  // lanes past MR: overwritten by row p + 1, or padding
        else std::memcpy(to, row + i, std::min<long>(MR, m - i) * 4);
      }
    }
}

// c(rows x n at row stride ldc) (+)= a strip of a times packed panels of b. Meanwhile fetches the MR rows of k floats at
// `next`, from which the next strip will be made.
template <int LDA>
COLOSSUS_INLINE void strip_times_panels(long rows, long n, long k, const float* strip, const float* panels, float* c,
                                        long ldc, bool add, const float* next, long ld_next) {
  for (long j = 0; j < n; j += NR, panels += PANEL) {
    if (j / NR < MR)
      for (long p = 0; p < k; p += 16) __builtin_prefetch(next + j / NR * ld_next + p, 0, 2);
    const long left = std::min<long>(n - j, NR);
    const Tile product = pick_tile<LDA>(rows, left <= VL ? 1 : NV);
    if (left % VL == 0) {
      product(k, strip, MR, panels, NR, c + j, ldc, add);
      continue;
    }
    float edge[MR * NR];
    if (add)
      for (long r = 0; r < rows; ++r) std::memcpy(edge + r * NR, c + r * ldc + j, left * 4);
    product(k, strip, MR, panels, NR, edge, NR, add);
    for (long r = 0; r < rows; ++r) std::memcpy(c + r * ldc + j, edge + r * NR, left * 4);
  }
}

// c(m x n, row stride ldc) = a(m x k) b(k x n), or += when `add`.
inline void sgemm(long m, long n, long k, Matrix a, Matrix b, float* c, long ldc, bool add) {
  thread_local Scratch panels_of, strips_of;
  const long columns = block_columns();
  float* panels = panels_of.get(columns / NR * PANEL + NR);
  float* strips = strips_of.get(a.transposed ? (m + MR - 1) / MR * STRIP + VL : MR * LDP);
  if (k == 0 && !add)
    for (long i = 0; i < m; ++i) std::fill(c + i * ldc, c + i * ldc + n, 0.0f);
  const long blocks = (k + KC - 1) / KC, step = blocks ? round_up((k + blocks - 1) / blocks, VL) : 1;
  for (long p = 0; p < k; p += step) {
    const long kc = std::min(step, k - p);
    const bool sum = add || p > 0;
    if (a.transposed) pack_transposed_strips(a.at(0, p), m, kc, strips);
    for (long j = 0; j < n; j += columns) {
      const long nc = std::min(columns, n - j);
      pack_panels(b.at(p, j), kc, nc, panels);
      if (a.transposed) {
        for (long i = 0; i < m; i += MR) {
          const float* strip = strips + i / MR * STRIP;
          strip_times_panels<0>(std::min<long>(MR, m - i), nc, kc, strip, panels, c + i * ldc + j, ldc, sum, strip + STRIP, kc);
        }
        continue;
      }
      for_tiles(0, m, [&](long i, long rows) {
        for (long r = 0; r < rows; ++r) std::memcpy(strips + r * LDP, a.at(i + r, p).data, kc * 4);
        strip_times_panels<LDP>(rows, nc, kc, strips, panels, c + i * ldc + j, ldc, sum, a.at(i + rows, p).data, a.ld);
      });
    }
  }
}

}  // namespace colossus
