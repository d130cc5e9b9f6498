// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <vector>

#include "engine/base/cat.h"
#include "engine/model/decoder.h"
#include "engine/model/load.h"
#include "engine/model/workspace.h"
#include "kernels/check.h"

namespace nibble {

const std::vector<std::string>& GroupModules(InputGroup group) {
  static const std::vector<std::string> kModules[] = {
      {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
      {"self_attn.o_proj"},
      {"mlp.gate_proj", "mlp.up_proj"},
      {"mlp.down_proj"},
  };
  return kModules[static_cast<size_t>(group)];
}

std::string BlockModule(int layer, std::string_view relative) {
  return Cat("model.layers.", layer, ".", std::string(relative));
}

struct DecoderBlock::Impl {
  Backend* backend = nullptr;
  const DecoderConfig config;
  int layer = 0;
  std::unique_ptr<PreparedLinear> qkv, o, gate_up, down;
  std::unique_ptr<Buffer> input_norm, post_norm;  // (hidden) f32
  std::unique_ptr<Buffer> q_norm, k_norm;         // (head_dim) f32 or nullptr

  explicit Impl(const DecoderConfig& c) : config(c) {}
};

DecoderBlock::DecoderBlock(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DecoderBlock::~DecoderBlock() = default;

absl::StatusOr<std::unique_ptr<DecoderBlock>> DecoderBlock::Prepare(Backend& backend,
                                                                    const DecoderConfig& config,
                                                                    int layer,
                                                                    const WeightSource& source,
                                                                    Mode mode) {
  const int64_t q_cols = int64_t{config.heads} * config.head_dim;
  const int64_t kv_cols = int64_t{config.kv_heads} * config.head_dim;
  const std::vector<int64_t> qkv_rows = {q_cols, kv_cols, kv_cols};
  const std::vector<int64_t> gate_up_rows = {config.intermediate, config.intermediate};

  auto impl = std::make_unique<Impl>(config);
  impl->backend = &backend;
  impl->layer = layer;
  struct GroupSpec {
    InputGroup group;
    std::unique_ptr<PreparedLinear>* out;
    std::vector<int64_t> rows;
    int64_t cols;
    bool bias;
  };
  const GroupSpec groups[] = {
      {InputGroup::kQkv, &impl->qkv, qkv_rows, config.hidden, config.qkv_bias},
      {InputGroup::kO, &impl->o, {config.hidden}, q_cols, config.o_bias},
      {InputGroup::kGateUp, &impl->gate_up, gate_up_rows, config.hidden, config.mlp_bias},
      {InputGroup::kDown, &impl->down, {config.hidden}, config.intermediate, config.mlp_bias},
  };
  for (const GroupSpec& group : groups) {
    std::vector<LinearSpec> linears;
    for (size_t i = 0; i < group.rows.size(); ++i) {
      linears.push_back({BlockModule(layer, GroupModules(group.group)[i]), group.rows[i],
                         group.cols, group.bias});
    }
    auto prepared = PrepareLinears(backend, source, linears, mode);
    if (!prepared.ok()) return prepared.status();
    *group.out = *std::move(prepared);
  }
  struct VectorSpec {
    const char* name;
    std::unique_ptr<Buffer>* out;
    int64_t size;
  };
  std::vector<VectorSpec> vectors = {
      {"input_layernorm.weight", &impl->input_norm, config.hidden},
      {"post_attention_layernorm.weight", &impl->post_norm, config.hidden},
  };
  if (config.qk_norm) {
    vectors.push_back({"self_attn.q_norm.weight", &impl->q_norm, config.head_dim});
    vectors.push_back({"self_attn.k_norm.weight", &impl->k_norm, config.head_dim});
  }
  for (const VectorSpec& vector : vectors) {
    auto buffer = UploadVector(backend, source, BlockModule(layer, vector.name), vector.size);
    if (!buffer.ok()) return buffer.status();
    *vector.out = *std::move(buffer);
  }
  return std::unique_ptr<DecoderBlock>(new DecoderBlock(std::move(impl)));
}

namespace {

// The formats a group wants, and f32 as well if somebody is looking on.
struct GroupInput {
  ActSet produced;  // what the producer writes
  ActSet consumed;  // what the linear reads: the first of them
  const float* observed = nullptr;
};

GroupInput MakeInput(const Workspace::Impl& work, const PreparedLinear& linear, int64_t cols,
                     bool observe) {
  const std::span<const ActFormat> wanted = linear.input_formats();
  std::array<ActFormat, kMaxActFormats> formats;
  size_t count = wanted.size();
  std::copy(wanted.begin(), wanted.end(), formats.begin());
  size_t plain = 0;
  while (plain < count && formats[plain].dtype != DType::kF32) ++plain;
  if (observe && plain == count) {
    // Whoever observes an input has the linears that read it in one format.
    NIBBLE_CHECK(count < formats.size());
    formats[count++] = ActFormat{DType::kF32, 0};
  }
  GroupInput input;
  input.produced = work.Acts({formats.data(), count}, cols);
  input.consumed = input.produced;
  input.consumed.count = static_cast<int>(wanted.size());
  if (observe) input.observed = static_cast<const float*>(input.produced.views[plain].data);
  return input;
}

}  // namespace

void DecoderBlock::Forward(const BatchView& batch, const KvPool& kv, int kv_layer,
                           const RopeBuffers& rope, Workspace& workspace, bool has_delta,
                           BlockObserver* observer) const {
  const Impl& block = *impl_;
  const DecoderConfig& config = block.config;
  const Workspace::Impl& work = workspace.impl();
  Backend& backend = *block.backend;
  const int64_t rows = batch.rows;
  const int64_t q_cols = int64_t{config.heads} * config.head_dim;
  const auto observe = [observer](InputGroup group) {
    return observer != nullptr && observer->Wants(group);
  };
  NIBBLE_CHECK(rows <= workspace.max_rows());

  auto norm = [&](const Buffer& weight, Floats delta, const ActSet& out) {
    backend.RmsNorm({.x = workspace.residual(),
                     .delta = delta,
                     .weight = weight.as<float>(),
                     .weight_offset = config.norm_weight_offset,
                     .eps = config.norm_eps,
                     .dim = config.hidden,
                     .rows = nullptr,
                     .num_rows = rows,
                     .out = out});
  };
  // True where the observer has seen enough.
  auto tell = [&](InputGroup group, const GroupInput& input, int64_t cols) {
    if (!observe(group)) return false;
    observer->OnInput(group, input.observed, rows, cols);
    return observer->Done();
  };

  // Attention: norm, q/k/v, rotate and append, attend, o.
  const GroupInput attention_in =
      MakeInput(work, *block.qkv, config.hidden, observe(InputGroup::kQkv));
  norm(*block.input_norm, has_delta ? workspace.delta() : Floats{}, attention_in.produced);
  if (tell(InputGroup::kQkv, attention_in, config.hidden)) return;
  const Floats q = work.Plain(work.q), k = work.Plain(work.k), v = work.Plain(work.v);
  backend.Linear(
      {.linear = block.qkv.get(), .in = attention_in.consumed, .rows = rows, .out = {q, k, v}});
  backend.RopeAppend({.batch = &batch,
                      .q = q,
                      .k = k,
                      .v = v,
                      .heads = config.heads,
                      .rotary_dim = config.rope.rotary_dim,
                      .cos_table = rope.cos(),
                      .sin_table = rope.sin(),
                      .q_norm = block.q_norm ? block.q_norm->as<float>() : nullptr,
                      .k_norm = block.k_norm ? block.k_norm->as<float>() : nullptr,
                      .norm_weight_offset = config.norm_weight_offset,
                      .norm_eps = config.norm_eps,
                      .kv = &kv,
                      .layer = kv_layer});
  const GroupInput o_in = MakeInput(work, *block.o, q_cols, observe(InputGroup::kO));
  backend.Attention({.batch = &batch,
                     .q = q,
                     .heads = config.heads,
                     .scale = config.attention_scale,
                     .window = config.window[static_cast<size_t>(block.layer)],
                     .softcap = config.attention_softcap,
                     .kv = &kv,
                     .layer = kv_layer,
                     .out = o_in.produced});
  if (tell(InputGroup::kO, o_in, q_cols)) return;
  backend.Linear(
      {.linear = block.o.get(), .in = o_in.consumed, .rows = rows, .out = {workspace.delta()}});

  // Feed-forward: residual add and norm, gate and up, gated activation, down.
  const GroupInput mlp_in =
      MakeInput(work, *block.gate_up, config.hidden, observe(InputGroup::kGateUp));
  norm(*block.post_norm, workspace.delta(), mlp_in.produced);
  if (tell(InputGroup::kGateUp, mlp_in, config.hidden)) return;
  const Floats gate = work.Plain(work.gate), up = work.Plain(work.up);
  backend.Linear(
      {.linear = block.gate_up.get(), .in = mlp_in.consumed, .rows = rows, .out = {gate, up}});
  const GroupInput down_in =
      MakeInput(work, *block.down, config.intermediate, observe(InputGroup::kDown));
  backend.GatedActivation({.gate = gate,
                           .up = up,
                           .rows = rows,
                           .dim = config.intermediate,
                           .activation = config.activation,
                           .out = down_in.produced});
  if (tell(InputGroup::kDown, down_in, config.intermediate)) return;
  backend.Linear({.linear = block.down.get(),
                  .in = down_in.consumed,
                  .rows = rows,
                  .out = {workspace.delta()}});
}

size_t DecoderBlock::resident_bytes() const {
  return impl_->qkv->resident_bytes() + impl_->o->resident_bytes() +
         impl_->gate_up->resident_bytes() + impl_->down->resident_bytes();
}

}  // namespace nibble
