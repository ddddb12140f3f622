// Attention of one row's queries over its pages, and the writing of new keys and values into them.
//
// A page holds 16 tokens of one layer and head: keys as [dim][16], values as [16][dim]; float32, bfloat16, or int8 with a
// scale for each token. A vector is 16 keys of a page. Keys are taken in blocks of 128 that begin at multiples of 128, so a
// query's sums do not depend on which other queries came with it.
#pragma once
#include <algorithm>
#include <limits>

#include "panels.h"

namespace colossus {

constexpr long PAGE = 16, BLOCK = 8;  // tokens of a page; pages of a block of keys
constexpr long QUERIES = MRP;         // query vectors taken together

// One layer and key/value head of the cache; strides are between pages.
template <class T>
struct Head {
  T *k, *v;
  float *k_scale, *v_scale;  // null but for int8
  long stride, scale_stride, dim;
  T* key(long page) const { return k + page * stride; }
  T* value(long page) const { return v + page * stride; }
};

COLOSSUS_INLINE void put(float* p, float x) { *p = x; }
COLOSSUS_INLINE void put(uint16_t* p, float x) {  // rounded to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  *p = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
COLOSSUS_INLINE void put(int8_t* p, float x) { *p = static_cast<int8_t>(std::nearbyintf(x)); }

// A token's key (or value) at its place in a page; `step` is the distance between dims.
template <class T>
void write_token(const float* x, long dim, T* out, long step, float* scale) {
  float factor = 1.0f;
  if (scale != nullptr) {
    float largest = 1e-20f;
    for (long d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(x[d]));
    *scale = largest / 127.0f;
    factor = 1.0f / *scale;
  }
  for (long d = 0; d < dim; ++d) put(out + d * step, scale != nullptr ? x[d] * factor : x[d]);
}

// scores[m][page][16] = q_m . k for M queries and N pages; q is [dim][QUERIES].
template <int M, int N, class T>
void page_scores(const Head<T>& h, const int32_t* pages, const float* __restrict q, float* __restrict scores) {
  v16 sum[M][N] = {};
  const T* keys[N];
  for (int j = 0; j < N; ++j) keys[j] = h.key(pages[j]);
  for (long d = 0; d < h.dim; ++d, q += QUERIES) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const v16 k = load16(keys[j] + d * PAGE);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) sum[i][j] += k * q[i];
    }
  }
  for (int j = 0; j < N; ++j)
    for (int i = 0; i < M; ++i) {
      if (h.k_scale != nullptr) sum[i][j] *= load16(h.k_scale + pages[j] * h.scale_stride);
      store16(scores + (i * BLOCK + j) * PAGE, sum[i][j]);
    }
}

// out[m][d..d+N*16) += sum over keys p[m][key] v[key][d..); p is [m][BLOCK * 16].
template <int M, int N, class T>
void page_values(const Head<T>& h, const int32_t* pages, long keys, const float* __restrict p, long d, float* __restrict out) {
  v16 sum[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) sum[i][j] = load16(out + i * h.dim + d + j * 16);
  for (long first = 0; first < keys; first += PAGE) {
    const T* v = h.value(pages[first / PAGE]) + d;
    const float* v_scale = h.v_scale == nullptr ? nullptr : h.v_scale + pages[first / PAGE] * h.scale_stride;
    for (long s = 0; s < std::min(PAGE, keys - first); ++s, v += h.dim) {
      v16 value[N];
#pragma GCC unroll 2
      for (int j = 0; j < N; ++j) value[j] = load16(v + j * 16);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const float x = v_scale == nullptr ? p[i * BLOCK * PAGE + first + s] : p[i * BLOCK * PAGE + first + s] * v_scale[s];
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) sum[i][j] += value[j] * x;
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) store16(out + i * h.dim + d + j * 16, sum[i][j]);
}

template <class T>
struct PageTiles {
  using Scores = void (*)(const Head<T>&, const int32_t*, const float*, float*);
  using Values = void (*)(const Head<T>&, const int32_t*, long, const float*, long, float*);
  template <int N, std::size_t... I>
  static Scores scores(long rows, std::index_sequence<I...>) {
    static constexpr Scores table[] = {page_scores<I + 1, N, T>...};
    return table[rows - 1];
  }
  template <int N, std::size_t... I>
  static Values values(long rows, std::index_sequence<I...>) {
    static constexpr Values table[] = {page_values<I + 1, N, T>...};
    return table[rows - 1];
  }
};

