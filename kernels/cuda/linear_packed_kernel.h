// SPDX-License-Identifier: Apache-2.0
// The kernel behind linear_w4a16.cu and linear_w8a16.cu.
//
// Tiling: a block per multiprocessor walks its run of packed tiles of 128 output x 128 input
// features (linear_plan.h), with kTokens columns of activations. A warp takes 32 output features,
// half of the input features and at most 32 tokens of a tile. Weights are operand A of m16n8k16, so
// few tokens waste few columns. Records of the weight and tiles of the activations arrive through a
// ring of kStages asynchronous copies; the activations' 16-byte units are swizzled so that matrix
// loads meet every bank once. A group's scale multiplies the sums over a part of the group instead
// of every weight: products are exact, and it costs one multiply-add for each token and feature.
//
// Limit: bytes of the weight, up to 32 or so tokens; then the rate of the m16n8k16 instruction.
// Programmatic launch: the first kStages - 1 records are asked for before the previous kernel has
// ended, and the next kernel may start once the last record is.
//
// Order of a sum: 16 input features in the instruction; two steps of a span; spans of a warp's half
// tiles in its block's run; the two halves; the blocks in ascending order. The block that finds
// itself last at an output tile adds all parts, so nobody waits.
#pragma once

#include <cmath>
#include <span>

#include "kernels/check.h"
#include "kernels/cuda/linear_packed.h"
#include "kernels/cuda/linear_plan.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {

struct PackedLinearParams {
  const uint8_t* records;
  const uint16_t* channel_scales;  // (padded output features), only if the format has no groups
  int record_bytes;
  int groups_per_tile;
  const uint16_t* x;
  int rows;  // <= kTokens
  int64_t cols;
  bool aligned;  // rows of x begin at multiples of 16 bytes
  LinearPlan plan;
  int num_segments;
  LinearSegment segments[kMaxGroupWeights];
  LinearScratch scratch;
};

// kGrouped: scales per group, applied to the sums over kSpan input features; otherwise per output
// feature, applied at the end. kAsymmetric: there are zero points.
template <int kBits, bool kGroupedT, bool kAsymmetricT, int kTokensT, int kStages>
struct PackedLinearKernel {
  using Params = PackedLinearParams;
  static constexpr bool kGrouped = kGroupedT, kAsymmetric = kAsymmetricT;
  static constexpr int kTokens = kTokensT;
  // Warps: (part of the tokens, half of the input features, slab of output features).
  static constexpr int kTokenParts = kTokens > 32 ? kTokens / 32 : 1;
  static constexpr int kSlabs = kPackedTile / kPackedSlab;
  static constexpr int kThreads = kTokenParts * 2 * kSlabs * simt::kWarp;
  static constexpr int kMinBlocks = 1;

  static constexpr int kHalf = kPackedTile / 2;
  static constexpr int kSpan = 32;                               // the smallest group
  static constexpr int kTokenTiles = kTokens / kTokenParts / 8;  // of a warp
  static constexpr int kActivationBytes = kTokens * kPackedTile * 2;
  static constexpr int kCodeBytes = kPackedTile * kPackedTile * kBits / 8;
  static constexpr int kSumStride =
      kPackedTile + 4;  // floats; the lanes of a store meet every bank

  static constexpr size_t SharedBytes(int record_bytes) {
    return static_cast<size_t>(kStages) * static_cast<size_t>(record_bytes + kActivationBytes) +
           (kTokens * kSumStride + 4) * sizeof(float);
  }

  // D fragments of a warp: two blocks of 16 output features, tiles of 8 tokens.
  using Sums = float[2][kTokenTiles][4];

