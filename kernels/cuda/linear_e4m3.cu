// SPDX-License-Identifier: Apache-2.0
// The product of e4m3 weights and e4m3 activations for few tokens: linear_rows_kernel.h with e4m3
// elements that become f16, exactly, in three or four instructions a pair, and f32 sums.
//
// Which input feature is which place of a fragment does not matter as long as weights and
// activations agree: of four codes, those of even bytes are the first half of an instruction's 16
// and those of odd bytes the second.
//
// Limit: bytes of the weight; from 32 or so tokens the rate of the m16n8k16 instruction.
#include "kernels/check.h"
#include "kernels/cuda/linear_e4m3.h"
#include "kernels/cuda/linear_rows_kernel.h"

namespace nibble {
namespace {

struct E4M3Rows {
  static constexpr int kBytes = 1;
  static constexpr bool kOutliers = false;
  using Sum = float;
  struct Tokens {
    uint32_t first[4], second[4];
  };
  struct Features {
    uint32_t first[2], second[2];
  };
  static NIBBLE_DEVICE Tokens TokensOf(const uint32_t (&rows)[4]) {
    return {
        {E4M3EvenPair(rows[0]), E4M3EvenPair(rows[1]), E4M3OddPair(rows[0]), E4M3OddPair(rows[1])},
        {E4M3EvenPair(rows[2]), E4M3EvenPair(rows[3]), E4M3OddPair(rows[2]), E4M3OddPair(rows[3])}};
  }
  static NIBBLE_DEVICE Features FeaturesOf(uint32_t low, uint32_t high) {
    return {{E4M3EvenPair(low), E4M3OddPair(low)}, {E4M3EvenPair(high), E4M3OddPair(high)}};
  }
  static NIBBLE_DEVICE void Multiply(Sum (&sum)[4], const Tokens& tokens,
                                     const Features& features) {
    simt::MmaF16(sum, tokens.first, features.first);
    simt::MmaF16(sum, tokens.second, features.second);
  }
  static NIBBLE_DEVICE float Value(Sum sum) { return sum * (kE4M3PairUnit * kE4M3PairUnit); }
};

// Four warps share the sums of every tile: a row's bits do not depend on the number of rows.
template <int kM, int kWarpsM, int kStages>
constexpr auto kTile =
    LaunchRowsTile<LinearRowsKernel<E4M3Rows, kM, 32, kWarpsM, 1, 4, 4, kStages>>;
constexpr RowsTile kTiles[] = {
    // tokens           kM  warps M  stages
    {16, kTile<16, 1, 4>},
    {INT64_MAX, kTile<kMaxE4M3Tokens, 2, 3>},
};

}  // namespace

void LaunchLinearE4M3(Device& device, const LinearRowsArgs& args) {
  NIBBLE_CHECK(args.scales != nullptr);
  LaunchLinearRows<E4M3Rows>(device, args, kTiles);
}

}  // namespace nibble
