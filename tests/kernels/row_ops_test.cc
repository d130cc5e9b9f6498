// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/backend.h"
#include "kernels/codec.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/random_weight.h"
#include "tests/support/near.h"
#include "tests/support/shapes.h"

namespace nibble::testing {
namespace {

constexpr int64_t kRows = 5;
constexpr ActFormat kFormats[] = {{DType::kF32, 0}, {DType::kI8, 32}, {DType::kI8, kWholeRow}};
constexpr ActFormat kE4M3Formats[] = {{DType::kF32, 0}, {DType::kF8E4M3, kWholeRow}};

std::unique_ptr<Backend> Make(const std::string& tier, int threads = 2) {
  return MakeCpuBackend({.threads = threads, .tier = tier}).value();
}

// Everything in an ActSet, as bytes, for comparisons to the bit.
std::vector<uint8_t> Bytes(const ActSet& set, int64_t rows) {
  std::vector<uint8_t> bytes;
  const auto append = [&bytes](const void* data, int64_t size) {
    const auto* begin = static_cast<const uint8_t*>(data);
    bytes.insert(bytes.end(), begin, begin + size);
  };
  for (int i = 0; i < set.count; ++i) {
    const ActView& view = set.views[static_cast<size_t>(i)];
    append(view.data, rows * view.cols * static_cast<int64_t>(BytesOf(view.format.dtype)));
    const int64_t groups = rows * view.format.GroupsPerRow(view.cols);
    if (groups > 0) append(view.scales, groups * 4);
    if (groups > 0) append(view.sums, groups * 4);
  }
  return bytes;
}

// The int8 and e4m3 views hold exactly what the codec makes of the f32 view.
void ExpectCodesOf(const ActSet& set, int64_t rows) {
  const auto* floats = static_cast<const float*>(set.views[0].data);
  for (int f = 1; f < set.count; ++f) {
    const ActView& view = set.views[static_cast<size_t>(f)];
    const int64_t width = view.format.group < 0 ? view.cols : view.format.group;
    const int64_t groups = view.format.GroupsPerRow(view.cols);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t begin = row * view.cols + g * width;
        const int64_t end = std::min(begin + width, (row + 1) * view.cols);
        float absmax = 0;
        for (int64_t i = begin; i < end; ++i) absmax = std::max(absmax, std::abs(floats[i]));
        if (view.format.dtype == DType::kF8E4M3) {
          EXPECT_EQ(view.scales[row], E4M3Scale(absmax));
          for (int64_t i = begin; i < end; ++i) {
            ASSERT_EQ(static_cast<const uint8_t*>(view.data)[i],
                      F32ToE4M3(floats[i] * E4M3InverseScale(absmax)))
                << row << ", " << i;
          }
          continue;
        }
        EXPECT_EQ(view.scales[row * groups + g], Int8Scale(absmax));
        int32_t sum = 0;
        for (int64_t i = begin; i < end; ++i) {
          const int8_t code = EncodeInt8(floats[i], Int8InverseScale(absmax));
          ASSERT_EQ(static_cast<const int8_t*>(view.data)[i], code) << row << ", " << i;
          sum += code;
        }
        EXPECT_EQ(view.sums[row * groups + g], sum);
      }
    }
  }
}

TEST(RmsNormTest, AddsNormsAndQuantizesAlikeInEveryTier) {
  for (const int64_t dim : kRowLengths) {
    SCOPED_TRACE(dim);
    const auto x = RandomFloats(kRows * dim, 1);
    const auto delta = RandomFloats(kRows * dim, 2);
    const auto weight = RandomFloats(dim, 3);
    for (const bool with_delta : {false, true}) {
      std::vector<uint8_t> scalar;
      for (const std::string& tier : Tiers()) {
        auto backend = Make(tier);
        auto residual = TakeFloats(*backend, x);
        auto deltas = TakeFloats(*backend, delta);
        auto weights = TakeFloats(*backend, weight);
        Activations out(*backend, kFormats, kRows, dim);
        RmsNormArgs args{};
        args.x = residual->as<float>();
        if (with_delta) args.delta.data = deltas->data();
        args.weight = weights->as<float>();
        args.weight_offset = 1.0f;
        args.eps = 1e-5f;
        args.dim = dim;
        args.num_rows = kRows;
        args.out = out.set();
        backend->RmsNorm(args);
        const auto bytes = Bytes(out.set(), kRows);
        if (tier != "scalar") {
          EXPECT_EQ(bytes, scalar) << tier;
          continue;
        }
        scalar = bytes;
        ExpectCodesOf(out.set(), kRows);
        const auto h = Floats32(*residual, kRows * dim);
        for (int64_t row = 0; row < kRows; ++row) {
          double squares = 0;
          for (int64_t i = row * dim; i < (row + 1) * dim; ++i) {
            const auto at = static_cast<size_t>(i);
            EXPECT_EQ(h[at], with_delta ? x[at] + delta[at] : x[at]);
            squares += double{h[at]} * h[at];
          }
          const double inverse = 1 / std::sqrt(squares / static_cast<double>(dim) + 1e-5);
          for (int64_t i = 0; i < dim; ++i) {
            const double expected = h[static_cast<size_t>(row * dim + i)] * inverse *
                                    (1.0 + weight[static_cast<size_t>(i)]);
            ASSERT_TRUE(Near(static_cast<const float*>(out.set().views[0].data)[row * dim + i],
                             expected, SumTolerance(kEpsilonF32, dim, std::abs(expected) + 1)));
          }
        }
      }
    }
  }
}

