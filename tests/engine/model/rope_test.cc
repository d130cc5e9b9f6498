// SPDX-License-Identifier: Apache-2.0
// Rope tables against the frequencies that transformers computes (make_golden.py).
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/model/config.h"
#include "tests/support/source_dir.h"

namespace nibble {
namespace {

nlohmann::json Golden() {
  std::ifstream file(SourceDir().string() + "/tests/data/rope/golden.json");
  return nlohmann::json::parse(file);
}

TEST(RopeTest, FrequenciesAndFactorsAreThoseOfTransformers) {
  for (const nlohmann::json& golden : Golden()) {
    SCOPED_TRACE(golden["name"].get<std::string>());
    auto config = ParseDecoderConfig(golden["config"]);
    ASSERT_TRUE(config.ok()) << config.status();
    const auto frequencies = golden["frequencies"].get<std::vector<double>>();
    ASSERT_EQ(config->rope.rotary_dim, static_cast<int>(2 * frequencies.size()));
    const RopeTables tables =
        MakeRopeTables(config->rope, 2, golden["context"].get<int64_t>(), config->max_positions);
    const double factor = golden["attention_factor"].get<double>();
    for (size_t i = 0; i < frequencies.size(); ++i) {
      EXPECT_NEAR(tables.cos[i], factor, 1e-6) << "position 0";
      EXPECT_EQ(tables.sin[i], 0.0f) << "position 0";
      // At position 1 the angle is the frequency, which is at most one.
      const double c = tables.cos[frequencies.size() + i];
      const double s = tables.sin[frequencies.size() + i];
      EXPECT_NEAR(std::hypot(c, s), factor, 1e-6) << "pair " << i;
      EXPECT_NEAR(std::atan2(s, c) / frequencies[i], 1.0, 2e-6) << "pair " << i;
    }
  }
}

TEST(RopeTest, AnglesAreThePositionTimesTheFrequencyInDouble) {
  RopeConfig rope;
  rope.rotary_dim = 8;
  rope.theta = 10000.0;
  const int32_t positions = 5000;
  const RopeTables tables = MakeRopeTables(rope, positions, positions, positions);
  ASSERT_EQ(tables.positions, positions);
  ASSERT_EQ(tables.cos.size(), size_t{positions} * 4);
  for (int32_t position : {0, 1, 999, 4999}) {
    for (int pair = 0; pair < 4; ++pair) {
      const double angle = position * std::pow(10000.0, -pair / 4.0);
      const auto at = static_cast<size_t>(position) * 4 + static_cast<size_t>(pair);
      EXPECT_EQ(tables.cos[at], static_cast<float>(std::cos(angle)));
      EXPECT_EQ(tables.sin[at], static_cast<float>(std::sin(angle)));
    }
  }
}

TEST(RopeTest, ALongerTableBeginsWithTheShorterOne) {
  for (const nlohmann::json& golden : Golden()) {
    auto config = ParseDecoderConfig(golden["config"]);
    ASSERT_TRUE(config.ok()) << config.status();
    const int64_t context = golden["context"].get<int64_t>();
    const RopeTables few = MakeRopeTables(config->rope, 3, context, config->max_positions);
    const RopeTables many = MakeRopeTables(config->rope, 7, context, config->max_positions);
    EXPECT_TRUE(std::equal(few.cos.begin(), few.cos.end(), many.cos.begin()));
    EXPECT_TRUE(std::equal(few.sin.begin(), few.sin.end(), many.sin.begin()));
  }
}

}  // namespace
}  // namespace nibble
