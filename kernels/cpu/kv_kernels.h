// SPDX-License-Identifier: Apache-2.0
// A block of the KV cache: where its codes lie, how they are written and how they are expanded to
// floats. Included inside the namespace of a tier, after row_kernels.h.
//
// One layer and kv head of a block is
//
//   codes of K, transposed: unit u of the entry of token t at u * 64 + t. A unit is an element, or
//   for int4 a byte of the packed entry.
//   codes of V: the entries of 64 tokens one after the other.
//   scales of K, then of V: [group][64] f32, or for int4 [group] of 64 bf16 scales and 64 bf16
//   lows.
#pragma once

struct KvBlock {
  uint8_t* keys;
  uint8_t* values;
  uint8_t* key_scales;
  uint8_t* value_scales;
};

inline KvBlock BlockOf(const KvHead& kv, int64_t index) {
  constexpr int64_t kTokens = kKvBlockTokens;
  uint8_t* keys = kv.base + static_cast<size_t>(index) * kv.stride;
  uint8_t* values = keys + kTokens * KvCodeBytes(kv.format->k, kv.head_dim);
  uint8_t* key_scales = values + kTokens * KvCodeBytes(kv.format->v, kv.head_dim);
  return {keys, values, key_scales, key_scales + kTokens * KvScaleBytes(kv.format->k, kv.head_dim)};
}

// The entry of the token in `slot`: its codes one after the other to `codes`, its scales to their
// places in `scales`.
inline void EncodeEntry(KvCode code, const float* x, int dim, int slot, uint8_t* codes,
                        uint8_t* scales) {
  switch (code) {
    case KvCode::kF32:
      memcpy(codes, x, static_cast<size_t>(dim) * sizeof(float));
      break;
    case KvCode::kBF16:
      WriteBF16(x, dim, reinterpret_cast<uint16_t*>(codes));
      break;
    case KvCode::kFp8:
      reinterpret_cast<float*>(scales)[slot] = EncodeFp8Entry(x, dim, codes);
      break;
    case KvCode::kInt8: {
      const Magnitude size = Measure(x, dim);
      EncodeRun(x, dim, InverseScale(size.absmax), reinterpret_cast<int8_t*>(codes));
      reinterpret_cast<float*>(scales)[slot] = size.absmax / 127.0f + size.poison;
      break;
    }
    case KvCode::kInt4: {
      KvInt4Scale groups[kMaxHeadDim / kKvInt4Group];
      EncodeInt4Entry(x, dim, codes, groups);
      auto* planes = reinterpret_cast<uint16_t*>(scales);
      for (int64_t g = 0; g < KvGroups(code, dim); ++g) {
        planes[(2 * g) * kKvBlockTokens + slot] = groups[g].scale;
        planes[(2 * g + 1) * kKvBlockTokens + slot] = groups[g].low;
      }
      break;
    }
  }
}

template <typename Unit>
inline void Transpose(const uint8_t* entry, int64_t units, int slot, uint8_t* keys) {
  for (int64_t u = 0; u < units; ++u) {
    reinterpret_cast<Unit*>(keys)[u * kKvBlockTokens + slot] =
        reinterpret_cast<const Unit*>(entry)[u];
  }
}

inline void AppendKv(const KvHead& kv, int64_t block_index, int slot, const float* k,
                     const float* v) {
  const KvBlock block = BlockOf(kv, block_index);
  const int dim = kv.head_dim;
  alignas(64) uint8_t entry[kMaxHeadDim * sizeof(float)];
  EncodeEntry(kv.format->k, k, dim, slot, entry, block.key_scales);
  switch (kv.format->k) {
    case KvCode::kF32:
      Transpose<float>(entry, dim, slot, block.keys);
      break;
    case KvCode::kBF16:
      Transpose<uint16_t>(entry, dim, slot, block.keys);
      break;
    case KvCode::kFp8:
    case KvCode::kInt8:
    case KvCode::kInt4:
      Transpose<uint8_t>(entry, KvCodeBytes(kv.format->k, dim), slot, block.keys);
      break;
  }
  uint8_t* values = block.values + slot * KvCodeBytes(kv.format->v, dim);
  EncodeEntry(kv.format->v, v, dim, slot, values, block.value_scales);
}

