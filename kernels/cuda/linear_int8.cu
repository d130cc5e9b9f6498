// SPDX-License-Identifier: Apache-2.0
// The W8A8 product and the packing of its weights.
//
// Tiling: a block computes kM tokens x kN output features; the input features pass by in stages of
// kK through asynchronous copies, weights as the linear stream in which they were packed,
// activations swizzled so that eight rows of a matrix load meet eight different banks. Warps divide
// tokens, output features and, where a tile is small, the 64-deep slices of a stage; their int32
// sums are then added through shared memory. Limit: to some 180 tokens the bytes of the weights (a
// block has three stages of them under way before it needs the activations), above that int8
// multiplications.
#include "kernels/check.h"
#include "kernels/codec.h"
#include "kernels/cuda/linear_int8.h"
#include "kernels/cuda/row_writer.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

struct PackInt8Params {
  DeviceWeight weight;
  Int8Layout layout;
  uint8_t* packed;
};

struct PackInt8Kernel {
  using Params = PackInt8Params;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  // A block per 32 x 64 tile; a thread moves two words of four codes.
  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t n0 = int64_t{simt::BlockY()} * kInt8Panel;
    const int64_t k0 = int64_t{simt::BlockX()} * kInt8Depth;
    const auto* codes = static_cast<const uint8_t*>(p.weight.codes);
    simt::WaitForPreviousKernel();
    for (int i = simt::Thread(); i < kInt8TileBytes / 4; i += simt::Threads()) {
      const int64_t n = n0 + i / (kInt8Depth / 4);
      const int64_t k = k0 + i % (kInt8Depth / 4) * 4;
      uint32_t word = 0;
      for (int e = 0; e < 4; ++e) {
        if (n >= p.layout.rows || k + e >= p.layout.cols) break;
        word |= static_cast<uint32_t>(codes[n * p.layout.cols + k + e]) << (8 * e);
      }
      *reinterpret_cast<uint32_t*>(p.packed + p.layout.Index(n, k)) = word;
    }
    if (k0 == 0 && simt::Thread() < kInt8Panel && n0 + simt::Thread() < p.layout.rows) {
      const int64_t n = n0 + simt::Thread();
      reinterpret_cast<float*>(p.packed + p.layout.code_bytes())[n] =
          LoadFloat(p.weight.scales, p.weight.scheme.scale, n);
    }
  }
};

