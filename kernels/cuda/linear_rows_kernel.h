// SPDX-License-Identifier: Apache-2.0
// The kernel behind linear_rows.h, for every type of element.
//
// Tiling: a block computes kM tokens x kN output features; their rows pass by in stages of kSlices
// slices of 128 bytes through asynchronous copies. A slice holds 128 bytes of each row, its eight
// units of 16 bytes swizzled by row, so that eight rows of a matrix load meet all banks. Warps
// divide tokens, output features and, where a tile is small, the slices of a stage; their sums are
// then added through shared memory, in order. Weights are asked for before the previous kernel's
// results are waited for, unless they are among them.
//
// Order of a sum: the instruction's 32 bytes of a row, ascending steps of 32 bytes in the slices of
// a warp, warps. It depends on kWarpsK and kSlices only: tiles of one type of element that agree in
// both give the same bits.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_rows.h"
#include "kernels/cuda/row_writer.h"
#include "kernels/cuda/simt.h"

namespace nibble {

struct LinearRowsParams {
  LinearRowsArgs args;
  bool vectors;  // rows are whole multiples of 16 bytes
};

// What an element has whose rows are the instruction's operands as they are.
struct PlainRows {
  static constexpr bool kOutliers = false;
  struct Tokens {
    uint32_t word[4];
  };
  struct Features {
    uint32_t word[2];
  };
  static NIBBLE_DEVICE Tokens TokensOf(const uint32_t (&rows)[4]) {
    return {{rows[0], rows[1], rows[2], rows[3]}};
  }
  static NIBBLE_DEVICE Features FeaturesOf(uint32_t low, uint32_t high) { return {{low, high}}; }
};

// Element: kBytes of one; Sum; Tokens and Features, what the instruction takes of 16 and 8 rows of
// 32 bytes, made from ldmatrix's registers; Multiply; Value, a sum as f32; kOutliers, whether there
// are any.
template <class Element, int kM, int kN, int kWarpsM, int kWarpsN, int kWarpsK, int kSlices,
          int kStages>
struct LinearRowsKernel {
  using Params = LinearRowsParams;
  using Sum = typename Element::Sum;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK;
  static constexpr int kMinBlocks = 1;
  static constexpr int kSlice = 128;                 // bytes
  static constexpr int kTilesM = kM / kWarpsM / 16;  // of a warp
  static constexpr int kTilesN = kN / kWarpsN / 8;
  static constexpr int kWeightBytes = kN * kSlices * kSlice;
  static constexpr int kStageBytes = kWeightBytes + kM * kSlices * kSlice;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kFeatures = kN;
  static constexpr int kTokens = kM;
  static_assert(kTilesM >= 1 && kTilesN >= 1 && kSlices % kWarpsK == 0);
  static_assert((kWarpsK - 1) * kM * kN * 4 <= kSharedBytes);

  // Unit u of row r of a slice.
  static NIBBLE_DEVICE int Place(int r, int u) { return r * kSlice + (u ^ (r % 8)) * 16; }

