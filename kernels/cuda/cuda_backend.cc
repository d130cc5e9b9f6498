// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/ceilings.h"
#include "kernels/cuda/cuda_weight_rounding.h"
#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/embed.h"
#include "kernels/cuda/hessian.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/sample.h"

namespace nibble {
namespace {

class CudaBuffer : public Buffer {
 public:
  explicit CudaBuffer(DeviceMemory memory)
      : Buffer(memory.data(), memory.bytes()), memory_(std::move(memory)) {}

 private:
  DeviceMemory memory_;
};

// Recordings that are kept: of the sizes of steps that came last.
constexpr size_t kMostRecordings = 64;

static_assert(Backend::kTimedMarks <= Device::kTimedMarks);

class CudaBackend : public Backend {
 public:
  CudaBackend(std::unique_ptr<Device> device, std::unique_ptr<LinearWorkspace> linear)
      : device_(std::move(device)),
        linear_(std::move(linear)),
        rounding_(MakeCudaWeightRounding(*device_)) {}

  std::string Description() const override {
    const DeviceInfo& info = device_->info();
    return absl::StrCat("cuda (", info.name, ", ", info.total_bytes >> 30, " GiB)",
                        linear_->batch_invariant() ? ", batch-invariant" : "",
                        info.note.empty() ? "" : "; ", info.note);
  }
  std::string Tier() const override {
    const DeviceInfo& info = device_->info();
    return absl::StrCat("cuda/sm_", info.major, info.minor, "/", info.multiprocessors);
  }
  DType activation_type() const override { return DType::kBF16; }
  std::optional<size_t> MemoryLeft() const override { return device_->FreeBytes(); }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(*device_, bytes);
    if (!memory.ok()) return memory.status();
    return std::make_unique<CudaBuffer>(*std::move(memory));
  }
  void Upload(void* device, const void* host, size_t bytes) override {
    device_->CopyIn(device, host, bytes);
  }
  void Download(void* host, const void* device, size_t bytes) override {
    device_->CopyOut(host, device, bytes);
  }

  absl::StatusOr<std::unique_ptr<PreparedLinear>> Prepare(const LinearGroup& group,
                                                          Mode mode) override {
    ForgetRecordings();
    return PrepareCudaLinear(*device_, *linear_, group, mode);
  }
  absl::StatusOr<std::unique_ptr<PreparedEmbedding>> PrepareEmbedding(
      const WeightView& table) override;
  std::unique_ptr<PreparedEmbedding> EmbeddingOf(const PreparedLinear& linear) override;

  absl::Status Reserve(const StepLimits& limits) override;
  absl::StatusOr<std::unique_ptr<Buffer>> AllocateKv(const KvSpec& spec, int32_t num_blocks,
                                                     KvPool* pool) override;
  void CopyKvBlock(const KvPool& pool, int32_t from, int32_t to) override;

  void Embed(const EmbedArgs& args) override;
  void RmsNorm(const RmsNormArgs& args) override { LaunchRmsNorm(*device_, args); }
  void Linear(const LinearArgs& args) override { Note(RunCudaLinear(*device_, *linear_, args)); }
  void RopeAppend(const RopeAppendArgs& args) override { LaunchRopeAppend(*device_, args); }
  void Attention(const AttentionArgs& args) override;
  void GatedActivation(const GatedActivationArgs& args) override {
    LaunchGatedActivation(*device_, args);
  }
  void AccumulateHessian(const HessianArgs& args) override { LaunchHessian(*device_, args); }
  void Sample(const SampleArgs& args) override;
  WeightRounding* weight_rounding() override { return rounding_.get(); }

  absl::Status Sync() override { return FirstOf(device_->Sync()); }
  bool asynchronous() const override { return true; }
  uint64_t Mark() override { return device_->Mark(); }
  absl::Status Wait(uint64_t mark) override { return FirstOf(device_->Wait(mark)); }
  double Seconds(uint64_t from, uint64_t to) override { return device_->Seconds(from, to); }
  void Replay(uint64_t key, const std::function<void()>& launches) override;
  Ceilings MeasureCeilings() override { return MeasureCudaCeilings(*device_); }

