// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/linear_packed.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cuda/linear_plan.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/packed_group.h"
#include "tests/support/cuda/emulated_device.h"
#include "tests/support/cuda/simt_emulator.h"
#include "tests/support/near.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

struct Case {
  std::vector<const RandomWeight*> weights;
  std::vector<std::vector<float>> biases;  // per weight; empty = none
  DType out = DType::kF32;
  const PackedLinearVariant* variant = nullptr;  // nullptr: the table's choice
};

void Launch(const Case& c, const PackedLinearArgs& args) {
  if (c.variant != nullptr) {
    LaunchPackedLinear(TestDevice(), args, {c.variant, 1});
  } else if (args.weight.layout.format.bits == 4) {
    LaunchLinearW4A16(TestDevice(), args);
  } else {
    LaunchLinearW8A16(TestDevice(), args);
  }
}

// x is (rows, cols) bf16; the products, weight by weight.
std::vector<std::vector<float>> Multiply(const Case& c, const std::vector<uint16_t>& x,
                                         int64_t rows) {
  const PackedGroup group(c.weights);
  const OnDevice<uint16_t> input(x);
  const int multiprocessors = TestDevice().info().multiprocessors;
  const auto parts =
      OnDevice<float>::Poisoned(static_cast<size_t>(LinearPartFloats(multiprocessors)));
  const std::vector<int32_t> none(
      static_cast<size_t>(group.weight().layout.n_tiles * kMaxLinearPasses));
  const OnDevice<int32_t> arrived(none);
  std::vector<OnDevice<float>> biases, outs;
  PackedLinearArgs args;
  args.weight = group.weight();
  args.x = input.data();
  args.rows = rows;
  args.cols = c.weights[0]->view().cols;
  args.num_segments = static_cast<int>(c.weights.size());
  args.scratch = {parts.data(), arrived.data()};
  for (size_t i = 0; i < c.weights.size(); ++i) {
    const int64_t features = c.weights[i]->view().rows;
    outs.push_back(OnDevice<float>::Poisoned(static_cast<size_t>(rows * features)));
    LinearSegment& segment = args.segments[i];
    segment.first_tile = group.first_tile(i);
    segment.features = features;
    segment.out = {outs.back().data(), c.out};
    if (i < c.biases.size() && !c.biases[i].empty()) {
      biases.emplace_back(c.biases[i]);
      segment.bias = biases.back().data();
    }
  }
  Launch(c, args);
  std::vector<std::vector<float>> products;
  for (const OnDevice<float>& out : outs) {
    std::vector<float> values = out.Read();
    if (c.out == DType::kBF16) {
      std::vector<uint16_t> halves(values.size());
      std::memcpy(halves.data(), values.data(), 2 * halves.size());
      values = FromBF16(halves);
    }
    products.push_back(values);
  }
  EXPECT_EQ(arrived.Read(), none);
  return products;
}

void ExpectNear(const std::vector<float>& y, const RandomWeight& weight,
                const std::vector<float>& bias, const std::vector<uint16_t>& x, int64_t rows) {
  const WeightView& w = weight.view();
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < w.rows; ++n) {
      double sum = bias.empty() ? 0.0 : bias[static_cast<size_t>(n)], size = std::abs(sum);
      for (int64_t k = 0; k < w.cols; ++k) {
        const double product = static_cast<double>(ReadWeight(w, n, k)) *
                               BF16ToF32(x[static_cast<size_t>(m * w.cols + k)]);
        sum += product;
        size += std::abs(product);
      }
      ASSERT_TRUE(Near(y[static_cast<size_t>(m * w.rows + n)], sum,
                       SumTolerance(kEpsilonF32, w.cols, size)))
          << m << ", " << n;
    }
  }
}

class CudaLinearPacked : public ::testing::TestWithParam<const Scheme*> {};

