// SPDX-License-Identifier: Apache-2.0
// The words of kernels/cuda/simt_hopper.h against what they are defined to mean.
#include "tests/support/cuda/hopper_instructions.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/kernels/cuda/on_device.h"

namespace nibble::testing {
namespace {

class CudaHopperInstruction : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasHopperInstructions(TestDevice())) GTEST_SKIP() << "compute capability 9.0 only";
  }
};

std::vector<uint32_t> Numbers(size_t count) {
  std::mt19937 random(5);
  std::vector<uint32_t> numbers(count);
  for (uint32_t& number : numbers) number = static_cast<uint32_t>(random());
  return numbers;
}

TEST_F(CudaHopperInstruction, BarriersHandARingOn) {
  constexpr size_t kRounds = 37;
  const std::vector<uint32_t> numbers = Numbers(32 * kRounds);
  const OnDevice<uint32_t> in(numbers);
  const auto out = OnDevice<uint32_t>::Poisoned(32);
  LaunchRing(TestDevice(), in.data(), kRounds, out.data());
  std::vector<uint32_t> sums(32);
  for (size_t i = 0; i < numbers.size(); ++i) sums[31 - i % 32] += numbers[i];
  EXPECT_EQ(out.Read(), sums);
}

TEST_F(CudaHopperInstruction, TilesReachBothBlocksOfACluster) {
  constexpr size_t kRows = 13, kCols = 2 * 128 + 48, kClusters = 3, kRounds = 3;
  std::vector<uint8_t> bytes(kRows * kCols);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(1 + &byte - bytes.data());
  const OnDevice<uint8_t> in(bytes);
  const auto out = OnDevice<uint8_t>::Poisoned(2 * kClusters * kRounds * 16 * 128);
  LaunchClusterTiles(TestDevice(), in.data(), kRows, kCols, kClusters, kRounds, out.data());
  const std::vector<uint8_t> tiles = out.Read();
  for (size_t i = 0; i < tiles.size(); ++i) {
    const size_t column = i % 128 + i / (16 * 128) % kRounds * 128;
    const size_t row = (i / 128 % 16 + 8) % 16;
    const int expected = row < kRows && column < kCols ? bytes[row * kCols + column] : 0;
    ASSERT_EQ(tiles[i], expected) << i;
  }
}

// Whole numbers up to `largest`, whose products and sums are exact in both types.
template <typename Element, typename Sum>
void ExpectProducts(int depth, int largest, Element (*element)(int), Sum (*sum)(int32_t)) {
  std::mt19937 random(9);
  const auto numbers = [&](int rows) {
    std::vector<int> values(static_cast<size_t>(rows * depth));
    for (int& value : values) {
      value = static_cast<int>(random() % static_cast<uint32_t>(2 * largest + 1)) - largest;
    }
    return values;
  };
  const auto elements = [&](const std::vector<int>& values) {
    std::vector<Element> as;
    for (const int value : values) as.push_back(element(value));
    return as;
  };
  for (const int n : {32, 128, 256}) {
    const std::vector<int> a = numbers(128), b = numbers(n);
    const OnDevice<Element> on_a(elements(a)), on_b(elements(b));
    const auto d = OnDevice<Sum>::Poisoned(static_cast<size_t>(128 * n));
    LaunchWgmma(TestDevice(), on_a.data(), on_b.data(), n, depth, d.data());
    std::vector<Sum> expected;
    for (int r = 0; r < 128; ++r) {
      for (int c = 0; c < n; ++c) {
        int32_t total = 0;
        for (int k = 0; k < depth; ++k) {
          total += a[static_cast<size_t>(r * depth + k)] * b[static_cast<size_t>(c * depth + k)];
        }
        expected.push_back(sum(total));
      }
    }
    EXPECT_EQ(d.Read(), expected) << n;
  }
}

TEST_F(CudaHopperInstruction, WarpgroupProductsOfInt8) {
  ExpectProducts<int8_t, int32_t>(
      384, 127, [](int x) { return static_cast<int8_t>(x); }, [](int32_t x) { return x; });
}

TEST_F(CudaHopperInstruction, WarpgroupProductsOfBF16) {
  ExpectProducts<uint16_t, float>(
      192, 100, [](int x) { return F32ToBF16(static_cast<float>(x)); },
      [](int32_t x) { return static_cast<float>(x); });
}

}  // namespace
}  // namespace nibble::testing
