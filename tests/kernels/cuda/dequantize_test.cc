// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/dequantize.h"

#include <gtest/gtest.h>

#include "kernels/codec.h"
#include "kernels/cuda/embed.h"
#include "kernels/cuda/pack_weight.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/kernels/random_weight.h"

namespace nibble::testing {
namespace {

constexpr int64_t kRows = 130, kCols = 167;  // beyond a tile in both directions

std::vector<float> Decoded(const WeightView& view, int64_t first, int64_t count) {
  std::vector<float> values;
  for (int64_t n = first; n < first + count; ++n) {
    for (int64_t k = 0; k < view.cols; ++k) values.push_back(ReadWeight(view, n, k));
  }
  return values;
}

TEST(CudaDequantize, IsReadWeightOfTheRowsInEverySchemeStoredOrPacked) {
  for (const Scheme& scheme : kSchemes) {
    SCOPED_TRACE(std::string(scheme.name));
    const RandomWeight weight(scheme, kRows, kCols, 3);
    const WeightOnDevice stored(weight.view());
    const std::vector<float> expected = Decoded(weight.view(), 5, 124);
    const auto floats = OnDevice<float>::Poisoned(expected.size());
    LaunchDequantize(TestDevice(), stored.weight(), 5, 124, Floats{floats.data(), DType::kF32});
    EXPECT_EQ(floats.Read(), expected);
    const auto halves = OnDevice<uint16_t>::Poisoned(expected.size());
    LaunchDequantize(TestDevice(), stored.weight(), 5, 124, Floats{halves.data(), DType::kBF16});
    EXPECT_EQ(halves.Read(), ToBF16(expected));
    if (!HasPackedFormat(scheme)) continue;

    PackedLayout layout{PackedFormatOf(scheme), PackedTiles(kRows), PackedTiles(kCols)};
    const auto memory = OnDevice<uint8_t>::Poisoned(static_cast<size_t>(layout.Bytes()));
    const PackedWeight packed{layout, memory.data()};
    LaunchPackWeight(TestDevice(), stored.weight(), packed, 0);
    const auto from_packed = OnDevice<float>::Poisoned(expected.size());
    LaunchDequantizePacked(TestDevice(), packed, 5, 124, kCols,
                           Floats{from_packed.data(), DType::kF32});
    EXPECT_EQ(from_packed.Read(), expected);

    // A tied head embeds from what its product keeps.
    const std::vector<int32_t> ids = {129, 0, 64};
    const OnDevice<int32_t> rows(ids);
    const auto embedded = OnDevice<float>::Poisoned(ids.size() * kCols);
    DeviceWeight shape = stored.weight();
    shape.codes = shape.scales = shape.zeros = nullptr;
    LaunchEmbed(TestDevice(), {shape, packed, rows.data(), 3, 1.0f, embedded.data()});
    std::vector<float> table;
    for (const int32_t id : ids) {
      for (const float value : Decoded(weight.view(), id, 1)) table.push_back(value);
    }
    EXPECT_EQ(embedded.Read(), table);
  }
}

}  // namespace
}  // namespace nibble::testing
