// SPDX-License-Identifier: Apache-2.0
// Attention over the block pool. Included inside the namespace of a tier, after kv_kernels.h.
//
// Softmax is taken online (Milakov and Gimelshein 2018, arXiv 1805.02867) over tiles of 64 keys
// anchored at position 0. What is computed for a query depends on its position only: not on the
// rows beside it, so prefill in any chunks and decoding agree to the bit.
#pragma once

// Bytes of an element of a tile that is read where it lies.
constexpr size_t ElementBytes(KvCode code) { return static_cast<size_t>(KvCodeBits(code) / 8); }

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
  const float* key_scales;    // (64) or nullptr
  const float* value_scales;  // (64) or nullptr
  const uint8_t* next;        // keys of the tile to be read after this one, or nullptr: to prefetch
};

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
    if (tile.key_scales != nullptr) s = Mul(s, Load(tile.key_scales + 16 * v));
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
    Store(weights + 16 * v,
          tile.value_scales != nullptr ? Mul(weight, Load(tile.value_scales + 16 * v)) : weight);
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
      PrefetchRow(tile.next + d * kKvBlockTokens * ElementBytes(kCode), t,
                  16 * kVectors * ElementBytes(kCode));
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
    if (tile.next != nullptr) PrefetchRow(tile.values, d, kKvBlockTokens * ElementBytes(kCode));
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

// Scales of whole entries, which attention applies to scores and weights.
inline const float* EntryScales(KvCode code, const uint8_t* scales) {
  return code == KvCode::kFp8 || code == KvCode::kInt8 ? reinterpret_cast<const float*>(scales)
                                                       : nullptr;
}

template <KvCode kKey, KvCode kValue>
inline void AttendTiles(const AttentionItem& item, int32_t first, int32_t last, Query* queries,
                        int count) {
  const int dim = item.kv.head_dim;
  float* keys = item.scratch;
  float* values = keys + kKvBlockTokens * PaddedHead(dim);
  // Tiles of one code of whole bytes can be read where they lie. Expanding is worth it when several
  // groups of queries read the tile, and needed where rows have a tail.
  constexpr bool kDirect = kKey == kValue && KvCodeBits(kKey) % 8 == 0;
  const bool expand =
      !kDirect || (count > kAttentionQueries && kKey != KvCode::kF32) || dim % 16 != 0;
  for (int32_t index = first; index <= last; ++index) {
    const KvBlock block = BlockOf(item.kv, item.blocks[index]);
    Tile tile{block.keys,
              block.values,
              dim,
              EntryScales(kKey, block.key_scales),
              EntryScales(kValue, block.value_scales),
              BlockOf(item.kv, item.blocks[index < last ? index + 1 : index]).keys};
    if (expand) {
      ExpandKeys<kKey>(block, dim, keys);
      ExpandValues<kValue>(block, dim, values);
      tile.keys = reinterpret_cast<const uint8_t*>(keys);
      tile.values = reinterpret_cast<const uint8_t*>(values);
      tile.stride = PaddedHead(dim);
      tile.next = nullptr;
      FoldQueries<KvCode::kF32>(item, tile, index, queries, count);
    } else if constexpr (kDirect) {
      FoldQueries<kKey>(item, tile, index, queries, count);
    }
  }
}

// The instance for the pool's row of kKvFormats.
template <size_t... kRows>
inline void AttendFormat(std::index_sequence<kRows...>, const AttentionItem& item, int32_t first,
                         int32_t last, Query* queries, int count) {
  const auto attend = [&](auto row) {
    constexpr KvFormat kFormat = kKvFormats[decltype(row)::value];
    if (item.kv.format->k != kFormat.k || item.kv.format->v != kFormat.v) return;
    AttendTiles<kFormat.k, kFormat.v>(item, first, last, queries, count);
  };
  (attend(std::integral_constant<size_t, kRows>{}), ...);
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
  AttendFormat(std::make_index_sequence<std::size(kKvFormats)>{}, item, first, last, queries,
               count);
  for (int i = 0; i < count; ++i) {
    const F inverse = Set(1.0f / queries[i].sum);
    float* out = item.out + (i / item.heads) * item.q_stride + (i % item.heads) * dim;
    for (int d = 0; d < dim; d += 16) {
      StoreN(out + d, Mul(Load(queries[i].acc + d), inverse), dim - d < 16 ? dim - d : 16);
    }
  }
}
