// SPDX-License-Identifier: Apache-2.0
// Head norm, rotary embedding, and append to the KV cache in its format.
//
// Tiling: a warp per row and head (query, key and value heads alike); the head lies in shared
// memory as f32, for the partners of the rotation and so that runs of codes leave in one store.
// What is quantized is the f32 value, not its rounding to the type of the activations. Limit: bytes
// (activations read, queries, keys and codes written, once each); with few rows, the latency of one
// launch.
#include <cmath>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/simt.h"
#include "kernels/kv_codec.h"

namespace nibble {
namespace {

struct RopeAppendKernel {
  struct Params {
    BatchView batch;
    Floats q, k, v;
    int32_t heads, kv_heads, head_dim, rotary_dim;
    const float* cos_table;
    const float* sin_table;
    const float* q_norm;
    const float* k_norm;
    float norm_weight_offset, norm_eps;
    KvCode key_code, value_code;
    KvLayout kv;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE KvSpan WarpSpan(KvSpan span) {
    for (int mask = simt::kWarp / 2; mask > 0; mask /= 2) {
      KvSpan other;
      other.low = simt::ShuffleXor(span.low, mask);
      other.high = simt::ShuffleXor(span.high, mask);
      other.finite = simt::ShuffleXor(static_cast<int32_t>(span.finite), mask) != 0;
      span = Merge(span, other);
    }
    return span;
  }

  static NIBBLE_DEVICE KvSpan SpanOfGroup(const float* x, int begin, int end) {
    KvSpan span;
    for (int d = begin + simt::Lane(); d < end; d += simt::kWarp) {
      span = Merge(span, KvSpanOf(x[d]));
    }
    return WarpSpan(span);
  }

  // Four codes of a byte each, lowest first.
  template <typename Encode>
  static NIBBLE_DEVICE void WriteBytes(const float* x, int dim, uint8_t* codes, Encode encode) {
    for (int d = 4 * simt::Lane(); d < dim; d += 4 * simt::kWarp) {
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i) {
        word |= static_cast<uint32_t>(static_cast<uint8_t>(encode(x[d + i]))) << (8 * i);
      }
      *reinterpret_cast<uint32_t*>(codes + d) = word;
    }
  }

  // The entry x of the token in `slot`; codes and scales are those of the head's part of the block.
  static NIBBLE_DEVICE void Append(KvCode code, const float* x, int dim, int slot, uint8_t* codes,
                                   uint8_t* scales) {
    codes += slot * KvCodeBytes(code, dim);
    switch (code) {
      case KvCode::kF32:
        for (int d = simt::Lane(); d < dim; d += simt::kWarp) {
          reinterpret_cast<float*>(codes)[d] = x[d];
        }
        break;
      case KvCode::kBF16:
        for (int d = 2 * simt::Lane(); d < dim; d += 2 * simt::kWarp) {
          reinterpret_cast<uint32_t*>(codes)[d / 2] = simt::PackBF16x2(x[d], x[d + 1]);
        }
        break;
      case KvCode::kFp8: {
        const KvSpan span = SpanOfGroup(x, 0, dim);
        const float inverse = KvFp8Inverse(span);
        WriteBytes(x, dim, codes, [&](float value) { return EncodeKvFp8(value, inverse); });
        if (simt::Lane() == 0) reinterpret_cast<float*>(scales)[slot] = KvFp8Scale(span);
        break;
      }
      case KvCode::kInt8: {
        const KvSpan span = SpanOfGroup(x, 0, dim);
        const float inverse = Int8InverseScale(KvAbsMax(span));
        WriteBytes(x, dim, codes, [&](float value) { return EncodeInt8(value, inverse); });
        if (simt::Lane() == 0) reinterpret_cast<float*>(scales)[slot] = KvInt8Scale(span);
        break;
      }
      case KvCode::kInt4:
        for (int begin = 0; begin < dim; begin += kKvInt4Group) {
          const int end = begin + kKvInt4Group < dim ? begin + kKvInt4Group : dim;
          const KvInt4Scale scale = KvInt4ScaleOf(SpanOfGroup(x, begin, end));
          const float low = BF16ToF32(scale.low);
          const float inverse = KvInt4Inverse(scale);
          const int d = begin + 2 * simt::Lane();
          if (d < end) {
            codes[d / 2] = static_cast<uint8_t>(EncodeKvInt4(x[d], low, inverse) |
                                                EncodeKvInt4(x[d + 1], low, inverse) << 4);
          }
          if (simt::Lane() == 0) {
            auto* plane =
                reinterpret_cast<uint16_t*>(scales) + KvInt4ScaleIndex(begin / kKvInt4Group, slot);
            plane[0] = scale.scale;
            plane[kKvBlockTokens] = scale.low;
          }
        }
        break;
    }
  }

