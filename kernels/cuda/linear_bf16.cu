// SPDX-License-Identifier: Apache-2.0
// The product of bf16 weights and bf16 activations whose rows do not depend on each other:
// linear_rows_kernel.h with bf16 elements and f32 sums. The library is the faster one; its choice
// of algorithm, and with it the order of a sum, changes with the number of tokens.
//
// Limit: to some 250 tokens the bytes of the weights, above that multiplications by mma.sync.
#include "kernels/cuda/linear_rows_kernel.h"

namespace nibble {
namespace {

struct BF16Rows : PlainRows {
  static constexpr int kBytes = 2;
  using Sum = float;
  static NIBBLE_DEVICE void Multiply(Sum (&sum)[4], const Tokens& tokens,
                                     const Features& features) {
    simt::MmaBF16(sum, tokens.word, features.word);
  }
  static NIBBLE_DEVICE float Value(Sum sum) { return sum; }
};

// A sum is one warp's in every tile: a row's bits do not depend on the number of rows.
template <int kM, int kN, int kWarpsM, int kSlices, int kStages>
constexpr auto kTile =
    LaunchRowsTile<LinearRowsKernel<BF16Rows, kM, kN, kWarpsM, 4, 1, kSlices, kStages>>;
constexpr RowsTile kTiles[] = {
    // tokens     kM   kN  warps M  slices  stages
    {16, kTile<16, 32, 1, 4, 4>},
    {64, kTile<64, 64, 2, 1, 4>},
    {INT64_MAX, kTile<128, 128, 2, 1, 3>},
};

}  // namespace

void LaunchLinearBF16(Device& device, const LinearRowsArgs& args) {
  LaunchLinearRows<BF16Rows>(device, args, kTiles);
}

}  // namespace nibble
