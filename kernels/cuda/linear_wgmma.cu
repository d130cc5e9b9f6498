// SPDX-License-Identifier: Apache-2.0
// Products of rows of int8 (W8A8) or bf16 on the tensor cores of 9.0.
//
// Tiling: a block computes tiles of 128 (64) tokens x kN output features, one after the other. A
// warp asks the copy engine for stages of 128 bytes of the rows of both operands; two warpgroups of
// 64 tokens (half of the features) each multiply them, a stage's products under way while the next
// stage's are issued, and keep their sums in registers (up to 128 a thread, hence one block a
// multiprocessor). A ring of kStages is handed to and fro by barriers: `full` by the copied bytes,
// `empty` by the warps that have multiplied. Two blocks of a cluster compute the same features of
// 256 tokens; each copies half of the weights to both. The next tile's copies begin while a tile's
// sums become outputs.
//
// Order of a sum of bf16: 16 input features in the instruction, ascending; the same in every tile.
//
// Limit: multiplications. A stage of int8 of a wide tile is 128 x 256 x 128 of them, 1024 cycles at
// 4096 a cycle (of bf16 half as many at half the rate), in which a multiprocessor fetches 32 KiB
// from the second-level cache (48 KiB without the cluster) and its tensor cores read 80 of the 128
// KiB that shared memory gives. At 2048 tokens a 28672 x 4096 weight is 1792 wide tiles, 13.6 for
// each of 132 multiprocessors, and a tile is 32 stages: the last round leaves 0.97 of the rate,
// outputs (some 1300 instructions a thread) 0.92 of that. Expected: 0.75 to 0.85 of what the
// library reaches for int8 sums alone, 1.4 to 1.6 times its bf16. To some 180 tokens bytes of the
// weights are the limit. Tiles of 64 tokens are for more than 32: a block of 32 features
// (linear_int8.cu) then reads more bytes of tokens from the second-level cache than of weights.
// Reasoned, not measured.
#include <algorithm>
#include <array>
#include <bit>

#include "kernels/check.h"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/row_writer.h"
#include "kernels/cuda/simt_hopper.h"

namespace nibble {
namespace {

// How outputs are stored: 16 bytes of bf16 or 8 of f32 at a time, or what no such lines up with.
enum class Stores : uint8_t { kBF16, kF32, kElements };

struct WgmmaWeight {
  TileMap codes;
  RowsWeight weight;
  Stores stores;
};
struct WgmmaParams {
  TileMap tokens;
  std::array<WgmmaWeight, kMaxGroupWeights> weights;
  const float* token_scales;
  int64_t rows;
  int steps;         // stages of a tile
  int row_tiles;     // clusters' tiles along tokens
  int column_tiles;  // of all weights
  bool fresh_weights;
};

constexpr int kRowBytes = simt::kSwizzledRow;
constexpr int kGroupRows = 64;  // tokens of a warpgroup
constexpr int kGroups = 2;      // warpgroups that multiply
constexpr int kWarps = kGroups * simt::kWarpgroup / simt::kWarp;

// What a warpgroup multiplies 32 bytes of a row of by how, and whether tokens and features have
// scales.
struct Int8Element {
  static constexpr int kBytes = 1;
  using Sum = int32_t;
  static constexpr bool kScales = true;
  template <int kN>
  static NIBBLE_DEVICE void Multiply(Sum (&sum)[kN / 2], uint64_t a, uint64_t b, bool add) {
    simt::WgmmaS8<kN>(sum, a, b, add);
  }
};
struct BF16Element {
  static constexpr int kBytes = 2;
  using Sum = float;
  static constexpr bool kScales = false;
  template <int kN>
  static NIBBLE_DEVICE void Multiply(Sum (&sum)[kN / 2], uint64_t a, uint64_t b, bool add) {
    simt::WgmmaBF16<kN>(sum, a, b, add);
  }
};

// kRowGroups: how many warpgroups the tokens of a tile are divided among; its features are divided
// among the others.
template <class Element, int kRowGroups, int kN, int kCluster, int kStages>
struct LinearWgmmaKernel {
  using Params = WgmmaParams;
  using Sum = typename Element::Sum;
  static constexpr int kThreads = kWarps * simt::kWarp + simt::kWarpgroup;
  static constexpr int kMinBlocks = 1;
  static constexpr int kM = kRowGroups * kGroupRows;         // tokens of a tile
  static constexpr int kGroupN = kN * kRowGroups / kGroups;  // features of a warpgroup
  static constexpr int kSums = kGroupN / 2;                  // of a thread
  static constexpr int kTokenBytes = kM * kRowBytes;
  static constexpr int kStageBytes = kTokenBytes + kN * kRowBytes;
  static constexpr int kShare = kN / kCluster;  // features that a block copies
  static constexpr int kSharedBytes =
      1024 + kStages * (kStageBytes + 2 * static_cast<int>(sizeof(simt::Barrier)));
  static_assert(kCluster == 1 || kCluster == 2);

