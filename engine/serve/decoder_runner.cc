// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <bit>
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

// How large a step is.
struct StepSize {
  int32_t rows, sequences, logits, max_blocks, max_query;
};

// Where a step's arrays lie, in words of one buffer: one after the other, so that one copy uploads
// them, at places that follow from the size.
struct StepLayout {
  int32_t token_ids, positions, row_sequence, query_start, context_length, logit_rows, block_table;
  int64_t words;

  explicit StepLayout(const StepSize& size) {
    int32_t at = 0;
    const auto place = [&at](int32_t count) { return std::exchange(at, at + count); };
    token_ids = place(size.rows);
    positions = place(size.rows);
    row_sequence = place(size.rows);
    query_start = place(size.sequences + 1);
    context_length = place(size.sequences);
    logit_rows = place(size.logits);
    block_table = at;
    words = at + int64_t{size.sequences} * size.max_blocks;
  }
};

// The sequences of a replayed step: few sizes, and at most a quarter more than are there.
int32_t PaddedSequences(int32_t sequences) {
  const auto step = static_cast<int32_t>(
      std::max(std::bit_floor(static_cast<uint32_t>(std::max(sequences - 1, 1))) / 4, 1u));
  return (sequences + step - 1) / step * step;
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

  int32_t max_blocks = 0;   // of one sequence
  int32_t spare_block = 0;  // that padding writes to; only where steps are padded

  std::unique_ptr<Buffer> arrays;   // of the step, laid out by StepLayout
  std::unique_ptr<Buffer> samples;  // (max_logit_rows) SampleResult of the step submitted last
  std::unique_ptr<Buffer> tokens;   // (max_rows) int32 of the step under way
  std::vector<int32_t> words;       // the arrays as they are uploaded

  struct Step {
    const StepInput* input = nullptr;
    float* logits = nullptr;
    std::vector<SampleResult> samples;  // (max_logit_rows)
    uint64_t begin = 0, end = 0;        // marks
  };
  // A ring: the oldest of `under_way` is steps[first].
  std::array<Step, kStepsUnderWay> steps;
  int first = 0, under_way = 0;
  std::vector<float> host_logits;  // (kScoreRows, vocab), from the first score on

  absl::Status AllocateStep() {
    max_blocks = (limits.max_context + kKvBlockTokens - 1) / kKvBlockTokens;
    const StepSize largest{limits.max_rows, limits.max_sequences, limits.max_logit_rows, max_blocks,
                           0};
    const std::pair<std::unique_ptr<Buffer>*, size_t> wanted[] = {
        {&arrays, static_cast<size_t>(StepLayout(largest).words) * sizeof(int32_t)},
        {&samples, static_cast<size_t>(limits.max_logit_rows) * sizeof(SampleResult)},
        {&tokens, static_cast<size_t>(limits.max_rows) * sizeof(int32_t)},
    };
    for (const auto& [buffer, bytes] : wanted) {
      auto allocated = backend->Allocate(bytes);
      if (!allocated.ok()) return allocated.status();
      *buffer = *std::move(allocated);
    }
    for (Step& step : steps) step.samples.resize(static_cast<size_t>(limits.max_logit_rows));
    return absl::OkStatus();
  }

  // Whether the step is one that comes again and again with other contents: a row and a drawn token
  // for every sequence.
  bool IsDecode(const StepInput& input) const {
    return input.max_query == 1 && input.logit_rows.size() == input.token_ids.size();
  }

  // As large as the step is, or, where it will be replayed, as its padding makes it.
  StepSize SizeOf(const StepInput& input, bool padded) const {
    StepSize size{input.rows(), input.sequences(), static_cast<int32_t>(input.logit_rows.size()),
                  input.max_blocks, input.max_query};
    if (padded) {
      size.sequences = std::min(PaddedSequences(size.sequences), limits.max_sequences);
      size.rows = size.logits = size.sequences;
      size.max_blocks = std::min(
          static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(size.max_blocks))), max_blocks);
    }
    return size;
  }

  // Padding is sequences of one token each, whose key and value go to the spare block.
  void UploadArrays(const StepInput& input, const StepSize& size, const StepLayout& layout) {
    words.resize(static_cast<size_t>(layout.words));
    const auto fill = [this](int32_t at, const std::vector<int32_t>& values, int32_t count,
                             auto&& padding) {
      int32_t* to = std::copy(values.begin(), values.end(), words.data() + at);
      for (auto i = static_cast<int32_t>(values.size()); i < count; ++i) *to++ = padding(i);
    };
    const auto index = [](int32_t i) { return i; };
    const auto nothing = [](int32_t) { return 0; };
    fill(layout.token_ids, input.token_ids, size.rows, nothing);
    fill(layout.positions, input.positions, size.rows, nothing);
    fill(layout.row_sequence, input.row_sequence, size.rows, index);
    fill(layout.query_start, input.query_start, size.sequences + 1, index);
    fill(layout.context_length, input.context_length, size.sequences, [](int32_t) { return 1; });
    fill(layout.logit_rows, input.logit_rows, size.logits, index);
    int32_t* table = words.data() + layout.block_table;
    std::fill_n(table, size.sequences * size.max_blocks, spare_block);
    for (int32_t s = 0; s < input.sequences(); ++s) {
      std::copy_n(input.block_table.data() + int64_t{s} * input.max_blocks, input.max_blocks,
                  table + int64_t{s} * size.max_blocks);
    }
    backend->Upload(arrays->data(), words.data(), words.size() * sizeof(int32_t));
  }

  BatchView ViewOf(const StepSize& size, const StepLayout& layout) const {
    const auto* base = arrays->as<int32_t>();
    BatchView view;
    view.rows = size.rows;
    view.sequences = size.sequences;
    view.max_query = size.max_query;
    view.token_ids = base + layout.token_ids;
    view.positions = base + layout.positions;
    view.row_sequence = base + layout.row_sequence;
    view.query_start = base + layout.query_start;
    view.context_length = base + layout.context_length;
    view.block_table = base + layout.block_table;
    view.max_blocks = size.max_blocks;
    view.logit_rows = base + layout.logit_rows;
    view.num_logits = size.logits;
    view.drawn = samples->as<SampleResult>();
    view.tokens = tokens->as<int32_t>();
    return view;
  }

  // Steps of equal size are the same launches, which the backend may replay.
  void Forward(Step& step) {
    const StepInput& input = *step.input;
    const bool replayed = limits.ahead && IsDecode(input);
    const StepSize size = SizeOf(input, replayed);
    const StepLayout layout(size);
    UploadArrays(input, size, layout);
    const BatchView view = ViewOf(size, layout);
    step.begin = backend->Mark();
    if (replayed) {
      const uint64_t key = uint64_t{static_cast<uint32_t>(size.sequences)} << 32 |
                           static_cast<uint32_t>(size.max_blocks);
      backend->Replay(key, [&] { decoder->Forward(view, kv); });
    } else {
      decoder->Forward(view, kv);
    }
    step.logits = decoder->logits();
  }

  // Samples the runs of logits rows that are drawn from; rows that are scored stay as they are.
  void Sample(Step& step) {
    const StepInput& input = *step.input;
    const size_t count = input.draws.size();
    size_t drawn = 0;
    for (size_t row = 0; row < count;) {
      size_t end = row;
      while (end < count && input.draws[end] == input.draws[row]) ++end;
      if (input.draws[row] != 0) {
        SampleArgs args;
        args.logits = step.logits + row * static_cast<size_t>(limits.vocab);
        args.rows = static_cast<int64_t>(end - row);
        args.vocabulary = limits.vocab;
        args.params = input.sampling.data() + drawn;
        args.results = samples->as<SampleResult>() + drawn;
        args.tokens = tokens->as<int32_t>();
        backend->Sample(args);
        drawn += end - row;
      }
      row = end;
    }
    if (drawn > 0) {
      backend->Download(step.samples.data(), samples->data(), drawn * sizeof(SampleResult));
    }
  }

  absl::Status ScoreRows(const Step& step, StepOutput* output) {
    const StepInput* input = step.input;
    const float* logits = step.logits;
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
  // One block more where steps are padded.
  impl->limits.ahead = impl->backend->asynchronous();
  impl->spare_block = static_cast<int32_t>(blocks);
  auto kv_memory = impl->backend->AllocateKv(
      spec, static_cast<int32_t>(blocks) + (impl->limits.ahead ? 1 : 0), &impl->kv);
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
  return std::unique_ptr<DecoderRunner>(new DecoderRunner(std::move(impl)));
}

