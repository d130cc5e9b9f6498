// SPDX-License-Identifier: Apache-2.0
// Attention over the block pool, and appending to it. Included inside the namespace of a tier,
// after row_kernels.h.
//
// Softmax is taken online (Milakov and Gimelshein 2018, arXiv 1805.02867) over tiles of 64 keys
// anchored at position 0. What is computed for a query depends on its position only: not on the
// rows beside it, so prefill in any chunks and decoding agree to the bit.
#pragma once

inline size_t KvElementBytes(KvCode code) {
  return code == KvCode::kF32 ? 4 : code == KvCode::kBF16 ? 2 : 1;
}

inline const float* KvScales(const KvHead& kv, const uint8_t* block) {
  return reinterpret_cast<const float*>(block + 2 * KvElementBytes(kv.code) * kKvBlockTokens *
                                                    static_cast<size_t>(kv.head_dim));
}

inline void AppendKv(const KvHead& kv, int64_t block_index, int slot, const float* k,
                     const float* v) {
  uint8_t* block = kv.base + static_cast<size_t>(block_index) * kv.stride;
  const size_t bytes = KvElementBytes(kv.code);
  const auto dim = static_cast<size_t>(kv.head_dim);
  uint8_t* values = block + (kKvBlockTokens + static_cast<size_t>(slot)) * dim * bytes;
  auto* scales = const_cast<float*>(KvScales(kv, block));
  const Magnitude k_size = kv.code == KvCode::kI8 ? Measure(k, kv.head_dim) : Magnitude{0, 0};
  for (int d = 0; d < kv.head_dim; d += 16) {
    const int lanes = kv.head_dim - d < 16 ? kv.head_dim - d : 16;
    const F key = LoadN(k + d, lanes);
    if (kv.code == KvCode::kF32) {
      float out[16];
      Store(out, key);
      for (int i = 0; i < lanes; ++i) {
        reinterpret_cast<float*>(block)[(d + i) * kKvBlockTokens + slot] = out[i];
      }
    } else if (kv.code == KvCode::kBF16) {
      uint16_t out[16];
      StoreBF16(out, key);
      for (int i = 0; i < lanes; ++i) {
        reinterpret_cast<uint16_t*>(block)[(d + i) * kKvBlockTokens + slot] = out[i];
      }
    } else {
      int8_t out[16];
      StoreI8(out, EncodeLanes(key, Set(InverseScale(k_size.absmax))));
      for (int i = 0; i < lanes; ++i) {
        reinterpret_cast<int8_t*>(block)[(d + i) * kKvBlockTokens + slot] = out[i];
      }
    }
  }
  if (kv.code == KvCode::kF32) {
    memcpy(values, v, dim * sizeof(float));
  } else if (kv.code == KvCode::kBF16) {
    WriteBF16(v, kv.head_dim, reinterpret_cast<uint16_t*>(values));
  } else {
    const Magnitude v_size = Measure(v, kv.head_dim);
    EncodeRun(v, kv.head_dim, InverseScale(v_size.absmax), reinterpret_cast<int8_t*>(values));
    scales[slot] = k_size.absmax / 127.0f + k_size.poison;
    scales[kKvBlockTokens + slot] = v_size.absmax / 127.0f + v_size.poison;
  }
}

// One query and its running state: the sum of weighted values, its maximum score, its sum of
// weights.
struct Query {
  const float* q;
  float* acc;  // (PaddedHead)
  float largest;
  float sum;
  int32_t position;
};

// The keys [begin, end) of a tile that a query sees; empty if begin >= end.
struct Span {
  int begin;
  int end;
};
inline Span SeenInTile(const AttentionItem& item, int32_t position, int32_t tile) {
  const int32_t start = tile * kKvBlockTokens;
  const int32_t last = position - start;
  const int32_t oldest = item.window > 0 ? position - item.window + 1 : 0;
  return {oldest > start ? oldest - start : 0,
          last < kKvBlockTokens - 1 ? last + 1 : kKvBlockTokens};
}

// One tile of keys [head_dim][64] and values [64][stride] as stored or, for kF32, as expanded.
struct Tile {
  const uint8_t* keys;
  const uint8_t* values;
  int64_t stride;
  const float* scales;  // of 64 keys and 64 values, or nullptr
  const uint8_t* next;  // keys of the tile to be read after this one, or nullptr: to prefetch
};

template <KvCode kCode>
inline F LoadTile(const uint8_t* tile, int64_t index) {
  if constexpr (kCode == KvCode::kF32) {
    return Load(reinterpret_cast<const float*>(tile) + index);
  } else if constexpr (kCode == KvCode::kBF16) {
    return LoadBF16(reinterpret_cast<const uint16_t*>(tile) + index);
  } else {
    return Convert(LoadI8(reinterpret_cast<const int8_t*>(tile) + index));
  }
}

