// SPDX-License-Identifier: Apache-2.0
// Block by block gives the figures of the whole model, to the bit.
#include "engine/eval/blockwise_evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/eval/evaluate.h"
#include "tests/support/counting_backend.h"
#include "tests/support/source_dir.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using testing::CountingBackend;
using ::testing::HasSubstr;
using testing::TinyModel;

struct Opened {
  explicit Opened(const std::string& path) {
    source = *Checkpoint::Open(path);
    config = *ParseDecoderConfig(source->config());
  }
  OpenModelRef ref() const { return {&config, source.get()}; }

  std::unique_ptr<Checkpoint> source;
  DecoderConfig config;
};

// A variant of the random checkpoints in tests/data/models, as a directory.
std::string Variant(const TempDir& dir, const std::string& family, const std::string& name) {
  const std::filesystem::path from = SourceDir() / "tests/data/models" / family;
  const std::filesystem::path to = dir.File(family + "-" + name);
  std::filesystem::create_directories(to);
  std::filesystem::copy_file(from / "weights.safetensors", to / "model.safetensors");
  std::filesystem::copy_file(from / (name + ".json"), to / "config.json");
  return to;
}

// Documents of a step and of many, some longer than any window, one with nothing to predict.
std::vector<Document> Documents() {
  std::vector<Document> documents;
  for (const int length : {50, 1, 2, 97, 33, 300, 7}) {
    Document document = {1};
    for (int i = 1; i < length; ++i) {
      document.push_back((i * 13 + 5 * static_cast<int>(documents.size()) + i * i) % 96);
    }
    documents.push_back(document);
  }
  return documents;
}

void ExpectSameBits(const Evaluation& a, const Evaluation& b) {
  ASSERT_EQ(a.documents.size(), b.documents.size());
  for (size_t i = 0; i < a.documents.size(); ++i) {
    EXPECT_EQ(a.documents[i].nll, b.documents[i].nll) << "document " << i;
    EXPECT_EQ(a.documents[i].reference_nll, b.documents[i].reference_nll) << "document " << i;
    EXPECT_EQ(a.documents[i].kl, b.documents[i].kl) << "document " << i;
    EXPECT_EQ(a.documents[i].same_top, b.documents[i].same_top) << "document " << i;
    EXPECT_EQ(a.documents[i].miss_gap, b.documents[i].miss_gap) << "document " << i;
    EXPECT_EQ(a.documents[i].predictions, b.documents[i].predictions) << "document " << i;
  }
}

class BlockwiseEvaluatorTest : public ::testing::Test {
 protected:
  void SetUp() override { backend_ = *MakeCpuBackend({2, ""}); }

  BlockwiseEvaluator::Options Options(int32_t window, const char* kv = "bf16") {
    BlockwiseEvaluator::Options options;
    options.text.window = window;
    options.text.bos_id = 1;
    options.kv = FindKvFormat(kv);
    options.activation_budget_bytes = int64_t{1} << 30;
    options.spill_directory = dir_.path();
    return options;
  }

  absl::StatusOr<Evaluation> Whole(const Opened& model, const Opened& reference, Mode mode,
                                   const BlockwiseEvaluator::Options& options) {
    DecoderOptions load{
        .mode = mode, .max_rows = 64, .max_logit_rows = 64, .max_context = options.text.window};
    auto decoder = Decoder::Load(*backend_, model.config, *model.source, load);
    if (!decoder.ok()) return decoder.status();
    load.mode = Mode::kExact;
    auto other = Decoder::Load(*backend_, reference.config, *reference.source, load);
    if (!other.ok()) return other.status();
    return Evaluate(**decoder, other->get(), Documents(), *options.kv, options.text);
  }

  TempDir dir_;
  std::unique_ptr<Backend> backend_;
};

struct Pair {
  const char* family;
  const char* model;
  const char* reference;
};

TEST_F(BlockwiseEvaluatorTest, GivesTheBitsOfTheWholeModelForEveryFamilyWindowAndKvFormat) {
  // The sliding windows of mistral/window and qwen2/window are shorter than the documents.
  const Pair pairs[] = {{"llama", "dynamic", "plain"},       {"llama", "longrope", "yarn"},
                        {"mistral", "window", "full"},       {"qwen2", "window", "plain"},
                        {"qwen3", "plain", "plain"},         {"llama_mqa_bias", "plain", "plain"},
                        {"llama_mha_tied", "plain", "plain"}};
  for (const Pair& pair : pairs) {
    const Opened model(Variant(dir_, pair.family, pair.model));
    const Opened reference(std::string(pair.model) == pair.reference
                               ? model.source->path()
                               : Variant(dir_, pair.family, pair.reference));
    const int32_t longest =
        std::min({MaxContext(model.config), MaxContext(reference.config), int32_t{300}});
    for (const int32_t window : {int32_t{31}, longest}) {
      for (const char* kv : {"bf16", "k8v4"}) {
        SCOPED_TRACE(::testing::Message()
                     << pair.family << "/" << pair.model << ", window " << window << ", " << kv);
        const BlockwiseEvaluator::Options options = Options(window, kv);
        auto evaluator = BlockwiseEvaluator::Make(*backend_, reference.ref(), Documents(), options);
        ASSERT_TRUE(evaluator.ok()) << evaluator.status();
        for (const Mode mode : {Mode::kExact, Mode::kFast}) {
          const auto blockwise = (*evaluator)->Evaluate(model.ref(), mode);
          const auto whole = Whole(model, reference, mode, options);
          ASSERT_TRUE(blockwise.ok()) << blockwise.status();
          ASSERT_TRUE(whole.ok()) << whole.status();
          ExpectSameBits(*blockwise, *whole);
        }
      }
    }
  }
}

