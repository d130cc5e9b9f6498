// SPDX-License-Identifier: Apache-2.0
// The product of e4m3 weights and e4m3 activations for few tokens.
//
// Tiling: a block computes kM tokens x kN output features; the input features pass by in stages of
// kK through asynchronous copies. A warp takes one slice of kSlice input features of a stage; the
// sums of the warps are added through shared memory at the end, in order. Weights are operand A of
// m16n8k16 (simt.h), so few tokens waste few columns. A lane's 16 bytes of a row are four steps of
// the sum: which input feature is which place of a fragment does not matter as long as weights and
// activations agree, so both are read from shared memory as they lie in global memory. Codes become
// f16 in three or four instructions a pair.
//
// Limit: bytes of the weight, some kStages - 1 stages of them under way in a block; from 32 or so
// tokens the rate of the m16n8k16 instruction.
//
// Order of a sum: 16 input features in the instruction; four steps of a slice; slices of a warp;
// warps. It does not depend on the number of tokens.
#include "kernels/check.h"
#include "kernels/cuda/linear_e4m3.h"
#include "kernels/cuda/row_writer.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

constexpr int kN = 32;               // output features of a block
constexpr int kSlice = 64;           // input features of a warp in a stage
constexpr int kWarps = 4;            //
constexpr int kK = kSlice * kWarps;  // input features of a stage

// kVectors: rows are whole multiples of 16 bytes.
template <int kM, int kStages, bool kVectors>
struct LinearE4M3Kernel {
  using Params = LinearE4M3Args;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kMinBlocks = 1;
  static constexpr int kTilesM = kM / 8;
  static constexpr int kTilesN = kN / 16;
  // A slice is its rows of 64 bytes; the gap between slices lets copies of one row's units meet
  // every bank.
  static constexpr int SliceBytes(int rows) { return rows * kSlice + 64; }
  static constexpr int kWeightBytes = kWarps * SliceBytes(kN);
  static constexpr int kStageBytes = kWeightBytes + kWarps * SliceBytes(kM);
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kElements = kTilesM * kTilesN * 4;  // sums of a lane
  static_assert((kWarps - 1) * kElements * simt::kWarp * 4 <= kSharedBytes);

  // Rows [first, first + kRows) of a matrix of codes, input features [k0, k0 + kK), to slices;
  // zeros outside of the matrix.
  template <int kRows>
  static NIBBLE_DEVICE void Fetch(const uint8_t* codes, int64_t rows, int64_t cols, int64_t first,
                                  int64_t k0, uint8_t* to) {
    constexpr int kUnits = kRows * kK / 16;
    const auto place = [&](int r, int u) {
      return to + u / 4 * SliceBytes(kRows) + r * kSlice + u % 4 * 16;
    };
    if constexpr (kVectors) {
      NIBBLE_UNROLL
      for (int i = 0; i < (kUnits + kThreads - 1) / kThreads; ++i) {
        const int unit = simt::Thread() + i * kThreads;
        if (kUnits % kThreads != 0 && unit >= kUnits) break;
        const int r = unit / (kK / 16), u = unit % (kK / 16);
        const int64_t k = k0 + u * 16;
        const bool inside = first + r < rows && k < cols;
        simt::CopyAsync16(place(r, u), inside ? codes + (first + r) * cols + k : codes, inside);
      }
    } else {
      NIBBLE_ROLL
      for (int at = simt::Thread(); at < kRows * kK; at += kThreads) {
        const int r = at / kK;
        const int64_t k = k0 + at % kK;
        const bool inside = first + r < rows && k < cols;
        place(r, at % kK / 16)[at % 16] = inside ? codes[(first + r) * cols + k] : uint8_t{0};
      }
    }
  }

