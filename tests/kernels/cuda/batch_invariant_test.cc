// SPDX-License-Identifier: Apache-2.0
// CudaOptions::batch_invariant: a product's row has the same bits whatever the other rows are and
// however many, in every scheme.
#include <gtest/gtest.h>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/row_ops.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/kernels/random_weight.h"
#include "tests/support/cuda/emulated_device.h"

namespace nibble::testing {
namespace {

class CudaBatchInvariant : public ::testing::TestWithParam<std::string> {};

TEST_P(CudaBatchInvariant, ARowHasTheSameBitsInEveryBatch) {
  EmulatedDevice().order_by_rows = true;
  constexpr int64_t kCols = 320, kRows = 70;
  const std::vector<int64_t> outs = {136, 33};
  const Scheme& scheme = *FindScheme(GetParam());
  const RandomWeight first(scheme, outs[0], kCols, 1), second(scheme, outs[1], kCols, 2);
  const std::vector<float> bias = RandomFloats(outs[0], 3);
  const auto workspace = LinearWorkspace::Make(TestDevice(), {.batch_invariant = true}).value();
  const auto linear =
      PrepareCudaLinear(TestDevice(), *workspace,
                        {{first.view(), second.view()}, {bias.data(), nullptr}}, Mode::kFast)
          .value();
  const OnDevice<float> tokens(RandomFloats(kRows * kCols, 4));
  const OnDevice<float> ones(std::vector<float>(kCols, 1.0f));
  // The outputs of these tokens, one after the other in one step.
  const auto multiply = [&](const std::vector<int32_t>& which) {
    const auto rows = static_cast<int64_t>(which.size());
    const OnDevice<int32_t> indices(which);
    const ActsOnDevice in(linear->formats, rows, kCols);
    RmsNormArgs norm{};
    norm.x = tokens.data();
    norm.weight = ones.data();
    norm.eps = 1e-6f;
    norm.dim = kCols;
    norm.rows = indices.data();
    norm.num_rows = rows;
    norm.out = in.set();
    LaunchRmsNorm(TestDevice(), norm);
    LinearArgs args{};
    args.linear = linear.get();
    args.in = in.set();
    args.rows = rows;
    std::vector<OnDevice<uint8_t>> out;
    for (size_t i = 0; i < outs.size(); ++i) {
      const DType type = i == 0 ? DType::kF32 : DType::kBF16;
      out.push_back(
          OnDevice<uint8_t>::Poisoned(static_cast<size_t>(rows * outs[i]) * BytesOf(type)));
      args.out[i] = {out[i].data(), type};
    }
    EXPECT_TRUE(RunCudaLinear(TestDevice(), *workspace, args).ok());
    return std::pair(As<uint32_t>(out[0].Read()), As<uint16_t>(out[1].Read()));
  };
  std::vector<int32_t> every(kRows);
  for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<int32_t>(i);
  const auto all = multiply(every);
  for (const std::vector<int32_t>& which :
       {std::vector<int32_t>{69}, {3}, {5, 1, 68, 33, 2, 40, 69, 8, 7, 65}}) {
    const auto some = multiply(which);
    for (size_t row = 0; row < which.size(); ++row) {
      const auto token = static_cast<int64_t>(which[row]);
      const auto at = static_cast<int64_t>(row);
      EXPECT_TRUE(std::equal(some.first.begin() + at * outs[0],
                             some.first.begin() + (at + 1) * outs[0],
                             all.first.begin() + token * outs[0]))
          << "token " << token << " among " << which.size();
      EXPECT_TRUE(std::equal(some.second.begin() + at * outs[1],
                             some.second.begin() + (at + 1) * outs[1],
                             all.second.begin() + token * outs[1]))
          << "token " << token << " among " << which.size();
    }
  }
  EmulatedDevice().order_by_rows = false;
}

std::vector<std::string> Schemes() {
  std::vector<std::string> names;
  for (const Scheme& scheme : kSchemes) names.emplace_back(scheme.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(Schemes, CudaBatchInvariant, ::testing::ValuesIn(Schemes()),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

}  // namespace
}  // namespace nibble::testing