TEST_F(BlockwiseEvaluatorTest, SpillingAndCuttingChangeNothingElse) {
  TinyModel(dir_.File("model"), {.sliding_window = 20});
  TinyModel(dir_.File("other"), {.sliding_window = 20, .seed = 2});
  const Opened model(dir_.File("model"));
  const Opened other(dir_.File("other"));
  BlockwiseEvaluator::Options options = Options(64);
  options.text.max_tokens = 80;
  options.text.max_predictions = 200;
  const auto whole = Whole(model, other, Mode::kExact, options);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_GE(whole->predictions(), 200);
  EXPECT_LT(whole->predictions(), 200 + 64);
  EXPECT_GT(whole->kl(), 0.01);
  options.activation_budget_bytes = 0;
  auto evaluator = BlockwiseEvaluator::Make(*backend_, other.ref(), Documents(), options);
  ASSERT_TRUE(evaluator.ok()) << evaluator.status();
  const auto spilled = (*evaluator)->Evaluate(model.ref(), Mode::kExact);
  ASSERT_TRUE(spilled.ok()) << spilled.status();
  ExpectSameBits(*spilled, *whole);
}

TEST_F(BlockwiseEvaluatorTest, PreparesABlockOrTwoHeadsAtATime) {
  const auto most = [&](int layers) {
    const std::string path = dir_.File(std::to_string(layers));
    TinyModel(path, {.layers = layers});
    const Opened model(path);
    CountingBackend counting(*backend_);
    auto evaluator = BlockwiseEvaluator::Make(counting, model.ref(), Documents(), Options(64));
    EXPECT_TRUE(evaluator.ok()) << evaluator.status();
    EXPECT_TRUE((*evaluator)->Evaluate(model.ref(), Mode::kFast).ok());
    const auto block =
        DecoderBlock::Prepare(*backend_, model.config, 0, *model.source, Mode::kFast);
    const auto head = DecoderHead::Prepare(*backend_, model.config, *model.source, Mode::kFast);
    EXPECT_LE(
        counting.weights().most,
        static_cast<int64_t>(std::max((*block)->resident_bytes(), 2 * (*head)->resident_bytes())));
    return std::pair(counting.weights().most, counting.buffers().most);
  };
  EXPECT_EQ(most(2), most(7));
}

TEST_F(BlockwiseEvaluatorTest, TellsOfEveryBlockAndStopsWhenItIsTold) {
  TinyModel(dir_.File("model"), {.layers = 3});
  const Opened model(dir_.File("model"));
  BlockwiseEvaluator::Options options = Options(64);
  std::vector<int32_t> blocks;
  bool stop = false;
  options.on_block = [&](int32_t done) { blocks.push_back(done); };
  options.text.keep_going = [&] { return stop ? absl::AbortedError("stop") : absl::OkStatus(); };
  auto evaluator = BlockwiseEvaluator::Make(*backend_, model.ref(), Documents(), options);
  ASSERT_TRUE(evaluator.ok()) << evaluator.status();
  ASSERT_TRUE((*evaluator)->Evaluate(model.ref(), Mode::kExact).ok());
  EXPECT_EQ(blocks, (std::vector<int32_t>{1, 2, 3, 1, 2, 3}));
  stop = true;
  EXPECT_EQ((*evaluator)->Evaluate(model.ref(), Mode::kExact).status().code(),
            absl::StatusCode::kAborted);
}

TEST_F(BlockwiseEvaluatorTest, RefusesAnotherVocabularyAndTextWithoutPredictions) {
  TinyModel(dir_.File("model"), {.layers = 1});
  TinyModel(dir_.File("other"), {.layers = 1, .vocab = 90});
  const Opened model(dir_.File("model"));
  const Opened other(dir_.File("other"));
  auto evaluator = BlockwiseEvaluator::Make(*backend_, model.ref(), Documents(), Options(64));
  ASSERT_TRUE(evaluator.ok()) << evaluator.status();
  EXPECT_THAT(std::string((*evaluator)->Evaluate(other.ref(), Mode::kExact).status().message()),
              HasSubstr("vocabulary of 96, the model one of 90"));
  EXPECT_EQ(BlockwiseEvaluator::Make(*backend_, model.ref(), {{1}}, Options(64)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nibble
