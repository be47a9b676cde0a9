// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
//
// Decode attention over chosen tokens of a paged KV cache, for x86-64 CPUs.
//
// A plain C interface: the library depends on no version of Python or torch. OpenMP is
// compiled in but not linked, so that the threads are those of the OpenMP library that
// the process has loaded already.
//
// One cell of the cache, for a block and a KV head: block_tokens rows of a key and its
// value, side by side, then block_tokens codes. Rules for bits, choice and ties are
// those of codes.py and selection.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
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

struct Scratch {
  std::vector<uint16_t> distances;
  std::vector<int32_t> histogram, positions;

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
  const float *query_map, *query_bias;
  const int32_t* blocks;
  int64_t blocks_stride;
  const int32_t *tokens, *chosen;
  int sequences, heads, kv_heads;
  float scale;
};

struct Store {
  View cache;
  const void *keys, *values;
  int64_t keys_stride, values_stride;  // elements
  const int64_t* slots;
  const float *key_map, *key_bias;
  int count, kv_heads;
};

namespace portable {
#include "kernels.inc"
}

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt")
namespace avx2 {
#include "kernels.inc"
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,prefer-vector-width=512")
namespace avx512 {
#include "kernels.inc"
}
#pragma GCC pop_options
#endif

int best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vpopcntdq");
  if (wide) return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt"))
    return 1;
#endif
  return 0;
}

template <typename Step>
int dispatch(int level, int dtype, int head_dim, const Step& step,
             bool (*plain)(int, int, const Step&), bool (*half)(int, int, const Step&),
             bool (*full)(int, int, const Step&)) {
  const int chosen = level < 0 ? best() : std::min(level, best());
  const auto run = chosen == 2 ? full : chosen == 1 ? half : plain;
  return run(dtype, head_dim, step) ? 0 : 1;
}

}  // namespace

#define EXPORT __attribute__((visibility("default")))

extern "C" {

// Best instruction set of this CPU: 0 portable, 1 AVX2, 2 AVX-512 with VPOPCNTDQ.
EXPORT int hashattn_level() { return best(); }

// Reads at most chosen[i] tokens of sequence i. query_map: float32 [heads, head_dim,
// bits], with query_bias, float32 [heads, bits]; null where every sequence is read
// whole. Returns 1 for a dtype or head size without a
// kernel, else 0. dtype: 0 float32, 1 bfloat16, 2 float16. level: -1 the best.
EXPORT int hashattn_decode(int level, int dtype, int head_dim, void* cache,
                    int64_t block_stride, int64_t head_stride, int block_tokens,
                    int row_bytes, int code_bytes, int sink, int recent,
                    const void* query, void* out, const float* query_map,
                    const float* query_bias, const int32_t* blocks, int64_t blocks_stride,
                    const int32_t* tokens, const int32_t* chosen, int sequences,
                    int heads, int kv_heads, float scale) {
  if (heads / kv_heads > kMaxGroup || 8 * code_bytes > kMaxBits) return 1;
  const View view{static_cast<uint8_t*>(cache), block_stride, head_stride,
                  block_tokens, row_bytes, code_bytes};
  const Decode step{view,       {sink, recent}, query,  out,    query_map,
                    query_bias, blocks,         blocks_stride,  tokens, chosen,
                    sequences,  heads,          kv_heads,       scale};
#if defined(__x86_64__)
  return dispatch<Decode>(level, dtype, head_dim, step, portable::run_decode,
                          avx2::run_decode, avx512::run_decode);
#else
  return portable::run_decode(dtype, head_dim, step) ? 0 : 1;
#endif
}

// Writes `count` keys and values into their slots (below 0: none), and codes if there is
// a key_map, float32 [kv_heads, head_dim, bits], with key_bias, float32 [kv_heads, bits].
EXPORT int hashattn_store(int level, int dtype, int head_dim, void* cache,
                   int64_t block_stride, int64_t head_stride, int block_tokens,
                   int row_bytes, int code_bytes, const void* keys, const void* values,
                   int64_t keys_stride, int64_t values_stride, const int64_t* slots,
                   const float* key_map, const float* key_bias, int count,
                   int kv_heads) {
  if (8 * code_bytes > kMaxBits) return 1;
  const View view{static_cast<uint8_t*>(cache), block_stride, head_stride,
                  block_tokens, row_bytes, code_bytes};
  const Store step{view,  keys,    values,   keys_stride, values_stride,
                   slots, key_map, key_bias, count,       kv_heads};
#if defined(__x86_64__)
  return dispatch<Store>(level, dtype, head_dim, step, portable::run_store,
                         avx2::run_store, avx512::run_store);
#else
  return portable::run_store(dtype, head_dim, step) ? 0 : 1;
#endif
}

}  // extern "C"
