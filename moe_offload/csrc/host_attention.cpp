// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
//
// Attention of new tokens over a paged KV cache in host memory, for x86-64 CPUs.
//
// The library depends on no version of Python or torch. OpenMP is compiled in but not
// linked: the threads are those of the library that the process has loaded already.
//
// The cache is [blocks, kv_heads, block_tokens, 2 * head_dim]: a row is a token's key
// and then its value, and the rows of a block and head lie side by side.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

struct Bf16 { uint16_t bits; };
struct Half { uint16_t bits; };

constexpr int kMaxGroup = 16, kMaxDim = 256;
constexpr int kChunk = 512;    // tokens of a part of a long sequence
constexpr int kPerThread = 4;  // parts of the work that a thread takes in turn, at least

int chunks_of(int tokens) { return (tokens + kChunk - 1) / kChunk; }

// Tokens of a sequence and KV head; their attention is at `found` where it is shared.
struct Piece {
  int sequence, kv_head, first, last;
  float* found;
};

// Attention over some tokens: for each head of a group the largest product, the sum of
// weights relative to it, and the weighted sum of values.
struct Partial {
  float *top, *total, *sums;

  Partial(float* memory, int group)
      : top(memory), total(memory + group), sums(memory + 2 * group) {}
  void clear(int group, int dim) const {
    std::fill(top, total, -INFINITY);
    std::fill(total, sums + group * dim, 0.0f);
  }
};

// What native.py declares too. Strides are in elements.
struct Decode {
  const void *queries, *cache;
  void* results;
  const int32_t *blocks, *lengths;
  int64_t query_stride, blocks_stride, cache_blocks;
  int32_t dtype;  // 0 float32, 1 bfloat16, 2 float16
  int32_t sequences, heads, kv_heads, head_dim, block_tokens;
  float scale;

  int group() const { return heads / kv_heads; }
  size_t partial_size() const { return static_cast<size_t>(group()) * (head_dim + 2); }
  Piece chunk(const Piece& piece, int number) const {
    return {piece.sequence, piece.kv_head, number * kChunk,
            std::min((number + 1) * kChunk, piece.last),
            piece.found ? piece.found + number * partial_size() : nullptr};
  }
  template <typename T>
  const T* query(const Piece& piece, int number) const {
    return static_cast<const T*>(queries) + piece.sequence * query_stride +
           (piece.kv_head * group() + number) * head_dim;
  }
  template <typename T>
  T* result(const Piece& piece, int number) const {
    const int64_t first = static_cast<int64_t>(piece.sequence) * heads;
    return static_cast<T*>(results) +
           (first + piece.kv_head * group() + number) * head_dim;
  }
  template <typename T>
  const T* row(const Piece& piece, int token) const {
    const int64_t block = blocks[piece.sequence * blocks_stride + token / block_tokens];
    const int64_t row = (block * kv_heads + piece.kv_head) * block_tokens;
    return static_cast<const T*>(cache) + (row + token % block_tokens) * 2 * head_dim;
  }
  // The first sequence with a block that is not in the cache, or -1.
  int misplaced() const {
    for (int s = 0; s < sequences; ++s)
      for (int64_t b = 0; b * block_tokens < lengths[s]; ++b) {
        const int32_t block = blocks[s * blocks_stride + b];
        if (block < 0 || block >= cache_blocks) return s;
      }
    return -1;
  }
};

// What the threads do. Sequences that would keep one thread too long are shared.
struct Plan {
  int threads;
  std::vector<Piece> pieces, shared;
  std::vector<std::vector<float>> found;

  Plan(const Decode& step, int asked) : threads(asked ? asked : omp_get_max_threads()) {
    int64_t all = 0;
    for (int s = 0; s < step.sequences; ++s) all += chunks_of(step.lengths[s]);
    const int64_t most = threads > 1 ? all * step.kv_heads / (kPerThread * threads) : all;
    for (int s = 0; s < step.sequences; ++s)
      for (int head = 0; head < step.kv_heads; ++head) {
        const int tokens = step.lengths[s], chunks = chunks_of(tokens);
        if (chunks <= std::max<int64_t>(most, 1)) {
          pieces.push_back({s, head, 0, tokens, nullptr});
          continue;
        }
        found.emplace_back(chunks * step.partial_size());
        shared.push_back({s, head, 0, tokens, found.back().data()});
        for (int c = 0; c < chunks; ++c) pieces.push_back(step.chunk(shared.back(), c));
      }
    // The longest first, so that no thread is left with one at the end.
    std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) {
      return a.last - a.first > b.last - b.first;
    });
  }
};

#define LEVEL 3
#include "decode.inc"
#define LEVEL 2
#include "decode.inc"
#define LEVEL 1
#include "decode.inc"
#define LEVEL 0
#include "decode.inc"

#define HAS(name) __builtin_cpu_supports(name)

// CPUs with AVX2 and FMA have F16C, which older compilers cannot ask for.
int best() {
  __builtin_cpu_init();
  if (!HAS("avx2") || !HAS("fma")) return 0;
  if (!HAS("avx512f") || !HAS("avx512bw") || !HAS("avx512vl")) return 1;
  return HAS("avx512bf16") ? 3 : 2;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Best of this CPU: 0 portable, 1 AVX2, 2 AVX-512, 3 with BF16.
EXPORT int moe_offload_level() { return best(); }

// level: the instruction set at most, -1 the best. threads: 0 as many as OpenMP takes.
// Returns -1, or the first sequence with a block that is not in the cache.
EXPORT int moe_offload_decode(const Decode* step, int level, int threads) {
  const int wrong = step->misplaced();
  if (wrong >= 0) return wrong;
  const Plan plan(*step, threads);
  const int chosen = level < 0 ? best() : std::min(level, best());
  if (chosen == 3) avx512bf16::decode(*step, plan);
  else if (chosen == 2) avx512::decode(*step, plan);
  else if (chosen == 1) avx2::decode(*step, plan);
  else portable::decode(*step, plan);
  return -1;
}

// Writes keys of `size` bytes into slots, which are block * block_tokens + offset; below
// 0: none. Likewise values, with `cache` behind the first key. The stride is in bytes.
EXPORT void moe_offload_store(const char* from, int64_t stride, int64_t size, char* cache,
                              int kv_heads, int block_tokens, const int64_t* slots,
                              int64_t tokens) {
#pragma omp parallel for schedule(static) if (tokens > 64)
  for (int64_t t = 0; t < tokens; ++t) {
    if (slots[t] < 0) continue;
    const int64_t block = slots[t] / block_tokens, offset = slots[t] % block_tokens;
    for (int head = 0; head < kv_heads; ++head) {
      const int64_t row = (block * kv_heads + head) * block_tokens + offset;
      std::memcpy(cache + 2 * row * size, from + t * stride + head * size, size);
    }
  }
}