inline void PrefetchRow(const uint8_t* base, int64_t row, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) Prefetch(base + static_cast<size_t>(row) * bytes + i);
}

// Turns scores of 64 keys into weights and updates the maximum and the sum; returns the factor by
// which what was summed so far shrinks.
inline float Weigh(const AttentionItem& item, const Tile& tile, Span span, const F* score,
                   Query& query, float* weights) {
  F masked[4];
  Mask seen[4];
  F largest = Set(-INFINITY);
  for (int v = 0; v < 4; ++v) {
    F s = Mul(score[v], Set(item.scale));
    if (tile.scales != nullptr) s = Mul(s, Load(tile.scales + 16 * v));
    if (item.softcap > 0.0f) s = Mul(Set(item.softcap), Tanh(Div(s, Set(item.softcap))));
    const int low = span.begin - 16 * v < 0    ? 0
                    : span.begin - 16 * v > 16 ? 16
                                               : span.begin - 16 * v;
    const int high = span.end - 16 * v < 0 ? 0 : span.end - 16 * v > 16 ? 16 : span.end - 16 * v;
    seen[v] = Between(low, high);
    masked[v] = Select(seen[v], s, Set(-INFINITY));
    largest = Max(masked[v], largest);
  }
  const float tile_largest = Largest(largest);
  const float new_largest = tile_largest > query.largest ? tile_largest : query.largest;
  F sum = Set(0.0f);
  for (int v = 0; v < 4; ++v) {
    const F weight = Select(seen[v], Exp(Sub(masked[v], Set(new_largest))), Set(0.0f));
    sum = Add(sum, weight);
    Store(weights + 16 * v, tile.scales != nullptr
                                ? Mul(weight, Load(tile.scales + kKvBlockTokens + 16 * v))
                                : weight);
  }
  // 0 the first time: the old maximum is -inf.
  alignas(64) float shrink[16];
  Store(shrink, Exp(Set(query.largest - new_largest)));
  query.largest = new_largest;
  query.sum = query.sum * shrink[0] + Sum(sum);
  return shrink[0];
}

// acc = acc * shrink + sum over t of weights[t] * values[t], 16 * kVectors elements from d on.
template <int kQueries, int kVectors, KvCode kCode>
inline void AddValues(const Tile& tile, Span span, int64_t d, const float* weights,
                      const float* shrink, Query* queries) {
  F acc[kQueries][kVectors];
  for (int i = 0; i < kQueries; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = Mul(Load(queries[i].acc + d + 16 * v), Set(shrink[i]));
    }
  }
  for (int t = span.begin; t < span.end; ++t) {
    F value[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      value[v] = LoadTile<kCode>(tile.values, t * tile.stride + d + 16 * v);
    }
    if (tile.next != nullptr)
      PrefetchRow(tile.next + d * kKvBlockTokens * KvElementBytes(kCode), t,
                  16 * kVectors * KvElementBytes(kCode));
    for (int i = 0; i < kQueries; ++i) {
      const F weight = Set(weights[i * kKvBlockTokens + t]);
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(weight, value[v], acc[i][v]);
    }
  }
  for (int i = 0; i < kQueries; ++i) {
    for (int v = 0; v < kVectors; ++v) Store(queries[i].acc + d + 16 * v, acc[i][v]);
  }
}

// Folds a tile into kQueries queries that see the same span of it.
template <int kQueries, KvCode kCode>
inline void FoldTile(const AttentionItem& item, const Tile& tile, Span span, Query* queries) {
  const int dim = item.kv.head_dim;
  F score[kQueries][4];
  for (int i = 0; i < kQueries; ++i) {
    for (int v = 0; v < 4; ++v) score[i][v] = Set(0.0f);
  }
  for (int d = 0; d < dim; ++d) {
    F key[4];
    for (int v = 0; v < 4; ++v) key[v] = LoadTile<kCode>(tile.keys, d * kKvBlockTokens + 16 * v);
    if (tile.next != nullptr) PrefetchRow(tile.values, d, kKvBlockTokens * KvElementBytes(kCode));
    for (int i = 0; i < kQueries; ++i) {
      const F q = Set(queries[i].q[d]);
      for (int v = 0; v < 4; ++v) score[i][v] = Fma(q, key[v], score[i][v]);
    }
  }
  alignas(64) float weights[kQueries * kKvBlockTokens];
  float shrink[kQueries];
  for (int i = 0; i < kQueries; ++i) {
    shrink[i] = Weigh(item, tile, span, score[i], queries[i], weights + i * kKvBlockTokens);
  }
  const int64_t padded = PaddedHead(dim);
  int64_t d = 0;
  for (; d + 64 <= padded; d += 64) {
    AddValues<kQueries, 4, kCode>(tile, span, d, weights, shrink, queries);
  }
  for (; d < padded; d += 16) {
    AddValues<kQueries, 1, kCode>(tile, span, d, weights, shrink, queries);
  }
}