// kVectors: rows of activations are whole multiples of 16 bytes.
template <int kM, int kN, int kK, int kWarpsM, int kWarpsN, int kWarpsK, int kStages, bool kVectors>
struct LinearInt8Kernel {
  using Params = LinearInt8Args;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK;
  static constexpr int kMinBlocks = 1;
  static constexpr int kTilesM = kM / kWarpsM / 16;  // of a warp
  static constexpr int kTilesN = kN / kWarpsN / 8;
  static constexpr int kDepths = kK / kInt8Depth;
  static constexpr int kWeightBytes = kN * kK;
  static constexpr int kStageBytes = kWeightBytes + kM * kK;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kTilesM >= 1 && kTilesN >= 1 && kDepths % kWarpsK == 0 && kN % kInt8Panel == 0);
  static_assert((kWarpsK - 1) * kM * kN * 4 <= kSharedBytes);

  // Unit u (16 bytes) of row r in a slice of 64 input features. Two rows are 128 bytes, all banks.
  static NIBBLE_DEVICE int Swizzled(int r, int u) {
    return r * kInt8Depth + (u ^ (r / 2 % 4)) * 16;
  }

  static NIBBLE_DEVICE void FetchWeights(const Int8Weight& w, const Int8Layout& layout,
                                         int64_t panel, int64_t depth, uint8_t* to) {
    constexpr int kUnits = kWeightBytes / 16;
    NIBBLE_UNROLL
    for (int i = 0; i < (kUnits + kThreads - 1) / kThreads; ++i) {
      const int unit = simt::Thread() + i * kThreads;
      if (kUnits % kThreads != 0 && unit >= kUnits) break;
      const int tile = unit / (kInt8TileBytes / 16);
      const int64_t n = panel + tile / kDepths;
      const int64_t k = depth + tile % kDepths;
      const bool inside = n < layout.panels() && k < layout.depths();
      const int64_t from = (n * layout.depths() + k) * kInt8TileBytes;
      simt::CopyAsync16Stream(
          to + 16 * unit, inside ? w.packed + from + unit % (kInt8TileBytes / 16) * 16 : w.packed,
          inside);
    }
  }

  static NIBBLE_DEVICE void FetchActivations(const Params& p, int64_t first, int64_t depth,
                                             uint8_t* to) {
    constexpr int kUnits = kM * kK / 16;
    const auto* x = static_cast<const uint8_t*>(p.in.data);
    NIBBLE_UNROLL
    for (int i = 0; i < (kUnits + kThreads - 1) / kThreads; ++i) {
      const int unit = simt::Thread() + i * kThreads;
      if (kUnits % kThreads != 0 && unit >= kUnits) break;
      const int r = unit / (kK / 16);
      const int slice = unit % (kK / 16) / 4;
      const int64_t k = (depth + slice) * kInt8Depth + unit % 4 * 16;
      uint8_t* target = to + slice * kM * kInt8Depth + Swizzled(r, unit % 4);
      const int64_t from = (first + r) * p.in.cols + k;
      if constexpr (kVectors) {
        const bool inside = first + r < p.rows && k < p.in.cols;
        simt::CopyAsync16(target, inside ? x + from : x, inside);
      } else {
        for (int e = 0; e < 16; ++e) {
          target[e] = first + r < p.rows && k + e < p.in.cols ? x[from + e] : uint8_t{0};
        }
      }
    }
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    uint8_t* shared = simt::Shared();
    // Which weight this block works on.
    int64_t column = int64_t{simt::BlockY()} * kN;
    int segment = 0;
    while (segment + 1 < p.count) {
      const int64_t width = (p.weights[static_cast<size_t>(segment)].rows + kN - 1) / kN * kN;
      if (column < width) break;
      column -= width;
      ++segment;
    }
    const Int8Weight& w = p.weights[static_cast<size_t>(segment)];
    const Floats& out = p.out[static_cast<size_t>(segment)];
    const Int8Layout layout{w.rows, p.in.cols};
    const int64_t first = int64_t{simt::BlockX()} * kM;
    const int64_t steps = (layout.depths() + kDepths - 1) / kDepths;

    const auto stage = [&](int64_t step) { return shared + step % kStages * kStageBytes; };
    const auto fetch_weights = [&](int64_t step) {
      if (step < steps) {
        FetchWeights(w, layout, column / kInt8Panel, step * kDepths, stage(step));
      }
    };
    const auto fetch_activations = [&](int64_t step) {
      if (step < steps) FetchActivations(p, first, step * kDepths, stage(step) + kWeightBytes);
      simt::CommitCopies();
    };
    for (int s = 0; s + 1 < kStages; ++s) fetch_weights(s);
    simt::WaitForPreviousKernel();
    for (int s = 0; s + 1 < kStages; ++s) fetch_activations(s);

    const int warp = simt::WarpIndex();
    const int warp_k = warp % kWarpsK;
    const int warp_m = warp / kWarpsK % kWarpsM * kTilesM * 16;
    const int warp_n = warp / kWarpsK / kWarpsM * kTilesN * 8;
    const int lane = simt::Lane();
    int32_t sum[kTilesM][kTilesN][4];
    NIBBLE_UNROLL
    for (int m = 0; m < kTilesM; ++m) {
      NIBBLE_UNROLL
      for (int n = 0; n < kTilesN; ++n) {
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e) sum[m][n][e] = 0;
      }
    }
    for (int64_t step = 0; step < steps; ++step) {
      simt::WaitCopies<kStages - 2>();
      simt::SyncThreads();
      fetch_weights(step + kStages - 1);
      fetch_activations(step + kStages - 1);
      NIBBLE_UNROLL
      for (int d = 0; d < kDepths / kWarpsK; ++d) {
        const int slice = d * kWarpsK + warp_k;
        simt::Vec16 b[kTilesN];
        NIBBLE_UNROLL
        for (int n = 0; n < kTilesN; ++n) {
          const int eight = warp_n / 8 + n;
          b[n] = *reinterpret_cast<const simt::Vec16*>(
              stage(step) + (eight / 4 * kDepths + slice) * kInt8TileBytes + eight % 4 * 512 +
              lane * 16);
        }
        const uint8_t* x = stage(step) + kWeightBytes + slice * kM * kInt8Depth;
        NIBBLE_UNROLL
        for (int half = 0; half < 2; ++half) {
          NIBBLE_UNROLL
          for (int m = 0; m < kTilesM; ++m) {
            uint32_t a[4];
            simt::LoadMatrix4(a, x + Swizzled(warp_m + 16 * m + lane % 16, 2 * half + lane / 16));
            NIBBLE_UNROLL
            for (int n = 0; n < kTilesN; ++n) {
              const uint32_t fragment[2] = {b[n].word[2 * half], b[n].word[2 * half + 1]};
              simt::MmaS8(sum[m][n], a, fragment);
            }
          }
        }
      }
    }
    simt::StartNextKernel();

    if constexpr (kWarpsK > 1) {
      // [warp_k - 1][warp of the tile][element][lane]
      constexpr int kElements = kTilesM * kTilesN * 4;
      auto* partial = reinterpret_cast<int32_t*>(shared) + warp / kWarpsK * kElements * 32 + lane;
      constexpr int kStride = kWarpsM * kWarpsN * kElements * 32;
      simt::WaitCopies<0>();
      simt::SyncThreads();
      if (warp_k > 0) {
        NIBBLE_UNROLL
        for (int m = 0; m < kTilesM; ++m) {
          NIBBLE_UNROLL
          for (int n = 0; n < kTilesN; ++n) {
            NIBBLE_UNROLL
            for (int e = 0; e < 4; ++e) {
              partial[(warp_k - 1) * kStride + ((m * kTilesN + n) * 4 + e) * 32] = sum[m][n][e];
            }
          }
        }
      }
      simt::SyncThreads();
      if (warp_k != 0) return;
      NIBBLE_UNROLL
      for (int m = 0; m < kTilesM; ++m) {
        NIBBLE_UNROLL
        for (int n = 0; n < kTilesN; ++n) {
          NIBBLE_UNROLL
          for (int e = 0; e < 4; ++e) {
            for (int other = 0; other + 1 < kWarpsK; ++other) {
              sum[m][n][e] += partial[other * kStride + ((m * kTilesN + n) * 4 + e) * 32];
            }
          }
        }
      }
    }

    const auto* scales = reinterpret_cast<const float*>(w.packed + layout.code_bytes());
    NIBBLE_UNROLL
    for (int m = 0; m < kTilesM; ++m) {
      NIBBLE_UNROLL
      for (int n = 0; n < kTilesN; ++n) {
        NIBBLE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int64_t row = first + warp_m + 16 * m + 8 * half + lane / 4;
          const int64_t at = column + warp_n + 8 * n + lane % 4 * 2;
          if (row >= p.rows || at >= w.rows) continue;
          const bool both = at + 1 < w.rows;
          const float token = p.in.scales[row];
          const auto value = [&](int e) {
            const float scaled =
                static_cast<float>(sum[m][n][2 * half + e]) * (token * scales[at + e]);
            return w.bias != nullptr ? scaled + w.bias[at + e] : scaled;
          };
          const float low = value(0), high = both ? value(1) : 0.0f;
          const int64_t index = row * w.rows + at;
          if (out.dtype == DType::kF32) {
            auto* to = static_cast<float*>(out.data) + index;
            to[0] = low;
            if (both) to[1] = high;
          } else if (w.rows % 2 == 0) {
            *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(out.data) + index) =
                simt::PackBF16x2(low, high);
          } else {
            auto* to = static_cast<uint16_t*>(out.data) + index;
            to[0] = F32ToBF16(low);
            if (both) to[1] = F32ToBF16(high);
          }
        }
      }
    }
  }
};