DecoderRunner::DecoderRunner(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DecoderRunner::~DecoderRunner() = default;
const RunnerLimits& DecoderRunner::limits() const { return impl_->limits; }
const Decoder& DecoderRunner::decoder() const { return *impl_->decoder; }
size_t DecoderRunner::kv_bytes() const { return impl_->kv_memory->bytes(); }
size_t DecoderRunner::resident_bytes() const {
  return impl_->decoder->resident_bytes() + impl_->arrays->bytes() + impl_->samples->bytes();
}

void DecoderRunner::Submit(const StepInput& input) {
  Impl& impl = *impl_;
  NIBBLE_CHECK(impl.under_way < kStepsUnderWay);
  NIBBLE_CHECK(impl.under_way == 0 ||
               impl.steps[static_cast<size_t>(impl.first)].input->score.empty());
  NIBBLE_CHECK(input.rows() >= 1 && input.rows() <= impl.limits.max_rows);
  NIBBLE_CHECK(input.sequences() <= impl.limits.max_sequences);
  NIBBLE_CHECK(input.logit_rows.size() <= static_cast<size_t>(impl.limits.max_logit_rows));
  Impl::Step& step =
      impl.steps[static_cast<size_t>((impl.first + impl.under_way) % kStepsUnderWay)];
  ++impl.under_way;
  step.input = &input;
  impl.Forward(step);
  impl.Sample(step);
  step.end = impl.backend->Mark();
}

absl::Status DecoderRunner::Collect(StepOutput* output) {
  Impl& impl = *impl_;
  NIBBLE_CHECK(impl.under_way > 0);
  Impl::Step& step = impl.steps[static_cast<size_t>(impl.first)];
  impl.first = (impl.first + 1) % kStepsUnderWay;
  --impl.under_way;
  output->samples.clear();
  output->scores.clear();
  if (absl::Status status = impl.backend->Wait(step.end); !status.ok()) return status;
  output->device_seconds = impl.backend->Seconds(step.begin, step.end);
  output->samples.assign(
      step.samples.begin(),
      step.samples.begin() + static_cast<std::ptrdiff_t>(step.input->sampling.size()));
  if (!step.input->score.empty()) return impl.ScoreRows(step, output);
  return absl::OkStatus();
}

}  // namespace nibble