TEST_P(CudaLinearPacked, IsNearTheSumInDoublePrecisionAndTheSameInEverySchedule) {
  for (const LinearShape& shape : kLinearShapes) {
    SCOPED_TRACE(::testing::Message() << shape.rows << " x " << shape.out << " x " << shape.in);
    const RandomWeight weight(*GetParam(), shape.out, shape.in, 7);
    const auto x = ToBF16(RandomFloats(shape.rows * shape.in, 9));
    Case c{{&weight}, {RandomFloats(shape.out, 8)}};
    const auto y = Multiply(c, x, shape.rows);
    ExpectNear(y[0], weight, c.biases[0], x, shape.rows);
    Emulator().schedule = Schedule::kDescending;
    EXPECT_EQ(Multiply(c, x, shape.rows), y);
    Emulator().schedule = Schedule::kAscending;
    c.out = DType::kBF16;
    EXPECT_EQ(Multiply(c, x, shape.rows)[0], FromBF16(ToBF16(y[0])));
  }
}

// Every variant of the dispatch tables, and several passes; more tiles in a block's run than
// stages, and runs that end in the middle of an output tile, however many multiprocessors there
// are.
TEST_P(CudaLinearPacked, ARowDependsOnNeitherTheRowsBesideItNorTheirNumber) {
  constexpr int64_t kRows = 67, kIn = 1160;
  const int multiprocessors = TestDevice().info().multiprocessors;
  const int64_t out = int64_t{90} * multiprocessors;
  const LinearPlan plan = PlanLinear(PackedTiles(out), PackedTiles(kIn), multiprocessors);
  ASSERT_GT(plan.length, 6);
  ASSERT_NE(plan.FirstBlock(1), plan.LastBlock(1));
  const RandomWeight weight(*GetParam(), out, kIn, 3);
  const Case c{{&weight}, {}};
  const auto x = ToBF16(RandomFloats(kRows * kIn, 4));
  const auto whole = Multiply(c, x, kRows)[0];
  ExpectNear(whole, weight, {}, x, 2);
  for (const int64_t rows : {1, 16, 32}) {
    const int64_t first = kRows - rows;
    const std::vector<uint16_t> some(x.begin() + first * kIn, x.end());
    EXPECT_EQ(Multiply(c, some, rows)[0],
              std::vector<float>(whole.begin() + first * out, whole.end()))
        << rows;
  }
}

TEST_P(CudaLinearPacked, EveryVariantGivesTheSameBitsHoweverItIsLaunched) {
  constexpr int64_t kRows = 37, kOut = 300, kIn = 712;
  const RandomWeight weight(*GetParam(), kOut, kIn, 5);
  const auto x = ToBF16(RandomFloats(kRows * kIn, 6));
  const auto y = Multiply({{&weight}, {}}, x, kRows);
  bool& programmatic = TestDevice().stream().programmatic;
  const bool as_found = programmatic;
  int taken = 0;
  for (const PackedLinearVariant& variant :
       GetParam()->bits() == 4 ? LinearW4A16Variants() : LinearW8A16Variants()) {
    if (!TakesPackedLinear(variant, PackedFormatOf(*GetParam()), TestDevice().info())) continue;
    ++taken;
    programmatic = taken % 2 == 0;
    EXPECT_EQ(Multiply({{&weight}, {}, DType::kF32, &variant}, x, kRows), y)
        << variant.tokens << " tokens, " << variant.stages << " stages";
  }
  programmatic = as_found;
  EXPECT_GE(taken, 4);
}

std::string SchemeName(const ::testing::TestParamInfo<const Scheme*>& info) {
  std::string name(info.param->name);
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
}
INSTANTIATE_TEST_SUITE_P(PackedSchemes, CudaLinearPacked, ::testing::ValuesIn(PackedSchemes()),
                         SchemeName);

TEST(CudaLinearPackedGroup, WeightsThatShareAnInputAreOneLaunchAndTheSameValues) {
  for (const char* name : {"int4-g64-asym", "int8"}) {
    constexpr int64_t kIn = 328, kRows = 5;
    const Scheme& scheme = *FindScheme(name);
    const RandomWeight q(scheme, 300, kIn, 1), k(scheme, 40, kIn, 2), v(scheme, 129, kIn, 3);
    const auto x = ToBF16(RandomFloats(kRows * kIn, 4));
    const Case c{{&q, &k, &v}, {RandomFloats(300, 5), {}, RandomFloats(129, 6)}};
    const auto y = Multiply(c, x, kRows);
    for (size_t i = 0; i < 3; ++i) ExpectNear(y[i], *c.weights[i], c.biases[i], x, kRows);
  }
}