  // Rows [first, first + kRows) of a matrix, bytes [byte, byte + kSlices * kSlice), to slices;
  // zeros outside of the matrix.
  template <int kRows, bool kStream>
  static NIBBLE_DEVICE void Fetch(const Params& p, const void* matrix, int64_t rows, int64_t first,
                                  int64_t byte, uint8_t* to) {
    constexpr int kRowUnits = kSlices * kSlice / 16;
    constexpr int kUnits = kRows * kRowUnits;
    const auto* bytes = static_cast<const uint8_t*>(matrix);
    const int64_t row_bytes = p.args.cols * Element::kBytes;
    const auto place = [&](int r, int u) { return to + u / 8 * kRows * kSlice + Place(r, u % 8); };
    if (p.vectors) {
      NIBBLE_UNROLL
      for (int i = 0; i < (kUnits + kThreads - 1) / kThreads; ++i) {
        const int unit = simt::Thread() + i * kThreads;
        if (kUnits % kThreads != 0 && unit >= kUnits) break;
        const int r = unit / kRowUnits, u = unit % kRowUnits;
        const int64_t at = byte + u * 16;
        const bool inside = first + r < rows && at < row_bytes;
        const uint8_t* from = inside ? bytes + (first + r) * row_bytes + at : bytes;
        if constexpr (kStream) {
          simt::CopyAsync16Stream(place(r, u), from, inside);
        } else {
          simt::CopyAsync16(place(r, u), from, inside);
        }
      }
    } else {
      NIBBLE_ROLL
      for (int i = simt::Thread(); i < kUnits * 16; i += kThreads) {
        const int r = i / (kRowUnits * 16), in_row = i % (kRowUnits * 16);
        const bool inside = first + r < rows && byte + in_row < row_bytes;
        place(r, in_row / 16)[in_row % 16] =
            inside ? bytes[(first + r) * row_bytes + byte + in_row] : uint8_t{0};
      }
    }
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    uint8_t* shared = simt::Shared();
    // Which weight this block works on.
    int64_t column = int64_t{simt::BlockY()} * kN;
    int segment = 0;
    while (segment + 1 < p.args.count) {
      const int64_t width =
          (p.args.weights[static_cast<size_t>(segment)].features + kN - 1) / kN * kN;
      if (column < width) break;
      column -= width;
      ++segment;
    }
    const RowsWeight& w = p.args.weights[static_cast<size_t>(segment)];
    const int64_t first = int64_t{simt::BlockX()} * kM;
    constexpr int64_t kStep = kSlices * kSlice;
    const int64_t steps = (p.args.cols * Element::kBytes + kStep - 1) / kStep;

    const auto stage = [&](int64_t step) { return shared + step % kStages * kStageBytes; };
    const auto fetch_weights = [&](int64_t step) {
      if (step < steps) Fetch<kN, true>(p, w.codes, w.features, column, step * kStep, stage(step));
    };
    const auto fetch_tokens = [&](int64_t step) {
      if (step < steps) {
        Fetch<kM, false>(p, p.args.x, p.args.rows, first, step * kStep, stage(step) + kWeightBytes);
      }
      simt::CommitCopies();
    };
    if (p.args.fresh_weights) simt::WaitForPreviousKernel();
    for (int s = 0; s + 1 < kStages; ++s) fetch_weights(s);
    simt::WaitForPreviousKernel();
    for (int s = 0; s + 1 < kStages; ++s) fetch_tokens(s);

    const int warp = simt::WarpIndex(), lane = simt::Lane();
    const int warp_k = warp % kWarpsK;
    const int warp_m = warp / kWarpsK % kWarpsM * kTilesM * 16;
    const int warp_n = warp / kWarpsK / kWarpsM * kTilesN * 8;
    Sum sum[kTilesM][kTilesN][4] = {};
    for (int64_t step = 0; step < steps; ++step) {
      simt::WaitCopies<kStages - 2>();
      simt::SyncThreads();
      fetch_weights(step + kStages - 1);
      fetch_tokens(step + kStages - 1);
      NIBBLE_UNROLL
      for (int d = 0; d < kSlices / kWarpsK; ++d) {
        const int slice = d * kWarpsK + warp_k;
        const uint8_t* weights = stage(step) + slice * kN * kSlice;
        const uint8_t* tokens = stage(step) + kWeightBytes + slice * kM * kSlice;
        NIBBLE_UNROLL
        for (int half = 0; half < 2; ++half) {
          uint32_t words[kTilesN][4];  // of two steps
          NIBBLE_UNROLL
          for (int n = 0; n < kTilesN; ++n) {
            simt::LoadMatrix4(words[n],
                              weights + Place(warp_n + 8 * n + lane % 8, 4 * half + lane / 8));
          }
          NIBBLE_UNROLL
          for (int s = 0; s < 2; ++s) {
            typename Element::Features features[kTilesN];
            NIBBLE_UNROLL
            for (int n = 0; n < kTilesN; ++n) {
              features[n] = Element::FeaturesOf(words[n][2 * s], words[n][2 * s + 1]);
            }
            NIBBLE_UNROLL
            for (int m = 0; m < kTilesM; ++m) {
              uint32_t rows[4];
              simt::LoadMatrix4(
                  rows, tokens + Place(warp_m + 16 * m + lane % 16, 4 * half + 2 * s + lane / 16));
              const typename Element::Tokens fragment = Element::TokensOf(rows);
              NIBBLE_UNROLL
              for (int n = 0; n < kTilesN; ++n) {
                Element::Multiply(sum[m][n], fragment, features[n]);
              }
            }
          }
        }
      }
    }
    simt::StartNextKernel();

    if constexpr (kWarpsK > 1) {
      // [warp_k - 1][warp of the tile][element][lane]
      constexpr int kElements = kTilesM * kTilesN * 4;
      auto* partial = reinterpret_cast<Sum*>(shared) + warp / kWarpsK * kElements * 32 + lane;
      constexpr int kStride = kWarpsM * kWarpsN * kElements * 32;
      simt::WaitCopies<0>();
      simt::SyncThreads();
      if (warp_k > 0) {
        ForEachSum(sum, [&](int element, Sum& value) {
          partial[(warp_k - 1) * kStride + element * 32] = value;
        });
      }
      simt::SyncThreads();
      if (warp_k != 0) return;
      ForEachSum(sum, [&](int element, Sum& value) {
        NIBBLE_UNROLL
        for (int other = 0; other + 1 < kWarpsK; ++other) {
          value += partial[other * kStride + element * 32];
        }
      });
    }

    // body(row, m, half, at, n): output features `at` and `at` + 1 of a token are the elements
    // 2 half and 2 half + 1 of a tile.
    const auto for_each_pair = [&](auto&& body) {
      NIBBLE_UNROLL
      for (int m = 0; m < kTilesM; ++m) {
        NIBBLE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int64_t row = first + warp_m + 16 * m + 8 * half + lane / 4;
          if (row >= p.args.rows) continue;
          NIBBLE_UNROLL
          for (int n = 0; n < kTilesN; ++n) {
            const int64_t at = column + warp_n + 8 * n + lane % 4 * 2;
            if (at < w.features) body(row, m, half, at, n);
          }
        }
      }
    };
    float value[kTilesM][kTilesN][4] = {};
    for_each_pair([&](int64_t row, int m, int half, int64_t at, int n) {
      const float token = p.args.scales != nullptr ? p.args.scales[row] : 1.0f;
      value[m][n][2 * half] = Scaled(w, at, token, sum[m][n][2 * half]);
      if (at + 1 < w.features) {
        value[m][n][2 * half + 1] = Scaled(w, at + 1, token, sum[m][n][2 * half + 1]);
      }
    });
    if constexpr (Element::kOutliers) AddOutliers(p, w, first + warp_m, column + warp_n, value);
    for_each_pair([&](int64_t row, int m, int half, int64_t at, int n) {
      const bool both = at + 1 < w.features;
      float low = value[m][n][2 * half], high = value[m][n][2 * half + 1];
      if (w.bias != nullptr) {
        low += w.bias[at];
        if (both) high += w.bias[at + 1];
      }
      Store(w, row * w.stride + at, low, high, both);
    });
  }

