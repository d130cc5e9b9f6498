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

TEST_F(CudaHopperInstruction, HopperBarriersHandARingOn) {
  constexpr size_t kRounds = 37;
  const std::vector<uint32_t> numbers = Numbers(32 * kRounds);
  const OnDevice<uint32_t> in(numbers);
  const auto out = OnDevice<uint32_t>::Poisoned(32);
  LaunchRing(TestDevice(), in.data(), kRounds, out.data());
  std::vector<uint32_t> sums(32);
  for (size_t i = 0; i < numbers.size(); ++i) sums[31 - i % 32] += numbers[i];
  EXPECT_EQ(out.Read(), sums);
}

TEST_F(CudaHopperInstruction, HopperBulkCopiesArriveAtTheirBarrier) {
  constexpr size_t kRounds = 5;
  const std::vector<uint32_t> numbers = Numbers(128 * kRounds);
  const OnDevice<uint32_t> in(numbers);
  const auto out = OnDevice<uint32_t>::Poisoned(numbers.size());
  LaunchBulkCopies(TestDevice(), in.data(), kRounds, out.data());
  EXPECT_EQ(out.Read(), numbers);
}

TEST_F(CudaHopperInstruction, HopperClusterCopiesReachBothBlocks) {
  constexpr size_t kClusters = 3, kRounds = 5, kRun = 128 * kRounds;
  const std::vector<uint32_t> numbers = Numbers(kClusters * kRun);
  const OnDevice<uint32_t> in(numbers);
  const auto out = OnDevice<uint32_t>::Poisoned(2 * kClusters * kRun);
  LaunchClusterCopies(TestDevice(), in.data(), kClusters, kRounds, out.data());
  std::vector<uint32_t> expected;
  for (size_t block = 0; block < 2 * kClusters; ++block) {
    const auto begin = numbers.begin() + static_cast<std::ptrdiff_t>(block / 2 * kRun);
    expected.insert(expected.end(), begin, begin + kRun);
  }
  EXPECT_EQ(out.Read(), expected);
}

TEST_F(CudaHopperInstruction, HopperWarpgroupProducts) {
  constexpr int kDepth = 384;
  std::mt19937 random(9);
  const auto codes = [&](int rows) {
    std::vector<int8_t> values(static_cast<size_t>(rows * kDepth));
    for (int8_t& value : values) value = static_cast<int8_t>(random());
    return values;
  };
  for (const int n : {128, 256}) {
    const std::vector<int8_t> a = codes(128), b = codes(n);
    std::vector<int8_t> placed(b.size());  // row r, unit u: at unit u ^ r % 8 of the row
    for (int r = 0; r < n; ++r) {
      for (int k = 0; k < kDepth; ++k) {
        const int unit = k % 128 / 16 ^ r % 8;
        placed[static_cast<size_t>(k / 128 * n * 128 + r * 128 + unit * 16 + k % 16)] =
            b[static_cast<size_t>(r * kDepth + k)];
      }
    }
    const OnDevice<int8_t> on_a(a), on_b(placed);
    const auto d = OnDevice<int32_t>::Poisoned(static_cast<size_t>(128 * n));
    LaunchWgmma(TestDevice(), on_a.data(), on_b.data(), n, kDepth, d.data());
    std::vector<int32_t> expected;
    for (int r = 0; r < 128; ++r) {
      for (int c = 0; c < n; ++c) {
        int32_t sum = 0;
        for (int k = 0; k < kDepth; ++k) {
          sum += a[static_cast<size_t>(r * kDepth + k)] * b[static_cast<size_t>(c * kDepth + k)];
        }
        expected.push_back(sum);
      }
    }
    EXPECT_EQ(d.Read(), expected) << n;
  }
}

}  // namespace
}  // namespace nibble::testing
