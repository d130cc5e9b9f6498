// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/hadamard.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/hadamard.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/support/cuda/simt_emulator.h"

namespace nibble::testing {
namespace {

constexpr ActFormat kFormats[] = {{DType::kF32, 0}, {DType::kBF16, 0}, {DType::kI8, kWholeRow}};

TEST(CudaHadamardTest, IsTheReferenceToTheBit) {
  constexpr int64_t kRows = 2;
  for (const int64_t dim : {1,    2,     16, 32, 64,   128, 256,  512, 1024, 2048,
                            4096, 32768, 12, 96, 3072, 20,  5120, 28,  448,  14336}) {
    const auto x = RandomFloats(kRows * dim, 6);
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (const DType type : {DType::kF32, DType::kBF16}) {
      std::vector<float> expected = type == DType::kF32 ? x : FromBF16(ToBF16(x));
      for (int64_t row = 0; row < kRows; ++row) {
        HadamardRow(expected.data() + row * dim, dim, scale);
      }
      for (const Schedule schedule : {Schedule::kDescending, Schedule::kAscending}) {
        Emulator().schedule = schedule;
        const OnDevice<float> floats(x);
        const OnDevice<uint16_t> halves(ToBF16(x));
        const ActsOnDevice out(kFormats, kRows, dim);
        HadamardArgs args{};
        args.x.data = type == DType::kF32 ? static_cast<void*>(floats.data())
                                          : static_cast<void*>(halves.data());
        args.x.dtype = type;
        args.rows = kRows;
        args.dim = dim;
        args.scale = scale;
        args.out = out.set();
        LaunchHadamard(TestDevice(), args);
        EXPECT_EQ(As<float>(out.Data(0)), expected) << dim;
        EXPECT_EQ(As<uint16_t>(out.Data(1)), ToBF16(expected));
        const auto codes = As<int8_t>(out.Data(2));
        for (int64_t row = 0; row < kRows; ++row) {
          const float* values = expected.data() + row * dim;
          float absmax = 0;
          for (int64_t k = 0; k < dim; ++k) absmax = std::max(absmax, std::abs(values[k]));
          EXPECT_EQ(out.Scales(2)[static_cast<size_t>(row)], Int8Scale(absmax));
          EXPECT_EQ(codes[static_cast<size_t>(row * dim + dim / 2)],
                    EncodeInt8(values[dim / 2], Int8InverseScale(absmax)));
        }
      }
    }
  }
}

TEST(CudaHadamardTest, InPlace) {
  constexpr int64_t kDim = 1024;
  auto expected = RandomFloats(kDim, 8);
  const OnDevice<float> x(expected);
  HadamardRow(expected.data(), kDim, 1.0f);
  HadamardArgs args{};
  args.x.data = x.data();
  args.rows = 1;
  args.dim = kDim;
  args.scale = 1.0f;
  args.out.count = 1;
  args.out.views[0].cols = kDim;
  args.out.views[0].data = x.data();
  LaunchHadamard(TestDevice(), args);
  EXPECT_EQ(x.Read(), expected);
}

}  // namespace
}  // namespace nibble::testing