COLOSSUS_INLINE v16 exp16(v16 x) {
  v16 out;
  for (int i = 0; i < 16; i += VL) {
    vf part;
    std::memcpy(&part, reinterpret_cast<const char*>(&x) + i * 4, VL * 4);
    part = vexp(part);
    std::memcpy(reinterpret_cast<char*>(&out) + i * 4, &part, VL * 4);
  }
  return out;
}

// Attention of `count` <= QUERIES query vectors of one head: query m stands at `position[m]`; q is [dim][QUERIES], scaled.
// out is [m][dim]; `window` keys are seen at most. `scores` has QUERIES * BLOCK * 16 floats.
template <class T>
void attend_pages(const Head<T>& h, const int32_t* pages, long count, const long* position, long window, const float* q,
                  float* out, float* scores) {
  float top[QUERIES], total[QUERIES];
  std::fill(out, out + count * h.dim, 0.0f);
  std::fill(top, top + count, std::numeric_limits<float>::lowest());
  std::fill(total, total + count, 0.0f);
  constexpr auto sizes = std::make_index_sequence<QUERIES>{};
  constexpr long keys = BLOCK * PAGE;
  const long last = *std::max_element(position, position + count);
  const long seen_from = std::max(0L, *std::min_element(position, position + count) - window + 1);
  i16 lane;
  for (int i = 0; i < 16; ++i) lane[i] = i;
  for (long begin = seen_from / keys * keys; begin <= last; begin += keys) {
    const long num_keys = std::min(keys, last + 1 - begin), num_pages = (num_keys + PAGE - 1) / PAGE;
    const int32_t* block = pages + begin / PAGE;
    constexpr int wide = MRP == 12 ? 2 : 1;  // pages at a time: as many sums as there are registers
    long page = 0;
    if (count <= 4 && MRP == 12)
      for (; page + 4 <= num_pages; page += 4)
        PageTiles<T>::template scores<4>(count, std::make_index_sequence<std::min<long>(4, QUERIES)>{})(h, block + page, q, scores + page * PAGE);
    for (; page + wide <= num_pages; page += wide) PageTiles<T>::template scores<wide>(count, sizes)(h, block + page, q, scores + page * PAGE);
    for (; page < num_pages; ++page) PageTiles<T>::template scores<1>(count, sizes)(h, block + page, q, scores + page * PAGE);
    for (long m = 0; m < count; ++m) {
      float* row = scores + m * keys;
      const int32_t from = std::clamp(position[m] - window + 1 - begin, 0L, keys), to = std::clamp(position[m] + 1 - begin, 0L, keys);
      if (from >= to) {
        std::fill(row, row + num_pages * PAGE, 0.0f);
        continue;
      }
      v16 best = top[m] - v16{};
      for (long k = from / PAGE * PAGE; k < to; k += PAGE) {
        const i16 place = lane + static_cast<int32_t>(k);
        const v16 x = (place >= from) & (place < to) ? load16(row + k) : v16{} + top[m];
        best = x > best ? x : best;
      }
      float largest = best[0];
      for (int i = 1; i < 16; ++i) largest = std::max(largest, best[i]);
      v16 sums = {};
      for (long k = 0; k < num_pages * PAGE; k += PAGE) {
        const i16 place = lane + static_cast<int32_t>(k);
        const v16 p = (place >= from) & (place < to) ? exp16(load16(row + k) - largest) : v16{};
        store16(row + k, p);
        sums += p;
      }
      const float shrink = exp16(v16{} + (top[m] - largest))[0];
      float sum = 0;
      for (int i = 0; i < 16; ++i) sum += sums[i];
      total[m] = total[m] * shrink + sum;
      top[m] = largest;
      if (shrink != 1.0f)
        for (long d = 0; d < h.dim; d += 16) store16(out + m * h.dim + d, load16(out + m * h.dim + d) * shrink);
    }
    long d = 0;
    for (; d + 32 <= h.dim; d += 32) PageTiles<T>::template values<2>(count, sizes)(h, block, num_keys, scores, d, out);
    if (d < h.dim) PageTiles<T>::template values<1>(count, sizes)(h, block, num_keys, scores, d, out);
  }
  for (long m = 0; m < count; ++m) {
    const float inverse = 1.0f / total[m];
    for (long d = 0; d < h.dim; d += 16) store16(out + m * h.dim + d, load16(out + m * h.dim + d) * inverse);
  }
}

}  // namespace colossus