  struct Ring {
    uint8_t* stages;
    simt::Barrier* full;
    simt::Barrier* empty;
    int slot = 0;
    uint32_t parity = 0;  // of the phases that belong to this slot's present use

    NIBBLE_DEVICE uint8_t* stage() const { return stages + slot * kStageBytes; }
    NIBBLE_DEVICE void Next() {
      if (++slot < kStages) return;
      slot = 0;
      parity ^= 1;
    }
  };

  // A tile of a weight.
  struct Place {
    const WgmmaWeight* weight;
    int row;     // first token
    int column;  // first feature
  };
  static NIBBLE_DEVICE Place PlaceOf(const Params& p, int index, int rank) {
    WgmmaTile tile = WgmmaTileOf(index, p.row_tiles, p.column_tiles);
    const WgmmaWeight* weight = p.weights.data();
    for (;; ++weight) {
      const auto columns = static_cast<int>((weight->weight.features + kN - 1) / kN);
      if (tile.column < columns) break;
      tile.column -= columns;
    }
    return {weight, (tile.row * kCluster + rank) * kM, tile.column * kN};
  }

  // The bytes of both operands are expected with the weights.
  static NIBBLE_DEVICE void CopyWeights(const Place& place, int step, int rank, const Ring& ring) {
    simt::Barrier* full = ring.full + ring.slot;
    simt::WaitPhase(ring.empty + ring.slot, ring.parity ^ 1);
    simt::ArriveExpecting(full, kStageBytes);
    uint8_t* weights = ring.stage() + kTokenBytes + rank * kShare * kRowBytes;
    const int column = place.column + rank * kShare;
    if constexpr (kCluster == 1) {
      simt::CopyTile(weights, place.weight->codes, step * kRowBytes, column, full);
    } else {
      simt::CopyTileToCluster(weights, place.weight->codes, step * kRowBytes, column, full, 3);
    }
  }
  static NIBBLE_DEVICE void CopyTokens(const Params& p, const Place& place, int step,
                                       const Ring& ring) {
    simt::CopyTile(ring.stage(), p.tokens, step * kRowBytes, place.row, ring.full + ring.slot);
  }

  // All that this block multiplies, by one thread. The first weights are asked for before the
  // previous kernel's results are waited for, unless they are among them.
  static NIBBLE_DEVICE void Copy(const Params& p, Ring ring, int first, int tiles, int stride,
                                 int rank) {
    if (p.fresh_weights) simt::WaitForPreviousKernel();
    int ahead = 0;
    Ring early = ring;
    Place place = PlaceOf(p, first, rank);
    for (; ahead < kStages && ahead < p.steps; ++ahead) {
      CopyWeights(place, ahead, rank, early);
      early.Next();
    }
    simt::WaitForPreviousKernel();
    for (int index = first; index < tiles; index += stride) {
      place = PlaceOf(p, index, rank);
      for (int step = 0; step < p.steps; ++step) {
        if (index != first || step >= ahead) CopyWeights(place, step, rank, ring);
        CopyTokens(p, place, step, ring);
        ring.Next();
      }
    }
  }

