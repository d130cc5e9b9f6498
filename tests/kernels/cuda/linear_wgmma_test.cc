// SPDX-License-Identifier: Apache-2.0
// The products of 9.0 against their definitions, those of int8 to the bit.
#include "kernels/cuda/linear_wgmma.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <utility>

#include "kernels/cuda/linear.h"
#include "tests/kernels/cuda/bf16_product.h"
#include "tests/kernels/cuda/int8_product.h"
#include "tests/support/cuda/emulated_device.h"
#include "tests/support/cuda/hopper_instructions.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

TEST(WgmmaTileTest, EveryTileHasOnePlaceInTheOrder) {
  for (const int rows : {1, 7, 8, 9, 20}) {
    for (const int columns : {1, 5, 16}) {
      std::set<std::pair<int, int>> seen;
      for (int i = 0; i < rows * columns; ++i) {
        const WgmmaTile tile = WgmmaTileOf(i, rows, columns);
        EXPECT_TRUE(tile.row >= 0 && tile.row < rows && tile.column >= 0 && tile.column < columns);
        seen.emplace(tile.row, tile.column);
      }
      EXPECT_EQ(static_cast<int>(seen.size()), rows * columns);
    }
  }
}

class CudaLinearWgmmaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasHopperInstructions(TestDevice())) GTEST_SKIP() << "compute capability 9.0 only";
  }
  // By `blocks` blocks.
  static void ExpectExact(int blocks, const std::vector<int64_t>& outs, int64_t rows, int64_t cols,
                          DType type, bool biased) {
    ExpectExactInt8([blocks](Device& device,
                             const LinearRowsArgs& args) { LaunchWgmmaInt8(device, args, blocks); },
                    outs, rows, cols, type, biased);
  }
};

TEST_F(CudaLinearWgmmaTest, ExactForOddShapes) {
  for (const LinearShape& shape : kLinearShapes) {
    const bool odd = shape.rows % 2 != 0;
    ExpectExact(4, {shape.out}, shape.rows, (shape.in + 15) / 16 * 16,
                odd ? DType::kBF16 : DType::kF32, odd);
  }
}

// 200 tokens and 260 features are two tiles of tokens and two of 256 features, or three of 128:
// more than the blocks below, for which wide tiles are taken, and less.
TEST_F(CudaLinearWgmmaTest, WideAndNarrowTilesForPairsOfBlocks) {
  for (const int blocks : {2, 4, 6}) {
    ExpectExact(blocks, {260}, 200, 272, DType::kBF16, true);
    ExpectExact(blocks, {264}, 130, 144, DType::kF32, false);
  }
}

TEST_F(CudaLinearWgmmaTest, RingsGoRoundAndTilesFollowEachOther) {
  ExpectExact(2, {300, 520}, 129, 912, DType::kBF16, false);
  ExpectExact(2, {136}, 70, 1040, DType::kF32, true);
  ExpectExact(2, {136, 72}, 64, 1680, DType::kBF16, true);
}

TEST_F(CudaLinearWgmmaTest, ThreeWeightsThatShareTheirInput) {
  for (const int64_t rows : {66, 257}) {
    ExpectExact(4, {70, 33, 129}, rows, 208, DType::kBF16, true);
  }
}

TEST_F(CudaLinearWgmmaTest, BF16IsNearItsDefinition) {
  const auto launch = [](Device& device, const LinearRowsArgs& args) {
    LaunchWgmmaBF16(device, args, 2);
  };
  for (const LinearShape& shape : kLinearShapes) {
    ExpectNearBF16(launch, shape.rows, shape.out, (shape.in + 7) / 8 * 8,
                   shape.rows % 2 == 0 ? DType::kF32 : DType::kBF16);
  }
  ExpectNearBF16(launch, 130, 272, 328, DType::kBF16);
}

// In tiles of 64, of 128, and of both widths of pairs of blocks.
TEST_F(CudaLinearWgmmaTest, ARowOfBF16HasTheSameBitsInEveryTile) {
  constexpr int64_t kRows = 140, kFeatures = 50;
  const BF16Product product(kRows, kFeatures, 600);
  const auto multiply = [&](int64_t rows, int blocks) {
    return As<float>(product.Multiply(
        [blocks](Device& device, const LinearRowsArgs& args) {
          LaunchWgmmaBF16(device, args, blocks);
        },
        rows, DType::kF32));
  };
  const std::vector<float> all = multiply(kRows, 2);
  EXPECT_EQ(multiply(kRows, 100), all);
  for (const int64_t rows : {1, 64, 65}) {
    EXPECT_EQ(multiply(rows, 4), std::vector<float>(all.begin(), all.begin() + rows * kFeatures));
  }
}

// As the backend takes it: on 9.0, for rows that the copy engine takes. 33 tokens are the first.
TEST_F(CudaLinearWgmmaTest, TheBackendTakesItForManyTokens) {
  EmulatedDevice().major = 9;
  const std::unique_ptr<Device> device = Device::Open(0).value();
  EmulatedDevice() = {};
  EXPECT_TRUE(TakesLinearWgmma(device->info(), 80));
  EXPECT_FALSE(TakesLinearWgmma(device->info(), 72));
  DeviceInfo older = device->info();
  older.major = 8;
  EXPECT_FALSE(TakesLinearWgmma(older, 80));
  constexpr int64_t kRows = 33, kFeatures = 40;
  const auto workspace = LinearWorkspace::Make(*device).value();
  for (const int64_t cols : {80, 72}) {
    const RandomWeight weight(W8A8(), kFeatures, cols, 0);  // the first of ExpectExactInt8
    const auto linear =
        PrepareCudaLinear(*device, *workspace, {{weight.view()}, {}}, Mode::kFast).value();
    ExpectExactInt8(
        [&](Device& tests, const LinearRowsArgs& args) {
          ASSERT_TRUE(tests.Sync().ok());
          LinearArgs call{};
          call.linear = linear.get();
          call.in.count = 1;
          call.in.views[0] = {{DType::kI8, kWholeRow},
                              cols,
                              const_cast<void*>(args.x),
                              const_cast<float*>(args.scales),
                              nullptr};
          call.rows = args.rows;
          call.out[0] = args.weights[0].out;
          ASSERT_TRUE(RunCudaLinear(*device, *workspace, call).ok());
          ASSERT_TRUE(device->Sync().ok());
        },
        {kFeatures}, kRows, cols, DType::kBF16, false);
  }
}

}  // namespace
}  // namespace nibble::testing
