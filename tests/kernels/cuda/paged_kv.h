// SPDX-License-Identifier: Apache-2.0
// Sequences in a paged KV cache on the device: filled by LaunchRopeAppend, read back by the layout
// that kernels/cuda/kv_layout.h documents.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/kv_codec.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"

namespace nibble::testing {

struct TestSequence {
  int32_t context;  // tokens in the cache after the step
  int32_t tokens;   // of the step: the last ones of the context
};

// A BatchView in device memory. Block b of sequence s is table[s][b].
class BatchOnDevice {
 public:
  BatchOnDevice(const std::vector<TestSequence>& sequences,
                const std::vector<std::vector<int32_t>>& table) {
    std::vector<int32_t> positions, row_sequence, start = {0}, context, blocks;
    for (const auto& row : table) {
      view_.max_blocks = std::max(view_.max_blocks, static_cast<int32_t>(row.size()));
    }
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto [length, tokens] = sequences[s];
      for (int32_t t = length - tokens; t < length; ++t) {
        positions.push_back(t);
        row_sequence.push_back(static_cast<int32_t>(s));
      }
      start.push_back(static_cast<int32_t>(positions.size()));
      context.push_back(length);
      for (int32_t b = 0; b < view_.max_blocks; ++b) {
        const auto i = static_cast<size_t>(b);
        blocks.push_back(i < table[s].size() ? table[s][i] : -1);
      }
      view_.max_query = std::max(view_.max_query, tokens);
    }
    view_.rows = static_cast<int32_t>(positions.size());
    view_.sequences = static_cast<int32_t>(sequences.size());
    for (const auto& array : {positions, row_sequence, start, context, blocks}) {
      arrays_.emplace_back(array);
    }
    view_.positions = arrays_[0].data();
    view_.row_sequence = arrays_[1].data();
    view_.query_start = arrays_[2].data();
    view_.context_length = arrays_[3].data();
    view_.block_table = arrays_[4].data();
  }
  const BatchView& view() const { return view_; }

 private:
  BatchView view_;
  std::vector<OnDevice<int32_t>> arrays_;
};

class PagedKv {
 public:
  static constexpr int32_t kLayers = 2, kLayer = 1;

  // Room for sequences of these lengths; blocks are handed out in an order of `seed`. What is not
  // appended is NaN, or the code of all ones.
  PagedKv(const KvFormat& format, int32_t kv_heads, int32_t head_dim,
          const std::vector<int32_t>& lengths, uint32_t seed = 1)
      : spec_{&format, kLayers, kv_heads, head_dim}, pool_bytes_(MakePool(lengths)) {
    std::vector<int32_t> blocks(static_cast<size_t>(pool_.num_blocks));
    for (size_t b = 0; b < blocks.size(); ++b) blocks[b] = static_cast<int32_t>(b);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(seed));
    for (const int32_t length : lengths) {
      table_.emplace_back();
      for (int32_t at = 0; at < length; at += kKvBlockTokens) {
        table_.back().push_back(blocks.back());
        blocks.pop_back();
      }
    }
  }
  const KvPool& pool() const { return pool_; }
  const std::vector<std::vector<int32_t>>& table() const { return table_; }

  // Appends the rows' keys and values (kv_heads * head_dim each) without rotating.
  void Append(const std::vector<TestSequence>& sequences, const std::vector<float>& keys,
              const std::vector<float>& values) {
    const BatchOnDevice batch(sequences, table_);
    const OnDevice<float> k(keys), v(values);
    RopeAppendArgs args{};
    args.batch = &batch.view();
    args.k.data = k.data();
    args.v.data = v.data();
    args.kv = &pool_;
    args.layer = kLayer;
    LaunchRopeAppend(TestDevice(), args);
    Download();
  }
  // What Entry reads.
  void Download() { bytes_ = pool_bytes_.Read(); }

  // The key (or value) of a token as the format stands for it, from what was downloaded last.
  std::vector<double> Entry(bool key, size_t sequence, int32_t token, int32_t kv_head) const {
    const int64_t dim = spec_.head_dim, slot = token % kKvBlockTokens;
    const KvCode code = key ? spec_.format->k : spec_.format->v;
    KvPool pool = pool_;
    pool.data = const_cast<uint8_t*>(bytes_.data());
    const KvLayout layout = KvLayoutOf(pool, kLayer);
    const uint8_t* part =
        layout.Head(table_[sequence][static_cast<size_t>(token / kKvBlockTokens)], kv_head);
    const uint8_t* codes = part + (key ? 0 : layout.value_codes) + slot * KvCodeBytes(code, dim);
    const uint8_t* scales = part + (key ? layout.key_scales : layout.value_scales);
    std::vector<double> entry;
    for (int64_t d = 0; d < dim; ++d) {
      switch (code) {
        case KvCode::kF32:
          entry.push_back(reinterpret_cast<const float*>(codes)[d]);
          break;
        case KvCode::kBF16:
          entry.push_back(BF16ToF32(reinterpret_cast<const uint16_t*>(codes)[d]));
          break;
        case KvCode::kFp8:
          entry.push_back(double{E4M3ToF32(codes[d])} *
                          reinterpret_cast<const float*>(scales)[slot]);
          break;
        case KvCode::kInt8:
          entry.push_back(static_cast<double>(static_cast<int8_t>(codes[d])) *
                          reinterpret_cast<const float*>(scales)[slot]);
          break;
        case KvCode::kInt4: {
          const auto* plane = reinterpret_cast<const uint16_t*>(scales) +
                              d / kKvInt4Group * 2 * kKvBlockTokens + slot;
          entry.push_back(DecodeKvInt4((codes[d / 2] >> (4 * (d % 2))) & 15,
                                       {plane[0], plane[kKvBlockTokens]}));
          break;
        }
      }
    }
    return entry;
  }

  // Overwrites the scale (the low of int4) of an entry, or the first element of a float one.
  void Poison(bool key, size_t sequence, int32_t token, int32_t kv_head) {
    const KvLayout layout = KvLayoutOf(pool_, kLayer);
    const KvCode code = key ? spec_.format->k : spec_.format->v;
    const int64_t slot = token % kKvBlockTokens;
    uint8_t* part =
        layout.Head(table_[sequence][static_cast<size_t>(token / kKvBlockTokens)], kv_head);
    uint8_t* scales = part + (key ? layout.key_scales : layout.value_scales);
    uint8_t* at = code == KvCode::kInt4  ? scales + 2 * (kKvBlockTokens + slot)
                  : code > KvCode::kBF16 ? scales + 4 * slot
                                         : part + (key ? 0 : layout.value_codes) +
                                               slot * KvCodeBytes(code, spec_.head_dim);
    const uint32_t nan = 0xffffffffu;
    TestDevice().CopyIn(at, &nan, code == KvCode::kInt4 || code == KvCode::kBF16 ? 2 : 4);
  }

 private:
  OnDevice<uint8_t> MakePool(const std::vector<int32_t>& lengths) {
    pool_.spec = spec_;
    pool_.num_blocks = 1;
    for (const int32_t length : lengths) {
      pool_.num_blocks += (length + kKvBlockTokens - 1) / kKvBlockTokens;
    }
    auto pool =
        OnDevice<uint8_t>::Poisoned(static_cast<size_t>(pool_.num_blocks * spec_.BytesPerBlock()));
    pool_.data = pool.data();
    return pool;
  }

  KvSpec spec_;
  KvPool pool_;
  OnDevice<uint8_t> pool_bytes_;
  std::vector<std::vector<int32_t>> table_;
  std::vector<uint8_t> bytes_;
};

}  // namespace nibble::testing