  // This warp's products have read the slot.
  static NIBBLE_DEVICE void Release(simt::Barrier* empty) {
    simt::SyncWarp();
    if constexpr (kCluster == 1) {
      if (simt::Lane() == 0) simt::Arrive(empty);
    } else {
      if (simt::Lane() < kCluster) simt::ArriveInCluster(empty, simt::Lane());
    }
  }

  static NIBBLE_DEVICE void Multiply(const Params& p, Ring& ring, Sum (&sum)[kSums]) {
    // Shuffled so that the compiler knows a warp's lanes to agree: descriptors are one a warp.
    const int group = simt::Shuffle(simt::Thread() / simt::kWarpgroup, 0);
    simt::Barrier* before = nullptr;
    for (int step = 0; step < p.steps; ++step) {
      simt::WaitPhase(ring.full + ring.slot, ring.parity);
      const uint8_t* tokens = ring.stage() + group % kRowGroups * kGroupRows * kRowBytes;
      const uint8_t* weights =
          ring.stage() + kTokenBytes + group / kRowGroups * kGroupN * kRowBytes;
      simt::FenceWgmma();
      NIBBLE_UNROLL
      for (int k = 0; k < kRowBytes; k += 32) {
        Element::template Multiply<kGroupN>(sum, simt::SwizzledOperand(tokens, k),
                                            simt::SwizzledOperand(weights, k), step > 0 || k > 0);
      }
      simt::CommitWgmma();
      simt::WaitWgmma<1>();
      if (step > 0) Release(before);
      before = ring.empty + ring.slot;
      ring.Next();
    }
    simt::WaitWgmma(sum);
    Release(before);
  }

  // Word i of lane t of four neighbours becomes word t of lane i.
  static NIBBLE_DEVICE void Transpose(uint32_t (&word)[4]) {
    NIBBLE_UNROLL
    for (int mask = 2; mask > 0; mask /= 2) {
      const bool high = (simt::Lane() & mask) != 0;
      NIBBLE_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int low = mask == 2 ? i : 2 * i;
        const uint32_t other = simt::ShuffleXorBits(high ? word[low] : word[low + mask], mask);
        (high ? word[low] : word[low + mask]) = other;
      }
    }
  }

  // Elements at and at + 1 of a vector of `count`; beyond its end whatever is in it.
  template <bool kVectors>
  static NIBBLE_DEVICE void LoadPair(const float* vector, int at, int count, float (&pair)[2]) {
    if constexpr (kVectors) {
      const simt::Vec8 both =
          *reinterpret_cast<const simt::Vec8*>(vector + (at < count ? at : count - 2));
      NIBBLE_UNROLL
      for (int e = 0; e < 2; ++e) pair[e] = std::bit_cast<float>(both.word[e]);
    } else {
      NIBBLE_UNROLL
      for (int e = 0; e < 2; ++e) pair[e] = vector[at + e < count ? at + e : count - 1];
    }
  }