TEST(CudaLinearPackedGroup, NaNAndInfinityReachTheirRowAndNoOther) {
  constexpr int64_t kIn = 300, kOut = 20, kRows = 4;
  const RandomWeight weight(*FindScheme("int4-g32"), kOut, kIn, 1);
  auto x = ToBF16(RandomFloats(kRows * kIn, 2));
  const Case c{{&weight}, {}};
  const auto clean = Multiply(c, x, kRows)[0];
  x[kIn + 299] = F32ToBF16(std::numeric_limits<float>::quiet_NaN());
  x[2 * kIn] = F32ToBF16(std::numeric_limits<float>::infinity());
  const auto y = Multiply(c, x, kRows)[0];
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t row = i / kOut;
    if (row == 0 || row == 3) {
      EXPECT_EQ(y[i], clean[i]);
    } else {
      EXPECT_FALSE(std::isfinite(y[i])) << i;
    }
  }
}

TEST(CudaLinearPackedGroup, TheEndsOfTheNumberGridsAndScaleZero) {
  constexpr int64_t kIn = 256;
  struct Extreme {
    const char* scheme;
    uint8_t byte;  // of the stored codes
    float code;
  };
  for (const Extreme& extreme :
       {Extreme{"int4-g128", 0xff, 7}, Extreme{"int4-g128", 0, -8}, Extreme{"int8", 0xff, 127},
        Extreme{"int8", 0, -128}, Extreme{"int8-g32", 0xff, 127}}) {
    for (const float scale : {1.0f, 0.0f}) {
      RandomWeight weight(*FindScheme(extreme.scheme), 1, kIn, 1);
      const auto bits = static_cast<size_t>(weight.view().scheme->bits());
      std::memset(const_cast<void*>(weight.view().codes), extreme.byte, kIn * bits / 8);
      auto* scales = static_cast<uint16_t*>(const_cast<void*>(weight.view().scales));
      std::fill_n(scales, weight.view().scheme->GroupsPerRow(kIn), F32ToBF16(scale));
      const std::vector<uint16_t> x(kIn, F32ToBF16(-3.0f));
      EXPECT_EQ(Multiply({{&weight}, {}}, x, 1)[0][0], -3.0f * kIn * extreme.code * scale)
          << extreme.scheme;
    }
  }
}

TEST(CudaLinearPackedTable, TheFirstWithRoomIsChosenElseTheFirstThatHasMost) {
  const PackedLinearVariant table[] = {{true, false, 8, 4, 100, nullptr},
                                       {true, false, 8, 2, 50, nullptr},
                                       {true, false, 32, 4, 300, nullptr},
                                       {true, false, 32, 2, 200, nullptr},
                                       {true, true, 8, 2, 50, nullptr}};
  DeviceInfo info;
  const auto chosen = [&](const PackedFormat& format, size_t shared, int64_t rows) {
    info.shared_bytes_per_block = shared;
    return &ChoosePackedLinear(table, format, info, rows) - table;
  };
  EXPECT_EQ(chosen({4, 128, false}, 300, 8), 0);
  EXPECT_EQ(chosen({4, 128, false}, 99, 8), 1);
  EXPECT_EQ(chosen({4, 128, false}, 300, 9), 2);
  EXPECT_EQ(chosen({4, 128, false}, 299, 64), 3);
  EXPECT_EQ(chosen({4, 128, false}, 199, 64), 0);
  EXPECT_EQ(chosen({4, 64, true}, 300, 64), 4);
}

TEST(CudaLinearPackedGroup, NothingToDoForNoRows) {
  const RandomWeight weight(*FindScheme("int4-g128"), 8, 128, 1);
  EXPECT_TRUE(Multiply({{&weight}, {}}, {}, 0)[0].empty());
}

}  // namespace
}  // namespace nibble::testing
