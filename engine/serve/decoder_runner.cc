// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/serve/runner.h"
#include "kernels/check.h"

namespace nibble {
namespace {

constexpr int64_t kDefaultKvBytes = int64_t{1} << 30;
// The rest is for what libraries and graphs take later.
constexpr double kDeviceMemoryForKv = 0.9;
constexpr int32_t kLogitRows = 32;  // at least, so that scoring a text takes few steps
constexpr int32_t kScoreRows = 8;   // rows of logits that are on the host at a time

absl::Status CheckRange(const char* name, int64_t value, int64_t lowest, int64_t highest) {
  if (value >= lowest && value <= highest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; allowed: ", lowest, "..", highest));
}

// The natural logarithm of the softmax of one row, for the target and the most likely tokens.
TokenLogprob Score(const float* logits, int32_t vocab, const ScoreRow& wanted) {
  const float highest = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int32_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(logits[i]) - highest);
  const double normalizer = highest + std::log(sum);
  const auto logprob = [&](int32_t token) {
    return static_cast<float>(logits[token] - normalizer);
  };
  TokenLogprob result;
  result.token = wanted.target;
  result.logprob = logprob(wanted.target);
  // The best so far, in order; an equal one comes behind: ties go to the lower id.
  std::vector<TopLogprob>& top = result.top;
  const auto count = static_cast<size_t>(std::min(wanted.top, vocab));
  if (count == 0) return result;
  top.reserve(count + 1);
  for (int32_t i = 0; i < vocab; ++i) {
    if (top.size() == count && !(logits[i] > logits[top.back().token])) continue;
    auto at = top.end();
    while (at != top.begin() && logits[i] > logits[std::prev(at)->token]) --at;
    top.insert(at, {i, 0.0f});
    if (top.size() > count) top.pop_back();
  }
  for (TopLogprob& entry : top) entry.logprob = logprob(entry.token);
  return result;
}

}  // namespace

void StepInput::Clear() {
  token_ids.clear();
  positions.clear();
  row_sequence.clear();
  query_start.clear();
  context_length.clear();
  block_table.clear();
  logit_rows.clear();
  draws.clear();
  sampling.clear();
  score.clear();
  max_blocks = max_query = 0;
}

struct DecoderRunner::Impl {
  // Declared first, so freed last: everything below lives in its memory.
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<Buffer> kv_memory;
  KvPool kv;
  RunnerLimits limits;

  // The step's arrays, one after the other in one buffer of fixed size.
  std::unique_ptr<Buffer> step;
  BatchView view;
  int32_t *token_ids = nullptr, *positions = nullptr, *row_sequence = nullptr,
          *query_start = nullptr, *context_length = nullptr, *block_table = nullptr,
          *logit_rows = nullptr;

  const StepInput* input = nullptr;  // of the step under way
  float* logits = nullptr;           // of the step under way
  std::vector<SampleResult> samples;
  std::vector<float> host_logits;  // (kScoreRows, vocab), from the first score on

  absl::Status AllocateStep() {
    const int64_t max_blocks = (limits.max_context + kKvBlockTokens - 1) / kKvBlockTokens;
    const int64_t rows = limits.max_rows;
    const int64_t sequences = limits.max_sequences;
    const int64_t words =
        3 * rows + 2 * sequences + 1 + sequences * max_blocks + limits.max_logit_rows;
    auto buffer = backend->Allocate(static_cast<size_t>(words) * sizeof(int32_t));
    if (!buffer.ok()) return buffer.status();
    step = *std::move(buffer);
    int32_t* at = step->as<int32_t>();
    const auto part = [&at](int64_t count) { return std::exchange(at, at + count); };
    view.token_ids = token_ids = part(rows);
    view.positions = positions = part(rows);
    view.row_sequence = row_sequence = part(rows);
    view.query_start = query_start = part(sequences + 1);
    view.context_length = context_length = part(sequences);
    view.block_table = block_table = part(sequences * max_blocks);
    view.logit_rows = logit_rows = part(limits.max_logit_rows);
    return absl::OkStatus();
  }

