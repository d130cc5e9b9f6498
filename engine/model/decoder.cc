// SPDX-License-Identifier: Apache-2.0
#include "engine/model/decoder.h"

#include <algorithm>
#include <limits>

#include "engine/base/cat.h"
#include "engine/model/load.h"
#include "engine/model/workspace.h"
#include "kernels/check.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<RopeBuffers>> RopeBuffers::Make(Backend& backend,
                                                               const DecoderConfig& config,
                                                               int32_t positions) {
  const RopeTables tables = MakeRopeTables(config.rope, positions, positions, config.max_positions);
  std::unique_ptr<RopeBuffers> buffers(new RopeBuffers());
  buffers->positions_ = positions;
  for (auto [values, out] :
       {std::pair{&tables.cos, &buffers->cos_}, std::pair{&tables.sin, &buffers->sin_}}) {
    auto buffer = backend.Allocate(values->size() * sizeof(float));
    if (!buffer.ok()) return buffer.status();
    backend.Upload((*buffer)->data(), values->data(), values->size() * sizeof(float));
    *out = *std::move(buffer);
  }
  if (absl::Status status = backend.Sync(); !status.ok()) return status;
  return buffers;
}

int32_t MaxContext(const DecoderConfig& config) {
  if (config.rope.scaling != RopeScaling::kDynamicNtk) return config.max_positions;
  return static_cast<int32_t>(std::min(config.max_positions * config.rope.factor,
                                       double{std::numeric_limits<int32_t>::max()}));
}

struct DecoderHead::Impl {
  Backend* backend = nullptr;
  DecoderConfig config;
  std::unique_ptr<Buffer> norm;  // (hidden) f32
  std::unique_ptr<PreparedLinear> linear;
  bool tied = false;  // `linear` is the embedding table
};

