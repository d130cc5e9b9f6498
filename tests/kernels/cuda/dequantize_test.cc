// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/dequantize.h"

#include <gtest/gtest.h>

#include "tests/kernels/cuda/packed_group.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

std::vector<float> Values(const RandomWeight& weight, DType out) {
  std::vector<float> values;
  for (int64_t n = 0; n < weight.view().rows; ++n) {
    for (int64_t k = 0; k < weight.view().cols; ++k) {
      const float value = ReadWeight(weight.view(), n, k);
      values.push_back(out == DType::kBF16 ? RoundToBF16(value) : value);
    }
  }
  return values;
}

template <typename Run>
std::vector<float> Output(const RandomWeight& weight, DType out, Run&& run) {
  const auto count = static_cast<size_t>(weight.view().rows * weight.view().cols);
  const auto memory = OnDevice<uint8_t>::Poisoned(count * BytesOf(out));
  run(Floats{memory.data(), out});
  return out == DType::kBF16 ? FromBF16(As<uint16_t>(memory.Read())) : As<float>(memory.Read());
}

TEST(CudaDequantize, EverySchemeFromItsStoredForm) {
  for (const Scheme& scheme : kSchemes) {
    for (const LinearShape& shape : kLinearShapes) {
      const RandomWeight weight(scheme, shape.out, shape.in, 3);
      const WeightOnDevice stored(weight.view());
      for (const DType out : {DType::kBF16, DType::kF32}) {
        EXPECT_EQ(Output(weight, out,
                         [&](const Floats& to) {
                           LaunchDequantize(TestDevice(), stored.weight(), 0, shape.out, to);
                         }),
                  Values(weight, out))
            << scheme.name << " " << shape.out << " x " << shape.in;
      }
    }
  }
}

TEST(CudaDequantize, EveryPackedFormatAndItsPlaceInTheGroup) {
  for (const Scheme* scheme : PackedSchemes()) {
    for (const LinearShape& shape : kLinearShapes) {
      const RandomWeight before(*scheme, 130, shape.in, 1), weight(*scheme, shape.out, shape.in, 2);
      const PackedGroup group({&before, &weight});
      for (const DType out : {DType::kBF16, DType::kF32}) {
        for (const Schedule schedule : {Schedule::kAscending, Schedule::kDescending}) {
          Emulator().schedule = schedule;
          EXPECT_EQ(Output(weight, out,
                           [&](const Floats& to) {
                             LaunchDequantizePacked(
                                 TestDevice(),
                                 {group.weight(), group.first_tile(1), shape.out, shape.in, to});
                           }),
                    Values(weight, out))
              << scheme->name << " " << shape.out << " x " << shape.in;
        }
        Emulator().schedule = Schedule::kAscending;
      }
    }
  }
}

TEST(CudaDequantize, SomeRowsOfAStoredWeight) {
  const RandomWeight weight(*FindScheme("int4-g32-asym"), 37, 70, 3);
  const WeightOnDevice stored(weight.view());
  const std::vector<float> all = Values(weight, DType::kF32);
  const auto rows = OnDevice<float>::Poisoned(11 * 70);
  LaunchDequantize(TestDevice(), stored.weight(), 5, 11, Floats{rows.data(), DType::kF32});
  EXPECT_EQ(rows.Read(), std::vector<float>(all.begin() + 5 * 70, all.begin() + 16 * 70));
}

}  // namespace
}  // namespace nibble::testing
