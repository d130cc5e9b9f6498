// SPDX-License-Identifier: Apache-2.0
#include "engine/eval/evaluate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "engine/artifact/checkpoint.h"
#include "tests/support/golden_model.h"
#include "tests/support/shared_data.h"

namespace nibble {
namespace {

// A decoder with all that it stands on.
struct Loaded {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Decoder> decoder;

  Loaded(const std::string& path, Mode mode, int32_t context) {
    auto made = MakeCpuBackend({.threads = 0, .tier = ""});
    EXPECT_TRUE(made.ok()) << made.status();
    backend = *std::move(made);
    auto opened = Checkpoint::Open(path);
    EXPECT_TRUE(opened.ok()) << opened.status();
    checkpoint = *std::move(opened);
    auto config = ParseDecoderConfig(checkpoint->config());
    EXPECT_TRUE(config.ok()) << config.status();
    config->max_positions = std::max(config->max_positions, context);
    auto loaded = Decoder::Load(
        *backend, *config, *checkpoint,
        {.mode = mode, .max_rows = 128, .max_logit_rows = 128, .max_context = context});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    decoder = *std::move(loaded);
  }
};

class Stories260K : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (SharedDataDirectory().empty()) GTEST_SKIP() << "needs ../shared/data";
  }
  std::string Data(const std::string& name) { return SharedDataDirectory() + "/" + name; }
};

// llama2.c's own figure for this model and text: 1.58538 nats over 254,669 predictions.
TEST_P(Stories260K, MeanNllIsTheOracles) {
  Loaded model(Data(GetParam()), Mode::kExact, 256);
  auto tokenizer = Tokenizer::FromDirectory(Data("models/stories260K"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  auto documents = ReadDocuments(Data("text/tinystories_1000.json"), **tokenizer);
  ASSERT_TRUE(documents.ok()) << documents.status();
  auto result = Evaluate(
      *model.decoder, nullptr, *documents, *FindKvFormat("f32"),
      {.max_tokens = 256, .max_predictions = 0, .window = 0, .bos_id = 1, .keep_going = {}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->predictions(), 254669);
  EXPECT_NEAR(result->nll(), 1.58538, 0.0005);
}

INSTANTIATE_TEST_SUITE_P(Containers, Stories260K,
                         testing::Values("models/stories260K",
                                         "models/stories260K/stories260Ktok512.gguf"),
                         [](const auto& param) {
                           return std::string(param.param).ends_with("gguf")
                                      ? "Gguf"
                                      : "HuggingFaceDirectory";
                         });

std::vector<Document> TinyDocuments() {
  std::vector<Document> documents(3);
  for (int32_t i = 0; i < 50; ++i) {
    documents[0].push_back((i * 13 + 1) % 96);
    if (i < 2) documents[1].push_back(i + 1);
    if (i < 1) documents[2].push_back(1);
  }
  return documents;
}

TEST(Evaluate, AModelIsNoDistanceFromItself) {
  const GoldenModelDirectory llama("llama", "plain");
  const std::string& path = llama.path();
  Loaded model(path, Mode::kExact, 64);
  Loaded same(path, Mode::kExact, 64);
  auto result =
      Evaluate(*model.decoder, same.decoder.get(), TinyDocuments(), *FindKvFormat("bf16"), {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->kl(), 0.0);
  EXPECT_EQ(result->same_top(), 1.0);
  EXPECT_EQ(result->predictions(), 49 + 1 + 0);
}

TEST(Evaluate, TheReferenceHasTheCacheThatIsAskedFor) {
  const GoldenModelDirectory llama("llama", "plain");
  Loaded model(llama.path(), Mode::kExact, 64);
  Loaded same(llama.path(), Mode::kExact, 64);
  const KvFormat& int4 = *FindKvFormat("int4");
  EvaluateOptions options;
  auto far = Evaluate(*model.decoder, same.decoder.get(), TinyDocuments(), int4, options);
  ASSERT_TRUE(far.ok()) << far.status();
  EXPECT_GT(far->kl(), 0.0);
  options.reference_kv = &int4;
  auto near = Evaluate(*model.decoder, same.decoder.get(), TinyDocuments(), int4, options);
  ASSERT_TRUE(near.ok()) << near.status();
  EXPECT_EQ(near->kl(), 0.0);
}

TEST(Evaluate, AnotherModelIsSomeDistanceAway) {
  const GoldenModelDirectory llama("llama", "plain");
  Loaded model(llama.path(), Mode::kExact, 64);
  const GoldenModelDirectory mistral("mistral", "window");
  Loaded other(mistral.path(), Mode::kExact, 64);
  auto result =
      Evaluate(*model.decoder, other.decoder.get(), TinyDocuments(), *FindKvFormat("bf16"), {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(result->kl(), 0.01);
  EXPECT_LT(result->same_top(), 1.0);
}

TEST(Evaluate, WindowsRestartWithTheFirstToken) {
  const GoldenModelDirectory llama("llama", "plain");
  Loaded model(llama.path(), Mode::kExact, 64);
  const std::vector<Document> documents = {TinyDocuments()[0]};
  auto whole = Evaluate(*model.decoder, nullptr, documents, *FindKvFormat("bf16"), {});
  EvaluateOptions cut;
  cut.window = 16;
  cut.bos_id = documents[0][0];
  auto windows = Evaluate(*model.decoder, nullptr, documents, *FindKvFormat("bf16"), cut);
  ASSERT_TRUE(whole.ok() && windows.ok());
  // 50 tokens: the first window takes 16, later ones 15 and the repeated first token.
  EXPECT_EQ(whole->predictions(), 49);
  EXPECT_EQ(windows->predictions(), 15 + 15 + 15 + 4);
  EXPECT_NE(whole->nll(), windows->nll());
}

TEST(Evaluate, RefusesWhatItCannotScore) {
  const GoldenModelDirectory llama("llama", "plain");
  Loaded model(llama.path(), Mode::kExact, 64);
  const KvFormat& kv = *FindKvFormat("bf16");
  EXPECT_EQ(Evaluate(*model.decoder, nullptr, {{1, 96}}, kv, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Evaluate(*model.decoder, nullptr, {{1}}, kv, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EvaluateOptions stopped;
  stopped.keep_going = [] { return absl::CancelledError("stop"); };
  EXPECT_EQ(Evaluate(*model.decoder, nullptr, {{1, 2}}, kv, stopped).status().code(),
            absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace nibble
