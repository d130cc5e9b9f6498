// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/embed.h"

#include <gtest/gtest.h>

#include "kernels/codec.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/kernels/cuda/packed_group.h"
#include "tests/kernels/random_weight.h"

namespace nibble::testing {
namespace {

TEST(CudaEmbedTest, ReadsEveryScheme) {
  const std::vector<int32_t> ids = {4, 0, 36, 4, 17};
  // The second and the fourth are what was drawn before.
  std::vector<SampleResult> results(2);
  results[0].token = 4;
  results[1].token = 0;
  const OnDevice<SampleResult> drawn(results);
  for (const Scheme& scheme : kSchemes) {
    for (const int64_t cols : {1, 7, 64, 136, 1032}) {
      const RandomWeight table(scheme, 37, cols, 5);
      const WeightOnDevice on_device(table.view());
      for (const float scale : {1.0f, 45.25f}) {
        const OnDevice<int32_t> rows(std::vector<int32_t>{4, -2, 36, -1, 17});
        const auto out = OnDevice<float>::Poisoned(ids.size() * static_cast<size_t>(cols));
        const auto tokens = OnDevice<int32_t>::Poisoned(ids.size());
        LaunchEmbed(TestDevice(),
                    {StoredTable{on_device.weight()}, rows.data(), static_cast<int64_t>(ids.size()),
                     scale, out.data(), drawn.data(), tokens.data()});
        std::vector<float> expected;
        for (const int32_t id : ids) {
          for (int64_t k = 0; k < cols; ++k) {
            expected.push_back(ReadWeight(table.view(), id, k) * scale);
          }
        }
        EXPECT_EQ(out.Read(), expected) << scheme.name << ", " << cols << " columns";
        EXPECT_EQ(tokens.Read(), ids);
      }
    }
  }
}

TEST(CudaEmbedTest, ATiedHeadEmbedsFromWhatItsProductKeeps) {
  const std::vector<int32_t> ids = {129, 0, 64};
  for (const Scheme* scheme : PackedSchemes()) {
    const RandomWeight table(*scheme, 130, 167, 5);
    const PackedGroup group({&table});
    const OnDevice<int32_t> rows(ids);
    const auto out = OnDevice<float>::Poisoned(ids.size() * 167);
    LaunchEmbed(TestDevice(), {PackedTable{group.weight(), 167}, rows.data(), 3, 1.0f, out.data()});
    std::vector<float> expected;
    for (const int32_t id : ids) {
      for (int64_t k = 0; k < 167; ++k) expected.push_back(ReadWeight(table.view(), id, k));
    }
    EXPECT_EQ(out.Read(), expected) << scheme->name;
  }
}

}  // namespace
}  // namespace nibble::testing