  void Upload(int32_t* device, const std::vector<int32_t>& host) {
    if (!host.empty()) backend->Upload(device, host.data(), host.size() * sizeof(int32_t));
  }

  // Samples the runs of logits rows that are drawn from; rows that are scored stay as they are.
  void Sample() {
    const size_t count = input->draws.size();
    size_t drawn = 0;
    for (size_t row = 0; row < count;) {
      size_t end = row;
      while (end < count && input->draws[end] == input->draws[row]) ++end;
      if (input->draws[row] != 0) {
        SampleArgs args;
        args.logits = logits + row * static_cast<size_t>(limits.vocab);
        args.rows = static_cast<int64_t>(end - row);
        args.vocabulary = limits.vocab;
        args.params = input->sampling.data() + drawn;
        args.results = samples.data() + drawn;
        backend->Sample(args);
        drawn += end - row;
      }
      row = end;
    }
  }

  absl::Status ScoreRows(StepOutput* output) {
    const auto vocab = static_cast<size_t>(limits.vocab);
    host_logits.resize(kScoreRows * vocab);
    size_t scored = 0;
    for (size_t row = 0; row < input->draws.size();) {
      if (input->draws[row] != 0) {
        ++row;
        continue;
      }
      size_t end = row;
      while (end < input->draws.size() && end < row + kScoreRows && input->draws[end] == 0) ++end;
      backend->Download(host_logits.data(), logits + row * vocab,
                        (end - row) * vocab * sizeof(float));
      if (absl::Status status = backend->Sync(); !status.ok()) return status;
      for (size_t i = 0; i < end - row; ++i) {
        output->scores.push_back(
            Score(host_logits.data() + i * vocab, limits.vocab, input->score[scored++]));
      }
      row = end;
    }
    return absl::OkStatus();
  }
};

absl::StatusOr<std::unique_ptr<DecoderRunner>> DecoderRunner::Load(
    std::unique_ptr<Backend> backend, const DecoderConfig& config, const WeightSource& source,
    const DecoderRunnerOptions& options) {
  const int32_t context = options.max_context == 0 ? config.max_positions : options.max_context;
  for (const absl::Status& status :
       {CheckRange("max_context", context, 1, config.max_positions),
        CheckRange("max_sequences", options.max_sequences, 1, 4096),
        CheckRange("token_budget", options.token_budget, options.max_sequences + 1, 65536),
        CheckRange("kv_bytes", options.kv_bytes, 0, int64_t{1} << 50)}) {
    if (!status.ok()) return status;
  }
  auto impl = std::make_unique<Impl>();
  impl->backend = std::move(backend);

  DecoderOptions decoder_options;
  decoder_options.mode = options.mode;
  decoder_options.max_rows = options.token_budget;
  decoder_options.max_logit_rows =
      std::min(options.token_budget, std::max(options.max_sequences, kLogitRows));
  decoder_options.max_context = context;
  auto decoder = Decoder::Load(*impl->backend, config, source, decoder_options);
  if (!decoder.ok()) return decoder.status();
  impl->decoder = *std::move(decoder);

  const KvFormat& format =
      options.kv_format != nullptr ? *options.kv_format : *FindKvFormat("bf16");
  const KvSpec spec = impl->decoder->MakeKvSpec(format);
  const int64_t per_context = (context + kKvBlockTokens - 1) / kKvBlockTokens;
  if (absl::Status status = impl->backend->Reserve({.rows = decoder_options.max_rows,
                                                    .sequences = options.max_sequences,
                                                    .max_blocks = per_context,
                                                    .heads = config.heads,
                                                    .head_dim = config.head_dim,
                                                    .sample_rows = decoder_options.max_logit_rows,
                                                    .vocabulary = config.vocab});
      !status.ok()) {
    return status;
  }
  int64_t blocks = options.kv_bytes / spec.BytesPerBlock();
  if (const std::optional<size_t> left = impl->backend->MemoryLeft();
      options.kv_bytes == 0 && left.has_value()) {
    // A device's own memory serves nothing else.
    blocks = static_cast<int64_t>(static_cast<double>(*left) * kDeviceMemoryForKv) /
             spec.BytesPerBlock();
  } else if (options.kv_bytes == 0) {
    blocks = std::min(std::max(options.max_sequences / 2, 1) * per_context,
                      kDefaultKvBytes / spec.BytesPerBlock());
    blocks = std::max(blocks, per_context);
  }
  // More than every sequence's whole context would never be used.
  blocks = std::min(blocks, options.max_sequences * per_context);
  if (blocks < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("kv_bytes is ", options.kv_bytes, "; one block of ", kKvBlockTokens,
                     " tokens needs ", spec.BytesPerBlock(), " bytes"));
  }
  auto kv_memory = impl->backend->AllocateKv(spec, static_cast<int32_t>(blocks), &impl->kv);
  if (!kv_memory.ok()) return kv_memory.status();
  impl->kv_memory = *std::move(kv_memory);

