// SPDX-License-Identifier: Apache-2.0
// Walsh-Hadamard transform of rows.
//
// Tiling: a block per row. A lane loads up to 8 neighbours; their steps are in registers, the next
// 5 are exchanges within the warp, those beyond 256 go through the row in shared memory, three at a
// time, and so does the product with the small matrix. Limit: bytes (the row read and written once)
// up to some thousand elements, then shared memory.
#include "kernels/check.h"
#include "kernels/codec.h"
#include "kernels/cuda/hadamard.h"
#include "kernels/cuda/row_writer.h"
#include "kernels/hadamard.h"

namespace nibble {
namespace {

struct HadamardParams {
  HadamardArgs args;
  HadamardShape shape;
  std::array<uint32_t, kMaxHadamardBase> negative;
};

struct HadamardKernel {
  using Params = HadamardParams;
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;

  // All steps below min(power, 32 kEach), from global to shared memory.
  template <int kEach>
  static NIBBLE_DEVICE void FirstSteps(const Params& p, int64_t row, float* values) {
    const int64_t dim = p.args.dim;
    const int lane = simt::Lane();
    for (int64_t begin = int64_t{simt::WarpIndex()} * simt::kWarp * kEach; begin < dim;
         begin += int64_t{simt::Threads()} * kEach) {
      const int64_t at = begin + int64_t{lane} * kEach;
      float v[kEach];
      NIBBLE_UNROLL
      for (int e = 0; e < kEach; ++e) {
        v[e] = at + e < dim ? LoadFloat(p.args.x.data, p.args.x.dtype, row * dim + at + e) : 0.0f;
      }
      NIBBLE_UNROLL
      for (int step = 1; step < kEach; step *= 2) {
        NIBBLE_UNROLL
        for (int e = 0; e < kEach; ++e) {
          if ((e & step) != 0) continue;
          const float low = v[e], high = v[e + step];
          v[e] = low + high;
          v[e + step] = low - high;
        }
      }
      for (int mask = 1; mask < simt::kWarp && int64_t{mask} * kEach < p.shape.power; mask *= 2) {
        NIBBLE_UNROLL
        for (int e = 0; e < kEach; ++e) {
          const float other = simt::ShuffleXor(v[e], mask);
          v[e] = (lane & mask) != 0 ? other - v[e] : v[e] + other;
        }
      }
      NIBBLE_UNROLL
      for (int e = 0; e < kEach; ++e) {
        if (at + e < dim) values[at + e] = v[e];
      }
    }
  }

  // The steps `step`, 2 step, ... below kRadix step.
  template <int kRadix>
  static NIBBLE_DEVICE void Steps(int64_t dim, int64_t step, float* values) {
    simt::SyncThreads();
    for (int64_t i = simt::Thread(); i < dim / kRadix; i += simt::Threads()) {
      float* first = values + i / step * step * kRadix + i % step;
      float v[kRadix];
      NIBBLE_UNROLL
      for (int e = 0; e < kRadix; ++e) v[e] = first[e * step];
      NIBBLE_UNROLL
      for (int s = 1; s < kRadix; s *= 2) {
        NIBBLE_UNROLL
        for (int e = 0; e < kRadix; ++e) {
          if ((e & s) != 0) continue;
          const float low = v[e], high = v[e + s];
          v[e] = low + high;
          v[e + s] = low - high;
        }
      }
      NIBBLE_UNROLL
      for (int e = 0; e < kRadix; ++e) first[e * step] = v[e];
    }
  }

  template <int kBase>
  static NIBBLE_DEVICE void Base(const Params& p, float* values) {
    simt::SyncThreads();
    const int64_t power = p.shape.power;
    for (int64_t j = simt::Thread(); j < power; j += simt::Threads()) {
      float column[kBase];
      NIBBLE_UNROLL
      for (int c = 0; c < kBase; ++c) column[c] = values[c * power + j];
      for (int b = 0; b < kBase; ++b) {
        const uint32_t negative = p.negative[static_cast<size_t>(b)];
        // Turning the sign bit is exact: a + (-x) is a - x.
        const auto term = [&](int c) {
          return std::bit_cast<float>(std::bit_cast<uint32_t>(column[c]) ^ (negative >> c & 1u)
                                                                               << 31);
        };
        float sum = term(0);
        NIBBLE_UNROLL
        for (int c = 1; c < kBase; ++c) sum += term(c);
        values[b * power + j] = sum;
      }
    }
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* values = reinterpret_cast<float*>(simt::Shared());  // (dim)
    const int64_t row = simt::BlockX();
    const int64_t dim = p.args.dim;
    const int64_t power = p.shape.power;
    simt::WaitForPreviousKernel();
    int64_t step = simt::kWarp;
    if (power >= 256) {
      FirstSteps<8>(p, row, values);
      step = 256;
    } else if (power >= 128) {
      FirstSteps<4>(p, row, values);
      step = 128;
    } else {
      FirstSteps<1>(p, row, values);
    }
    while (step < power) {
      if (power / step >= 8) {
        Steps<8>(dim, step, values);
        step *= 8;
      } else if (power / step >= 4) {
        Steps<4>(dim, step, values);
        step *= 4;
      } else {
        Steps<2>(dim, step, values);
        step *= 2;
      }
    }
    if (p.shape.base == 12) Base<12>(p, values);
    if (p.shape.base == 20) Base<20>(p, values);
    if (p.shape.base == 28) Base<28>(p, values);
    simt::SyncThreads();
    for (int64_t k = simt::Thread(); k < dim; k += simt::Threads()) {
      const float y = values[k] * p.args.scale;
      values[k] = y;
      WriteRowFloat(p.args.out, row, k, y);
    }
    if (WantsCodes(p.args.out)) {
      simt::SyncThreads();
      WriteRowCodes(p.args.out, row, values);
    }
    simt::StartNextKernel();
  }
};

}  // namespace

void LaunchHadamard(Device& device, const HadamardArgs& args) {
  if (args.rows == 0) return;
  const HadamardShape shape = HadamardShapeOf(args.dim);
  NIBBLE_CHECK(shape.base > 0);
  LaunchShape launch;
  launch.grid_x = static_cast<int>(args.rows);
  launch.threads = args.dim > 4096 ? 512 : args.dim > 1024 ? 256 : args.dim > 128 ? 64 : 32;
  launch.shared_bytes = RowSharedBytes(args.dim);
  Launch<HadamardKernel>(device.stream(), launch, {args, shape, HadamardBase(shape.base)});
}

}  // namespace nibble
