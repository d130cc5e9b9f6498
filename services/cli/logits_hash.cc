// SPDX-License-Identifier: Apache-2.0
#include "services/cli/logits_hash.h"

#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/artifact/sha256.h"
#include "engine/model/prefill_batch.h"

namespace nibble {
namespace {

constexpr int32_t kPromptTokens = 48;
constexpr int32_t kSteps = 8;
constexpr int32_t kContext = kKvBlockTokens;
constexpr int32_t kTop = kMaxLogprobs;

std::vector<int32_t> Prompt(int32_t vocab) {
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < kPromptTokens; ++i) prompt.push_back((37 * i + 11) % vocab);
  return prompt;
}

class Hash {
 public:
  void Add(int32_t token, float logprob) {
    std::array<char, sizeof(token) + sizeof(logprob)> bytes;
    std::memcpy(bytes.data(), &token, sizeof(token));
    std::memcpy(bytes.data() + sizeof(token), &logprob, sizeof(logprob));
    sha_.Update(std::string_view(bytes.data(), bytes.size()));
  }
  std::string Finish() { return sha_.FinishHex(); }

 private:
  Sha256 sha_;
};

}  // namespace

absl::StatusOr<std::string> LogitsHash(Decoder& decoder, const KvFormat& kv) {
  Backend& backend = decoder.backend();
  absl::StatusOr<std::unique_ptr<PrefillBatch>> batch =
      PrefillBatch::Make(backend, kPromptTokens, 1, kContext);
  if (!batch.ok()) return batch.status();
  if (absl::Status status = backend.Reserve({.rows = kPromptTokens,
                                             .sequences = 1,
                                             .max_blocks = PrefillBatch::BlocksFor(kContext),
                                             .heads = decoder.config().heads,
                                             .head_dim = decoder.config().head_dim,
                                             .sample_rows = 1,
                                             .vocabulary = decoder.config().vocab});
      !status.ok()) {
    return status;
  }
  KvPool pool;
  absl::StatusOr<std::unique_ptr<Buffer>> memory =
      backend.AllocateKv(decoder.MakeKvSpec(kv), PrefillBatch::BlocksFor(kContext), &pool);
  if (!memory.ok()) return memory.status();
  absl::StatusOr<std::unique_ptr<Buffer>> row_buffer = backend.Allocate(sizeof(int32_t));
  if (!row_buffer.ok()) return row_buffer.status();
  absl::StatusOr<std::unique_ptr<Buffer>> drawn = backend.Allocate(sizeof(SampleResult));
  if (!drawn.ok()) return drawn.status();

  Hash hash;
  std::vector<int32_t> tokens = Prompt(decoder.config().vocab);
  int32_t start = 0;
  for (int32_t step = 0; step < kSteps; ++step) {
    const PrefillBatch::Chunk chunk{std::span(tokens).subspan(static_cast<size_t>(start)), start,
                                    0};
    BatchView view = (*batch)->Set(std::span(&chunk, 1), /*logits=*/false);
    const int32_t last = view.rows - 1;
    backend.Upload((*row_buffer)->data(), &last, sizeof(last));
    view.logit_rows = (*row_buffer)->as<int32_t>();
    view.num_logits = 1;
    SamplingRow sampling;
    sampling.temperature = 0;
    sampling.logprobs = kTop;
    SampleResult result;
    backend.Sample({.logits = decoder.Forward(view, pool),
                    .rows = 1,
                    .vocabulary = decoder.config().vocab,
                    .params = &sampling,
                    .results = (*drawn)->as<SampleResult>()});
    backend.Download(&result, (*drawn)->data(), sizeof(result));
    if (absl::Status status = backend.Sync(); !status.ok()) return status;
    hash.Add(result.token, result.logprob);
    for (int32_t i = 0; i < result.num_top; ++i) {
      hash.Add(result.top_ids[static_cast<size_t>(i)], result.top_logprobs[static_cast<size_t>(i)]);
    }
    start = static_cast<int32_t>(tokens.size());
    tokens.push_back(result.token);
  }
  return hash.Finish();
}

absl::StatusOr<std::string> LogitsHash(Engine& engine) {
  GenerationRequest request;
  request.prompt = Prompt(engine.limits().vocab);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = kSteps;
  request.sampling.ignore_eos = true;
  request.sampling.logprobs = kTop;
  auto stream = std::make_shared<TokenStream>();
  absl::StatusOr<RequestHandle> handle = engine.Submit(std::move(request), stream);
  if (!handle.ok()) return handle.status();
  Hash hash;
  for (;;) {
    engine.Step();
    std::optional<StreamUpdate> update = stream->TryPop();
    if (!update) continue;
    for (const Delta& delta : update->deltas) {
      for (const TokenLogprob& logprob : delta.logprobs) {
        hash.Add(logprob.token, logprob.logprob);
        for (const TopLogprob& top : logprob.top) hash.Add(top.token, top.logprob);
      }
    }
    if (!update->end) continue;
    if (!update->end->status.ok()) return update->end->status;
    return hash.Finish();
  }
}

}  // namespace nibble