  static NIBBLE_DEVICE simt::Vec16 Unit(const uint8_t* slice, int row) {
    return *reinterpret_cast<const simt::Vec16*>(slice + row * kSlice + simt::Lane() % 4 * 16);
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
    const E4M3Weight& w = p.weights[static_cast<size_t>(segment)];
    const Floats& out = p.out[static_cast<size_t>(segment)];
    const int64_t cols = p.in.cols;
    const int64_t first = int64_t{simt::BlockX()} * kM;
    const int64_t steps = (cols + kK - 1) / kK;
    const auto* x = static_cast<const uint8_t*>(p.in.data);

    const auto stage = [&](int64_t step) { return shared + step % kStages * kStageBytes; };
    const auto fetch_weights = [&](int64_t step) {
      if (step < steps) Fetch<kN>(w.codes, w.rows, cols, column, step * kK, stage(step));
    };
    const auto fetch_activations = [&](int64_t step) {
      if (step < steps) Fetch<kM>(x, p.rows, cols, first, step * kK, stage(step) + kWeightBytes);
      simt::CommitCopies();
    };
    for (int s = 0; s + 1 < kStages; ++s) fetch_weights(s);
    simt::WaitForPreviousKernel();
    for (int s = 0; s + 1 < kStages; ++s) fetch_activations(s);

    const int warp = simt::WarpIndex(), lane = simt::Lane();
    float sum[kTilesM][kTilesN][4] = {};
    for (int64_t step = 0; step < steps; ++step) {
      simt::WaitCopies<kStages - 2>();
      simt::SyncThreads();
      fetch_weights(step + kStages - 1);
      fetch_activations(step + kStages - 1);
      const uint8_t* weights = stage(step) + warp * SliceBytes(kN);
      const uint8_t* tokens = stage(step) + kWeightBytes + warp * SliceBytes(kM);
      simt::Vec16 a[kTilesN][2];
      NIBBLE_UNROLL
      for (int n = 0; n < kTilesN; ++n) {
        a[n][0] = Unit(weights, 16 * n + lane / 4);
        a[n][1] = Unit(weights, 16 * n + 8 + lane / 4);
      }
      NIBBLE_UNROLL
      for (int m = 0; m < kTilesM; ++m) {
        const simt::Vec16 b = Unit(tokens, 8 * m + lane / 4);
        NIBBLE_UNROLL
        for (int word = 0; word < 4; ++word) {
          const uint32_t token[2] = {E4M3EvenPair(b.word[word]), E4M3OddPair(b.word[word])};
          NIBBLE_UNROLL
          for (int n = 0; n < kTilesN; ++n) {
            const uint32_t weight[4] = {
                E4M3EvenPair(a[n][0].word[word]), E4M3EvenPair(a[n][1].word[word]),
                E4M3OddPair(a[n][0].word[word]), E4M3OddPair(a[n][1].word[word])};
            simt::MmaF16(sum[m][n], weight, token);
          }
        }
      }
    }
    simt::StartNextKernel();

    // [warp - 1][element][lane]
    auto* partial = reinterpret_cast<float*>(shared) + lane;
    simt::WaitCopies<0>();
    simt::SyncThreads();
    if (warp > 0) {
      ForEachSum(sum, [&](int element, float& value) {
        partial[((warp - 1) * kElements + element) * simt::kWarp] = value;
      });
    }
    simt::SyncThreads();
    if (warp != 0) return;
    ForEachSum(sum, [&](int element, float& value) {
      for (int other = 0; other + 1 < kWarps; ++other) {
        value += partial[(other * kElements + element) * simt::kWarp];
      }
    });

    constexpr float kUnit = kE4M3PairUnit * kE4M3PairUnit;
    ForEachSum(sum, [&](int element, float& value) {
      const int e = element % 4, n = element / 4 % kTilesN, m = element / 4 / kTilesN;
      const int64_t row = first + 8 * m + lane % 4 * 2 + e % 2;
      const int64_t at = column + 16 * n + e / 2 * 8 + lane / 4;
      if (row >= p.rows || at >= w.rows) return;
      const float y = value * kUnit * (p.in.scales[row] * w.scales[at]);
      StoreFloat(out, row * w.rows + at, w.bias != nullptr ? y + w.bias[at] : y);
    });
  }

  // body(element, sum), element = (m * kTilesN + n) * 4 + e.
  template <typename Body>
  static NIBBLE_DEVICE void ForEachSum(float (&sum)[kTilesM][kTilesN][4], Body&& body) {
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

template <int kM, int kStages>
void LaunchTile(Device& device, const LinearE4M3Args& args) {
  using Kernel = LinearE4M3Kernel<kM, kStages, true>;
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
    Launch<LinearE4M3Kernel<kM, kStages, false>>(device.stream(), shape, args);
  }
}

struct TileChoice {
  int64_t max_rows;
  void (*launch)(Device& device, const LinearE4M3Args& args);
};
constexpr TileChoice kTiles[] = {
    // tokens     kM  stages
    {8, LaunchTile<8, 6>},
    {16, LaunchTile<16, 6>},
    {32, LaunchTile<32, 4>},
    {INT64_MAX, LaunchTile<kMaxE4M3Tokens, 4>},
};

struct E4M3ScalesParams {
  DeviceWeight weight;
  float* scales;
};

// A warp per output feature.
struct E4M3ScalesKernel {
  using Params = E4M3ScalesParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t n = int64_t{simt::BlockX()} * (kThreads / simt::kWarp) + simt::WarpIndex();
    if (n >= p.weight.rows) return;  // a whole warp
    const auto* codes = static_cast<const uint8_t*>(p.weight.codes) + n * p.weight.cols;
    simt::WaitForPreviousKernel();
    bool bad = false;
    for (int64_t k = simt::Lane(); k < p.weight.cols; k += simt::kWarp) {
      bad |= (codes[k] & 0x7f) == 0x7f;
    }
    const bool any = simt::Ballot(bad) != 0;
    if (simt::Lane() == 0) p.scales[n] = any ? NAN : ReadScale(p.weight.view(), n, 0);
  }
};

}  // namespace

void LaunchE4M3Scales(Device& device, const DeviceWeight& weight, float* scales) {
  NIBBLE_CHECK(weight.scheme.code == DType::kF8E4M3 && weight.scheme.group == kWholeRow);
  constexpr int kRows = E4M3ScalesKernel::kThreads / simt::kWarp;
  LaunchShape shape;
  shape.grid_x = static_cast<int>((weight.rows + kRows - 1) / kRows);
  shape.threads = E4M3ScalesKernel::kThreads;
  Launch<E4M3ScalesKernel>(device.stream(), shape, {weight, scales});
}

void LaunchLinearE4M3(Device& device, const LinearE4M3Args& args) {
  if (args.rows == 0) return;
  NIBBLE_CHECK(args.in.format.dtype == DType::kF8E4M3 && args.in.format.group == kWholeRow);
  for (const TileChoice& tile : kTiles) {
    if (args.rows <= tile.max_rows) return tile.launch(device, args);
  }
}

}  // namespace nibble