  // A tile of the block's run, and its place in the ring.
  struct Cursor {
    int tile, k_tile, slot;
    NIBBLE_DEVICE void Next(const Params& p) {
      ++tile;
      if (++k_tile == p.plan.k_tiles) k_tile = 0;
      if (++slot == kStages) slot = 0;
    }
  };

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int begin = p.plan.Begin(simt::BlockX()), end = p.plan.Begin(simt::BlockX() + 1);
    const Cursor first{begin, begin % p.plan.k_tiles, 0};
    for (int i = 0; i < kStages - 1; ++i) {
      if (begin + i < end) LoadRecord(p, i, begin + i);
      simt::CommitCopies();
    }
    simt::WaitForPreviousKernel();
    // Not asynchronously: a copy's group would wait for all records.
    Cursor load = first;
    for (int i = 0; i < kStages - 1; ++i) {
      if (load.tile < end) LoadActivations<false>(p, load);
      load.Next(p);
    }
    Sums sums = {};
    for (Cursor at = first; at.tile < end; at.Next(p)) {
      simt::WaitCopies<kStages - 2>();
      simt::SyncThreads();
      if (load.tile < end) {
        LoadRecord(p, load.slot, load.tile);
        LoadActivations<true>(p, load);
      } else {
        simt::StartNextKernel();
      }
      simt::CommitCopies();
      load.Next(p);
      MultiplyTile(p, Stage(p, at.slot), sums);
      if (at.tile + 1 == end || at.k_tile + 1 == p.plan.k_tiles) {
        Finish(p, at.tile / p.plan.k_tiles, sums);
        NIBBLE_UNROLL for (int b = 0; b < 2; ++b) {
          NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
            NIBBLE_UNROLL for (int e = 0; e < 4; ++e) sums[b][t][e] = 0.0f;
          }
        }
      }
    }
  }

 private:
  static NIBBLE_DEVICE int Slab() { return simt::WarpIndex() % kSlabs; }
  static NIBBLE_DEVICE int Half() { return simt::WarpIndex() / kSlabs % 2; }
  static NIBBLE_DEVICE int FirstToken() {
    return kTokenParts == 1 ? 0 : simt::WarpIndex() / (2 * kSlabs) * (kTokenTiles * 8);
  }
  static NIBBLE_DEVICE uint8_t* Stage(const Params& p, int slot) {
    return simt::Shared() + slot * (p.record_bytes + kActivationBytes);
  }
  static NIBBLE_DEVICE float* Tile(const Params& p) {  // (kTokens, kSumStride)
    return reinterpret_cast<float*>(Stage(p, kStages));
  }

  static NIBBLE_DEVICE void LoadRecord(const Params& p, int slot, int tile) {
    const uint8_t* from = p.records + int64_t{tile} * p.record_bytes;
    uint8_t* to = Stage(p, slot);
    for (int at = simt::Thread() * 16; at < p.record_bytes; at += kThreads * 16) {
      simt::CopyAsync16Stream(to + at, from + at, true);
    }
  }

  // Unit u (8 input features) of token m lies at unit u ^ (m % 8) of its row of 256 bytes.
  static NIBBLE_DEVICE int ActivationOffset(int token, int unit) {
    return token * kPackedTile * 2 + (unit ^ (token % 8)) * 16;
  }
  template <bool kAsync>
  static NIBBLE_DEVICE void LoadActivations(const Params& p, const Cursor& load) {
    uint8_t* to = Stage(p, load.slot) + p.record_bytes;
    NIBBLE_UNROLL for (int i = 0; i < (kTokens * 16 + kThreads - 1) / kThreads; ++i) {
      const int at = simt::Thread() + i * kThreads;
      if (at >= kTokens * 16) break;
      const int token = at / 16, unit = at % 16;
      const int64_t k = int64_t{load.k_tile} * kPackedTile + unit * 8;
      uint8_t* target = to + ActivationOffset(token, unit);
      const bool valid = token < p.rows && k < p.cols;
      const uint16_t* from = p.x + (valid ? token * p.cols + k : 0);
      if (p.aligned && kAsync) {
        simt::CopyAsync16(target, from, valid);
      } else if (p.aligned) {
        *reinterpret_cast<simt::Vec16*>(target) =
            valid ? *reinterpret_cast<const simt::Vec16*>(from) : simt::Vec16{};
      } else {
        *reinterpret_cast<simt::Vec16*>(target) = simt::Vec16{};
        for (int e = 0; valid && e < 8 && k + e < p.cols; ++e) {
          reinterpret_cast<uint16_t*>(target)[e] = from[e];
        }
      }
    }
  }

  // sums += a tile of the weight times a tile of the activations.
  static NIBBLE_DEVICE void MultiplyTile(const Params& p, const uint8_t* stage, Sums& sums) {
    const int first = Half() * (kHalf / kSpan);
    if constexpr (kTokenParts == 1) {
      NIBBLE_UNROLL for (int i = 0; i < kHalf / kSpan; ++i) {
        MultiplySpan(p, stage, first + i, sums);
      }
    } else {  // 128 registers
      NIBBLE_ROLL for (int i = 0; i < kHalf / kSpan; ++i) MultiplySpan(p, stage, first + i, sums);
    }
  }

  // The same for input features kSpan * span and following of the tiles.
  static NIBBLE_DEVICE void MultiplySpan(const Params& p, const uint8_t* stage, int span,
                                         Sums& sums) {
    const int lane = simt::Lane();
    simt::Vec16 codes[kBits / 4];
    NIBBLE_UNROLL for (int v = 0; v < kBits / 4; ++v) {
      codes[v] = reinterpret_cast<const simt::Vec16*>(
          stage)[((span * kSlabs + Slab()) * (kBits / 4) + v) * simt::kWarp + lane];
    }
    const int order = span * kSpan * p.groups_per_tile / kPackedTile * kPackedTile +
                      LaneOrder(Slab() * kPackedSlab + lane / 4);
    const uint8_t* scales = stage + kCodeBytes;
    uint32_t zeros = 0x8888u;  // of block 0, rows g and g + 8, and of block 1
    if constexpr (kAsymmetric) {
      zeros = *reinterpret_cast<const uint16_t*>(scales + p.groups_per_tile * kPackedTile * 2 +
                                                 order / 2);
    }
    uint32_t a[2][2][4];  // block, step
    NIBBLE_UNROLL for (int b = 0; b < 2; ++b) {
      const uint32_t zero[2] = {FragmentZero((zeros >> (8 * b)) & 15u),
                                FragmentZero((zeros >> (8 * b + 4)) & 15u)};
      NIBBLE_UNROLL for (int step = 0; step < 2; ++step) {
        if constexpr (kBits == 4) {
          Int4Fragment(codes[0].word[b * 2 + step], zero, a[b][step]);
        } else {
          Int8Fragment(codes[b].word[step * 2], codes[b].word[step * 2 + 1], a[b][step]);
        }
      }
    }
    simt::Vec8 scale{};  // of a block: row g, row g + 8
    if constexpr (kGrouped) {
      scale = *reinterpret_cast<const simt::Vec8*>(scales + order * 2);
    }
    const int unit = span * kSpan / 8 + lane / 8;
    NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
      uint32_t x[4];  // the B fragments of both steps
      simt::LoadMatrix4(
          x, stage + p.record_bytes + ActivationOffset(FirstToken() + t * 8 + lane % 8, unit));
      float part[2][4] = {};
      NIBBLE_UNROLL for (int step = 0; step < 2; ++step) {
        const uint32_t fragment[2] = {x[2 * step], x[2 * step + 1]};
        NIBBLE_UNROLL for (int b = 0; b < 2; ++b) {
          simt::MmaBF16(kGrouped ? part[b] : sums[b][t], a[b][step], fragment);
        }
      }
      if constexpr (kGrouped) {
        NIBBLE_UNROLL for (int b = 0; b < 2; ++b) {
          NIBBLE_UNROLL for (int e = 0; e < 4; ++e) {
            const uint32_t bits = e < 2 ? scale.word[b] << 16 : scale.word[b] & 0xffff0000u;
            sums[b][t][e] = std::fma(std::bit_cast<float>(bits), part[b][e], sums[b][t][e]);
          }
        }
      }
    }
  }

  // Calls body(cell of the tile, sum) for what this lane holds.
  template <typename Body>
  static NIBBLE_DEVICE void ForEachSum(float* tile, Sums& sums, Body&& body) {
    float* cell = tile + (FirstToken() + simt::Lane() % 4 * 2) * kSumStride + Slab() * kPackedSlab +
                  simt::Lane() / 4;
    NIBBLE_UNROLL for (int b = 0; b < 2; ++b) {
      NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
        NIBBLE_UNROLL for (int e = 0; e < 4; ++e) {
          body(cell[(t * 8 + e % 2) * kSumStride + b * 16 + e / 2 * 8], sums[b][t][e]);
        }
      }
    }
  }

  // Of a finished output tile, a thread takes features 4 Lane().. + 3 of these tokens.
  static constexpr int kOwn = kTokens * simt::kWarp / kThreads;
  static NIBBLE_DEVICE int OwnToken(int i) {
    return simt::WarpIndex() + i * (kThreads / simt::kWarp);
  }

  // The block's part of output tile n_tile is complete: adds the warps' halves, then the parts of
  // other blocks, and writes what is final.
  static NIBBLE_DEVICE void Finish(const Params& p, int n_tile, Sums& sums) {
    float* tile = Tile(p);
    const int n = simt::Lane() * 4;
    if (Half() == 1) ForEachSum(tile, sums, [](float& cell, float sum) { cell = sum; });
    simt::SyncThreads();
    if (Half() == 0) ForEachSum(tile, sums, [](float& cell, float sum) { cell += sum; });
    simt::SyncThreads();
    simt::Vec16 total[kOwn];
    NIBBLE_UNROLL for (int i = 0; i < kOwn; ++i) {
      total[i] = *reinterpret_cast<const simt::Vec16*>(tile + OwnToken(i) * kSumStride + n);
    }
    const int first = p.plan.FirstBlock(n_tile), last = p.plan.LastBlock(n_tile);
    if (first != last && !AddParts(p, n_tile, first, last, total)) return;

    int s = 0;
    while (s + 1 < p.num_segments && p.segments[s + 1].first_tile <= n_tile) ++s;
    const LinearSegment& segment = p.segments[s];
    const int64_t feature = int64_t{n_tile - segment.first_tile} * kPackedTile + n;
    NIBBLE_UNROLL for (int e = 0; e < 4; ++e) {
      if (feature + e >= segment.features) break;
      float scale = 1.0f;
      if constexpr (!kGrouped) {
        scale = BF16ToF32(p.channel_scales[int64_t{n_tile} * kPackedTile + n + e]);
      }
      const float bias = segment.bias != nullptr ? segment.bias[feature + e] : 0.0f;
      NIBBLE_UNROLL for (int i = 0; i < kOwn; ++i) {
        if (OwnToken(i) >= p.rows) break;
        const float y = std::fma(std::bit_cast<float>(total[i].word[e]), scale, bias);
        const int64_t at = OwnToken(i) * segment.features + feature + e;
        StoreFloat(segment.out, at, y);
      }
    }
  }

  // Hands over this block's part of a shared output tile; in the block that comes last, true, and
  // `total` becomes the sum of all parts.
  static NIBBLE_DEVICE bool AddParts(const Params& p, int n_tile, int first, int last,
                                     simt::Vec16 (&total)[kOwn]) {
    const auto part = [&](int block, int token) {
      const int slot = 2 * block + (block == first ? 1 : 0);
      return reinterpret_cast<simt::Vec16*>(
          p.scratch.parts + (int64_t{slot} * kTokens + token) * kPackedTile + simt::Lane() * 4);
    };
    NIBBLE_UNROLL for (int i = 0; i < kOwn; ++i) {
      if (OwnToken(i) < p.rows) *part(simt::BlockX(), OwnToken(i)) = total[i];
    }
    auto* arrived = reinterpret_cast<int32_t*>(Tile(p) + kTokens * kSumStride);
    simt::SyncThreads();
    if (simt::Thread() == 0) {
      simt::FenceDevice();
      *arrived = simt::AtomicAdd(p.scratch.arrived + n_tile, 1);
      simt::FenceDevice();
    }
    simt::SyncThreads();
    if (*arrived != last - first) return false;
    if (simt::Thread() == 0) p.scratch.arrived[n_tile] = 0;
    NIBBLE_UNROLL for (int i = 0; i < kOwn; ++i) {
      if (OwnToken(i) < p.rows) total[i] = *part(first, OwnToken(i));
    }
    for (int block = first + 1; block <= last; ++block) {
      NIBBLE_UNROLL for (int i = 0; i < kOwn; ++i) {
        if (OwnToken(i) >= p.rows) break;
        const simt::Vec16 more = *part(block, OwnToken(i));
        NIBBLE_UNROLL for (int e = 0; e < 4; ++e) {
          total[i].word[e] = std::bit_cast<uint32_t>(std::bit_cast<float>(total[i].word[e]) +
                                                     std::bit_cast<float>(more.word[e]));
        }
      }
    }
    return true;
  }
};

