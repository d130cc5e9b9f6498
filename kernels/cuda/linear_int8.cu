// SPDX-License-Identifier: Apache-2.0
// The products of W8A8 and of LLM.int8(): linear_rows_kernel.h with int8 elements and int32 sums.
//
// Limit: to some 180 tokens the bytes of the weights, above that int8 multiplications. Weights are
// read as they are stored, so that the library's product and this one share them: 512 bytes of a
// row at a time for few tokens, 32 rows a block. (A layout in the order of the fragments, one
// stream a block, reached 0.88 of the copy rate for gate and up of an 8B model at 1 token on an
// H100; this one is not measured yet.)
#include "kernels/check.h"
#include "kernels/cuda/linear_rows_kernel.h"

namespace nibble {
namespace {

struct Int8Rows : PlainRows {
  static constexpr int kBytes = 1;
  using Sum = int32_t;
  static NIBBLE_DEVICE void Multiply(Sum (&sum)[4], const Tokens& tokens,
                                     const Features& features) {
    simt::MmaS8(sum, tokens.word, features.word);
  }
  static NIBBLE_DEVICE float Value(Sum sum) { return static_cast<float>(sum); }
};

struct SplitInt8Rows : Int8Rows {
  static constexpr bool kOutliers = true;
};

template <class Element, int kM, int kN, int kWarpsM, int kWarpsN, int kWarpsK, int kSlices,
          int kStages>
constexpr auto kTile =
    LaunchRowsTile<LinearRowsKernel<Element, kM, kN, kWarpsM, kWarpsN, kWarpsK, kSlices, kStages>>;
template <class Element>
constexpr RowsTile kTiles[] = {
    // tokens              kM   kN  warps M, N, K  slices  stages
    {16, kTile<Element, 16, 32, 1, 1, 4, 4, 4>},
    {64, kTile<Element, 64, 32, 2, 1, 2, 2, 4>},
    {INT64_MAX, kTile<Element, 128, 128, 2, 4, 1, 1, 3>},
};

}  // namespace

void LaunchLinearInt8(Device& device, const LinearRowsArgs& args) {
  NIBBLE_CHECK(args.scales != nullptr && args.cols <= kMaxInt8LinearCols);
  if (args.outlier_count > 0) {
    LaunchLinearRows<SplitInt8Rows>(device, args, kTiles<SplitInt8Rows>);
  } else {
    LaunchLinearRows<Int8Rows>(device, args, kTiles<Int8Rows>);
  }
}

}  // namespace nibble