  RunnerLimits& limits = impl->limits;
  limits.vocab = config.vocab;
  limits.max_context = context;
  limits.max_rows = decoder_options.max_rows;
  limits.max_logit_rows = decoder_options.max_logit_rows;
  limits.max_sequences = options.max_sequences;
  limits.kv_blocks = static_cast<int32_t>(blocks);
  limits.kv_block_bytes = spec.BytesPerBlock();
  for (const int32_t id : config.eos_ids) {
    if (id >= 0 && id < config.vocab) limits.eos_ids.push_back(id);
  }
  if (absl::Status status = impl->AllocateStep(); !status.ok()) return status;
  impl->samples.resize(static_cast<size_t>(limits.max_logit_rows));
  return std::unique_ptr<DecoderRunner>(new DecoderRunner(std::move(impl)));
}

DecoderRunner::DecoderRunner(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DecoderRunner::~DecoderRunner() = default;
const RunnerLimits& DecoderRunner::limits() const { return impl_->limits; }
const Decoder& DecoderRunner::decoder() const { return *impl_->decoder; }
size_t DecoderRunner::kv_bytes() const { return impl_->kv_memory->bytes(); }
size_t DecoderRunner::resident_bytes() const {
  return impl_->decoder->resident_bytes() + impl_->step->bytes();
}

void DecoderRunner::Submit(const StepInput& input) {
  Impl& impl = *impl_;
  NIBBLE_CHECK(impl.input == nullptr);
  NIBBLE_CHECK(input.rows() >= 1 && input.rows() <= impl.limits.max_rows);
  NIBBLE_CHECK(input.sequences() <= impl.limits.max_sequences);
  NIBBLE_CHECK(input.logit_rows.size() <= static_cast<size_t>(impl.limits.max_logit_rows));
  impl.input = &input;
  impl.Upload(impl.token_ids, input.token_ids);
  impl.Upload(impl.positions, input.positions);
  impl.Upload(impl.row_sequence, input.row_sequence);
  impl.Upload(impl.query_start, input.query_start);
  impl.Upload(impl.context_length, input.context_length);
  impl.Upload(impl.block_table, input.block_table);
  impl.Upload(impl.logit_rows, input.logit_rows);
  impl.view.rows = input.rows();
  impl.view.sequences = input.sequences();
  impl.view.max_query = input.max_query;
  impl.view.max_blocks = input.max_blocks;
  impl.view.num_logits = static_cast<int32_t>(input.logit_rows.size());
  impl.logits = impl.decoder->Forward(impl.view, impl.kv);
  impl.Sample();
}

absl::Status DecoderRunner::Collect(StepOutput* output) {
  Impl& impl = *impl_;
  NIBBLE_CHECK(impl.input != nullptr);
  output->samples.clear();
  output->scores.clear();
  absl::Status status = impl.backend->Sync();
  if (status.ok()) {
    output->samples.assign(
        impl.samples.begin(),
        impl.samples.begin() + static_cast<std::ptrdiff_t>(impl.input->sampling.size()));
    if (!impl.input->score.empty()) status = impl.ScoreRows(output);
  }
  impl.input = nullptr;
  return status;
}

}  // namespace nibble