DecoderHead::DecoderHead(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DecoderHead::~DecoderHead() = default;
size_t DecoderHead::resident_bytes() const { return impl_->linear->resident_bytes(); }
std::unique_ptr<PreparedEmbedding> DecoderHead::TiedEmbedding() const {
  return impl_->tied ? impl_->backend->EmbeddingOf(*impl_->linear) : nullptr;
}

absl::StatusOr<std::unique_ptr<DecoderHead>> DecoderHead::Prepare(Backend& backend,
                                                                  const DecoderConfig& config,
                                                                  const WeightSource& source,
                                                                  Mode mode) {
  if (config.final_softcap != 0.0f) {
    return absl::UnimplementedError("config.json: final_logit_softcapping is not supported");
  }
  auto impl = std::make_unique<Impl>();
  impl->backend = &backend;
  impl->config = config;
  auto norm = UploadVector(backend, source, "model.norm.weight", config.hidden);
  if (!norm.ok()) return norm.status();
  impl->norm = *std::move(norm);
  impl->tied = !source.HasWeight("lm_head");
  if (impl->tied && !config.tied_head) {
    return absl::InvalidArgumentError(
        "lm_head.weight is missing and config.json says tie_word_embeddings: false");
  }
  auto linear = PrepareLinears(
      backend, source,
      {{impl->tied ? "model.embed_tokens" : "lm_head", config.vocab, config.hidden, false}}, mode);
  if (!linear.ok()) return linear.status();
  impl->linear = *std::move(linear);
  return std::unique_ptr<DecoderHead>(new DecoderHead(std::move(impl)));
}

float* DecoderHead::Forward(const int32_t* rows, int64_t num_rows, Workspace& workspace,
                            bool has_delta) const {
  const Impl& head = *impl_;
  const Workspace::Impl& work = workspace.impl();
  float* logits = work.logits->as<float>();
  const ActSet in = work.Acts(head.linear->input_formats(), head.config.hidden);
  head.backend->RmsNorm({.x = workspace.residual(),
                         .delta = has_delta ? workspace.delta() : Floats{},
                         .weight = head.norm->as<float>(),
                         .weight_offset = head.config.norm_weight_offset,
                         .eps = head.config.norm_eps,
                         .dim = head.config.hidden,
                         .rows = rows,
                         .num_rows = num_rows,
                         .out = in});
  head.backend->Linear({.linear = head.linear.get(),
                        .in = in,
                        .rows = num_rows,
                        .out = {Floats{logits, DType::kF32}}});
  return logits;
}

struct Decoder::Impl {
  Backend* backend = nullptr;
  DecoderConfig config;
  DecoderOptions options;
  std::unique_ptr<DecoderHead> head;
  std::unique_ptr<PreparedEmbedding> embedding;  // may read the head's memory
  std::vector<std::unique_ptr<DecoderBlock>> blocks;
  std::unique_ptr<RopeBuffers> rope;
  std::unique_ptr<Workspace> workspace;
  size_t resident_bytes = 0;
};

Decoder::Decoder(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Decoder::~Decoder() = default;
const DecoderConfig& Decoder::config() const { return impl_->config; }
const DecoderOptions& Decoder::options() const { return impl_->options; }
Backend& Decoder::backend() const { return *impl_->backend; }
size_t Decoder::resident_bytes() const { return impl_->resident_bytes; }

KvSpec Decoder::MakeKvSpec(const KvFormat& format) const {
  return KvSpec{&format, impl_->config.layers, impl_->config.kv_heads, impl_->config.head_dim};
}

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(Backend& backend,
                                                       const DecoderConfig& config,
                                                       const WeightSource& source,
                                                       const DecoderOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->backend = &backend;
  impl->config = config;
  impl->options = options;
  if (impl->options.max_context <= 0) impl->options.max_context = config.max_positions;
  if (impl->options.max_context > MaxContext(config)) {
    return absl::InvalidArgumentError(
        Cat("max_context is ", options.max_context, "; the model allows 1..", MaxContext(config)));
  }

  auto head = DecoderHead::Prepare(backend, config, source, options.mode);
  if (!head.ok()) return head.status();
  impl->head = *std::move(head);
  impl->resident_bytes += impl->head->resident_bytes();
  impl->embedding = impl->head->TiedEmbedding();
  if (impl->embedding == nullptr) {
    auto table = CheckedWeight(source, "model.embed_tokens", config.vocab, config.hidden);
    if (!table.ok()) return table.status();
    auto embedding = backend.PrepareEmbedding(*table);
    if (!embedding.ok()) return embedding.status();
    impl->embedding = *std::move(embedding);
    impl->resident_bytes += impl->embedding->resident_bytes();
  }

  for (int layer = 0; layer < config.layers; ++layer) {
    auto block = DecoderBlock::Prepare(backend, config, layer, source, options.mode);
    if (!block.ok()) return block.status();
    impl->resident_bytes += (*block)->resident_bytes();
    impl->blocks.push_back(*std::move(block));
  }

  auto rope = RopeBuffers::Make(backend, config, impl->options.max_context);
  if (!rope.ok()) return rope.status();
  impl->rope = *std::move(rope);
  auto workspace = Workspace::Make(backend, config, options.max_rows, options.max_logit_rows);
  if (!workspace.ok()) return workspace.status();
  impl->workspace = *std::move(workspace);
  return std::unique_ptr<Decoder>(new Decoder(std::move(impl)));
}

float* Decoder::logits() const { return impl_->workspace->impl().logits->as<float>(); }

float* Decoder::Forward(const BatchView& batch, const KvPool& kv) {
  Impl& model = *impl_;
  Workspace& workspace = *model.workspace;
  Backend& backend = *model.backend;
  NIBBLE_CHECK(batch.rows <= model.options.max_rows);
  NIBBLE_CHECK(batch.num_logits <= model.options.max_logit_rows);

  backend.Embed({.table = model.embedding.get(),
                 .ids = batch.token_ids,
                 .rows = batch.rows,
                 .scale = model.config.embedding_scale,
                 .out = workspace.residual(),
                 .drawn = batch.drawn,
                 .tokens = batch.tokens});
  for (size_t layer = 0; layer < model.blocks.size(); ++layer) {
    model.blocks[layer]->Forward(batch, kv, static_cast<int>(layer), *model.rope, workspace,
                                 /*has_delta=*/layer > 0);
  }
  if (batch.num_logits == 0) return nullptr;
  return model.head->Forward(batch.logit_rows, batch.num_logits, workspace, /*has_delta=*/true);
}

}  // namespace nibble
