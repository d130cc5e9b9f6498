// SPDX-License-Identifier: Apache-2.0
// Scales and codes of weights.
//
// Tiling: the clip search takes a warp per row and group, a lane per candidate range, which walks
// the group alone so that its sum has the CPU's order. Nearest codes: a thread per weight. GPTQ's
// columns: a warp per four rows, four columns of each per lane; each column's value goes to all
// lanes, which round it and update their own columns. Limits: the divisions of the search; bytes;
// the latency of one column after the other.
#include <bit>

#include "kernels/codec.h"
#include "kernels/cuda/round_weight.h"
#include "kernels/cuda/simt.h"
#include "kernels/span_scale.h"

namespace nibble {
namespace {

constexpr int kWarps = 4;  // of a block

struct ClipScalesKernel {
  using Params = ClipScalesArgs;
  static constexpr int kThreads = kWarps * simt::kWarp;
  static constexpr int kMinBlocks = 1;
  static_assert(kMseClipRatios <= simt::kWarp);

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t groups = p.scheme.GroupsPerRow(p.cols);
    const int64_t width = p.scheme.GroupWidth(p.cols);
    const int64_t at = simt::BlockX() * int64_t{kWarps} + simt::WarpIndex();
    if (at >= p.rows * groups) return;  // a whole warp
    const int64_t first = at % groups * width;
    const int64_t count = p.cols - first < width ? p.cols - first : width;
    const float* w = p.weight + at / groups * p.cols + first;
    simt::WaitForPreviousKernel();
    float low = 0;
    float high = 0;
    for (int64_t k = simt::Lane(); k < count; k += simt::kWarp) {
      low = w[k] < low ? w[k] : low;
      high = w[k] > high ? w[k] : high;
    }
    low = -simt::WarpMax(-low);
    high = simt::WarpMax(high);

    const int lane = simt::Lane();
    const ScaleAndZero mine =
        RangeScale(low, high, p.scheme, MseClipRatio(lane < kMseClipRatios ? lane : 0));
    double error = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int code = EncodeWeight(p.scheme, w[k], mine.scale, mine.zero);
      const float q = DecodeWeight(p.scheme, code, mine.scale, mine.zero);
      const double d = static_cast<double>(w[k]) - static_cast<double>(q);
      error +=
          p.importance == nullptr ? d * d : d * d * static_cast<double>(p.importance[first + k]);
    }
    // From the widest on, up to a scale that is stored as 0: the first of the least errors.
    const uint32_t zeros = simt::Ballot(mine.scale == 0.0f || lane >= kMseClipRatios);
    int best = 0;
    double least = 0;
    for (int i = 0; i < simt::kWarp; ++i) {
      const auto other = std::bit_cast<double>(simt::Shuffle(std::bit_cast<uint64_t>(error), i));
      if ((zeros & ((2u << i) - 1u)) != 0) continue;
      if (i == 0 || other < least) {
        least = other;
        best = i;
      }
    }
    if (lane == best) {
      p.scale[at] = mine.scale;
      p.zero[at] = mine.zero;
    }
    simt::StartNextKernel();
  }
};

struct NearestKernel {
  using Params = NearestArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t i = simt::BlockX() * int64_t{kThreads} + simt::Thread();
    simt::WaitForPreviousKernel();
    if (i < p.rows * p.cols) {
      const int64_t row = i / p.cols;
      const int64_t group = i % p.cols / p.scheme.GroupWidth(p.cols);
      const int64_t s = row * p.scheme.GroupsPerRow(p.cols) + group;
      if (p.own == nullptr || !(p.own[row] <= p.other[row])) {
        const int code = EncodeWeight(p.scheme, p.weight[i], p.scale[s], p.zero[s]);
        const float q = DecodeWeight(p.scheme, code, p.scale[s], p.zero[s]);
        if (p.codes != nullptr) p.codes[i] = static_cast<int8_t>(code);
        if (p.error != nullptr) p.error[i] = p.weight[i] - q;
      }
    }
    simt::StartNextKernel();
  }
};

struct GatherColumnsKernel {
  using Params = GatherColumnsArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t i = simt::BlockX() * int64_t{kThreads} + simt::Thread();
    simt::WaitForPreviousKernel();
    if (i < p.rows * p.cols) p.to[i] = p.from[i / p.cols * p.cols + p.order[i % p.cols]];
    simt::StartNextKernel();
  }
};

