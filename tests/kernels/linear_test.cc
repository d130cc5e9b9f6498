// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/backend.h"
#include "kernels/codec.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/random_weight.h"
#include "tests/support/near.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

std::unique_ptr<Backend> Make(const std::string& tier, int threads) {
  return MakeCpuBackend({.threads = threads, .tier = tier}).value();
}

// Rows of random activations in the formats that `linear` wants, written by a norm with weight 1.
struct Input {
  Input(Backend& backend, const PreparedLinear& linear, int64_t rows, int64_t cols, uint32_t seed)
      : x(TakeFloats(backend, RandomFloats(rows * cols, seed))),
        ones(TakeFloats(backend, std::vector<float>(static_cast<size_t>(cols), 1.0f))),
        activations(backend, linear.input_formats(), rows, cols) {
    RmsNormArgs args{};
    args.x = x->as<float>();
    args.weight = ones->as<float>();
    args.eps = 1e-6f;
    args.dim = cols;
    args.num_rows = rows;
    args.out = activations.set();
    backend.RmsNorm(args);
  }
  std::unique_ptr<Buffer> x, ones;
  Activations activations;
};

std::vector<float> Multiply(Backend& backend, const PreparedLinear& linear, const ActSet& in,
                            int64_t rows, int64_t out_features) {
  auto out = Take(backend, static_cast<size_t>(rows * out_features) * sizeof(float));
  LinearArgs args{};
  args.linear = &linear;
  args.in = in;
  args.rows = rows;
  args.out[0].data = out->data();
  backend.Linear(args);
  EXPECT_TRUE(backend.Sync().ok());
  return Floats32(*out, rows * out_features);
}

class LinearScheme : public ::testing::TestWithParam<const Scheme*> {};

TEST_P(LinearScheme, EveryTierIsNearTheSumInDoublePrecisionAndEqualToTheScalarTierOnTheSameInput) {
  const Scheme& scheme = *GetParam();
  for (const Mode mode : {Mode::kExact, Mode::kFast}) {
    for (const LinearShape& shape : kLinearShapes) {
      SCOPED_TRACE(::testing::Message() << (mode == Mode::kExact ? "exact " : "fast ") << shape.rows
                                        << " x " << shape.out << " x " << shape.in);
      const RandomWeight weight(scheme, shape.out, shape.in, 7);
      const std::vector<float> bias = RandomFloats(shape.out, 8);
      std::vector<float> scalar;
      for (const std::string& tier : Tiers()) {
        auto backend = Make(tier, 1);
        auto linear = backend->Prepare({{weight.view()}, {bias.data()}}, mode).value();
        const Input input(*backend, *linear, shape.rows, shape.in, 9);
        const auto y = Multiply(*backend, *linear, input.activations.set(), shape.rows, shape.out);
        const ActView& x = input.activations.set().views[0];
        // Dot products of bfloat16 have an order and a rounding of their own.
        const bool bf16 = x.format.dtype == DType::kBF16;
        EXPECT_FALSE(bf16 && mode == Mode::kExact);
        if (tier == "scalar") scalar = y;
        if (!bf16 && tier != "scalar") {
          EXPECT_EQ(y, scalar) << tier;
          continue;
        }
        for (int64_t m = 0; m < shape.rows; ++m) {
          for (int64_t n = 0; n < shape.out; ++n) {
            double sum = bias[static_cast<size_t>(n)];
            double magnitude = std::abs(sum);
            for (int64_t k = 0; k < shape.in; ++k) {
              const double product = ActivationValue(x, m, k) * ReadWeight(weight.view(), n, k);
              sum += product;
              magnitude += std::abs(product);
            }
            ASSERT_TRUE(Near(y[static_cast<size_t>(m * shape.out + n)], sum,
                             SumTolerance(kEpsilonF32, shape.in, magnitude)))
                << m << ", " << n;
          }
        }
      }
    }
  }
}