 private:
  static NIBBLE_DEVICE float Scaled(const RowsWeight& w, int64_t n, float token, Sum sum) {
    const float value = Element::Value(sum);
    return w.scales != nullptr ? value * (token * w.scales[n]) : value;
  }

  // The products of the outlier features, 16 at a time, added to a warp's tiles, which begin at
  // `row` and `column`. They are few: fragments come straight from memory.
  static NIBBLE_DEVICE void AddOutliers(const Params& p, const RowsWeight& w, int64_t row,
                                        int64_t column, float (&value)[kTilesM][kTilesN][4]) {
    const int32_t count = p.args.outlier_count, stride = OutlierStride(count);
    const int lane = simt::Lane();
    for (int32_t k = lane % 4 * 2; k < stride; k += 16) {
      uint32_t features[kTilesN][2];
      NIBBLE_UNROLL
      for (int n = 0; n < kTilesN; ++n) {
        const int64_t at = column + 8 * n + lane / 4;
        const uint16_t* weights = w.outliers + at * count;
        NIBBLE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int32_t from = k + 8 * half;
          const bool low = at < w.features && from < count;
          const bool high = at < w.features && from + 1 < count;
          features[n][half] = (low ? uint32_t{weights[from]} : 0u) |
                              (high ? uint32_t{weights[from + 1]} : 0u) << 16;
        }
      }
      NIBBLE_UNROLL
      for (int m = 0; m < kTilesM; ++m) {
        uint32_t tokens[4];
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int64_t at = row + 16 * m + 8 * (e % 2) + lane / 4;
          tokens[e] = at < p.args.rows ? *reinterpret_cast<const uint32_t*>(
                                             p.args.outliers + at * stride + k + 8 * (e / 2))
                                       : 0u;
        }
        NIBBLE_UNROLL
        for (int n = 0; n < kTilesN; ++n) simt::MmaBF16(value[m][n], tokens, features[n]);
      }
    }
  }

  static NIBBLE_DEVICE void Store(const RowsWeight& w, int64_t index, float low, float high,
                                  bool both) {
    if (w.out.dtype == DType::kBF16 && w.stride % 2 == 0 && both) {
      *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(w.out.data) + index) =
          simt::PackBF16x2(low, high);
      return;
    }
    StoreFloat(w.out, index, low);
    if (both) StoreFloat(w.out, index + 1, high);
  }

  // body(element, sum), element = (m * kTilesN + n) * 4 + e.
  template <typename Body>
  static NIBBLE_DEVICE void ForEachSum(Sum (&sum)[kTilesM][kTilesN][4], Body&& body) {
    NIBBLE_UNROLL
    for (int m = 0; m < kTilesM; ++m) {
      NIBBLE_UNROLL
      for (int n = 0; n < kTilesN; ++n) {
        NIBBLE_UNROLL
        for (int e = 0; e < 4; ++e) body((m * kTilesN + n) * 4 + e, sum[m][n][e]);
      }
    }
  }
};

