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

// Expands sixteen stored elements; int8 codes without their scale.
inline F LoadKv(const uint8_t* p, KvCode code) {
  switch (code) {
    case KvCode::kF32:
      return Load(reinterpret_cast<const float*>(p));
    case KvCode::kBF16:
      return LoadBF16(reinterpret_cast<const uint16_t*>(p));
    case KvCode::kI8:
      break;
  }
  return Convert(LoadI8(reinterpret_cast<const int8_t*>(p)));
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

// Running state of one query: out[PaddedHead], then maximum and sum.
struct Query {
  const float* q;
  float* acc;
  float* largest;
  float* sum;
  int32_t position;
};

// Folds one tile of keys and values (floats, [head_dim][64] and [64][padded]) into a query.
inline void FoldTile(const AttentionItem& item, const Query& query, const float* keys,
                     const float* values, const float* scales, int32_t tile) {
  const int dim = item.kv.head_dim;
  const int padded = static_cast<int>(PaddedHead(dim));
  const int32_t start = tile * kKvBlockTokens;
  const int end =
      query.position - start < kKvBlockTokens - 1 ? query.position - start + 1 : kKvBlockTokens;
  const int32_t oldest = item.window > 0 ? query.position - item.window + 1 : 0;
  const int begin = oldest > start ? oldest - start : 0;
  if (begin >= end) return;

  F score[4] = {Set(0.0f), Set(0.0f), Set(0.0f), Set(0.0f)};
  for (int d = 0; d < dim; ++d) {
    const F q = Set(query.q[d]);
    for (int v = 0; v < 4; ++v)
      score[v] = Fma(q, Load(keys + d * kKvBlockTokens + 16 * v), score[v]);
  }
  F largest = Set(-INFINITY);
  Mask seen[4];
  for (int v = 0; v < 4; ++v) {
    F s = Mul(score[v], Set(item.scale));
    if (scales != nullptr) s = Mul(s, Load(scales + 16 * v));
    if (item.softcap > 0.0f) {
      s = Mul(Set(item.softcap), Tanh(Div(s, Set(item.softcap))));
    }
    const int low = begin - 16 * v < 0 ? 0 : begin - 16 * v > 16 ? 16 : begin - 16 * v;
    const int high = end - 16 * v < 0 ? 0 : end - 16 * v > 16 ? 16 : end - 16 * v;
    seen[v] = Between(low, high);
    score[v] = Select(seen[v], s, Set(-INFINITY));
    largest = Max(score[v], largest);
  }
  const float old_largest = *query.largest;
  const float tile_largest = Largest(largest);
  const float new_largest = tile_largest > old_largest ? tile_largest : old_largest;
  F weight[4];
  F sum = Set(0.0f);
  for (int v = 0; v < 4; ++v) {
    weight[v] = Select(seen[v], Exp(Sub(score[v], Set(new_largest))), Set(0.0f));
    sum = Add(sum, weight[v]);
  }
  const float tile_sum = Sum(sum);
  alignas(64) float weights[kKvBlockTokens];
  for (int v = 0; v < 4; ++v) {
    F w = weight[v];
    if (scales != nullptr) w = Mul(w, Load(scales + kKvBlockTokens + 16 * v));
    Store(weights + 16 * v, w);
  }
  // 0 the first time: the old maximum is -inf.
  alignas(64) float shrink[16];
  Store(shrink, Exp(Set(old_largest - new_largest)));
  *query.largest = new_largest;
  *query.sum = *query.sum * shrink[0] + tile_sum;

  const F factor = Set(shrink[0]);
  int d = 0;
  for (; d + 64 <= padded; d += 64) {
    F acc[4];
    for (int v = 0; v < 4; ++v) acc[v] = Mul(Load(query.acc + d + 16 * v), factor);
    for (int t = begin; t < end; ++t) {
      const F w = Set(weights[t]);
      for (int v = 0; v < 4; ++v) acc[v] = Fma(w, Load(values + t * padded + d + 16 * v), acc[v]);
    }
    for (int v = 0; v < 4; ++v) Store(query.acc + d + 16 * v, acc[v]);
  }
  for (; d < padded; d += 16) {
    F acc = Mul(Load(query.acc + d), factor);
    for (int t = begin; t < end; ++t)
      acc = Fma(Set(weights[t]), Load(values + t * padded + d), acc);
    Store(query.acc + d, acc);
  }
}

inline void Attention(const AttentionItem& item) {
  const int dim = item.kv.head_dim;
  const int64_t padded = PaddedHead(dim);
  const size_t bytes = KvElementBytes(item.kv.code);
  float* keys = item.scratch;
  float* values = keys + kKvBlockTokens * padded;
  float* state = values + kKvBlockTokens * padded;
  const int64_t state_stride = padded + 32;
  const int queries = item.rows * item.heads;
  for (int i = 0; i < queries; ++i) {
    float* acc = state + i * state_stride;
    memset(acc, 0, static_cast<size_t>(padded) * sizeof(float));
    acc[padded] = -INFINITY;
    acc[padded + 1] = 0.0f;
  }
  int32_t first = item.positions[0];
  int32_t last = item.positions[0];
  for (int r = 1; r < item.rows; ++r) {
    if (item.positions[r] > last) last = item.positions[r];
    if (item.positions[r] < first) first = item.positions[r];
  }
  const int32_t oldest =
      item.window > 0 && first - item.window + 1 > 0 ? first - item.window + 1 : 0;
  for (int32_t tile = oldest / kKvBlockTokens; tile <= last / kKvBlockTokens; ++tile) {
    const uint8_t* block = item.kv.base + static_cast<size_t>(item.blocks[tile]) * item.kv.stride;
    for (int64_t i = 0; i < int64_t{dim} * kKvBlockTokens; i += 16) {
      Store(keys + i, LoadKv(block + static_cast<size_t>(i) * bytes, item.kv.code));
    }
    const uint8_t* stored = block + static_cast<size_t>(dim) * kKvBlockTokens * bytes;
    for (int t = 0; t < kKvBlockTokens; ++t) {
      for (int d = 0; d < dim; d += 16) {
        const int lanes = dim - d < 16 ? dim - d : 16;
        const F value = LoadKv(
            stored + (static_cast<size_t>(t) * static_cast<size_t>(dim) + static_cast<size_t>(d)) *
                         bytes,
            item.kv.code);
        Store(values + t * padded + d, Select(Between(0, lanes), value, Set(0.0f)));
      }
    }
    const float* scales = item.kv.code == KvCode::kI8 ? KvScales(item.kv, block) : nullptr;
    for (int i = 0; i < queries; ++i) {
      const int row = i / item.heads;
      float* acc = state + i * state_stride;
      const Query query{item.q + row * item.q_stride + (i % item.heads) * dim, acc, acc + padded,
                        acc + padded + 1, item.positions[row]};
      FoldTile(item, query, keys, values, scales, tile);
    }
  }
  for (int i = 0; i < queries; ++i) {
    const float* acc = state + i * state_stride;
    const F inverse = Set(1.0f / acc[padded + 1]);
    float* out = item.out + (i / item.heads) * item.q_stride + (i % item.heads) * dim;
    for (int d = 0; d < dim; d += 16) {
      StoreN(out + d, Mul(Load(acc + d), inverse), dim - d < 16 ? dim - d : 16);
    }
  }
}