TEST_P(LinearScheme, ARowDoesNotDependOnTheRowsBesideItNorOnThreads) {
  const Scheme& scheme = *GetParam();
  constexpr int64_t kRows = 37;
  constexpr int64_t kOut = 203;
  constexpr int64_t kIn = 300;
  const RandomWeight weight(scheme, kOut, kIn, 3);
  for (const std::string& tier : Tiers()) {
    for (const Mode mode : {Mode::kExact, Mode::kFast}) {
      std::vector<float> whole;
      for (const int threads : {1, 2, 7}) {
        auto backend = Make(tier, threads);
        auto linear = backend->Prepare({{weight.view()}, {}}, mode).value();
        const Input input(*backend, *linear, kRows, kIn, 5);
        const ActSet& in = input.activations.set();
        const auto y = Multiply(*backend, *linear, in, kRows, kOut);
        if (threads == 1) whole = y;
        EXPECT_EQ(y, whole) << tier << ", " << threads << " threads";
        for (const int64_t row : {int64_t{0}, int64_t{11}, kRows - 1}) {
          ActSet one = in;
          ActView& view = one.views[0];
          const int64_t groups = view.format.GroupsPerRow(kIn);
          view.data = static_cast<uint8_t*>(view.data) +
                      row * kIn * static_cast<int64_t>(BytesOf(view.format.dtype));
          if (view.scales != nullptr) {
            view.scales += row * groups;
            view.sums += row * groups;
          }
          if (view.format.outliers.count > 0) {
            view.outliers = static_cast<float*>(view.outliers) +
                            row * OutlierStride(view.format.outliers.count);
          }
          const auto alone = Multiply(*backend, *linear, one, 1, kOut);
          EXPECT_EQ(alone, std::vector<float>(whole.begin() + row * kOut,
                                              whole.begin() + (row + 1) * kOut))
              << tier << ", row " << row;
        }
      }
    }
  }
}

std::vector<const Scheme*> AllSchemes() {
  std::vector<const Scheme*> schemes;
  for (const Scheme& scheme : kSchemes) schemes.push_back(&scheme);
  return schemes;
}