template <KvCode kCode>
inline void FoldQueries(const AttentionItem& item, const Tile& tile, int32_t tile_index,
                        Query* queries, int count) {
  for (int i = 0; i < count;) {
    const Span span = SeenInTile(item, queries[i].position, tile_index);
    int same = 1;
    while (same < kAttentionQueries && i + same < count) {
      const Span next = SeenInTile(item, queries[i + same].position, tile_index);
      if (next.begin != span.begin || next.end != span.end) break;
      ++same;
    }
    if (span.begin < span.end) {
      WithRows<kAttentionQueries>(same, [&](auto size) {
        FoldTile<decltype(size)::value, kCode>(item, tile, span, queries + i);
      });
    }
    i += same;
  }
}

// Expands a stored block to floats: keys as they lie, values in rows of PaddedHead.
template <KvCode kCode>
inline void ExpandBlock(const Tile& stored, int dim, float* keys, float* values) {
  for (int64_t i = 0; i < int64_t{dim} * kKvBlockTokens; i += 16) {
    Store(keys + i, LoadTile<kCode>(stored.keys, i));
  }
  const int64_t padded = PaddedHead(dim);
  for (int64_t t = 0; t < kKvBlockTokens; ++t) {
    for (int d = 0; d < dim; d += 16) {
      const Mask inside = Between(0, dim - d < 16 ? dim - d : 16);
      const F value = LoadTile<kCode>(stored.values, t * dim + d);
      Store(values + t * padded + d, Select(inside, value, Set(0.0f)));
    }
  }
}

template <KvCode kCode>
inline void AttendTiles(const AttentionItem& item, int32_t first, int32_t last, Query* queries,
                        int count) {
  const int dim = item.kv.head_dim;
  float* keys = item.scratch;
  float* values = keys + kKvBlockTokens * PaddedHead(dim);
  // Worth it when several groups of queries read the tile; needed where rows have a tail.
  const bool expand = (count > kAttentionQueries && kCode != KvCode::kF32) || dim % 16 != 0;
  for (int32_t index = first; index <= last; ++index) {
    const uint8_t* block = item.kv.base + static_cast<size_t>(item.blocks[index]) * item.kv.stride;
    const int64_t following = item.blocks[index < last ? index + 1 : index];
    const Tile stored{block,
                      block + static_cast<size_t>(dim) * kKvBlockTokens * KvElementBytes(kCode),
                      dim, kCode == KvCode::kI8 ? KvScales(item.kv, block) : nullptr,
                      item.kv.base + static_cast<size_t>(following) * item.kv.stride};
    if (expand) {
      ExpandBlock<kCode>(stored, dim, keys, values);
      const Tile expanded{reinterpret_cast<const uint8_t*>(keys),
                          reinterpret_cast<const uint8_t*>(values), PaddedHead(dim), stored.scales,
                          nullptr};
      FoldQueries<KvCode::kF32>(item, expanded, index, queries, count);
    } else {
      FoldQueries<kCode>(item, stored, index, queries, count);
    }
  }
}

inline void Attention(const AttentionItem& item) {
  const int dim = item.kv.head_dim;
  const int64_t padded = PaddedHead(dim);
  float* acc = item.scratch + 2 * kKvBlockTokens * padded;
  Query queries[kMaxAttentionQueries];
  const int count = item.rows * item.heads;
  memset(acc, 0, static_cast<size_t>(count * padded) * sizeof(float));
  int32_t newest = item.positions[0];
  int32_t oldest = item.positions[0];
  for (int i = 0; i < count; ++i) {
    const int row = i / item.heads;
    const int32_t position = item.positions[row];
    queries[i] = Query{item.q + row * item.q_stride + (i % item.heads) * dim, acc + i * padded,
                       -INFINITY, 0.0f, position};
    if (position > newest) newest = position;
    if (position < oldest) oldest = position;
  }
  oldest = item.window > 0 && oldest >= item.window ? oldest - item.window + 1 : 0;
  const int32_t first = oldest / kKvBlockTokens;
  const int32_t last = newest / kKvBlockTokens;
  switch (item.kv.code) {
    case KvCode::kF32:
      AttendTiles<KvCode::kF32>(item, first, last, queries, count);
      break;
    case KvCode::kBF16:
      AttendTiles<KvCode::kBF16>(item, first, last, queries, count);
      break;
    case KvCode::kI8:
      AttendTiles<KvCode::kI8>(item, first, last, queries, count);
      break;
  }
  for (int i = 0; i < count; ++i) {
    const F inverse = Set(1.0f / queries[i].sum);
    float* out = item.out + (i / item.heads) * item.q_stride + (i % item.heads) * dim;
    for (int d = 0; d < dim; d += 16) {
      StoreN(out + d, Mul(Load(queries[i].acc + d), inverse), dim - d < 16 ? dim - d : 16);
    }
  }
}