  template <Stores kStores>
  static NIBBLE_DEVICE void Store(const Params& p, const Place& place, const Sum (&sum)[kSums]) {
    constexpr bool kVectors = kStores != Stores::kElements;
    const RowsWeight& w = place.weight->weight;
    const auto features = static_cast<int>(w.features);
    const int t = simt::Lane() % 4;
    const int64_t row = place.row + simt::WarpIndex() % (4 * kRowGroups) * 16 + simt::Lane() / 4;
    const int column = place.column + simt::WarpIndex() / (4 * kRowGroups) * kGroupN;
    bool inside[2];
    float token[2];
    NIBBLE_UNROLL
    for (int half = 0; half < 2; ++half) {
      inside[half] = row + 8 * half < p.rows;
      token[half] = Element::kScales && inside[half] ? p.token_scales[row + 8 * half] : 0.0f;
    }
    // Four blocks of eight features at a time: the lanes of a quad have two features of each, and
    // exchange them for one block each.
    NIBBLE_UNROLL
    for (int j = 0; j < kGroupN / 8; j += 4) {
      float scale[4][2], bias[4][2];
      NIBBLE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int at = column + 8 * (j + i) + 2 * t;
        if constexpr (Element::kScales) LoadPair<kVectors>(w.scales, at, features, scale[i]);
        bias[i][0] = bias[i][1] = -0.0f;  // adds to any sum without a change
        if (w.bias != nullptr) LoadPair<kVectors>(w.bias, at, features, bias[i]);
      }
      NIBBLE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t start = (row + 8 * half) * w.stride;
        const auto value = [&](int i, int e) {
          float y = static_cast<float>(sum[4 * (j + i) + 2 * half + e]);
          if constexpr (Element::kScales) y *= token[half] * scale[i][e];
          return y + bias[i][e];
        };
        if constexpr (kStores == Stores::kBF16) {
          uint32_t word[4];
          NIBBLE_UNROLL
          for (int i = 0; i < 4; ++i) word[i] = simt::PackBF16x2(value(i, 0), value(i, 1));
          Transpose(word);
          const int at = column + 8 * (j + t);
          if (inside[half] && at < features) {
            *reinterpret_cast<simt::Vec16*>(static_cast<uint16_t*>(w.out.data) + start +
                                            at) = {{word[0], word[1], word[2], word[3]}};
          }
        } else {
          NIBBLE_UNROLL
          for (int i = 0; i < 4; ++i) {
            const int at = column + 8 * (j + i) + 2 * t;
            if (!inside[half] || at >= features) continue;
            if constexpr (kStores == Stores::kF32) {
              *reinterpret_cast<simt::Vec8*>(static_cast<float*>(w.out.data) + start + at) = {
                  {std::bit_cast<uint32_t>(value(i, 0)), std::bit_cast<uint32_t>(value(i, 1))}};
            } else {
              StoreFloat(w.out, start + at, value(i, 0));
              if (at + 1 < features) StoreFloat(w.out, start + at + 1, value(i, 1));
            }
          }
        }
      }
    }
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    Ring ring;
    ring.stages = simt::SwizzleAlignedShared();
    ring.full = reinterpret_cast<simt::Barrier*>(ring.stages + kStages * kStageBytes);
    ring.empty = ring.full + kStages;
    if (simt::Thread() == 0) {
      for (int s = 0; s < kStages; ++s) {
        simt::InitBarrier(ring.full + s, 1);
        simt::InitBarrier(ring.empty + s, kWarps * kCluster);
      }
      simt::FenceBarrierInit();
    }
    if constexpr (kCluster == 1) {
      simt::SyncThreads();
    } else {
      simt::SyncCluster();
    }
    const int rank = kCluster == 1 ? 0 : simt::ClusterRank();
    const int tiles = p.row_tiles * p.column_tiles;
    const int first = simt::BlockX() / kCluster, stride = simt::GridX() / kCluster;
    if (simt::WarpIndex() >= kWarps) {
      simt::GiveRegisters<40>();
      if (simt::Thread() == kWarps * simt::kWarp) Copy(p, ring, first, tiles, stride, rank);
      simt::SyncWarp();
      simt::StartNextKernel();
    } else {
      simt::TakeRegisters<232>();
      simt::WaitForPreviousKernel();
      Sum sum[kSums];
      for (int index = first; index < tiles; index += stride) {
        Multiply(p, ring, sum);
        if (index + stride >= tiles) simt::StartNextKernel();
        const Place place = PlaceOf(p, index, rank);
        switch (place.weight->stores) {
          case Stores::kBF16:
            Store<Stores::kBF16>(p, place, sum);
            break;
          case Stores::kF32:
            Store<Stores::kF32>(p, place, sum);
            break;
          case Stores::kElements:
            Store<Stores::kElements>(p, place, sum);
            break;
        }
      }
    }
    // A block stays for what the other copies and for its arrivals.
    if constexpr (kCluster > 1) simt::SyncCluster();
  }
};