// Sixteen elements as they are stored: without the scale where there is one per entry.
template <KvCode kCode>
inline F LoadTile(const uint8_t* tile, int64_t index) {
  if constexpr (kCode == KvCode::kF32) {
    return Load(reinterpret_cast<const float*>(tile) + index);
  } else if constexpr (kCode == KvCode::kBF16) {
    return LoadBF16(reinterpret_cast<const uint16_t*>(tile) + index);
  } else if constexpr (kCode == KvCode::kFp8) {
    return LoadE4M3(tile + index);
  } else {
    static_assert(kCode == KvCode::kInt8);
    return Convert(LoadI8(reinterpret_cast<const int8_t*>(tile) + index));
  }
}

// Calls body(byte of the entry, first element of its low nibbles, of its high ones, how many of
// each) for every run of a packed entry.
template <typename Body>
inline void ForInt4Runs(int dim, Body&& body) {
  for (int begin = 0; begin < dim; begin += kInt4Run) {
    const int run = dim - begin < kInt4Run ? dim - begin : kInt4Run;
    const int half = (run + 1) / 2;
    body(begin / 2, begin, begin + half, half, run - half);
  }
}

// Keys of a block to floats [head_dim][64].
template <KvCode kCode>
inline void ExpandKeys(const KvBlock& block, int dim, float* keys) {
  if constexpr (kCode == KvCode::kInt4) {
    const auto* planes = reinterpret_cast<const uint16_t*>(block.key_scales);
    ForInt4Runs(dim, [&](int byte, int low, int high, int lows, int highs) {
      const uint16_t* scales = planes + 2 * (low / kKvInt4Group) * kKvBlockTokens;
      for (int t = 0; t < kKvBlockTokens; t += 16) {
        const F scale = LoadBF16(scales + t);
        const F lowest = LoadBF16(scales + kKvBlockTokens + t);
        for (int j = 0; j < lows; ++j) {
          const I codes = LoadU8(block.keys + (byte + j) * kKvBlockTokens + t);
          Store(keys + (low + j) * kKvBlockTokens + t,
                Fma(Convert(LowNibble(codes)), scale, lowest));
          if (j < highs) {
            Store(keys + (high + j) * kKvBlockTokens + t,
                  Fma(Convert(HighNibble(codes)), scale, lowest));
          }
        }
      }
    });
  } else {
    for (int64_t i = 0; i < int64_t{dim} * kKvBlockTokens; i += 16) {
      Store(keys + i, LoadTile<kCode>(block.keys, i));
    }
  }
}

// Values of a block to floats, rows of PaddedHead with zeros behind.
template <KvCode kCode>
inline void ExpandValues(const KvBlock& block, int dim, float* values) {
  const int64_t padded = PaddedHead(dim);
  if constexpr (kCode == KvCode::kInt4) {
    const auto* planes = reinterpret_cast<const uint16_t*>(block.value_scales);
    const int64_t bytes = KvCodeBytes(kCode, dim);
    alignas(64) float scale[kKvBlockTokens];
    alignas(64) float lowest[kKvBlockTokens];
    ForInt4Runs(dim, [&](int byte, int low, int high, int lows, int highs) {
      const uint16_t* scales = planes + 2 * (low / kKvInt4Group) * kKvBlockTokens;
      for (int t = 0; t < kKvBlockTokens; t += 16) {
        Store(scale + t, LoadBF16(scales + t));
        Store(lowest + t, LoadBF16(scales + kKvBlockTokens + t));
      }
      for (int t = 0; t < kKvBlockTokens; ++t) {
        // Reads up to 15 bytes beyond the entry: of the next one or of the scales.
        const I codes = LoadU8(block.values + t * bytes + byte);
        float* row = values + t * padded;
        StoreN(row + low, Fma(Convert(LowNibble(codes)), Set(scale[t]), Set(lowest[t])), lows);
        StoreN(row + high, Fma(Convert(HighNibble(codes)), Set(scale[t]), Set(lowest[t])), highs);
      }
    });
    for (int64_t t = 0; t < kKvBlockTokens; ++t) {
      StoreN(values + t * padded + dim, Set(0.0f), static_cast<int>(padded - dim));
    }
  } else {
    for (int64_t t = 0; t < kKvBlockTokens; ++t) {
      for (int d = 0; d < dim; d += 16) {
        const Mask inside = Between(0, dim - d < 16 ? dim - d : 16);
        const F value = LoadTile<kCode>(block.values, t * dim + d);
        Store(values + t * padded + d, Select(inside, value, Set(0.0f)));
      }
    }
  }
}