  static NIBBLE_DEVICE void Store(const Floats& to, int64_t at, float value) {
    if (to.dtype == DType::kBF16) {
      static_cast<uint16_t*>(to.data)[at] = F32ToBF16(value);
    } else {
      static_cast<float*>(to.data)[at] = value;
    }
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    const int dim = p.head_dim;
    float* x = reinterpret_cast<float*>(simt::Shared()) + simt::WarpIndex() * dim;
    const int heads = p.heads + 2 * p.kv_heads;
    const int64_t job =
        int64_t{simt::BlockX()} * (simt::Threads() / simt::kWarp) + simt::WarpIndex();
    if (job < int64_t{p.batch.rows} * heads) {
      const int64_t row = job / heads;
      int head = static_cast<int>(job % heads);
      const bool is_query = head < p.heads;
      if (!is_query) head -= p.heads;
      const bool is_key = !is_query && head < p.kv_heads;
      if (!is_query && !is_key) head -= p.kv_heads;
      const Floats& from = is_query ? p.q : is_key ? p.k : p.v;
      const int64_t at = (row * (is_query ? p.heads : p.kv_heads) + head) * dim;
      for (int d = simt::Lane(); d < dim; d += simt::kWarp) {
        x[d] = LoadFloat(from.data, from.dtype, at + d);
      }
      simt::SyncWarp();
      const int32_t position = p.batch.positions[row];
      if (is_query || is_key) {
        Rotate(p, is_query ? p.q_norm : p.k_norm, position, x);
        for (int d = simt::Lane(); d < dim; d += simt::kWarp) Store(from, at + d, x[d]);
      }
      if (!is_query) {
        const int64_t sequence = p.batch.row_sequence[row];
        const int32_t block =
            p.batch.block_table[sequence * p.batch.max_blocks + position / kKvBlockTokens];
        uint8_t* part = p.kv.Head(block, head);
        const int slot = position % kKvBlockTokens;
        if (is_key) {
          Append(p.key_code, x, dim, slot, part, part + p.kv.key_scales);
        } else {
          Append(p.value_code, x, dim, slot, part + p.kv.value_codes, part + p.kv.value_scales);
        }
      }
    }
    simt::StartNextKernel();
  }

  static NIBBLE_DEVICE void Rotate(const Params& p, const float* norm, int32_t position, float* x) {
    if (norm != nullptr) {
      float squares = 0.0f;
      for (int d = simt::Lane(); d < p.head_dim; d += simt::kWarp) {
        squares = std::fma(x[d], x[d], squares);
      }
      squares = simt::WarpSum(squares);
      const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(p.head_dim) + p.norm_eps);
      for (int d = simt::Lane(); d < p.head_dim; d += simt::kWarp) {
        x[d] = x[d] * inverse * (p.norm_weight_offset + norm[d]);
      }
      simt::SyncWarp();
    }
    const int half = p.rotary_dim / 2;
    const float* cos = p.cos_table + int64_t{position} * half;
    const float* sin = p.sin_table + int64_t{position} * half;
    for (int i = simt::Lane(); i < half; i += simt::kWarp) {
      const float a = x[i], b = x[half + i];
      x[i] = a * cos[i] - b * sin[i];
      x[half + i] = b * cos[i] + a * sin[i];
    }
    simt::SyncWarp();
  }
};

}  // namespace

void LaunchRopeAppend(Device& device, const RopeAppendArgs& args) {
  if (args.batch->rows == 0) return;
  const KvSpec& spec = args.kv->spec;
  RopeAppendKernel::Params p{};
  p.batch = *args.batch;
  p.q = args.q;
  p.k = args.k;
  p.v = args.v;
  p.heads = args.heads;
  p.kv_heads = spec.kv_heads;
  p.head_dim = spec.head_dim;
  p.rotary_dim = args.rotary_dim;
  p.cos_table = args.cos_table;
  p.sin_table = args.sin_table;
  p.q_norm = args.q_norm;
  p.k_norm = args.k_norm;
  p.norm_weight_offset = args.norm_weight_offset;
  p.norm_eps = args.norm_eps;
  p.key_code = spec.format->k;
  p.value_code = spec.format->v;
  p.kv = KvLayoutOf(*args.kv, args.layer);
  constexpr int kWarps = RopeAppendKernel::kThreads / simt::kWarp;
  const int64_t jobs = int64_t{p.batch.rows} * (p.heads + 2 * p.kv_heads);
  LaunchShape shape;
  shape.grid_x = static_cast<int>((jobs + kWarps - 1) / kWarps);
  shape.threads = RopeAppendKernel::kThreads;
  shape.shared_bytes = static_cast<size_t>(kWarps * spec.head_dim) * sizeof(float);
  Launch<RopeAppendKernel>(device.stream(), shape, p);
}

}  // namespace nibble
