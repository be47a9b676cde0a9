// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
//
// Attention over chosen tokens of a paged KV cache, for x86-64 CPUs.
//
// A plain C interface: the library depends on no version of Python or torch. OpenMP is
// compiled in but not linked, so that the threads are those of the OpenMP library that
// the process has loaded already.
//
// One cell of the cache, for a block and a KV head: block_tokens rows of a key and its
// value, side by side, then block_tokens codes.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

struct Bf16 {
  uint16_t bits;
};
using Half = _Float16;

constexpr int kMaxGroup = 16;
constexpr int kMaxBits = 512;

// Kinds of codes.
constexpr int kSigns = 0, kLevels = 1;

struct View {
  uint8_t* data;
  int64_t block_stride, head_stride;  // bytes
  int block_tokens, row_bytes, code_bytes;

  uint8_t* cell(int64_t block, int head) const {
    return data + block * block_stride + head * head_stride;
  }
  uint8_t* codes(int64_t block, int head) const {
    return cell(block, head) + static_cast<int64_t>(block_tokens) * row_bytes;
  }
};

struct Rule {
  int sink, recent;
};

// Attention over a part of the rows: for each head the largest product, the sum of the
// weights relative to it, and the weighted sum of the values.
struct Partial {
  float *top, *total, *sums;
};

// Memory that a thread keeps between calls.
struct Scratch {
  std::vector<uint16_t> distances;
  std::vector<int32_t> positions;
  std::vector<const void*> rows;
  std::vector<uint8_t> codes;
  std::vector<float> partials, extras, tile;
  std::vector<uint32_t> keys, values;

  static Scratch& mine() {
    thread_local Scratch scratch;
    return scratch;
  }
};

struct Decode {
  View cache;
  Rule rule;
  const void* query;
  void* out;
  const float *query_map, *query_bias, *share;
  const uint8_t* query_codes;
  const int32_t* blocks;
  int64_t blocks_stride;
  const int32_t *tokens, *chosen;
  int kind, asked, sequences, heads, kv_heads;
  float scale;
};

struct Store {
  View cache;
  const void *keys, *values;
  int64_t keys_stride, values_stride;  // elements
  const int64_t* slots;
  const float *key_map, *key_bias;
  const uint8_t* key_codes;
  int kind, count, kv_heads;
};