std::string SchemeName(const ::testing::TestParamInfo<const Scheme*>& info) {
  std::string name(info.param->name);
  for (char& c : name) {
    if (c == '-') c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Schemes, LinearScheme, ::testing::ValuesIn(AllSchemes()), SchemeName);

TEST(LinearGroupTest, WeightsOfDifferentSchemesShareOneInput) {
  auto backend = Make("", 2);
  const RandomWeight a(*FindScheme("int4-g32"), 40, 96, 1);
  const RandomWeight b(*FindScheme("w8a8"), 33, 96, 2);
  const RandomWeight c(*FindScheme("int4-g32-asym"), 7, 96, 3);
  auto group = backend->Prepare({{a.view(), b.view(), c.view()}, {}}, Mode::kFast).value();
  ASSERT_EQ(group->input_formats().size(), 2u);
  EXPECT_EQ(group->input_formats()[0], (ActFormat{DType::kI8, 32}));
  EXPECT_EQ(group->input_formats()[1], (ActFormat{DType::kI8, kWholeRow}));

  const Input input(*backend, *group, 3, 96, 4);
  std::vector<std::unique_ptr<Buffer>> outs;
  LinearArgs args{};
  args.linear = group.get();
  args.in = input.activations.set();
  args.rows = 3;
  const RandomWeight* weights[] = {&a, &b, &c};
  for (size_t i = 0; i < 3; ++i) {
    outs.push_back(Take(*backend, static_cast<size_t>(3 * weights[i]->view().rows) * 4));
    args.out[i].data = outs.back()->data();
  }
  backend->Linear(args);
  for (size_t i = 0; i < 3; ++i) {
    auto alone = backend->Prepare({{weights[i]->view()}, {}}, Mode::kFast).value();
    const Input single(*backend, *alone, 3, 96, 4);
    const int64_t count = 3 * weights[i]->view().rows;
    EXPECT_EQ(Floats32(*outs[i], count),
              Multiply(*backend, *alone, single.activations.set(), 3, weights[i]->view().rows));
  }
}

// The same codes and scales in w8a8, and the same bf16 weights in bf16.
TEST(OutliersTest, WithoutAnyTheProductIsThatOfW8A8AndWithNothingElseThatOfBF16) {
  constexpr int64_t kRows = 5, kOut = 70, kIn = 200;
  std::vector<int32_t> all(kIn);
  std::iota(all.begin(), all.end(), 0);
  const RandomWeight none(*FindScheme("llm-int8"), kOut, kIn, 1, {});
  const RandomWeight every(*FindScheme("llm-int8"), kOut, kIn, 2, all);
  WeightView w8a8 = none.view();
  w8a8.scheme = FindScheme("w8a8");
  const WeightView bf16{FindScheme("bf16"), kOut, kIn, every.view().outlier_weights};
  for (const std::string& tier : Tiers()) {
    for (const Mode mode : {Mode::kExact, Mode::kFast}) {
      auto backend = Make(tier, 1);
      const auto product = [&](const WeightView& w, Mode its_mode) {
        auto linear = backend->Prepare({{w}, {}}, its_mode).value();
        const Input input(*backend, *linear, kRows, kIn, 3);
        return Multiply(*backend, *linear, input.activations.set(), kRows, kOut);
      };
      EXPECT_EQ(product(none.view(), mode), product(w8a8, mode)) << tier;
      EXPECT_EQ(product(every.view(), mode), product(bf16, Mode::kExact)) << tier;
    }
  }
}

TEST(OutliersTest, LinearsOfOneInputShareAListIfTheirFeaturesAreTheSame) {
  const Scheme& scheme = *FindScheme("llm-int8");
  const RandomWeight a(scheme, 40, 96, 1, {3, 50});
  const RandomWeight same(scheme, 33, 96, 2, {3, 50});
  const RandomWeight other(scheme, 7, 96, 3, {3, 51});
  const RandomWeight none(scheme, 7, 96, 4, {});
  auto backend = Make("", 1);
  const auto formats = [&](const RandomWeight& x, const RandomWeight& y) {
    auto linear = backend->Prepare({{x.view(), y.view()}, {}}, Mode::kFast).value();
    return linear->input_formats().size();
  };
  EXPECT_EQ(formats(a, same), 1u);
  EXPECT_EQ(formats(a, other), 2u);
  EXPECT_EQ(formats(a, none), 2u);
  EXPECT_EQ(formats(none, RandomWeight(*FindScheme("w8a8"), 9, 96, 5)), 1u);
}

TEST(LinearGroupTest, ModesStateTheInputTheyWant) {
  auto backend = Make("scalar", 1);
  const auto format = [&](const char* scheme, Mode mode) {
    const RandomWeight weight(*FindScheme(scheme), 4, 64, 1);
    return backend->Prepare({{weight.view()}, {}}, mode).value()->input_formats()[0];
  };
  EXPECT_EQ(format("int4-g128", Mode::kExact), (ActFormat{DType::kF32, 0}));
  EXPECT_EQ(format("int4-g64", Mode::kFast), (ActFormat{DType::kI8, 64}));
  EXPECT_EQ(format("int8", Mode::kFast), (ActFormat{DType::kI8, 128}));
  EXPECT_EQ(format("bf16", Mode::kFast), (ActFormat{DType::kF32, 0}));
  EXPECT_EQ(format("w8a8", Mode::kExact), (ActFormat{DType::kI8, kWholeRow}));
  EXPECT_EQ(format("fp8", Mode::kExact), (ActFormat{DType::kF8E4M3, kWholeRow}));
  EXPECT_EQ(format("fp8", Mode::kFast), (ActFormat{DType::kF8E4M3, kWholeRow}));
  for (const char* expanded : {"int3-g64", "int2-g32-asym", "nf4", "nf4-dq", "fp8-w8a16"}) {
    EXPECT_EQ(format(expanded, Mode::kFast), (ActFormat{DType::kF32, 0})) << expanded;
  }
}

// Tiers whose fast products of bf16 weights take bfloat16 activations.
std::vector<std::string> BF16Tiers() {
  const RandomWeight weight(*FindScheme("bf16"), 1, 2, 1);
  std::vector<std::string> tiers;
  for (const std::string& tier : Tiers()) {
    auto linear = Make(tier, 1)->Prepare({{weight.view()}, {}}, Mode::kFast).value();
    if (linear->input_formats()[0].dtype == DType::kBF16) tiers.push_back(tier);
  }
  return tiers;
}

TEST(BF16DotTest, OnlyTheTierNamedForItRoundsActivations) {
  for (const std::string& tier : BF16Tiers()) EXPECT_EQ(tier, "avx512-bf16");
}

TEST(BF16DotTest, ActivationsAreRoundedOnceToNearestEven) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kOut = 40;
  constexpr int64_t kIn = 331;
  const RandomWeight weight(*FindScheme("bf16"), kOut, kIn, 2);
  auto scalar = Make("scalar", 1);
  auto plain = scalar->Prepare({{weight.view()}, {}}, Mode::kExact).value();
  const Input exact(*scalar, *plain, kRows, kIn, 6);
  for (const std::string& tier : BF16Tiers()) {
    auto backend = Make(tier, 1);
    auto linear = backend->Prepare({{weight.view()}, {}}, Mode::kFast).value();
    const Input input(*backend, *linear, kRows, kIn, 6);
    const auto y = Multiply(*backend, *linear, input.activations.set(), kRows, kOut);
    for (int64_t m = 0; m < kRows; ++m) {
      for (int64_t n = 0; n < kOut; ++n) {
        double sum = 0;
        double magnitude = 0;
        for (int64_t k = 0; k < kIn; ++k) {
          const auto x =
              static_cast<float>(ActivationValue(exact.activations.set().views[0], m, k));
          const double product = double{BF16ToF32(F32ToBF16(x))} * ReadWeight(weight.view(), n, k);
          sum += product;
          magnitude += std::abs(product);
        }
        ASSERT_TRUE(Near(y[static_cast<size_t>(m * kOut + n)], sum,
                         SumTolerance(kEpsilonF32, kIn, magnitude)))
            << tier << ", " << m << ", " << n;
      }
    }
  }
}

