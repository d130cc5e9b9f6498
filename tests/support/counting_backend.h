// SPDX-License-Identifier: Apache-2.0
// A backend that counts the bytes of what it has prepared and of the buffers that are alive.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "kernels/backend.h"

namespace nibble::testing {

// Forwards everything to `inner`, which must outlive it and all that it hands out.
class CountingBackend final : public Backend {
 public:
  // Bytes alive now, and at most so far.
  struct Count {
    int64_t alive = 0;
    int64_t most = 0;
    void Add(int64_t bytes) {
      alive += bytes;
      most = std::max(most, alive);
    }
  };

  explicit CountingBackend(Backend& inner) : inner_(inner) {}

  const Count& weights() const { return weights_; }  // prepared linears and embeddings
  const Count& buffers() const { return buffers_; }  // everything else

  std::string Description() const override { return inner_.Description(); }
  std::string Tier() const override { return inner_.Tier(); }
  DType activation_type() const override { return inner_.activation_type(); }
  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    return Wrap(inner_.Allocate(bytes));
  }
  void Upload(void* device, const void* host, size_t bytes) override {
    inner_.Upload(device, host, bytes);
  }
  void Download(void* host, const void* device, size_t bytes) override {
    inner_.Download(host, device, bytes);
  }
  absl::StatusOr<std::unique_ptr<PreparedLinear>> Prepare(const LinearGroup& group,
                                                          Mode mode) override {
    auto inner = inner_.Prepare(group, mode);
    if (!inner.ok()) return inner.status();
    return std::make_unique<CountedLinear>(*std::move(inner), weights_);
  }
  absl::StatusOr<std::unique_ptr<PreparedEmbedding>> PrepareEmbedding(
      const WeightView& table) override {
    auto inner = inner_.PrepareEmbedding(table);
    if (!inner.ok()) return inner.status();
    return std::make_unique<CountedEmbedding>(*std::move(inner), weights_);
  }
  std::unique_ptr<PreparedEmbedding> EmbeddingOf(const PreparedLinear& linear) override {
    auto inner = inner_.EmbeddingOf(*static_cast<const CountedLinear&>(linear).inner);
    return std::make_unique<CountedEmbedding>(std::move(inner), weights_);
  }
  absl::Status Reserve(const StepLimits& limits) override { return inner_.Reserve(limits); }
  absl::StatusOr<std::unique_ptr<Buffer>> AllocateKv(const KvSpec& spec, int32_t num_blocks,
                                                     KvPool* pool) override {
    return Wrap(inner_.AllocateKv(spec, num_blocks, pool));
  }
  void CopyKvBlock(const KvPool& pool, int32_t from, int32_t to) override {
    inner_.CopyKvBlock(pool, from, to);
  }
  void Embed(const EmbedArgs& args) override {
    EmbedArgs inner = args;
    inner.table = static_cast<const CountedEmbedding*>(args.table)->inner.get();
    inner_.Embed(inner);
  }
  void Linear(const LinearArgs& args) override {
    LinearArgs inner = args;
    inner.linear = static_cast<const CountedLinear*>(args.linear)->inner.get();
    inner_.Linear(inner);
  }
  void RmsNorm(const RmsNormArgs& args) override { inner_.RmsNorm(args); }
  void RopeAppend(const RopeAppendArgs& args) override { inner_.RopeAppend(args); }
  void Attention(const AttentionArgs& args) override { inner_.Attention(args); }
  void GatedActivation(const GatedActivationArgs& args) override { inner_.GatedActivation(args); }
  void AccumulateHessian(const HessianArgs& args) override { inner_.AccumulateHessian(args); }
  void Sample(const SampleArgs& args) override { inner_.Sample(args); }
  absl::Status Sync() override { return inner_.Sync(); }
  Ceilings MeasureCeilings() override { return inner_.MeasureCeilings(); }

 private:
  struct CountedLinear final : PreparedLinear {
    CountedLinear(std::unique_ptr<PreparedLinear> linear, Count& c)
        : inner(std::move(linear)), count(c), bytes(static_cast<int64_t>(inner->resident_bytes())) {
      count.Add(bytes);
    }
    ~CountedLinear() override { count.Add(-bytes); }
    std::span<const ActFormat> input_formats() const override { return inner->input_formats(); }
    size_t resident_bytes() const override { return inner->resident_bytes(); }
    std::unique_ptr<PreparedLinear> inner;
    Count& count;
    const int64_t bytes;
  };
  struct CountedEmbedding final : PreparedEmbedding {
    CountedEmbedding(std::unique_ptr<PreparedEmbedding> table, Count& c)
        : inner(std::move(table)), count(c), bytes(static_cast<int64_t>(inner->resident_bytes())) {
      count.Add(bytes);
    }
    ~CountedEmbedding() override { count.Add(-bytes); }
    size_t resident_bytes() const override { return inner->resident_bytes(); }
    std::unique_ptr<PreparedEmbedding> inner;
    Count& count;
    const int64_t bytes;
  };
  class CountedBuffer final : public Buffer {
   public:
    CountedBuffer(std::unique_ptr<Buffer> inner, Count& count)
        : Buffer(inner->data(), inner->bytes()), inner_(std::move(inner)), count_(count) {
      count_.Add(static_cast<int64_t>(bytes()));
    }
    ~CountedBuffer() override { count_.Add(-static_cast<int64_t>(bytes())); }

   private:
    std::unique_ptr<Buffer> inner_;
    Count& count_;
  };

  absl::StatusOr<std::unique_ptr<Buffer>> Wrap(absl::StatusOr<std::unique_ptr<Buffer>> inner) {
    if (!inner.ok()) return inner.status();
    return std::make_unique<CountedBuffer>(*std::move(inner), buffers_);
  }

  Backend& inner_;
  Count weights_;
  Count buffers_;
};

}  // namespace nibble::testing