struct Prefill {
  View cache;
  const void* query;
  void* out;
  int64_t query_stride, out_stride;  // elements
  const int32_t* blocks;
  int before, count, heads, kv_heads;
  float scale;
};

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vnni,prefer-vector-width=512,avx512bf16")
namespace avx512bf16 {
#define LEVEL 3
#include "kernels.inc"
#undef LEVEL
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx512vnni,prefer-vector-width=512")
namespace avx512 {
#define LEVEL 2
#include "kernels.inc"
#undef LEVEL
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt")
namespace avx2 {
#define LEVEL 1
#include "kernels.inc"
#undef LEVEL
}
#pragma GCC pop_options
#endif

namespace portable {
#define LEVEL 0
#include "kernels.inc"
#undef LEVEL
}

int best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool half = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  const bool full = __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vpopcntdq") &&
                    __builtin_cpu_supports("avx512vnni");
  if (half && full) return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
  return half ? 1 : 0;
#else
  return 0;
#endif
}

template <typename Step>
int dispatch(int level, int dtype, int head_dim, const Step& step) {
  const int chosen = level < 0 ? best() : std::min(level, best());
#if defined(__x86_64__)
  if (chosen == 3) return avx512bf16::run(dtype, head_dim, step) ? 0 : 1;
  if (chosen == 2) return avx512::run(dtype, head_dim, step) ? 0 : 1;
  if (chosen == 1) return avx2::run(dtype, head_dim, step) ? 0 : 1;
#endif
  return portable::run(dtype, head_dim, step) ? 0 : 1;
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

// All return 1 for a dtype, head size or code size without a kernel, else 0.
// level: the instruction set at most, -1 the best. dtype: 0 float32, 1 bfloat16,
// 2 float16. Strides of the cache are in bytes, others in elements.
extern "C" {

// Best of this CPU: 0 portable, 1 AVX2, 2 AVX-512 with VPOPCNTDQ and VNNI,
// 3 and with BF16.
EXPORT int hashattn_level() { return best(); }

// Reads chosen[i] tokens of sequence i, or all; that many on average where codes are
// levels. kind: of codes, 0 signs, 1 levels. Queries have codes by query_map, float32
// [heads, head_dim, bits], with query_bias, float32 [heads, bits]; or query_codes, uint8
// [sequences, kv_heads, asked, code_bytes]. Levels have a query_map, float32 [heads,
// head_dim, channels], and share, float32 [heads]. Nothing of it is needed where every
// sequence is read whole.
EXPORT int hashattn_decode(int level, int dtype, int head_dim, void* cache,
                           int64_t block_stride, int64_t head_stride, int block_tokens,
                           int row_bytes, int code_bytes, int sink, int recent, int kind,
                           const void* query, void* out, const float* query_map,
                           const float* query_bias, const float* share,
                           const uint8_t* query_codes, int asked, const int32_t* blocks,
                           int64_t blocks_stride, const int32_t* tokens,
                           const int32_t* chosen, int sequences, int heads, int kv_heads,
                           float scale) {
  if (heads / kv_heads > kMaxGroup || 8 * code_bytes > kMaxBits) return 1;
  const View view{static_cast<uint8_t*>(cache), block_stride, head_stride,
                  block_tokens, row_bytes, code_bytes};
  const Decode step{view,       {sink, recent}, query,  out,         query_map,
                    query_bias, share,          query_codes, blocks, blocks_stride,
                    tokens,     chosen,         kind,   asked,       sequences,
                    heads,      kv_heads,       scale};
  return dispatch(level, dtype, head_dim, step);
}

// Writes `count` keys and values into their slots (below 0: none), and codes of a kind by
// key_map, float32 [kv_heads, head_dim, bits or channels], with key_bias, float32
// [kv_heads, bits or channels]; or key_codes, uint8 [count, kv_heads, code_bytes]; or
// none.
EXPORT int hashattn_store(int level, int dtype, int head_dim, void* cache,
                          int64_t block_stride, int64_t head_stride, int block_tokens,
                          int row_bytes, int code_bytes, int kind, const void* keys,
                          const void* values, int64_t keys_stride, int64_t values_stride,
                          const int64_t* slots, const float* key_map,
                          const float* key_bias, const uint8_t* key_codes, int count,
                          int kv_heads) {
  if (8 * code_bytes > kMaxBits) return 1;
  const View view{static_cast<uint8_t*>(cache), block_stride, head_stride,
                  block_tokens, row_bytes, code_bytes};
  const Store step{view,    keys,     values,    keys_stride, values_stride, slots,
                   key_map, key_bias, key_codes, kind,        count,         kv_heads};
  return dispatch(level, dtype, head_dim, step);
}

// Dense causal attention of the last `count` tokens of one sequence, which has `before`
// tokens before them; all are in the cache.
EXPORT int hashattn_prefill(int level, int dtype, int head_dim, void* cache,
                            int64_t block_stride, int64_t head_stride, int block_tokens,
                            int row_bytes, int code_bytes, const void* query, void* out,
                            int64_t query_stride, int64_t out_stride,
                            const int32_t* blocks, int before, int count, int heads,
                            int kv_heads, float scale) {
  const View view{static_cast<uint8_t*>(cache), block_stride, head_stride,
                  block_tokens, row_bytes, code_bytes};
  const Prefill step{view,   query,  out,   query_stride, out_stride, blocks,
                     before, count,  heads, kv_heads,     scale};
  return dispatch(level, dtype, head_dim, step);
}

}  // extern "C"