// The first that has room for the tokens multiplies.
struct RowsTile {
  int64_t max_rows;
  void (*launch)(Device& device, const LinearRowsParams& params);
};

template <class Kernel>
void LaunchRowsTile(Device& device, const LinearRowsParams& params) {
  const LinearRowsArgs& args = params.args;
  LaunchShape shape;
  shape.grid_x =  // neighbours share the weights
      static_cast<int>((args.rows + Kernel::kTokens - 1) / Kernel::kTokens);
  shape.grid_y = 0;
  for (int i = 0; i < args.count; ++i) {
    const int64_t features = args.weights[static_cast<size_t>(i)].features;
    shape.grid_y += static_cast<int>((features + Kernel::kFeatures - 1) / Kernel::kFeatures);
  }
  shape.threads = Kernel::kThreads;
  shape.shared_bytes = Kernel::kSharedBytes;
  Launch<Kernel>(device.stream(), shape, params);
}

template <class Element, size_t kCount>
void LaunchLinearRows(Device& device, const LinearRowsArgs& args, const RowsTile (&tiles)[kCount]) {
  if (args.rows == 0) return;
  const LinearRowsParams params{args, args.cols * Element::kBytes % 16 == 0};
  for (const RowsTile& tile : tiles) {
    if (args.rows <= tile.max_rows) return tile.launch(device, params);
  }
}

}  // namespace nibble
