// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/pipeline.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/gguf_model.h"
#include "engine/artifact/sha256.h"
#include "engine/artifact/source_files.h"
#include "engine/base/cat.h"
#include "engine/base/peak_memory.h"
#include "engine/eval/documents.h"
#include "engine/model/activation_store.h"
#include "engine/model/blockwise_forward.h"
#include "engine/model/config.h"
#include "engine/model/decoder.h"
#include "engine/quant/assemble.h"
#include "engine/quant/block_ledger.h"
#include "engine/quant/block_quantizer.h"
#include "engine/quant/evaluate_artifact.h"
#include "engine/quant/model_parts.h"
#include "engine/quant/overlay_source.h"
#include "engine/quant/report.h"
#include "engine/tokenizer/tokenizer.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

// Changes whenever the same inputs would give other bits, so that no attempt goes on from blocks of
// an older program.
constexpr int kArithmeticVersion = 2;

// How much of a job each phase is, for progress; they add up to 1.
constexpr double kDigestShare = 0.02;
constexpr double kQuantizeShare = 0.78;
constexpr double kWriteShare = 0.05;
constexpr double kEvaluateShare = 0.15;

class Clock {
 public:
  double Lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - start_).count();
    start_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

absl::Status CheckInt(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      Cat(field, " is ", value, "; it must be between ", low, " and ", high));
}

bool IsGated(const Gate& gate) {
  return gate.max_perplexity_ratio > 0 || gate.max_kl > 0 || gate.min_same_top > 0;
}