struct GptqColumnsKernel {
  using Params = GptqColumnsArgs;
  static constexpr int kThreads = kWarps * simt::kWarp;
  static constexpr int kMinBlocks = 1;
  static constexpr int kRows = 4;  // of a warp
  static constexpr int kSlots = kGptqColumns / simt::kWarp;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t groups = p.scheme.GroupsPerRow(p.cols);
    const int64_t width = p.scheme.GroupWidth(p.cols);
    const int64_t top = (simt::BlockX() * int64_t{kWarps} + simt::WarpIndex()) * kRows;
    if (top >= p.rows) return;  // a whole warp
    const int lane = simt::Lane();
    simt::WaitForPreviousKernel();
    // Column slot * 32 + lane of each row; rows beyond the last repeat it.
    float w[kRows][kSlots], update[kRows][kSlots], value[kRows][kSlots];
    int code[kRows][kSlots];
    const auto row = [&](int r) { return top + r < p.rows ? top + r : p.rows - 1; };
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int s = 0; s < kSlots; ++s) {
        const int j = s * simt::kWarp + lane;
        w[r][s] = j < p.count ? p.work[row(r) * p.cols + p.first + j] : 0.0f;
        update[r][s] = value[r][s] = 0.0f;
        code[r][s] = 0;
      }
    }
    NIBBLE_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
      NIBBLE_ROLL
      for (int from = 0; from < simt::kWarp; ++from) {
        const int i = slot * simt::kWarp + from;
        if (i >= p.count) break;
        const float* u = p.factor + (p.first + i) * p.cols + p.first;
        const float pivot = u[i];
        const int64_t group = p.order[p.first + i] / width;
        float later[kSlots];
        NIBBLE_UNROLL
        for (int s = slot; s < kSlots; ++s) {
          const int j = s * simt::kWarp + lane;
          later[s] = j > i && j < p.count ? u[j] : 0.0f;
        }
        NIBBLE_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const int64_t at = row(r) * groups + group;
          const float whole = simt::Shuffle(w[r][slot], from);
          const int c = EncodeWeight(p.scheme, whole, p.scale[at], p.zero[at]);
          const float q = DecodeWeight(p.scheme, c, p.scale[at], p.zero[at]);
          const float error = (whole - q) / pivot;
          if (lane == from) {
            code[r][slot] = c;
            value[r][slot] = q;
            update[r][slot] = error;
          }
          NIBBLE_UNROLL
          for (int s = slot; s < kSlots; ++s) w[r][s] -= error * later[s];
        }
      }
    }
    NIBBLE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      NIBBLE_UNROLL
      for (int s = 0; s < kSlots; ++s) {
        const int j = s * simt::kWarp + lane;
        if (top + r >= p.rows || j >= p.count) continue;
        const int64_t column = (top + r) * p.cols + p.order[p.first + j];
        p.codes[column] = static_cast<int8_t>(code[r][s]);
        p.error[column] = p.weight[column] - value[r][s];
        p.update[(top + r) * p.update_stride + j] = update[r][s];
      }
    }
    simt::StartNextKernel();
  }
};

template <class Kernel>
void LaunchOver(Device& device, int64_t items, int64_t items_of_a_block,
                const typename Kernel::Params& params) {
  if (items == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>((items + items_of_a_block - 1) / items_of_a_block);
  shape.threads = Kernel::kThreads;
  Launch<Kernel>(device.stream(), shape, params);
}

}  // namespace

void LaunchClipScales(Device& device, const ClipScalesArgs& args) {
  LaunchOver<ClipScalesKernel>(device, args.rows * args.scheme.GroupsPerRow(args.cols), kWarps,
                               args);
}

void LaunchNearest(Device& device, const NearestArgs& args) {
  LaunchOver<NearestKernel>(device, args.rows * args.cols, NearestKernel::kThreads, args);
}

void LaunchGatherColumns(Device& device, const GatherColumnsArgs& args) {
  LaunchOver<GatherColumnsKernel>(device, args.rows * args.cols, GatherColumnsKernel::kThreads,
                                  args);
}

void LaunchGptqColumns(Device& device, const GptqColumnsArgs& args) {
  LaunchOver<GptqColumnsKernel>(device, args.rows, kWarps * GptqColumnsKernel::kRows, args);
}

}  // namespace nibble
