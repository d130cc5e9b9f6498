// SPDX-License-Identifier: Apache-2.0
// The kernel behind linear_w4a16.cu and linear_w8a16.cu.
//
// Tiling: a block per multiprocessor walks its run of packed tiles of 128 output x 128 input
// features (linear_plan.h), with kTokens columns of activations. A tile is four spans of 32 input
// features; warp w takes span w % 4 of every second tile, for all 128 output features. Each warp
// has a ring of asynchronous copies of its own, in which a stage is a span's codes, scales and
// activations, so that no warp waits for another before an output tile is complete. Weights are
// operand A of m16n8k16, so few tokens waste few columns. A group's scale multiplies the sums over
// a span instead of every weight: products are exact. More than kTokens rows are several passes
// over the run in one launch.
//
// Limit: bytes of the weight to 16 or so tokens, then issued instructions and the rate of m16n8k16.
// Reasoned for an H100 (132 multiprocessors, 1.75 GHz, 3.0 TB/s), not measured yet: the memory
// delivers a symmetric int4 tile of 8448 bytes in 650 cycles, or 0.37 us; in these a scheduler
// issues some 360 instructions for 8 tokens, 420 for 16 and 530 for 32, and its integer unit works
// for 330 cycles (counted in the machine code). int8 has 16640 bytes in 1280 cycles, and at most
// 550 instructions for 8 tokens. For 8 tokens a ring of four stages keeps 55 KB under way, more
// than twice latency times rate, and with two blocks to a multiprocessor the next kernel's rings
// fill while this one's blocks add up.
// Programmatic launch: the first stages of the weight are asked for before the previous kernel has
// ended, and the next kernel may start once the last ones are.
//
// Order of a sum: 16 input features in the instruction; two steps of a span; spans of a warp in its
// block's run; the warps; the blocks in ascending order. The block that finds itself last at an
// output tile adds all parts, so nobody waits. Tokens and stages do not change it.
#pragma once

#include <cmath>

#include "kernels/check.h"
#include "kernels/cuda/linear_packed.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {

// kGrouped: scales per group, applied to the sums over a span; otherwise per output feature,
// applied at the end. kAsymmetric: there are zero points.
template <int kBits, bool kGroupedT, bool kAsymmetricT, int kTokensT, int kMinBlocksT>
struct PackedLinearKernel {
  using Params = PackedLinearParams;
  static constexpr bool kGrouped = kGroupedT, kAsymmetric = kAsymmetricT;
  static constexpr int kTokens = kTokensT;
  static constexpr int kWarps = 8;  // of all variants: the order of a sum
  static constexpr int kThreads = kPackedLinearThreads;
  static_assert(kThreads == kWarps * simt::kWarp);
  static constexpr int kMinBlocks = kMinBlocksT;

  static constexpr int kSpan = 32;  // the smallest group
  static constexpr int kSpans = kPackedTile / kSpan;
  static constexpr int kTileStep = kWarps / kSpans;  // from a warp's span to its next
  static constexpr int kTokenTiles = kTokens / 8;
  static constexpr int kBlocks = kPackedTile / 16;  // of output features, in the instruction
  static_assert(kBlocks == kWarps);                 // a warp finishes one of them

  // A stage: codes, scales, zero points, activations.
  static constexpr int kCodeBytes = kPackedTile * kSpan * kBits / 8;
  static constexpr int kSideBytes =
      (kGrouped ? kPackedTile * 2 : 0) + (kAsymmetric ? kPackedTile / 2 : 0);
  static constexpr int kTokenTileBytes = 8 * kSpan * 2;
  static constexpr int kStageBytes = kCodeBytes + kSideBytes + kTokenTiles * kTokenTileBytes;

  // What warps exchange sums through: so many blocks of 8 tokens at a time.
  static constexpr int kBlocksAtOnce = kTokenTiles == 1 ? kBlocks / 2 : kBlocks;
  static constexpr int kExchange = kBlocksAtOnce * kWarps * simt::kWarp;  // Vec16

  static constexpr size_t SharedBytes(int stages) {
    return size_t{kWarps} * static_cast<size_t>(stages) * kStageBytes +
           (kExchange + 1) * sizeof(simt::Vec16);
  }