absl::Status ValidateSpec(const PipelineSpec& spec) {
  if (absl::Status status = Validate(spec.recipe); !status.ok()) return status;
  for (const absl::Status& status :
       {CheckInt("calibration_samples", spec.calibration_samples, 1, 4096),
        CheckInt("calibration_length", spec.calibration_length, 16, 32768),
        CheckInt("eval_max_tokens", spec.eval_max_tokens, 0, 1 << 30),
        CheckInt("threads", spec.threads, 0, 256),
        CheckInt("activation_budget_bytes", spec.activation_budget_bytes, 0, int64_t{1} << 50)}) {
    if (!status.ok()) return status;
  }
  if (IsGated(spec.gate) && spec.eval_path.empty() && spec.calibration_path.empty()) {
    return absl::InvalidArgumentError(
        "gate: needs evaluation text to be decided on; eval_path is empty");
  }
  if (spec.recipe.needs_calibration() && spec.calibration_path.empty()) {
    return absl::InvalidArgumentError(Cat("recipe '", spec.recipe.name, "' with scheme '",
                                          spec.recipe.scheme,
                                          "' needs a calibration set; calibration_path is empty"));
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(const std::vector<Document>& documents, int32_t vocab,
                         const std::string& path) {
  for (size_t i = 0; i < documents.size(); ++i) {
    for (const int32_t id : documents[i]) {
      if (id >= 0 && id < vocab) continue;
      return absl::InvalidArgumentError(Cat(path, ": document ", i + 1, " holds token ", id,
                                            "; the model's ids are 0..", vocab - 1));
    }
  }
  return absl::OkStatus();
}

// The tokenizer of a model directory, or the one inside a GGUF file.
absl::StatusOr<std::shared_ptr<const Tokenizer>> OpenTokenizer(const std::string& path) {
  absl::StatusOr<SourceFiles> files = ListSourceFiles(path);
  if (!files.ok()) return files.status();
  if (!files->gguf) return Tokenizer::FromDirectory(path);
  absl::StatusOr<GgufVocab> vocab = ReadGgufVocab(Cat(files->directory, "/", files->names[0]));
  if (!vocab.ok()) return vocab.status();
  return Tokenizer::FromGguf(*vocab);
}

// ||a - b||^2 / ||b||^2; InvalidArgument naming `block` if that is not a number.
absl::StatusOr<double> Drift(const ActivationStore& a, const ActivationStore& b,
                             const std::string& block) {
  constexpr int64_t kRows = 1024;
  std::vector<float> from_a(static_cast<size_t>(kRows * a.cols()));
  std::vector<float> from_b(from_a.size());
  double distance = 0;
  double whole = 0;
  for (int64_t first = 0; first < a.rows(); first += kRows) {
    const int64_t count = std::min(kRows, a.rows() - first);
    if (absl::Status status = a.Read(first, count, from_a.data()); !status.ok()) return status;
    if (absl::Status status = b.Read(first, count, from_b.data()); !status.ok()) return status;
    for (size_t i = 0; i < static_cast<size_t>(count * a.cols()); ++i) {
      const auto y = static_cast<double>(from_b[i]);
      const double d = static_cast<double>(from_a[i]) - y;
      distance += d * d;
      whole += y * y;
    }
  }
  if (!std::isfinite(distance) || !std::isfinite(whole)) {
    return absl::InvalidArgumentError(
        Cat("activations after ", block, " are not finite (NaN or infinity)"));
  }
  return whole > 0 ? distance / whole : 0.0;
}

// One job's attempt, phase by phase.
class Attempt {
 public:
  Attempt(const PipelineSpec& spec, Backend& backend, FileSystem& fs, const std::string& work_dir,
          const std::string& checkpoint_dir, JobHost& host)
      : spec_(spec),
        backend_(backend),
        fs_(fs),
        work_dir_(work_dir),
        checkpoint_dir_(checkpoint_dir),
        host_(host) {}

  absl::StatusOr<PipelineResult> Run();

 private:
  absl::Status Open();
  absl::Status OpenLedger();
  absl::Status StartCalibration();
  absl::Status QuantizeBlocks();
  absl::Status QuantizeBlock(BlockQuantizer& quantizer, int32_t layer);
  absl::Status Evaluate(const std::string& artifact_dir);
  absl::StatusOr<double> Advance(int32_t layer, const QuantizedBlock& block);

  void Progress(const std::string& phase, double fraction, const std::string& message) {
    host_.Report({phase, ledger_ == nullptr ? 0 : ledger_->blocks_done(), config_.layers, fraction,
                  message});
  }
  std::function<absl::Status()> KeepGoing() {
    return [this] { return host_.KeepGoing(); };
  }

  const PipelineSpec& spec_;
  Backend& backend_;
  FileSystem& fs_;
  const std::string& work_dir_;
  const std::string& checkpoint_dir_;
  JobHost& host_;

  const int threads_ = spec_.threads > 0 ? spec_.threads : AvailableThreads();
  Clock clock_;
  std::unique_ptr<Checkpoint> source_;
  DecoderConfig config_;
  std::shared_ptr<const Tokenizer> tokenizer_;  // where documents are read
  std::vector<Document> evaluation_;
  std::vector<Document> samples_;
  std::string samples_digest_;
  ModelParts parts_;  // once quantized
  std::unique_ptr<BlockLedger> ledger_;
  std::unique_ptr<BlockwiseForward> calibration_;
  std::unique_ptr<ActivationStore> quantized_;  // the stream of the quantized prefix
  std::unique_ptr<ActivationStore> plain_;      // the stream of the float model
  Report report_;
  int32_t blocks_computed_ = 0;
};

absl::Status Attempt::Open() {
  if (absl::Status status = ValidateSpec(spec_); !status.ok()) return status;
  Progress("digest", 0, Cat("reading ", spec_.model_path));
  report_.source_digest = spec_.model_digest;
  if (spec_.model_digest.empty()) {
    absl::StatusOr<std::string> digest = SourceDigest(spec_.model_path, KeepGoing());
    if (!digest.ok()) return digest.status();
    report_.source_digest = *digest;
  }
  report_.recipe = spec_.recipe;
  report_.tier = backend_.Tier();
  report_.backend = backend_.Description();
  report_.gate = spec_.gate;

  absl::StatusOr<std::unique_ptr<Checkpoint>> source = Checkpoint::Open(spec_.model_path);
  if (!source.ok()) return source.status();
  source_ = *std::move(source);
  absl::StatusOr<DecoderConfig> config = ParseDecoderConfig(source_->config());
  if (!config.ok()) return config.status();
  config_ = *std::move(config);
  if (absl::Status status = CheckModules(spec_.recipe, config_, *source_); !status.ok()) {
    return status;
  }

  const bool calibrated = spec_.recipe.needs_calibration();
  const std::string& eval_path = spec_.eval_path.empty() ? spec_.calibration_path : spec_.eval_path;
  if (!eval_path.empty()) {
    absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = OpenTokenizer(spec_.model_path);
    if (!tokenizer.ok()) return tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  if (!eval_path.empty()) {
    absl::StatusOr<std::vector<Document>> documents = ReadDocuments(eval_path, *tokenizer_);
    if (!documents.ok()) return documents.status();
    evaluation_ = *std::move(documents);
    if (absl::Status status = CheckTokens(evaluation_, config_.vocab, eval_path); !status.ok()) {
      return status;
    }
    absl::StatusOr<std::string> file = Sha256OfFile(eval_path);
    if (!file.ok()) return file.status();
    report_.evaluation_digest = *file;
  }
  if (calibrated) {
    if (absl::Status status =
            CheckInt("calibration_length", spec_.calibration_length, 16, config_.max_positions);
        !status.ok()) {
      return status;
    }
    absl::StatusOr<std::vector<Document>> documents =
        ReadDocuments(spec_.calibration_path, *tokenizer_);
    if (!documents.ok()) return documents.status();
    absl::StatusOr<Calibration> calibration = CalibrationSamples(
        *documents, *tokenizer_, spec_.calibration_samples, spec_.calibration_length);
    if (!calibration.ok()) return calibration.status();
    samples_ = std::move(calibration->samples);
    if (spec_.eval_path.empty()) evaluation_ = std::move(calibration->rest);
    if (absl::Status status = CheckTokens(samples_, config_.vocab, spec_.calibration_path);
        !status.ok()) {
      return status;
    }
    absl::StatusOr<std::string> file = Sha256OfFile(spec_.calibration_path);
    if (!file.ok()) return file.status();
    report_.calibration_digest = *file;
    Sha256 sum;
    for (const Document& sample : samples_) {
      const auto length = static_cast<int64_t>(sample.size());
      sum.Update({reinterpret_cast<const char*>(&length), sizeof(length)});
      sum.Update({reinterpret_cast<const char*>(sample.data()), sample.size() * sizeof(int32_t)});
      report_.calibration_tokens += length;
    }
    samples_digest_ = sum.FinishHex();
  }
  if (spec_.eval_path.empty()) {
    // A lone token predicts nothing.
    std::erase_if(evaluation_, [](const Document& document) { return document.size() < 2; });
    if (evaluation_.empty()) report_.evaluation_digest.clear();
    if (evaluation_.empty() && IsGated(spec_.gate)) {
      return absl::InvalidArgumentError(
          Cat("gate: there is no text to decide on: the ", samples_.size(),
              " calibration samples take all of ", spec_.calibration_path,
              "; name a held-out text (evaluation), or fewer samples"));
    }
  }
  report_.seconds["digest"] = clock_.Lap();
  return absl::OkStatus();
}

absl::Status Attempt::OpenLedger() {
  Json recipe = spec_.recipe.ToJson();
  recipe.erase("name");  // says nothing about the numbers
  const Json identity = {{"version", kArithmeticVersion},
                         {"recipe", recipe},
                         {"source", report_.source_digest},
                         {"calibration", samples_digest_}};
  absl::StatusOr<std::unique_ptr<BlockLedger>> ledger = BlockLedger::Open(
      fs_, work_dir_, checkpoint_dir_, {Sha256Hex(identity.dump()), backend_.Tier()},
      config_.layers, !samples_.empty(), host_);
  if (!ledger.ok()) return ledger.status();
  ledger_ = *std::move(ledger);
  report_.resumed_at = ledger_->blocks_done();
  return absl::OkStatus();
}

absl::StatusOr<double> Attempt::Advance(int32_t layer, const QuantizedBlock& block) {
  OverlaySource overlay(*source_);
  for (const auto& [module, weight] : block.weights) overlay.SetWeight(module, weight.view());
  for (const auto& [name, vector] : block.vectors) overlay.SetVector(name, vector.values);
  for (const auto& [source, stream] :
       {std::pair<const WeightSource*, ActivationStore*>(&overlay, quantized_.get()),
        {source_.get(), plain_.get()}}) {
    absl::StatusOr<std::unique_ptr<DecoderBlock>> prepared =
        DecoderBlock::Prepare(backend_, config_, layer, *source, CalibrationMode(backend_));
    if (!prepared.ok()) return prepared.status();
    ReleaseBlock(*source_, layer);
    absl::Status status = calibration_->Run(**prepared, *stream, nullptr, /*advance=*/true);
    if (!status.ok()) return status;
  }
  return Drift(*quantized_, *plain_, Cat("block ", layer));
}

absl::Status Attempt::QuantizeBlock(BlockQuantizer& quantizer, int32_t layer) {
  if (absl::Status status = host_.KeepGoing(); !status.ok()) return status;
  absl::StatusOr<QuantizedBlock> block = quantizer.Quantize(layer, quantized_.get());
  if (!block.ok()) return block.status();
  double drift = 0;
  if (calibration_ != nullptr) {
    absl::StatusOr<double> measured = Advance(layer, *block);
    if (!measured.ok()) return measured.status();
    drift = *measured;
  }
  absl::Status status = ledger_->Commit(*block, drift, quantized_.get(), plain_.get());
  if (!status.ok()) return status;
  ++blocks_computed_;
  return absl::OkStatus();
}

// The streams before the first block that is to be computed; of the quantized model's only after
// its embedding was rounded.
absl::Status Attempt::StartCalibration() {
  Progress("calibrate", kDigestShare, "preparing calibration samples");
  absl::StatusOr<std::unique_ptr<BlockwiseForward>> calibration = BlockwiseForward::Make(
      backend_, config_, std::move(samples_),
      {.kv = FindKvFormat(spec_.recipe.kv_format), .context = 0, .keep_going = KeepGoing()});
  if (!calibration.ok()) return calibration.status();
  calibration_ = *std::move(calibration);
  const int64_t rows = calibration_->rows();
  const bool spill = 2 * rows * config_.hidden * static_cast<int64_t>(sizeof(float)) >
                     spec_.activation_budget_bytes;
  for (std::unique_ptr<ActivationStore>* stream : {&quantized_, &plain_}) {
    absl::StatusOr<std::unique_ptr<ActivationStore>> store =
        ActivationStore::Make(rows, config_.hidden, spill, work_dir_);
    if (!store.ok()) return store.status();
    *stream = *std::move(store);
  }
  if (ledger_->blocks_done() > 0) return ledger_->Restore(*quantized_, *plain_);
  absl::StatusOr<WeightView> table = source_->Weight("model.embed_tokens");
  if (!table.ok()) return table.status();
  absl::Status status = calibration_->Embed(*table, *plain_);
  source_->Release("model.embed_tokens");
  return status;
}

absl::Status Attempt::QuantizeBlocks() {
  const int32_t first = ledger_->blocks_done();
  if (!samples_.empty() && first < config_.layers) {
    if (absl::Status status = StartCalibration(); !status.ok()) return status;
  }
  const auto embed = [&](const WeightView& table) {
    return calibration_ != nullptr && first == 0 ? calibration_->Embed(table, *quantized_)
                                                 : absl::OkStatus();
  };
  absl::StatusOr<ModelParts> parts =
      QuantizeParts({&spec_.recipe, &config_, source_.get(), threads_, KeepGoing(), embed,
                     backend_.weight_rounding()},
                    fs_, Cat(work_dir_, "/parts"));
  if (!parts.ok()) return parts.status();
  parts_ = *std::move(parts);

  int32_t layer = first;
  BlockQuantizer::Context context;
  context.recipe = &spec_.recipe;
  context.config = &config_;
  context.source = source_.get();
  context.backend = &backend_;
  context.calibration = calibration_.get();
  context.threads = threads_;
  context.keep_going = KeepGoing();
  context.log = [this](std::string_view line) { host_.Log(line); };
  context.on_module = [this, &layer, modules = 0, of = 0](const ModuleError& error) mutable {
    if (of != layer) {
      of = layer;
      modules = 0;
    }
    ++modules;
    char figure[32];
    std::snprintf(figure, sizeof(figure), "%.2e", error.relative_error);
    const double done = (layer + modules / 8.0) / config_.layers;
    Progress("quantize", kDigestShare + kQuantizeShare * done,
             Cat("block ", layer + 1, "/", config_.layers, ": ",
                 error.module.substr(BlockModule(layer, "").size()), " error ", figure,
                 error.outliers > 0 ? Cat(", ", error.outliers, " outliers") : ""));
  };
  BlockQuantizer quantizer(context);
  for (; layer < config_.layers; ++layer) {
    if (absl::Status status = QuantizeBlock(quantizer, layer); !status.ok()) return status;
    Progress("quantize", kDigestShare + kQuantizeShare * (layer + 1) / config_.layers,
             Cat("block ", layer + 1, "/", config_.layers, " done"));
  }
  calibration_.reset();
  quantized_.reset();
  plain_.reset();
  return absl::OkStatus();
}

absl::Status Attempt::Evaluate(const std::string& artifact_dir) {
  ArtifactEvaluation evaluation;
  evaluation.spec = &spec_;
  evaluation.config = &config_;
  evaluation.source = source_.get();
  evaluation.documents = &evaluation_;
  evaluation.artifact_dir = artifact_dir;
  evaluation.spill_directory = work_dir_;
  evaluation.keep_going = KeepGoing();
  evaluation.progress = [this](double fraction, const std::string& message) {
    const double start = kDigestShare + kQuantizeShare + kWriteShare;
    Progress("evaluate", start + kEvaluateShare * fraction, message);
  };
  return EvaluateArtifact(evaluation, backend_, report_);
}

absl::StatusOr<PipelineResult> Attempt::Run() {
  ResetPeakMemory();  // the process may have run other jobs
  if (absl::Status status = Open(); !status.ok()) return status;
  if (absl::Status status = OpenLedger(); !status.ok()) return status;
  if (absl::Status status = QuantizeBlocks(); !status.ok()) return status;
  report_.seconds["quantize"] = clock_.Lap();

  Progress("write", kDigestShare + kQuantizeShare, "writing the artifact");
  const std::string directory = Cat(work_dir_, "/artifact");
  absl::StatusOr<ArtifactSummary> artifact =
      Assemble({&spec_, &config_, &parts_, ledger_.get()}, fs_, directory, host_, report_);
  if (!artifact.ok()) return artifact.status();
  report_.seconds["write"] = clock_.Lap();
  if (!evaluation_.empty()) {
    if (absl::Status status = Evaluate(directory); !status.ok()) return status;
    report_.seconds["evaluate"] = clock_.Lap();
  }
  report_.peak_memory_bytes = PeakMemoryBytes();
  if (absl::Status status = WriteReport(report_, fs_, directory); !status.ok()) {
    return status;
  }
  Progress("verify", 1.0, "verified");

  PipelineResult result;
  result.artifact_dir = directory;
  result.digest = artifact->digest;
  result.artifact_bytes = artifact->bytes;
  result.source_digest = report_.source_digest;
  result.report = report_.ToJson();
  result.gate_passed = report_.gate_passed;
  result.gate_message = report_.gate_message;
  result.blocks_computed = blocks_computed_;
  result.resumed_at = report_.resumed_at;
  return result;
}

}  // namespace

absl::StatusOr<PipelineResult> RunPipeline(const PipelineSpec& spec, Backend& backend,
                                           FileSystem& fs, const std::string& work_dir,
                                           const std::string& checkpoint_dir, JobHost& host) {
  return Attempt(spec, backend, fs, work_dir, checkpoint_dir, host).Run();
}

}  // namespace nibble
