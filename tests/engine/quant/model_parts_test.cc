// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/model_parts.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

class ModelPartsTest : public ::testing::Test {
 protected:
  ModelPartsTest() {
    // 75 rows: slices of 32 leave an odd one.
    testing::TinyModel(dir_.File("model"), {.vocab = 75, .tied = false});
    source_ = *Checkpoint::Open(dir_.File("model"));
    config_ = *ParseDecoderConfig(source_->config());
  }

  PartsProblem Problem() {
    return {.recipe = &recipe_,
            .config = &config_,
            .source = source_.get(),
            .threads = 2,
            .keep_going = [this] { return asked_++ < stop_after_ ? absl::OkStatus() : stopped_; },
            .on_embedding = [](const WeightView&) { return absl::OkStatus(); }};
  }
  absl::StatusOr<ModelParts> Quantize(const PartsProblem& problem) {
    return QuantizeParts(problem, PosixFileSystem(), dir_.File(std::to_string(directories_++)));
  }

  TempDir dir_;
  std::unique_ptr<Checkpoint> source_;
  DecoderConfig config_;
  Recipe recipe_;
  const absl::Status stopped_ = absl::CancelledError("asked to stop");
  int stop_after_ = 1000;
  int asked_ = 0;
  int directories_ = 0;
};

TEST_F(ModelPartsTest, SlicesOfRowsGiveTheBytesOfTheWhole) {
  for (const Rounder rounder : {Rounder::kRtn, Rounder::kMse}) {
    for (const Scheme& scheme : kSchemes) {
      if (scheme.activation != Activation::kFloat || 64 % scheme.GroupWidth(64) != 0) continue;
      recipe_.rounder = rounder;
      recipe_.embedding_scheme = recipe_.head_scheme = std::string(scheme.name);
      PartsProblem problem = Problem();
      const absl::StatusOr<ModelParts> whole = Quantize(problem);
      ASSERT_TRUE(whole.ok()) << whole.status();
      problem.slice_values = 1;
      const absl::StatusOr<ModelParts> sliced = Quantize(problem);
      ASSERT_TRUE(sliced.ok()) << sliced.status();
      for (const auto& [a, b] : {std::pair(&whole->embedding, &sliced->embedding),
                                 std::pair(&*whole->head, &*sliced->head)}) {
        const std::string bytes = ReadFile(a->path);
        EXPECT_GT(bytes.size(), static_cast<size_t>(75 * 64 * scheme.bits() / 8)) << scheme.name;
        EXPECT_EQ(bytes, ReadFile(b->path)) << scheme.name;
        EXPECT_NEAR(a->error.relative_error, b->error.relative_error,
                    1e-12 + 1e-9 * a->error.relative_error);
      }
    }
  }
}

TEST_F(ModelPartsTest, ItStopsBetweenSlices) {
  PartsProblem problem = Problem();
  problem.slice_values = 1;
  ASSERT_TRUE(Quantize(problem).ok());
  EXPECT_EQ(asked_, 6) << "three slices of each of two modules";
  asked_ = 0;
  stop_after_ = 4;
  EXPECT_EQ(Quantize(problem).status(), stopped_);
}

}  // namespace
}  // namespace nibble