 private:
  // The first failure is what Sync tells.
  void Note(const absl::Status& status) {
    if (failed_.ok()) failed_ = status;
  }
  absl::Status FirstOf(const absl::Status& status) const { return failed_.ok() ? status : failed_; }
  // Memory that recordings work on is about to be freed.
  void ForgetRecordings() {
    Note(device_->Sync());
    recorded_.clear();
  }
  // Whether `bytes` were reserved; a failure if not.
  bool Fits(const char* what, size_t bytes, const DeviceMemory& reserved) {
    if (bytes > reserved.bytes()) {
      Note(absl::FailedPreconditionError(absl::StrCat("a step's ", what, " need ", bytes,
                                                      " bytes; reserved are ", reserved.bytes())));
    }
    return bytes <= reserved.bytes();
  }

  std::unique_ptr<Device> device_;  // outlives everything below
  std::unique_ptr<LinearWorkspace> linear_;
  std::unique_ptr<WeightRounding> rounding_;
  DeviceMemory partials_, rows_, sampling_, sampling_exchange_;  // Reserve
  std::vector<uint64_t> packed_sampling_;                        // as large as sampling_
  // By key of Replay; nullptr where the launches have been run once.
  struct Recorded {
    std::unique_ptr<Recording> recording;
    uint64_t last_use = 0;
  };
  std::map<uint64_t, Recorded> recorded_;
  uint64_t replays_ = 0;
  absl::Status failed_;
};

// A table of its own, or the memory of a tied head.
class CudaEmbedding : public PreparedEmbedding {
 public:
  size_t resident_bytes() const override {
    size_t bytes = 0;
    for (const DeviceMemory& part : memory) bytes += part.bytes();
    return bytes;
  }
  EmbeddingTable table;
  std::vector<DeviceMemory> memory;
};

absl::StatusOr<std::unique_ptr<PreparedEmbedding>> CudaBackend::PrepareEmbedding(
    const WeightView& table) {
  auto embedding = std::make_unique<CudaEmbedding>();
  absl::StatusOr<DeviceWeight> weight = UploadWeight(*device_, table, &embedding->memory);
  if (!weight.ok()) return weight.status();
  embedding->table = StoredTable{*weight};
  if (absl::Status status = device_->Sync(); !status.ok()) return status;
  return embedding;
}

std::unique_ptr<PreparedEmbedding> CudaBackend::EmbeddingOf(const PreparedLinear& linear) {
  const auto& prepared = static_cast<const CudaLinear&>(linear);
  NIBBLE_CHECK(prepared.parts.size() == 1 && prepared.parts[0].count == 1);
  auto embedding = std::make_unique<CudaEmbedding>();
  embedding->table = TableOf(prepared.parts[0]);
  return embedding;
}

// What the lists of a row of sampling parameters can hold: each of them every token.
size_t MostSamplingBytes(int64_t vocabulary) {
  SamplingRow row;
  row.num_bias = row.num_banned = row.num_seen = static_cast<int32_t>(vocabulary);
  row.presence_penalty = 1.0f;
  return PackedSamplingBytes({&row, 1});
}

absl::Status CudaBackend::Reserve(const StepLimits& limits) {
  if (limits.sample_rows > 0 && limits.vocabulary > kMaxSampleVocabulary) {
    return absl::UnimplementedError(absl::StrCat("cuda draws from vocabularies of up to ",
                                                 kMaxSampleVocabulary, " tokens; this one has ",
                                                 limits.vocabulary));
  }
  // Rows whose lists are long are uploaded in parts; few are, unless penalties meet long texts.
  constexpr int64_t kRowsPerLongLists = 16;
  const int64_t long_lists = (limits.sample_rows + kRowsPerLongLists - 1) / kRowsPerLongLists;
  const auto rows = static_cast<size_t>(limits.sample_rows);
  const int64_t width = int64_t{limits.heads} * limits.head_dim;
  const std::pair<DeviceMemory*, size_t> wanted[] = {
      {&partials_,
       AttentionPartialBytes(limits.sequences, limits.max_blocks, limits.heads, limits.head_dim)},
      {&rows_, static_cast<size_t>(limits.rows * width) * sizeof(float)},
      {&sampling_, rows * sizeof(PackedSamplingRow) +
                       static_cast<size_t>(long_lists) * MostSamplingBytes(limits.vocabulary)},
      {&sampling_exchange_, SampleScratchBytes(device_->info(), limits.sample_rows)},
  };
  for (const auto& [memory, bytes] : wanted) {
    if (bytes <= memory->bytes()) continue;
    ForgetRecordings();
    *memory = DeviceMemory();
    absl::StatusOr<DeviceMemory> allocated = DeviceMemory::Allocate(*device_, bytes);
    if (!allocated.ok()) return allocated.status();
    *memory = *std::move(allocated);
  }
  packed_sampling_.resize((sampling_.bytes() + 7) / 8);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Buffer>> CudaBackend::AllocateKv(const KvSpec& spec,
                                                                int32_t num_blocks, KvPool* pool) {
  NIBBLE_CHECK(spec.format != nullptr && num_blocks >= 1);
  if (absl::Status status = CheckAttention(device_->info(), spec); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Buffer>> buffer =
      Allocate(static_cast<size_t>(spec.BytesPerBlock()) * static_cast<size_t>(num_blocks));
  if (!buffer.ok()) return buffer.status();
  *pool = KvPool{spec, num_blocks, (*buffer)->data()};
  return buffer;
}

void CudaBackend::CopyKvBlock(const KvPool& pool, int32_t from, int32_t to) {
  const auto bytes = static_cast<size_t>(pool.spec.BytesPerBlock());
  auto* base = static_cast<uint8_t*>(pool.data);
  device_->Copy(base + static_cast<size_t>(to) * bytes, base + static_cast<size_t>(from) * bytes,
                bytes);
}

void CudaBackend::Replay(uint64_t key, const std::function<void()>& launches) {
  if (const auto found = recorded_.find(key); found == recorded_.end()) {
    if (recorded_.size() >= kMostRecordings) {
      const auto oldest = std::min_element(
          recorded_.begin(), recorded_.end(),
          [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
      Note(device_->Sync());
      recorded_.erase(oldest);
    }
    recorded_[key].last_use = ++replays_;
    // The library makes its choices, and kernels are loaded.
    return launches();
  }
  Recorded& recorded = recorded_.at(key);
  recorded.last_use = ++replays_;
  if (recorded.recording == nullptr) {
    auto recording = device_->Record([&] {
      launches();
      return failed_;
    });
    if (!recording.ok()) return Note(recording.status());
    recorded.recording = *std::move(recording);
  }
  device_->Replay(*recorded.recording);
}

void CudaBackend::Embed(const EmbedArgs& args) {
  const auto& embedding = *static_cast<const CudaEmbedding*>(args.table);
  LaunchEmbed(*device_, {embedding.table, args.ids, args.rows, args.scale, args.out, args.drawn,
                         args.tokens});
}

void CudaBackend::Attention(const AttentionArgs& args) {
  const BatchView& batch = *args.batch;
  const int32_t head_dim = args.kv->spec.head_dim;
  const size_t partials =
      AttentionPartialBytes(batch.sequences, batch.max_blocks, args.heads, head_dim);
  const size_t rows =
      sizeof(float) * static_cast<size_t>(int64_t{batch.rows} * args.heads * head_dim);
  if (!Fits("parts of attention", partials, partials_) || !Fits("rows of attention", rows, rows_)) {
    return;
  }
  LaunchAttention(*device_, args, {partials_.as<float>(), rows_.as<float>()});
}

void CudaBackend::Sample(const SampleArgs& args) {
  const std::span<const SamplingRow> params(args.params, static_cast<size_t>(args.rows));
  for (size_t first = 0; first < params.size();) {
    // As many rows as there is room for.
    size_t count = 0, bytes = 0;
    while (first + count < params.size()) {
      const size_t more = PackedSamplingBytes(params.subspan(first + count, 1));
      if (count > 0 && bytes + more > sampling_.bytes()) break;
      bytes += more;
      ++count;
    }
    if (!Fits("sampling parameters", bytes, sampling_)) return;
    PackSampling(params.subspan(first, count), packed_sampling_.data());
    device_->CopyIn(sampling_.data(), packed_sampling_.data(), bytes);
    LaunchSample(*device_, {args.logits + static_cast<int64_t>(first) * args.vocabulary,
                            static_cast<int64_t>(count), args.vocabulary, sampling_.data(),
                            args.results + first, sampling_exchange_.data(), args.tokens});
    first += count;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(std::unique_ptr<Device> device,
                                                         const CudaOptions& options) {
  absl::StatusOr<std::unique_ptr<LinearWorkspace>> linear = LinearWorkspace::Make(*device, options);
  if (!linear.ok()) return linear.status();
  return std::make_unique<CudaBackend>(std::move(device), *std::move(linear));
}

}  // namespace nibble
