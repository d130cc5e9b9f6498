// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/ceilings.h"
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

class CudaBackend : public Backend {
 public:
  CudaBackend(std::unique_ptr<Device> device, std::unique_ptr<LinearWorkspace> linear)
      : device_(std::move(device)), linear_(std::move(linear)) {}

  std::string Description() const override {
    const DeviceInfo& info = device_->info();
    return absl::StrCat("cuda (", info.name, ", ", info.total_bytes >> 30, " GiB)");
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
    return PrepareCudaLinear(*device_, *linear_, group, mode);
  }
  absl::StatusOr<std::unique_ptr<PreparedEmbedding>> PrepareEmbedding(
      const WeightView& table) override;
  std::unique_ptr<PreparedEmbedding> EmbeddingOf(const PreparedLinear& linear) override;

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

  absl::Status Sync() override {
    const absl::Status status = device_->Sync();
    return failed_.ok() ? status : failed_;
  }
  Ceilings MeasureCeilings() override { return MeasureCudaCeilings(*device_); }

 private:
  // The first failure is what Sync tells.
  void Note(const absl::Status& status) {
    if (failed_.ok()) failed_ = status;
  }
  // Scratch that grows to the largest step seen; nullptr, and a failure, when there is no room.
  template <typename T>
  T* Grow(DeviceMemory& scratch, size_t bytes) {
    if (bytes > scratch.bytes()) {
      scratch = DeviceMemory();
      absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(*device_, bytes);
      if (!memory.ok()) {
        Note(memory.status());
        return nullptr;
      }
      scratch = *std::move(memory);
    }
    return scratch.as<T>();
  }

  std::unique_ptr<Device> device_;  // outlives everything below
  std::unique_ptr<LinearWorkspace> linear_;
  DeviceMemory partials_, rows_, sampling_, results_;
  std::vector<uint64_t> packed_sampling_;
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
  DeviceWeight table;
  PackedWeight packed;            // data == nullptr: as stored
  const uint8_t* int8 = nullptr;  // or in Int8Layout
  std::vector<DeviceMemory> memory;
};

absl::StatusOr<std::unique_ptr<PreparedEmbedding>> CudaBackend::PrepareEmbedding(
    const WeightView& table) {
  auto embedding = std::make_unique<CudaEmbedding>();
  absl::StatusOr<DeviceWeight> weight = UploadWeight(*device_, table, &embedding->memory);
  if (!weight.ok()) return weight.status();
  embedding->table = *weight;
  if (absl::Status status = device_->Sync(); !status.ok()) return status;
  return embedding;
}

std::unique_ptr<PreparedEmbedding> CudaBackend::EmbeddingOf(const PreparedLinear& linear) {
  const auto& prepared = static_cast<const CudaLinear&>(linear);
  NIBBLE_CHECK(prepared.parts.size() == 1 && prepared.parts[0].count == 1);
  auto embedding = std::make_unique<CudaEmbedding>();
  embedding->table = prepared.parts[0].weights[0];
  embedding->packed = prepared.parts[0].packed;
  embedding->int8 = prepared.parts[0].int8[0];
  return embedding;
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

void CudaBackend::Embed(const EmbedArgs& args) {
  const auto& embedding = *static_cast<const CudaEmbedding*>(args.table);
  LaunchEmbed(*device_, {embedding.table, embedding.packed, embedding.int8, args.ids, args.rows,
                         args.scale, args.out});
}

void CudaBackend::Attention(const AttentionArgs& args) {
  const BatchView& batch = *args.batch;
  const KvSpec& spec = args.kv->spec;
  AttentionScratch scratch;
  scratch.partials = Grow<float>(partials_, AttentionPartialBytes(batch.sequences, batch.max_blocks,
                                                                  args.heads, spec.head_dim));
  const int64_t width = int64_t{args.heads} * spec.head_dim;
  scratch.rows = Grow<float>(rows_, static_cast<size_t>(batch.rows * width) * sizeof(float));
  if (!failed_.ok()) return;
  LaunchAttention(*device_, args, scratch);
}

void CudaBackend::Sample(const SampleArgs& args) {
  if (args.rows == 0) return;
  const std::span<const SamplingRow> params(args.params, static_cast<size_t>(args.rows));
  const size_t bytes = PackedSamplingBytes(params);
  packed_sampling_.resize((bytes + 7) / 8);
  PackSampling(params, packed_sampling_.data());
  auto* packed = Grow<uint8_t>(sampling_, bytes);
  auto* results = Grow<SampleResult>(results_, params.size() * sizeof(SampleResult));
  if (!failed_.ok()) return;
  device_->CopyIn(packed, packed_sampling_.data(), bytes);
  LaunchSample(*device_, {args.logits, args.rows, args.vocabulary, packed, results});
  device_->CopyOut(args.results, results, params.size() * sizeof(SampleResult));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(std::unique_ptr<Device> device) {
  absl::StatusOr<std::unique_ptr<LinearWorkspace>> linear = LinearWorkspace::Make(*device);
  if (!linear.ok()) return linear.status();
  return std::make_unique<CudaBackend>(std::move(device), *std::move(linear));
}

}  // namespace nibble
