// The whole decoder over a paged cache in one call, and products with packed weights: what serving on a CPU spends its time in.
#include <algorithm>
#include <cmath>
#include <vector>

#include "crew.h"
#include "paged.h"
#include "panels.h"

namespace ffi = xla::ffi;

namespace colossus {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;

Kind kind_of(ffi::DataType type) {
  return type == ffi::F32 ? Kind::f32 : type == ffi::BF16 || type == ffi::U16 ? Kind::bf16 : Kind::int8;
}

// Layer `layer` of stacked packed weights: data (L, panels, K, 32) or (L, panels, K / 4, 32, 4), scales (L, panels, K / group, 32).
Panels panels_of(const ffi::AnyBuffer& data, const Floats& scales, long layer, long inputs, long outputs) {
  const Kind kind = kind_of(data.element_type());
  const long panels = (outputs + PN - 1) / PN, bytes = kind == Kind::f32 ? 4 : kind == Kind::bf16 ? 2 : 1;
  const long groups = kind == Kind::int8 ? scales.dimensions()[2] : 1;
  return {kind, static_cast<const char*>(data.untyped_data()) + layer * panels * inputs * PN * bytes,
          scales.typed_data() + (kind == Kind::int8 ? layer * panels * groups * PN : 0), inputs, outputs, inputs / groups};
}

// Memory of one call, cut into pieces; kept by the thread for the next.
class Arena {
 public:
  explicit Arena(float* base) : at_(base) {}
  template <class T>
  T* take(long count) {
    T* out = reinterpret_cast<T*>(at_);
    at_ += round_up(count * static_cast<long>(sizeof(T)), 64) / 4;
    return out;
  }