Stores StoresOf(const RowsWeight& weight) {
  const bool bf16 = weight.out.dtype == DType::kBF16;
  const auto aligned = [](const void* address, uintptr_t to) {
    return reinterpret_cast<uintptr_t>(address) % to == 0;
  };
  const int64_t together = bf16 ? 8 : 2;
  if (weight.features % together != 0 || weight.stride % together != 0 ||
      !aligned(weight.out.data, bf16 ? 16 : 8) || !aligned(weight.scales, 8) ||
      !aligned(weight.bias, 8)) {
    return Stores::kElements;
  }
  return bf16 ? Stores::kBF16 : Stores::kF32;
}

template <class Element, int kRowGroups, int kN, int kCluster, int kStages>
void LaunchTiles(Device& device, const LinearRowsArgs& args, int blocks) {
  using Kernel = LinearWgmmaKernel<Element, kRowGroups, kN, kCluster, kStages>;
  constexpr int kM = Kernel::kM;
  WgmmaParams params{};
  const int64_t row_bytes = args.cols * Element::kBytes;
  params.tokens = MapTiles(device.stream(), args.x, args.rows, row_bytes, kM);
  for (size_t i = 0; i < static_cast<size_t>(args.count); ++i) {
    const RowsWeight& weight = args.weights[i];
    params.weights[i] = {
        MapTiles(device.stream(), weight.codes, weight.features, row_bytes, Kernel::kShare), weight,
        StoresOf(weight)};
    params.column_tiles += static_cast<int>((weight.features + kN - 1) / kN);
  }
  params.token_scales = args.scales;
  params.rows = args.rows;
  params.fresh_weights = args.fresh_weights;
  params.steps = static_cast<int>((row_bytes + kRowBytes - 1) / kRowBytes);
  params.row_tiles = static_cast<int>((args.rows + kCluster * kM - 1) / (kCluster * kM));
  LaunchShape shape;
  shape.cluster_x = kCluster;
  shape.grid_x = std::min(blocks / kCluster, params.row_tiles * params.column_tiles) * kCluster;
  shape.threads = Kernel::kThreads;
  shape.shared_bytes = Kernel::kSharedBytes;
  Launch<Kernel>(device.stream(), shape, params);
}

template <class Element>
void LaunchElement(Device& device, const LinearRowsArgs& args, int blocks) {
  NIBBLE_CHECK(args.cols * Element::kBytes % 16 == 0 && blocks >= 2);
  if (args.rows == 0) return;
  if (args.rows <= 64) return LaunchTiles<Element, 1, 64, 1, 12>(device, args, blocks);
  if (args.rows <= 128) return LaunchTiles<Element, 2, 128, 1, 6>(device, args, blocks);
  int64_t wide = 0;  // tiles of 256 features
  for (size_t i = 0; i < static_cast<size_t>(args.count); ++i) {
    wide += (args.weights[i].features + 255) / 256 * ((args.rows + 127) / 128);
  }
  // Narrow tiles where wide ones would leave multiprocessors without any.
  if (wide < blocks) return LaunchTiles<Element, 2, 128, 2, 6>(device, args, blocks);
  LaunchTiles<Element, 2, 256, 2, 4>(device, args, blocks);
}

}  // namespace

bool TakesLinearWgmma(const DeviceInfo& device, int64_t row_bytes) {
  return device.major == 9 && row_bytes % 16 == 0;
}

void LaunchWgmmaInt8(Device& device, const LinearRowsArgs& args, int blocks) {
  NIBBLE_CHECK(args.scales != nullptr && args.cols <= kMaxInt8LinearCols);
  LaunchElement<Int8Element>(device, args, blocks);
}
void LaunchWgmmaBF16(Device& device, const LinearRowsArgs& args, int blocks) {
  LaunchElement<BF16Element>(device, args, blocks);
}

}  // namespace nibble