TEST(RmsNormTest, NormsOnlyTheRowsThatAreAskedFor) {
  auto backend = Make("");
  constexpr int64_t kDim = 24;
  const auto x = RandomFloats(kRows * kDim, 1);
  auto residual = TakeFloats(*backend, x);
  auto delta = TakeFloats(*backend, std::vector<float>(kRows * kDim, 1.0f));
  auto weight = TakeFloats(*backend, std::vector<float>(kDim, 1.0f));
  const int32_t rows[] = {1, 4};
  Activations out(*backend, {kFormats, 1}, 2, kDim);
  RmsNormArgs args{};
  args.x = residual->as<float>();
  args.delta.data = delta->data();
  args.weight = weight->as<float>();
  args.eps = 1e-5f;
  args.dim = kDim;
  args.rows = rows;
  args.num_rows = 2;
  args.out = out.set();
  backend->RmsNorm(args);
  const auto h = Floats32(*residual, kRows * kDim);
  for (size_t i = 0; i < h.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / kDim;
    EXPECT_EQ(h[i], row == 1 || row == 4 ? x[i] + 1.0f : x[i]);
  }
  const auto* y = static_cast<const float*>(out.set().views[0].data);
  EXPECT_NEAR(y[kDim] / y[kDim + 1], h[4 * kDim] / h[4 * kDim + 1], 1e-4);
}

TEST(RmsNormTest, ANaNReachesTheOutputInEveryFormat) {
  for (const std::string& tier : Tiers()) {
    for (const std::span<const ActFormat> formats :
         {std::span<const ActFormat>(kFormats), std::span<const ActFormat>(kE4M3Formats)}) {
      auto backend = Make(tier);
      std::vector<float> x(64, 1.0f);
      x[40] = std::numeric_limits<float>::quiet_NaN();
      auto residual = TakeFloats(*backend, x);
      auto weight = TakeFloats(*backend, std::vector<float>(64, 1.0f));
      Activations out(*backend, formats, 1, 64);
      RmsNormArgs args{};
      args.x = residual->as<float>();
      args.weight = weight->as<float>();
      args.dim = 64;
      args.num_rows = 1;
      args.out = out.set();
      backend->RmsNorm(args);
      for (int f = 0; f < out.set().count; ++f) {
        EXPECT_TRUE(std::isnan(ActivationValue(out.set().views[static_cast<size_t>(f)], 0, 40)))
            << tier;
      }
    }
  }
}

TEST(RmsNormTest, WritesE4M3AlikeInEveryTier) {
  for (const int64_t dim : kRowLengths) {
    std::vector<uint8_t> scalar;
    for (const std::string& tier : Tiers()) {
      auto backend = Make(tier);
      auto residual = TakeFloats(*backend, RandomFloats(kRows * dim, 1));
      std::fill_n(residual->as<float>(), dim, 0.0f);  // a row of zeros
      auto weights = TakeFloats(*backend, RandomFloats(dim, 3));
      Activations out(*backend, kE4M3Formats, kRows, dim);
      RmsNormArgs args{};
      args.x = residual->as<float>();
      args.weight = weights->as<float>();
      args.eps = 1e-5f;
      args.dim = dim;
      args.num_rows = kRows;
      args.out = out.set();
      backend->RmsNorm(args);
      ExpectCodesOf(out.set(), kRows);
      const auto bytes = Bytes(out.set(), kRows);
      if (tier == "scalar") scalar = bytes;
      EXPECT_EQ(bytes, scalar) << tier << ", " << dim;
    }
  }
}