// A row of a dispatch table: formats with or without groups and zero points, up to `tokens` rows.
struct PackedLinearVariant {
  bool grouped;
  bool asymmetric;
  int tokens;
  int threads;
  size_t (*shared_bytes)(int record_bytes);
  void (*launch)(Stream&, const LaunchShape&, const PackedLinearParams&);
};
template <class Kernel>
constexpr PackedLinearVariant PackedLinearRow() {
  return {Kernel::kGrouped, Kernel::kAsymmetric,  Kernel::kTokens,
          Kernel::kThreads, &Kernel::SharedBytes, &Launch<Kernel>};
}

// Passes over the weight, each with the first row of the table that takes the format and all rows
// that are left, or else with the last that takes the format. Rows whose shared memory the device
// does not have do not count.
inline void LaunchPackedLinear(Device& device, const PackedLinearArgs& args,
                               std::span<const PackedLinearVariant> table) {
  const PackedLayout& layout = args.weight.layout;
  const bool grouped = layout.format.group != 0;
  PackedLinearParams p{};
  p.records = args.weight.data;
  p.channel_scales = reinterpret_cast<const uint16_t*>(args.weight.data + layout.ChannelScales());
  p.record_bytes = layout.RecordBytes();
  p.groups_per_tile = layout.GroupsPerTile();
  p.x = args.x;
  p.cols = args.cols;
  p.aligned = args.cols % 8 == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  p.plan = PlanLinear(layout.n_tiles, layout.k_tiles, device.info().multiprocessors);
  p.num_segments = args.num_segments;
  for (int i = 0; i < args.num_segments; ++i) {
    p.segments[i] = args.segments[static_cast<size_t>(i)];
  }
  p.scratch = args.scratch;
  for (int64_t left = args.rows; left > 0; left -= p.rows) {
    const PackedLinearVariant* variant = nullptr;
    for (const PackedLinearVariant& row : table) {
      if (row.grouped != grouped || row.asymmetric != layout.format.asymmetric) continue;
      if (row.shared_bytes(p.record_bytes) > device.info().shared_bytes_per_block) continue;
      variant = &row;
      if (row.tokens >= left) break;
    }
    NIBBLE_CHECK(variant != nullptr);
    p.rows = static_cast<int>(left < variant->tokens ? left : variant->tokens);
    LaunchShape shape;
    shape.grid_x = p.plan.blocks;
    shape.threads = variant->threads;
    shape.shared_bytes = variant->shared_bytes(p.record_bytes);
    variant->launch(device.stream(), shape, p);
    p.x += p.rows * p.cols;
    for (LinearSegment& segment : p.segments) {
      segment.out.data =
          static_cast<uint8_t*>(segment.out.data) +
          p.rows * segment.features * static_cast<int64_t>(BytesOf(segment.out.dtype));
    }
  }
}

}  // namespace nibble
