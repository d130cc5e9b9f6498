// SPDX-License-Identifier: Apache-2.0
// The order of copies, launches and recordings on a device.
#include "kernels/cuda/device.h"

#include <numeric>

#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/staging.h"
#include "tests/kernels/cuda/on_device.h"

namespace nibble::testing {
namespace {

std::vector<int32_t> Counted(size_t count, int32_t first) {
  std::vector<int32_t> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST(StagingHalvesTest, TakesPlacesInTurns) {
  StagingHalves halves(64);
  EXPECT_EQ(halves.bytes(), 128u);
  struct Want {
    size_t bytes, offset;
    int half;
    bool turned;
  };
  for (const Want& want : {Want{1, 0, 0, false}, Want{17, 16, 0, false}, Want{16, 48, 0, false},
                           Want{1, 64, 1, true}, Want{48, 80, 1, false}, Want{64, 0, 0, true},
                           Want{0, 64, 0, false}, Want{1, 64, 1, true}, Want{63, 0, 0, true}}) {
    const StagingHalves::Place place = halves.Take(want.bytes);
    EXPECT_EQ(place.offset, want.offset);
    EXPECT_EQ(place.half, want.half);
    EXPECT_EQ(place.turned, want.turned);
  }
}

TEST(CudaDeviceTest, CopiesOfEverySizeArriveInOrder) {
  Device& device = TestDevice();
  // Through both halves of what copies are staged in, and past them.
  for (const size_t count : {size_t{1}, size_t{1000}, size_t{300000}, Device::kStagedBytes / 4,
                             Device::kStagedBytes / 4 + 1}) {
    const auto array = OnDevice<int32_t>::Poisoned(count);
    std::vector<std::vector<int32_t>> read(5, std::vector<int32_t>(count));
    std::vector<int32_t> host;
    for (int32_t round = 0; round < 5; ++round) {
      host = Counted(count, round);  // the same memory again
      device.CopyIn(array.data(), host.data(), count * sizeof(int32_t));
      device.CopyOut(read[static_cast<size_t>(round)].data(), array.data(),
                     count * sizeof(int32_t));
    }
    ASSERT_TRUE(device.Sync().ok());
    for (int32_t round = 0; round < 5; ++round) {
      ASSERT_EQ(read[static_cast<size_t>(round)], Counted(count, round)) << count;
    }
  }
}

TEST(CudaDeviceTest, WaitsForAMarkOnly) {
  Device& device = TestDevice();
  const OnDevice<int32_t> array(Counted(8, 0));
  std::vector<int32_t> first(8, -1), second(8, -1);
  device.CopyOut(first.data(), array.data(), 32);
  const uint64_t mark = device.Mark();
  const std::vector<int32_t> more = Counted(8, 100);
  device.CopyIn(array.data(), more.data(), 32);
  device.CopyOut(second.data(), array.data(), 32);
  const uint64_t later = device.Mark();
  EXPECT_GT(later, mark);
  ASSERT_TRUE(device.Wait(mark).ok());
  EXPECT_EQ(first, Counted(8, 0));
  EXPECT_EQ(second, std::vector<int32_t>(8, -1)) << "not before it was waited for";
  ASSERT_TRUE(device.Wait(later).ok());
  EXPECT_EQ(second, more);
  EXPECT_GE(device.Seconds(mark, later), 0);
  for (uint64_t i = 0; i < 3 * Device::kTimedMarks; ++i) device.Mark();
  EXPECT_TRUE(device.Wait(later).ok()) << "a mark may be old";
}

// Each of the launches may begin before the one before it has ended.
TEST(CudaDeviceTest, LaunchesRunInOrderAndAgainAsARecording) {
  Device& device = TestDevice();
  constexpr int64_t kCols = 700;
  constexpr int kLaunches = 64;
  const OnDevice<float> y(std::vector<float>(kCols, 1.0f));
  const OnDevice<float> bias(std::vector<float>(kCols, 2.0f));
  const auto copy = OnDevice<float>::Poisoned(kCols);
  const auto launches = [&] {
    for (int i = 0; i < kLaunches; ++i) {
      LaunchAddBias(device, {{y.data(), DType::kF32}, bias.data(), 1, kCols});
    }
    device.Copy(copy.data(), y.data(), kCols * sizeof(float));
    device.Zero(y.data(), sizeof(float));
    return absl::OkStatus();
  };
  ASSERT_TRUE(launches().ok());
  float sum = 1.0f + 2.0f * kLaunches;
  EXPECT_EQ(copy.Read(), std::vector<float>(kCols, sum));
  auto recording = device.Record(launches);
  ASSERT_TRUE(recording.ok()) << recording.status();
  EXPECT_EQ(copy.Read(), std::vector<float>(kCols, sum)) << "a recording runs nothing";
  for (int round = 0; round < 3; ++round) {
    device.Replay(**recording);
    sum += 2.0f * kLaunches;
    std::vector<float> want(kCols, sum);
    want[0] = 2.0f * kLaunches;
    EXPECT_EQ(copy.Read(), want);
    want[0] = 0.0f;
    EXPECT_EQ(y.Read(), want);
  }
}

TEST(CudaDeviceTest, ARecordingReportsWhatItsLaunchesReport) {
  const auto recording =
      TestDevice().Record([] { return absl::UnimplementedError("no such product"); });
  EXPECT_EQ(recording.status().message(), "no such product");
  EXPECT_TRUE(TestDevice().Sync().ok());
}

}  // namespace
}  // namespace nibble::testing