  // D fragments: 16 output features, 8 tokens.
  using Sums = float[kBlocks][kTokenTiles][4];

  // Not negative, as the compiler sees: divisions of these are single instructions.
  static NIBBLE_DEVICE int Lane() {
    return static_cast<int>(static_cast<uint32_t>(simt::Thread()) % simt::kWarp);
  }
  static NIBBLE_DEVICE int Warp() {
    return static_cast<int>(static_cast<uint32_t>(simt::Thread()) / simt::kWarp);
  }

  // A span of the warp's sequence: those of its tiles in every pass.
  struct Cursor {
    int pass, tile, k_tile;
    const uint8_t* record;  // the span's codes, this lane's 16 bytes of the first 512
    const uint16_t* x;      // this lane's 16 bytes of the first token's, in k_tile 0

    NIBBLE_DEVICE void Next(const Params& p, int end) {
      tile += kTileStep;
      if (tile < end) {
        record += kTileStep * p.record_bytes;
        NIBBLE_UNROLL for (int i = 0; i < kTileStep; ++i) {
          if (++k_tile == p.plan.k_tiles) k_tile = 0;
        }
      } else if (++pass < p.passes) {
        const int first = FirstTile(p);
        record += int64_t{first - (tile - kTileStep)} * p.record_bytes;
        tile = first;
        k_tile = first % p.plan.k_tiles;
        x += kTokens * p.cols;
      }
    }
  };

  static NIBBLE_DEVICE int Begin(const Params& p) {
    return p.plan.Begin(simt::Afresh(simt::BlockX()));
  }
  static NIBBLE_DEVICE int FirstTile(const Params& p) { return Begin(p) + Warp() / kSpans; }

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int end = p.plan.Begin(simt::BlockX() + 1);
    uint8_t* ring = simt::Shared() + Warp() * p.stages * kStageBytes;
    Cursor load{};
    load.tile = FirstTile(p);
    if (load.tile >= end) load.pass = p.passes;
    load.k_tile = load.tile % p.plan.k_tiles;
    load.record =
        p.records + int64_t{load.tile} * p.record_bytes + Span() * kCodeBytes + Lane() * 16;
    load.x = p.x + Lane() / 4 * p.cols + UnitColumn();
    // A group of copies is complete when all earlier ones are. What is asked for before the
    // previous kernel has ended is a group with the first activations: there by then. Otherwise the
    // groups are stages.
    if (p.early) {
      Cursor weight = load;
      NIBBLE_ROLL for (int s = 0; s + 1 < p.stages; ++s) {
        if (weight.pass < p.passes) LoadWeight(p, weight, ring + s * kStageBytes);
        weight.Next(p, end);
      }
    }
    simt::WaitForPreviousKernel();
    NIBBLE_ROLL for (int s = 0; s + 1 < p.stages; ++s) {
      if (load.pass < p.passes) {
        if (!p.early) LoadWeight(p, load, ring + s * kStageBytes);
        LoadActivations(p, load, ring + s * kStageBytes);
      }
      simt::CommitCopies();
      load.Next(p, end);
    }