TEST(BF16DotTest, DenormalsCountAsZeroAndWhatIsNotFiniteStaysInItsRow) {
  constexpr int64_t kIn = 3;  // An odd number: the last pair must not read the next row.
  const uint16_t smallest = 1;
  const uint16_t one = F32ToBF16(1.0f);
  const uint16_t codes[2][kIn] = {{smallest, smallest, smallest}, {one, one, one}};
  const WeightView view{FindScheme("bf16"), 2, kIn, codes, nullptr, nullptr};
  for (const std::string& tier : BF16Tiers()) {
    auto backend = Make(tier, 1);
    auto linear = backend->Prepare({{view}, {}}, Mode::kFast).value();
    Activations in(*backend, linear->input_formats(), 3, kIn);
    auto* x = static_cast<uint16_t*>(in.set().views[0].data);
    for (int64_t i = 0; i < kIn; ++i) {
      x[i] = F32ToBF16(1e20f);
      x[kIn + i] = F32ToBF16(std::numeric_limits<float>::quiet_NaN());
      x[2 * kIn + i] = F32ToBF16(-std::numeric_limits<float>::infinity());
    }
    const auto y = Multiply(*backend, *linear, in.set(), 3, 2);
    EXPECT_EQ(y[0], 0.0f) << tier;
    EXPECT_NEAR(y[1], 3e20f, 1e18f) << tier;
    EXPECT_TRUE(std::isnan(y[3])) << tier;
    EXPECT_EQ(y[5], -std::numeric_limits<float>::infinity()) << tier;
  }
}

TEST(LinearGroupTest, LargestCodesDoNotSaturate) {
  // Every product at its extreme: two of 127 * 255 overflow int16, and so would eighteen of
  // 127 * 15.
  constexpr int64_t kIn = 256;
  struct Case {
    const char* scheme;
    uint8_t byte;  // of the stored codes
    int code;
  };
  for (const Case& c :
       {Case{"w8a8", 127, 127}, Case{"w8a8", 0x80, -128}, Case{"int8", 255, 127},
        Case{"int8", 0, -128}, Case{"int4-g128", 0xff, 7}, Case{"int4-g128", 0, -8}}) {
    const std::vector<uint8_t> codes(kIn, c.byte);
    const std::vector<uint16_t> scales(2, F32ToBF16(1.0f));
    const WeightView view{FindScheme(c.scheme), 1, kIn, codes.data(), scales.data(), nullptr};
    for (const std::string& tier : Tiers()) {
      for (const int activation : {127, -127}) {
        auto backend = Make(tier, 1);
        auto linear = backend->Prepare({{view}, {}}, Mode::kFast).value();
        Activations in(*backend, linear->input_formats(), 1, kIn);
        const ActView& x = in.set().views[0];
        const auto groups = static_cast<int32_t>(x.format.GroupsPerRow(kIn));
        std::fill_n(static_cast<int8_t*>(x.data), kIn, static_cast<int8_t>(activation));
        std::fill_n(x.scales, groups, 1.0f);
        std::fill_n(x.sums, groups, activation * static_cast<int32_t>(kIn) / groups);
        EXPECT_EQ(Multiply(*backend, *linear, in.set(), 1, 1)[0],
                  static_cast<float>(activation * c.code * static_cast<int>(kIn)))
            << tier << " " << c.scheme;
      }
    }
  }
}

TEST(CpuOptionsTest, AnUnknownTierIsRefusedWithTheOnesThereAre) {
  const auto backend = MakeCpuBackend({.threads = 1, .tier = "mmx"});
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(backend.status().message()), ::testing::HasSubstr("scalar"));
  EXPECT_THAT(std::string(backend.status().message()), ::testing::HasSubstr("mmx"));
  EXPECT_EQ(MakeCpuBackend({.threads = 257, .tier = ""}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeCpuBackend({.threads = -1, .tier = ""}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CeilingsTest, AreRatesThatAMachineCanHave) {
  const Ceilings ceilings = Make("", 2)->MeasureCeilings();
  for (const double rate : {ceilings.read_gb_per_s, ceilings.int8_gops, ceilings.bf16_gflops}) {
    EXPECT_GT(rate, 0.01);
    EXPECT_LT(rate, 1e6);
  }
}

TEST(CpuMemoryTest, AnImpossibleAllocationIsResourceExhausted) {
  auto backend = Make("", 1);
  EXPECT_EQ(backend->Allocate(size_t{1} << 60).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace nibble::testing