TEST(OutliersTest, AreHandedOverAsTheyAreAndTheRestIsEncodedAsIfTheyWereZero) {
  for (const int64_t dim : kRowLengths) {
    std::vector<int32_t> features;
    for (int32_t k = 0; k < dim && features.size() < 20; k += 1 + k % 9) features.push_back(k);
    const OutlierFeatures outliers{static_cast<int32_t>(features.size()), features.data()};
    const ActFormat formats[] = {{DType::kF32, 0}, {DType::kI8, kWholeRow, outliers}};
    std::vector<uint8_t> scalar;
    for (const std::string& tier : Tiers()) {
      auto backend = Make(tier);
      auto gate = TakeFloats(*backend, RandomFloats(kRows * dim, 1));
      auto up = RandomFloats(kRows * dim, 2);
      for (int64_t row = 0; row < kRows; ++row) {  // They would spoil the scale.
        for (const int32_t k : features) up[static_cast<size_t>(row * dim + k)] *= 100.0f;
      }
      auto ups = TakeFloats(*backend, up);
      Activations out(*backend, formats, kRows, dim);
      backend->GatedActivation({.gate = {gate->data(), DType::kF32},
                                .up = {ups->data(), DType::kF32},
                                .rows = kRows,
                                .dim = dim,
                                .activation = GateActivation::kSilu,
                                .out = out.set()});
      const auto* y = static_cast<const float*>(out.set().views[0].data);
      const ActView& split = out.set().views[1];
      const auto* codes = static_cast<const int8_t*>(split.data);
      for (int64_t row = 0; row < kRows; ++row) {
        std::vector<float> rest(y + row * dim, y + (row + 1) * dim);
        const auto* values =
            static_cast<const float*>(split.outliers) + row * OutlierStride(outliers.count);
        for (size_t i = 0; i < features.size(); ++i) {
          float& value = rest[static_cast<size_t>(features[i])];
          EXPECT_EQ(values[i], value) << row << ", " << features[i];
          value = 0;
        }
        for (int32_t i = outliers.count; i < OutlierStride(outliers.count); ++i) {
          EXPECT_EQ(values[i], 0.0f);
        }
        float absmax = 0;
        for (const float x : rest) absmax = std::max(absmax, std::abs(x));
        EXPECT_EQ(split.scales[row], Int8Scale(absmax));
        int32_t sum = 0;
        for (int64_t k = 0; k < dim; ++k) {
          const int8_t code = EncodeInt8(rest[static_cast<size_t>(k)], Int8InverseScale(absmax));
          ASSERT_EQ(codes[row * dim + k], code) << row << ", " << k;
          sum += code;
        }
        EXPECT_EQ(split.sums[row], sum);
      }
      const auto bytes = Bytes(out.set(), kRows);
      if (tier == "scalar") scalar = bytes;
      EXPECT_EQ(bytes, scalar) << tier << ", " << dim;
    }
  }
}

TEST(OutliersTest, AnInfiniteOneLeavesTheScaleAlone) {
  const int32_t feature = 40;
  const ActFormat format{DType::kI8, kWholeRow, {1, &feature}};
  for (const std::string& tier : Tiers()) {
    for (const size_t at : {size_t{40}, size_t{41}}) {
      auto backend = Make(tier);
      std::vector<float> values(64, 1.0f);
      values[at] = std::numeric_limits<float>::infinity();
      auto gate = TakeFloats(*backend, std::vector<float>(64, 1.0f));
      auto up = TakeFloats(*backend, values);
      Activations out(*backend, {&format, 1}, 1, 64);
      backend->GatedActivation({.gate = {gate->data(), DType::kF32},
                                .up = {up->data(), DType::kF32},
                                .rows = 1,
                                .dim = 64,
                                .activation = GateActivation::kSilu,
                                .out = out.set()});
      const ActView& view = out.set().views[0];
      EXPECT_EQ(std::isnan(view.scales[0]), at == 41) << tier;
      EXPECT_EQ(std::isinf(static_cast<const float*>(view.outliers)[0]), at == 40) << tier;
    }
  }
}

TEST(GatedActivationTest, IsTheFunctionAndEqualInEveryTier) {
  for (const GateActivation activation : {GateActivation::kSilu, GateActivation::kGeluTanh}) {
    for (const int64_t dim : kRowLengths) {
      SCOPED_TRACE(dim);
      auto gate = RandomFloats(kRows * dim, 1, 4.0f);
      gate[0] = 200.0f;
      if (dim > 1) gate[1] = -200.0f;
      const auto up = RandomFloats(kRows * dim, 2);
      std::vector<uint8_t> scalar;
      for (const std::string& tier : Tiers()) {
        auto backend = Make(tier);
        auto gates = TakeFloats(*backend, gate);
        auto ups = TakeFloats(*backend, up);
        Activations out(*backend, kFormats, kRows, dim);
        GatedActivationArgs args{};
        args.gate.data = gates->data();
        args.up.data = ups->data();
        args.rows = kRows;
        args.dim = dim;
        args.activation = activation;
        args.out = out.set();
        backend->GatedActivation(args);
        const auto bytes = Bytes(out.set(), kRows);
        if (tier != "scalar") {
          EXPECT_EQ(bytes, scalar) << tier;
          continue;
        }
        scalar = bytes;
        ExpectCodesOf(out.set(), kRows);
        for (size_t i = 0; i < gate.size(); ++i) {
          const double x = gate[i];
          const double act =
              activation == GateActivation::kSilu
                  ? x / (1 + std::exp(-x))
                  : x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
          ASSERT_TRUE(Near(static_cast<const float*>(out.set().views[0].data)[i], act * up[i],
                           SumTolerance(kEpsilonF32, 1, (std::abs(x) + 1) * std::abs(up[i]))))
              << x;
        }
      }
    }
  }
}