template <int kM, int kN, int kK, int kWarpsM, int kWarpsN, int kWarpsK, int kStages>
void LaunchTile(Device& device, const LinearInt8Args& args) {
  using Kernel = LinearInt8Kernel<kM, kN, kK, kWarpsM, kWarpsN, kWarpsK, kStages, true>;
  LaunchShape shape;
  shape.grid_x = static_cast<int>((args.rows + kM - 1) / kM);  // neighbours share the weights
  shape.grid_y = 0;
  for (int i = 0; i < args.count; ++i) {
    shape.grid_y += static_cast<int>((args.weights[static_cast<size_t>(i)].rows + kN - 1) / kN);
  }
  shape.threads = Kernel::kThreads;
  shape.shared_bytes = Kernel::kSharedBytes;
  if (args.in.cols % 16 == 0) {
    Launch<Kernel>(device.stream(), shape, args);
  } else {
    using Scalar = LinearInt8Kernel<kM, kN, kK, kWarpsM, kWarpsN, kWarpsK, kStages, false>;
    Launch<Scalar>(device.stream(), shape, args);
  }
}

struct TileChoice {
  int64_t max_rows;
  void (*launch)(Device& device, const LinearInt8Args& args);
};
constexpr TileChoice kTiles[] = {
    // tokens                  kM   kN   kK  warps of M, N, K  stages
    {16, LaunchTile<16, 32, 256, 1, 1, 4, 4>},
    {64, LaunchTile<64, 32, 128, 2, 1, 2, 4>},
    {INT64_MAX, LaunchTile<128, 128, 64, 2, 4, 1, 4>},
};

}  // namespace

void LaunchPackInt8(Device& device, const DeviceWeight& weight, uint8_t* packed) {
  NIBBLE_CHECK(weight.scheme.container == Container::kBytes && weight.scheme.group == kWholeRow);
  const Int8Layout layout{weight.rows, weight.cols};
  LaunchShape shape;
  shape.grid_x = static_cast<int>(layout.depths());
  shape.grid_y = static_cast<int>(layout.panels());
  shape.threads = PackInt8Kernel::kThreads;
  Launch<PackInt8Kernel>(device.stream(), shape, {weight, layout, packed});
}

void LaunchLinearInt8(Device& device, const LinearInt8Args& args) {
  if (args.rows == 0) return;
  NIBBLE_CHECK(args.in.format.dtype == DType::kI8 && args.in.format.group == kWholeRow &&
               args.in.cols <= kMaxInt8LinearCols);
  for (const TileChoice& tile : kTiles) {
    if (args.rows <= tile.max_rows) return tile.launch(device, args);
  }
}

}  // namespace nibble