 private:
  float* at_;
};

// Floats that strips of `count` rows of `inputs` need.
long strips_size(long count, long inputs) { return (count + MRP) * (inputs + 2 * (inputs / 16) + VL) + 256; }

Strips strips_of(const Panels& w, long count, float* memory) {
  const long most = w.kind == Kind::int8 ? MRQ : MRP, strips = (count + most - 1) / most;
  Strips s{w.kind, count, w.inputs, w.group, strips, (count + strips - 1) / strips, memory, nullptr, nullptr, nullptr};
  if (w.kind == Kind::int8) {
    const long rows = s.strips * s.width;
    Arena arena(memory);
    s.bytes = arena.take<int8_t>(rows * w.inputs);
    s.scales = arena.take<float>(rows * w.groups());
    s.sums = arena.take<int32_t>(rows * w.groups());
  }
  return s;
}

// How a product is cut into chunks: blocks of strips (rows stay in the second cache) times groups of panels: several, so that
// weights are read on in one go, but enough groups that the crew ends together.
struct Cut {
  long strips, panels, strip_block, panel_group;
  Cut(const Crew& crew, const Strips& x, const Panels& w, long unit) : strips(x.strips), panels(w.panels() / unit) {
    strip_block = std::max(1L, 96 / x.width);
    panel_group = strips > strip_block ? std::min(4L, panels) : std::clamp(panels / (8 * crew.size()), 1L, 8L);
  }
  long strip_blocks() const { return (strips + strip_block - 1) / strip_block; }
  long panel_groups() const { return (panels + panel_group - 1) / panel_group; }
  long chunks() const { return strip_blocks() * panel_groups(); }
};

// c (+)= x w, rows of c at stride ldc.
void product(Crew& crew, const Strips& x, const Panels& w, float* c, long ldc, bool add) {
  const Cut cut(crew, x, w, 1);
  crew.phase(cut.chunks(), [&](long chunk) {
    const long s = chunk % cut.strip_blocks() * cut.strip_block, p = chunk / cut.strip_blocks() * cut.panel_group;
    multiply(x, s, std::min(s + cut.strip_block, cut.strips), w, p, std::min(p + cut.panel_group, cut.panels), c, ldc, w.outputs, add);
  });
}

// out[row][f] = silu(x gate) (x up): panel 2j of w holds 32 columns of the gate, panel 2j + 1 the same of up.
void gated_product(Crew& crew, const Strips& x, const Panels& w, float* out, long ldc) {
  const Cut cut(crew, x, w, 2);
  crew.phase(cut.chunks(), [&](long chunk) {
    const long s = chunk % cut.strip_blocks() * cut.strip_block, last = std::min(s + cut.strip_block, cut.strips);
    const long p = chunk / cut.strip_blocks() * cut.panel_group;
    thread_local Scratch scratch;
    const long first = x.first(s), rows = x.first(last) - first;
    float* both = scratch.get(rows * 2 * PN);
    for (long pair = p; pair < std::min(p + cut.panel_group, cut.panels); ++pair) {
      multiply(x, s, last, w, 2 * pair, 2 * pair + 2, both - first * 2 * PN - 2 * pair * PN, 2 * PN, w.outputs, false);
      for (long r = 0; r < rows; ++r)
        for (long j = 0; j < PN; j += 16) {
          const v16 gate = load16(both + r * 2 * PN + j), up = load16(both + r * 2 * PN + PN + j);
          store16(out + (first + r) * ldc + pair * PN + j, gate / (1.0f + exp16(-gate)) * up);
        }
    }
  });
}

// out = scale x / sqrt(mean(x^2) + epsilon), over `n` floats; a multiple of 16.
void norm_row(const float* x, const float* scale, long n, float epsilon, float* out) {
  v16 sums = {};
  for (long i = 0; i < n; i += 16) sums += load16(x + i) * load16(x + i);
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += sums[i];
  const float inverse = 1.0f / std::sqrt(sum / n + epsilon);
  for (long i = 0; i < n; i += 16) store16(out + i, load16(x + i) * inverse * load16(scale + i));
}

// Fills strips with rows that lie contiguous at `rows`, normed first where there is a `scale`.
void fill(Crew& crew, const Strips& s, const float* rows, const float* scale, float epsilon) {
  crew.phase(s.strips, [&](long strip) {
    const long first = s.first(strip), count = s.first(strip + 1) - first;
    const float* from = rows + first * s.inputs;
    if (scale == nullptr) return put_rows(s, strip, from);
    thread_local Scratch scratch;
    float* own = scratch.get(count * s.inputs);
    for (long r = 0; r < count; ++r) norm_row(from + r * s.inputs, scale, s.inputs, epsilon, own + r * s.inputs);
    put_rows(s, strip, own);
  });
}

void turn(float* x, const float* cosine, const float* sine, long half) {
  for (long i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    x[i] = first * cosine[i] - second * sine[i];
    x[i + half] = second * cosine[i] + first * sine[i];
  }
}

// Sizes of the model and of the batch.
struct Sizes {
  long layers, model, heads, kv_heads, dim, ffn, window;
  float epsilon;
  long tokens, rows, table, places;  // real tokens; rows of the page table; pages of a row; places that RoPE is known for
  long qkv() const { return (heads + 2 * kv_heads) * dim; }
};

// What a batch says of its tokens; as nn.paged.Batch.
struct Tokens {
  const int32_t *ids, *positions, *starts, *lengths, *pages;
};

// Some queries of one row: tokens [first, last) of the batch.
struct Task {
  long row, first, last;
};

template <class T>
struct Cache {
  T *k, *v;
  float *k_scale, *v_scale;
  long num_pages, kv_heads, dim;
  Head<T> head(long layer, long h) const {
    const long at = layer * num_pages * kv_heads + h, page = PAGE * dim;
    return {k + at * page, v + at * page, k_scale == nullptr ? nullptr : k_scale + at * PAGE,
            v_scale == nullptr ? nullptr : v_scale + at * PAGE, kv_heads * page, kv_heads * PAGE, dim};
  }
};

// Queries and keys normed where the model does so and turned to their places; keys and values into the pages.
template <class T>
void place_token(const Sizes& z, const Tokens& tokens, const Cache<T>& cache, long layer, long row, long t, float* qkv, const float* q_norm,
                 const float* k_norm, const float* cosines, const float* sines) {
  const long position = tokens.positions[t], page = tokens.pages[row * z.table + position / PAGE], offset = position % PAGE, half = z.dim / 2;
  const long angle = std::min(position, z.places - 1) * half;  // a row that ended within fused steps goes on past the last place, for nobody
  for (long h = 0; h < z.heads + z.kv_heads; ++h) {
    float* x = qkv + h * z.dim;
    const float* scale = h < z.heads ? q_norm : k_norm;
    if (scale != nullptr) norm_row(x, scale, z.dim, z.epsilon, x);
    turn(x, cosines + angle, sines + angle, half);
  }
  for (long h = 0; h < z.kv_heads; ++h) {
    const Head<T> head = cache.head(layer, h);
    const float *k = qkv + (z.heads + h) * z.dim, *v = k + z.kv_heads * z.dim;
    float* k_scale = head.k_scale == nullptr ? nullptr : head.k_scale + page * head.scale_stride + offset;
    float* v_scale = head.v_scale == nullptr ? nullptr : head.v_scale + page * head.scale_stride + offset;
    write_token(k, z.dim, head.key(page) + offset, PAGE, k_scale);
    write_token(v, z.dim, head.value(page) + offset * z.dim, 1, v_scale);
  }
}

// Attention of one task and key/value head: qkv rows in, out rows (heads * dim) out.
template <class T>
void attend_task(const Sizes& z, const Tokens& tokens, const Cache<T>& cache, long layer, const Task& task, long kv_head, const float* qkv,
                 float* out) {
  thread_local Scratch scratch;
  const long group = z.heads / z.kv_heads, vectors = (task.last - task.first) * group;
  const float scale = 1.0f / std::sqrt(static_cast<float>(z.dim));
  float* q = scratch.get(QUERIES * (2 * z.dim + BLOCK * PAGE));
  float *o = q + QUERIES * z.dim, *scores = o + QUERIES * z.dim;
  const Head<T> head = cache.head(layer, kv_head);
  for (long begin = 0; begin < vectors; begin += QUERIES) {
    const long count = std::min(QUERIES, vectors - begin);
    long position[QUERIES];
    for (long m = 0; m < count; ++m) {
      const long t = task.first + (begin + m) / group, h = kv_head * group + (begin + m) % group;
      position[m] = tokens.positions[t];
      const float* from = qkv + t * z.qkv() + h * z.dim;
      for (long d = 0; d < z.dim; ++d) q[d * QUERIES + m] = from[d] * scale;
    }
    attend_pages(head, tokens.pages + task.row * z.table, count, position, z.window, q, o, scores);
    for (long m = 0; m < count; ++m) {
      const long t = task.first + (begin + m) / group, h = kv_head * group + (begin + m) % group;
      std::copy(o + m * z.dim, o + (m + 1) * z.dim, out + (t * z.heads + h) * z.dim);
    }
  }
}

// Weights of all layers, as the handler gets them.
struct Weights {
  const ffi::AnyBuffer& embed;
  const Floats &attn_norm, &mlp_norm, &q_norm, &k_norm, &final_norm, &cosines, &sines;
  const ffi::AnyBuffer &wqkv, &wo, &w_gate_up, &w_down;
  const Floats &qkv_scales, &o_scales, &gate_up_scales, &down_scales;
};

// The rows' tokens in tasks of at most 16, so that a long prompt is shared.
std::vector<Task> tasks_of(const Sizes& z, const Tokens& tokens) {
  std::vector<Task> tasks;
  for (long row = 0; row < z.rows; ++row)
    for (long t = tokens.starts[row]; t < tokens.starts[row + 1]; t += 16)
      tasks.push_back({row, t, std::min<long>(t + 16, tokens.starts[row + 1])});
  return tasks;
}

template <class T>
void decode(Crew& crew, const Sizes& z, const Tokens& tokens, const Weights& w, const Cache<T>& cache, float* hidden) {
  thread_local Scratch scratch;
  const long widest = std::max({z.model, z.heads * z.dim, z.ffn});
  Arena arena(scratch.get(z.tokens * (z.model + z.qkv() + z.heads * z.dim + z.ffn) + strips_size(z.tokens, widest) + 256));
  float *x = arena.take<float>(z.tokens * z.model), *qkv = arena.take<float>(z.tokens * z.qkv());
  float *attended = arena.take<float>(z.tokens * z.heads * z.dim), *gated = arena.take<float>(z.tokens * z.ffn);
  float* strips = arena.take<float>(strips_size(z.tokens, widest));
  const std::vector<Task> tasks = tasks_of(z, tokens);
  const Kind embed_kind = kind_of(w.embed.element_type());
  crew.phase(tasks.size(), [&](long i) {
    for (long t = tasks[i].first; t < tasks[i].last; ++t)
      for (long d = 0; d < z.model; d += 16) {
        const long at = tokens.ids[t] * z.model + d;
        store16(x + t * z.model + d, embed_kind == Kind::f32 ? load16(static_cast<const float*>(w.embed.untyped_data()) + at)
                                                             : load16(static_cast<const uint16_t*>(w.embed.untyped_data()) + at));
      }
  });
  const bool qk_norm = w.q_norm.element_count() > 0;
  for (long l = 0; l < z.layers; ++l) {
    const Panels wqkv = panels_of(w.wqkv, w.qkv_scales, l, z.model, z.qkv()), wo = panels_of(w.wo, w.o_scales, l, z.heads * z.dim, z.model);
    const Panels up = panels_of(w.w_gate_up, w.gate_up_scales, l, z.model, 2 * z.ffn), down = panels_of(w.w_down, w.down_scales, l, z.ffn, z.model);
    Strips rows = strips_of(wqkv, z.tokens, strips);
    fill(crew, rows, x, w.attn_norm.typed_data() + l * z.model, z.epsilon);
    product(crew, rows, wqkv, qkv, z.qkv(), false);
    const float* q_norm = qk_norm ? w.q_norm.typed_data() + l * z.dim : nullptr;
    const float* k_norm = qk_norm ? w.k_norm.typed_data() + l * z.dim : nullptr;
    crew.phase(tasks.size(), [&](long i) {
      for (long t = tasks[i].first; t < tasks[i].last; ++t)
        place_token(z, tokens, cache, l, tasks[i].row, t, qkv + t * z.qkv(), q_norm, k_norm, w.cosines.typed_data(), w.sines.typed_data());
    });
    crew.phase(tasks.size() * z.kv_heads,
               [&](long i) { attend_task(z, tokens, cache, l, tasks[i / z.kv_heads], i % z.kv_heads, qkv, attended); });
    rows = strips_of(wo, z.tokens, strips);
    fill(crew, rows, attended, nullptr, 0);
    product(crew, rows, wo, x, z.model, true);
    rows = strips_of(up, z.tokens, strips);
    fill(crew, rows, x, w.mlp_norm.typed_data() + l * z.model, z.epsilon);
    gated_product(crew, rows, up, gated, z.ffn);
    rows = strips_of(down, z.tokens, strips);
    fill(crew, rows, gated, nullptr, 0);
    product(crew, rows, down, x, z.model, true);
  }
  crew.phase(tasks.size(), [&](long i) {
    for (long t = tasks[i].first; t < tasks[i].last; ++t)
      norm_row(x + t * z.model, w.final_norm.typed_data(), z.model, z.epsilon, hidden + t * z.model);
  });
}

ffi::Error paged_decoder(ffi::ThreadPool pool, Ints ids, Ints positions, Ints starts, Ints lengths, Ints pages, ffi::AnyBuffer embed,
                         Floats attn_norm, Floats mlp_norm, Floats q_norm, Floats k_norm, Floats final_norm, Floats cosines, Floats sines,
                         ffi::AnyBuffer wqkv, Floats qkv_scales, ffi::AnyBuffer wo, Floats o_scales, ffi::AnyBuffer w_gate_up,
                         Floats gate_up_scales, ffi::AnyBuffer w_down, Floats down_scales, ffi::AnyBuffer, ffi::AnyBuffer, Floats, Floats,
                         ffi::Result<Floats> hidden, ffi::Result<ffi::AnyBuffer> k, ffi::Result<ffi::AnyBuffer> v,
                         ffi::Result<Floats> k_scale, ffi::Result<Floats> v_scale, int64_t heads, int64_t ffn, int64_t window, float epsilon) {
  const auto shape = k->dimensions();  // layers, pages, kv heads, dim, 16
  const long rows = lengths.dimensions()[0], num_tokens = starts.typed_data()[rows], padded = ids.dimensions()[0];
  const Sizes z{shape[0], embed.dimensions()[1], heads, shape[2], shape[3], ffn, window, epsilon, num_tokens, rows, pages.dimensions()[1], cosines.dimensions()[0]};
  if (num_tokens < 0 || num_tokens > padded) return ffi::Error::InvalidArgument("a batch of more tokens than its arrays hold");
  const Tokens tokens{ids.typed_data(), positions.typed_data(), starts.typed_data(), lengths.typed_data(), pages.typed_data()};
  for (long t = 0; t < num_tokens; ++t)
    if (tokens.ids[t] < 0 || tokens.ids[t] >= embed.dimensions()[0] || tokens.positions[t] < 0 || tokens.positions[t] >= z.table * PAGE)
      return ffi::Error::InvalidArgument("a token that the vocabulary or its row's pages do not have");
  const Weights w{embed, attn_norm, mlp_norm, q_norm, k_norm, final_norm, cosines, sines, wqkv, wo, w_gate_up, w_down, qkv_scales, o_scales, gate_up_scales, down_scales};
  std::fill(hidden->typed_data() + num_tokens * z.model, hidden->typed_data() + padded * z.model, 0.0f);
  if (num_tokens == 0) return ffi::Error::Success();
  Crew crew(pool);
  const bool scaled = kind_of(k->element_type()) == Kind::int8;
  float *ks = scaled ? k_scale->typed_data() : nullptr, *vs = scaled ? v_scale->typed_data() : nullptr;
  const auto run = [&](auto type) {
    using T = decltype(type);
    const Cache<T> cache{static_cast<T*>(k->untyped_data()), static_cast<T*>(v->untyped_data()), ks, vs, shape[1], z.kv_heads, z.dim};
    decode(crew, z, tokens, w, cache, hidden->typed_data());
  };
  if (scaled) run(int8_t{});
  else if (kind_of(k->element_type()) == Kind::bf16) run(uint16_t{});
  else run(float{});
  return ffi::Error::Success();
}

// y (O, N) = x (O, K) times packed weights, for the first `real` rows; zeros in the others.
ffi::Error panel_product(ffi::ThreadPool pool, Floats x, Ints real, ffi::AnyBuffer data, Floats scales, ffi::Result<Floats> y) {
  const long rows_in = x.dimensions()[0], inputs = x.dimensions()[1], outputs = y->dimensions()[1];
  const long count = std::clamp<long>(real.typed_data()[0], 0, rows_in);
  std::fill(y->typed_data() + count * outputs, y->typed_data() + rows_in * outputs, 0.0f);
  if (count == 0) return ffi::Error::Success();
  thread_local Scratch scratch;
  const Panels w = panels_of(data, scales, 0, inputs, outputs);
  const Strips rows = strips_of(w, count, scratch.get(strips_size(count, inputs)));
  Crew crew(pool);
  fill(crew, rows, x.typed_data(), nullptr, 0);
  product(crew, rows, w, y->typed_data(), outputs, false);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace colossus

#define COLOSSUS_INTS Arg<colossus::Ints>()
#define COLOSSUS_FLOATS Arg<colossus::Floats>()
#define COLOSSUS_ANY Arg<ffi::AnyBuffer>()
#define COLOSSUS_PACKED COLOSSUS_ANY.COLOSSUS_FLOATS

XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_paged_decoder, colossus::paged_decoder,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .COLOSSUS_INTS.COLOSSUS_INTS.COLOSSUS_INTS.COLOSSUS_INTS.COLOSSUS_INTS.COLOSSUS_ANY
                                  .COLOSSUS_FLOATS.COLOSSUS_FLOATS.COLOSSUS_FLOATS.COLOSSUS_FLOATS.COLOSSUS_FLOATS.COLOSSUS_FLOATS.COLOSSUS_FLOATS
                                  .COLOSSUS_PACKED.COLOSSUS_PACKED.COLOSSUS_PACKED.COLOSSUS_PACKED
                                  .COLOSSUS_ANY.COLOSSUS_ANY.COLOSSUS_FLOATS.COLOSSUS_FLOATS
                                  .Ret<colossus::Floats>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<colossus::Floats>()
                                  .Ret<colossus::Floats>()
                                  .Attr<int64_t>("heads")
                                  .Attr<int64_t>("ffn")
                                  .Attr<int64_t>("window")
                                  .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(colossus_panel_product, colossus::panel_product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .COLOSSUS_FLOATS.COLOSSUS_INTS.COLOSSUS_PACKED
                                  .Ret<colossus::Floats>());