TEST(EmbedTest, ReadsRowsOfEverySchemeThatCanBeATable) {
  for (const Scheme& scheme : kSchemes) {
    const RandomWeight table(scheme, 11, 172, 5);
    for (const std::string& tier : Tiers()) {
      auto backend = Make(tier);
      auto prepared = backend->PrepareEmbedding(table.view()).value();
      const int32_t ids[] = {10, 0, 3, 3};
      auto out = Take(*backend, 4 * 172 * sizeof(float));
      backend->Embed({prepared.get(), ids, 4, 1.5f, out->as<float>()});
      for (int64_t row = 0; row < 4; ++row) {
        for (int64_t k = 0; k < 172; ++k) {
          ASSERT_EQ(out->as<float>()[row * 172 + k], 1.5f * ReadWeight(table.view(), ids[row], k))
              << scheme.name;
        }
      }
    }
  }
}

TEST(EmbedTest, ATiedHeadIsItsOwnTable) {
  for (const Scheme& scheme : kSchemes) {
    const RandomWeight table(scheme, 77, 172, 5);
    for (const std::string& tier : Tiers()) {
      for (const Mode mode : {Mode::kExact, Mode::kFast}) {
        auto backend = Make(tier);
        const auto head = backend->Prepare({.weights = {table.view()}, .biases = {}}, mode).value();
        const auto tied = backend->EmbeddingOf(*head);
        EXPECT_EQ(tied->resident_bytes(), 0u);
        const int32_t ids[] = {76, 0, 33, 31};
        auto out = Take(*backend, 4 * 172 * sizeof(float));
        backend->Embed({tied.get(), ids, 4, 1.5f, out->as<float>()});
        for (int64_t row = 0; row < 4; ++row) {
          for (int64_t k = 0; k < 172; ++k) {
            ASSERT_EQ(out->as<float>()[row * 172 + k], 1.5f * ReadWeight(table.view(), ids[row], k))
                << scheme.name << " " << tier;
          }
        }
      }
    }
  }
}

TEST(HessianTest, AddsOuterProductsBelowTheDiagonalAlikeInEveryTier) {
  for (const int64_t dim : {int64_t{1}, int64_t{17}, int64_t{64}, int64_t{101}}) {
    const int64_t rows = 45;
    const auto x = RandomFloats(rows * dim, 1);
    const auto start = RandomFloats(dim * dim, 2);
    std::vector<float> scalar;
    for (const std::string& tier : Tiers()) {
      for (const int threads : {1, 3}) {
        auto backend = Make(tier, threads);
        auto h = TakeFloats(*backend, start);
        auto rows_of_x = TakeFloats(*backend, x);
        // In two calls: the order of the sum is that of the rows.
        backend->AccumulateHessian({rows_of_x->as<float>(), 20, dim, h->as<float>()});
        backend->AccumulateHessian(
            {rows_of_x->as<float>() + 20 * dim, rows - 20, dim, h->as<float>()});
        const auto sums = Floats32(*h, dim * dim);
        if (!scalar.empty()) {
          EXPECT_EQ(sums, scalar) << tier << ", " << threads << " threads";
          continue;
        }
        scalar = sums;
        for (int64_t i = 0; i < dim; ++i) {
          for (int64_t j = 0; j < dim; ++j) {
            const auto at = static_cast<size_t>(i * dim + j);
            if (j > i) {
              EXPECT_EQ(sums[at], start[at]) << "above the diagonal";
              continue;
            }
            double sum = start[at];
            double magnitude = std::abs(sum);
            for (int64_t r = 0; r < rows; ++r) {
              const double product =
                  double{x[static_cast<size_t>(r * dim + i)]} * x[static_cast<size_t>(r * dim + j)];
              sum += product;
              magnitude += std::abs(product);
            }
            ASSERT_TRUE(Near(sums[at], sum, SumTolerance(kEpsilonF32, rows, magnitude)));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::testing