    // One loop over spans and finished output tiles: two, one in the other, have the compiler keep
    // the sums twice.
    Sums sums = {};
    uint8_t* const ring_end = ring + p.stages * kStageBytes;
    uint8_t *stage = ring, *vacant = ring_end - kStageBytes;  // the one before
    int pass = 0, tile = FirstTile(p), n = Begin(p) / p.plan.k_tiles;
    while (pass < p.passes) {
      const int next = (n + 1) * p.plan.k_tiles, until = next < end ? next : end;
      if (tile < until) {
        WaitForStage(p.stages);
        simt::SyncWarp();  // and every lane has left the stage that is filled now
        if (load.pass < p.passes) {
          LoadWeight(p, load, vacant);
          LoadActivations(p, load, vacant);
          load.Next(p, end);
        } else {
          simt::StartNextKernel();
        }
        simt::CommitCopies();
        MultiplySpan(stage, sums);
        vacant = stage;
        stage += kStageBytes;
        if (stage == ring_end) stage = ring;
        tile += kTileStep;
      } else {
        Finish(p, pass, n, sums);
        NIBBLE_UNROLL for (int b = 0; b < kBlocks; ++b) {
          NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
            NIBBLE_UNROLL for (int e = 0; e < 4; ++e) sums[b][t][e] = 0.0f;
          }
        }
        ++n;
        if (until == end) {
          ++pass;
          n = Begin(p) / p.plan.k_tiles;
          tile = FirstTile(p);
        }
      }
    }
  }

 private:
  static NIBBLE_DEVICE int Span() { return Warp() % kSpans; }

  // Until all but the last `stages` - 2 groups of copies are there.
  static NIBBLE_DEVICE void WaitForStage(int stages) {
    if (stages == 4) {
      simt::WaitCopies<2>();
    } else if (stages == 3) {
      simt::WaitCopies<1>();
    } else if (stages == 2) {
      simt::WaitCopies<0>();
    } else {
      simt::WaitCopies<4>();
    }
  }

  static NIBBLE_DEVICE void LoadWeight(const Params& p, const Cursor& at, uint8_t* stage) {
    const int lane = Lane();
    uint8_t* to = stage + lane * 16;
    NIBBLE_UNROLL for (int i = 0; i < kCodeBytes / 512; ++i) {
      simt::CopyAsync16Stream(to + i * 512, at.record + i * 512, true);
    }
    if constexpr (kGrouped) {  // scales and zero points of the span's group, from the tile's end
      constexpr int kScaleLanes = kPackedTile * 2 / 16;
      const int group = Span() * p.groups_per_tile / kSpans;
      int side = group * kPackedTile * 2;
      if (kAsymmetric && lane >= kScaleLanes) {
        side = p.groups_per_tile * kPackedTile * 2 + group * (kPackedTile / 2) - kScaleLanes * 16;
      }
      if (lane < kSideBytes / 16) {
        simt::CopyAsync16(to + kCodeBytes, at.record + (kSpans - Span()) * kCodeBytes + side, true);
      }
    }
  }

  // ---- Activations of a span: 64 bytes a token. Unit u (8 input features) of token m lies at unit
  // u ^ (m / 2 % 4) of its 64 bytes: the eight rows of a matrix load meet every bank.
  static NIBBLE_DEVICE int ActivationOffset(int token, int unit) {
    return kCodeBytes + kSideBytes + token * kSpan * 2 + (unit ^ (token / 2 % 4)) * 16;
  }
  // A lane brings unit lane % 4 of tokens lane / 4 + 8 t; its first input feature in a tile:
  static NIBBLE_DEVICE int UnitColumn() { return Span() * kSpan + Lane() % 4 * 8; }
  static NIBBLE_DEVICE void LoadActivations(const Params& p, const Cursor& at, uint8_t* stage) {
    uint8_t* to = stage + ActivationOffset(Lane() / 4, Lane() % 4);
    const uint16_t* from = at.x + at.k_tile * kPackedTile;
    const int rows = p.rows - at.pass * kTokens - Lane() / 4;
    const int left = p.cols - UnitColumn() - at.k_tile * kPackedTile;
    if (p.aligned) {
      NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
        const bool valid = 8 * t < rows && left > 0;
        simt::CopyAsync16(to + t * kTokenTileBytes, valid ? from + 8 * t * p.cols : p.x, valid);
      }
    } else {
      NIBBLE_ROLL for (int i = 0; i < 8 * kTokenTiles; ++i) {
        const bool valid = i / 8 * 8 < rows && i % 8 < left;
        reinterpret_cast<uint16_t*>(to + i / 8 * kTokenTileBytes)[i % 8] =
            valid ? from[i / 8 * 8 * p.cols + i % 8] : uint16_t{0};
      }
    }
  }

  // sums += a span of the weight times its activations.
  static NIBBLE_DEVICE void MultiplySpan(const uint8_t* stage, Sums& sums) {
    const int lane = Lane();
    uint32_t x[kTokenTiles][4];  // the B fragments of both steps
    NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
      simt::LoadMatrix4(x[t], stage + t * kTokenTileBytes + ActivationOffset(lane % 8, lane / 8));
    }
    NIBBLE_UNROLL for (int slab = 0; slab < kPackedTile / kPackedSlab; ++slab) {
      simt::Vec16 codes[kBits / 4];
      NIBBLE_UNROLL for (int v = 0; v < kBits / 4; ++v) {
        codes[v] = reinterpret_cast<const simt::Vec16*>(
            stage)[(slab * (kBits / 4) + v) * simt::kWarp + lane];
      }
      const int order = LaneScales(slab, lane);
      simt::Vec8 scale{};  // of a block: row g, row g + 8
      if constexpr (kGrouped) {
        scale = *reinterpret_cast<const simt::Vec8*>(stage + kCodeBytes + order * 2);
      }
      uint32_t zeros = 0;  // of block 0, rows g and g + 8, and of block 1
      if constexpr (kAsymmetric) {
        zeros = 0x10001u * *reinterpret_cast<const uint16_t*>(stage + kCodeBytes + kPackedTile * 2 +
                                                              order / 2);
      }
      NIBBLE_UNROLL for (int b = 0; b < 2; ++b) {
        const uint32_t zero[2] = {kAsymmetric ? FragmentZeroOf(zeros, 2 * b) : FragmentZero(8),
                                  kAsymmetric ? FragmentZeroOf(zeros, 2 * b + 1) : FragmentZero(8)};
        uint32_t a[2][4];  // of both steps
        NIBBLE_UNROLL for (int step = 0; step < 2; ++step) {
          if constexpr (kBits == 4) {
            Int4Fragment(codes[0].word[b * 2 + step], zero, a[step]);
          } else {
            Int8Fragment(codes[b].word[step * 2], codes[b].word[step * 2 + 1], a[step]);
          }
        }
        NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
          float(&sum)[4] = sums[2 * slab + b][t];
          float part[4] = {};
          NIBBLE_UNROLL for (int step = 0; step < 2; ++step) {
            const uint32_t fragment[2] = {x[t][2 * step], x[t][2 * step + 1]};
            simt::MmaBF16(kGrouped ? part : sum, a[step], fragment);
          }
          if constexpr (kGrouped) {
            NIBBLE_UNROLL for (int e = 0; e < 4; ++e) {
              const uint32_t bits = e < 2 ? scale.word[b] << 16 : scale.word[b] & 0xffff0000u;
              sum[e] = std::fma(std::bit_cast<float>(bits), part[e], sum[e]);
            }
          }
        }
      }
    }
  }

  // ---- A finished output tile: warp w has its features 16 w.. + 15, fragments as in Sums

  static NIBBLE_DEVICE void Add(simt::Vec16* sum, const simt::Vec16& more) {
    NIBBLE_UNROLL for (int e = 0; e < 4; ++e) {
      sum->word[e] = std::bit_cast<uint32_t>(std::bit_cast<float>(sum->word[e]) +
                                             std::bit_cast<float>(more.word[e]));
    }
  }
  // The first token of a lane in a fragment, of the pass.
  static NIBBLE_DEVICE int OwnToken(int lane, int t) { return t * 8 + lane % 4 * 2; }

  // The block's part of output tile n_tile is complete: adds the parts of the warps, then those of
  // other blocks, and writes what is final.
  static NIBBLE_DEVICE void Finish(const Params& p, int pass, int n_tile, const Sums& sums) {
    const int thread = simt::Afresh(simt::Thread());  // or addresses stay in registers meanwhile
    const int warp = thread / simt::kWarp, lane = thread % simt::kWarp;
    auto* exchange =
        reinterpret_cast<simt::Vec16*>(simt::Shared() + kWarps * p.stages * kStageBytes);
    simt::Vec16 total[kTokenTiles];
    NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
      NIBBLE_UNROLL for (int first = 0; first < kBlocks; first += kBlocksAtOnce) {
        simt::SyncThreads();
        NIBBLE_UNROLL for (int b = 0; b < kBlocksAtOnce; ++b) {
          simt::Vec16 sum;
          NIBBLE_UNROLL for (int e = 0; e < 4; ++e) {
            sum.word[e] = std::bit_cast<uint32_t>(sums[first + b][t][e]);
          }
          exchange[(b * kWarps + warp) * simt::kWarp + lane] = sum;
        }
        simt::SyncThreads();
        if (warp < first || warp >= first + kBlocksAtOnce) continue;
        const simt::Vec16* of_block = exchange + (warp - first) * kWarps * simt::kWarp + lane;
        total[t] = of_block[0];
        NIBBLE_UNROLL for (int w = 1; w < kWarps; ++w) Add(&total[t], of_block[w * simt::kWarp]);
      }
    }
    const int first = p.plan.FirstBlock(n_tile), last = p.plan.LastBlock(n_tile);
    if (first != last && !AddParts(p, pass, n_tile, thread, first, last, total)) return;

    int s = 0;
    while (s + 1 < p.num_segments && p.segments[s + 1].first_tile <= n_tile) ++s;
    const LinearSegment& segment = p.segments[s];
    NIBBLE_UNROLL for (int half = 0; half < 2; ++half) {
      const int n = warp * 16 + lane / 4 + half * 8;
      const int64_t feature = int64_t{n_tile - segment.first_tile} * kPackedTile + n;
      if (feature >= segment.features) break;
      float scale = 1.0f;
      if constexpr (!kGrouped) {
        scale = BF16ToF32(p.channel_scales[int64_t{n_tile} * kPackedTile + n]);
      }
      const float bias = segment.bias != nullptr ? segment.bias[feature] : 0.0f;
      NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
        NIBBLE_UNROLL for (int e = 0; e < 2; ++e) {
          const int row = pass * kTokens + OwnToken(lane, t) + e;
          if (row >= p.rows) break;
          const float y = std::fma(std::bit_cast<float>(total[t].word[half * 2 + e]), scale, bias);
          StoreFloat(segment.out, row * segment.features + feature, y);
        }
      }
    }
  }

  // Hands over this block's part of a shared output tile; in the block that comes last, true, and
  // `total` becomes the sum of all parts.
  static NIBBLE_DEVICE bool AddParts(const Params& p, int pass, int n_tile, int thread, int first,
                                     int last, simt::Vec16 (&total)[kTokenTiles]) {
    const auto part = [&](int block, int t) {
      const int slot = 2 * block + (block == first ? 1 : 0);
      const int64_t token = int64_t{slot} * kMaxLinearTokens + pass * kTokens + t * 8;
      return reinterpret_cast<simt::Vec16*>(p.scratch.parts + token * kPackedTile) + thread;
    };
    const auto has = [&](int t) {
      return pass * kTokens + OwnToken(thread % simt::kWarp, t) < p.rows;
    };
    NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
      if (has(t)) *part(simt::BlockX(), t) = total[t];
    }
    auto* arrived = reinterpret_cast<int32_t*>(simt::Shared() + kWarps * p.stages * kStageBytes +
                                               kExchange * sizeof(simt::Vec16));
    int32_t* counter = p.scratch.arrived + int64_t{n_tile} * kMaxLinearPasses + pass;
    simt::SyncThreads();
    if (thread == 0) {
      simt::FenceDevice();
      *arrived = simt::AtomicAdd(counter, 1);
      simt::FenceDevice();
    }
    simt::SyncThreads();
    if (*arrived != last - first) return false;
    if (thread == 0) *counter = 0;
    constexpr int kAtOnce = kTokenTiles < 4 ? 4 : 1;  // blocks whose parts are under way together
    for (int from = first; from <= last; from += kAtOnce) {
      simt::Vec16 more[kAtOnce][kTokenTiles];
      NIBBLE_UNROLL for (int i = 0; i < kAtOnce; ++i) {
        NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
          if (from + i <= last && has(t)) more[i][t] = *part(from + i, t);
        }
      }
      NIBBLE_UNROLL for (int i = 0; i < kAtOnce; ++i) {
        const int block = from + i;
        if (block > last) break;
        NIBBLE_UNROLL for (int t = 0; t < kTokenTiles; ++t) {
          if (!has(t)) continue;
          if (block == first) {
            total[t] = more[i][t];
          } else {
            Add(&total[t], more[i][t]);
          }
        }
      }
    }
    return true;
  }
};

template <class Kernel>
constexpr PackedLinearVariant PackedLinearRow(int stages) {
  NIBBLE_CHECK(stages == 2 || stages == 3 || stages == 4 || stages == 6);
  return {Kernel::kGrouped, Kernel::kAsymmetric,         Kernel::kTokens,
          stages,           Kernel::SharedBytes(stages), &Launch<Kernel>};
}

}  // namespace nibble
