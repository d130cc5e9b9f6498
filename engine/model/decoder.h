// SPDX-License-Identifier: Apache-2.0
// The forward pass of a decoder, written once for every backend.
//
// Activations between operations live in a Workspace of fixed size; one Workspace serves all
// blocks. None of the classes is thread-safe; the thread that drives the backend drives them.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/weight_source.h"
#include "engine/model/config.h"
#include "kernels/backend.h"

namespace nibble {

// The linears that read one input. Statistics, transforms and searches belong to the group.
enum class InputGroup : uint8_t { kQkv, kO, kGateUp, kDown };
inline constexpr InputGroup kInputGroups[] = {InputGroup::kQkv, InputGroup::kO, InputGroup::kGateUp,
                                              InputGroup::kDown};

// Module names of a group's linears relative to the block, in the order of their outputs:
// {"self_attn.q_proj", ...}.
const std::vector<std::string>& GroupModules(InputGroup group);
// Full name: "model.layers.3." + relative.
std::string BlockModule(int layer, std::string_view relative);

// Receives the input of each group while a block runs; f32 rows in backend memory, valid during the
// call.
class BlockObserver {
 public:
  virtual ~BlockObserver() = default;
  // Whether it wants the group's input.
  virtual bool Wants(InputGroup group) const = 0;
  virtual void OnInput(InputGroup group, const float* x, int64_t rows, int64_t cols) = 0;
  // True after the last input that it wants: the block stops there and its output is undefined.
  virtual bool Done() const { return false; }
};

// Scratch memory for up to max_rows tokens of a model with this configuration.
class Workspace {
 public:
  static absl::StatusOr<std::unique_ptr<Workspace>> Make(Backend& backend,
                                                         const DecoderConfig& config,
                                                         int64_t max_rows, int64_t max_logit_rows);
  ~Workspace();
  int64_t max_rows() const { return max_rows_; }
  float* residual() const;  // (max_rows, hidden) f32: input and output of blocks
  Floats delta() const;     // (max_rows, hidden): what the next norm adds to the residual

  struct Impl;  // engine/model/workspace.h
  const Impl& impl() const { return *impl_; }

 private:
  Workspace(std::unique_ptr<Impl> impl, int64_t max_rows);
  std::unique_ptr<Impl> impl_;
  int64_t max_rows_;
};

// cos and sin tables in backend memory.
class RopeBuffers;

// One decoder block.
class DecoderBlock {
 public:
  // Prepares the block's weights from `source` (names as in WeightSource). The source is not needed
  // afterwards.
  static absl::StatusOr<std::unique_ptr<DecoderBlock>> Prepare(Backend& backend,
                                                               const DecoderConfig& config,
                                                               int layer,
                                                               const WeightSource& source,
                                                               Mode mode);
  ~DecoderBlock();
  // residual (+ delta, if has_delta) in `workspace` -> residual and delta after the block.
  // `kv_layer` is this block's index in the pool. With an observer, every group's input is also
  // written as f32.
  void Forward(const BatchView& batch, const KvPool& kv, int kv_layer, const RopeBuffers& rope,
               Workspace& workspace, bool has_delta, BlockObserver* observer = nullptr) const;
  size_t resident_bytes() const;

 private:
  struct Impl;
  explicit DecoderBlock(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// What follows the blocks: final norm and head.
class DecoderHead {
 public:
  // A tied head is the embedding table unless the source stores a head of its own. Unimplemented if
  // the configuration caps final logits. The source is not needed afterwards.
  static absl::StatusOr<std::unique_ptr<DecoderHead>> Prepare(Backend& backend,
                                                              const DecoderConfig& config,
                                                              const WeightSource& source,
                                                              Mode mode);
  ~DecoderHead();
  // residual (+ delta, if has_delta) in `workspace` -> logits (num_rows, vocab) f32 in backend
  // memory, valid until the workspace is used again. `rows` as in RmsNormArgs.
  float* Forward(const int32_t* rows, int64_t num_rows, Workspace& workspace, bool has_delta) const;
  size_t resident_bytes() const;
  // Of a tied head: the embedding, which reads the head's own memory and must not outlive it.
  // nullptr if the head is a matrix of its own.
  std::unique_ptr<PreparedEmbedding> TiedEmbedding() const;

 private:
  struct Impl;
  explicit DecoderHead(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class RopeBuffers {
 public:
  static absl::StatusOr<std::unique_ptr<RopeBuffers>> Make(Backend& backend,
                                                           const DecoderConfig& config,
                                                           int32_t positions);
  const float* cos() const { return cos_->as<float>(); }
  const float* sin() const { return sin_->as<float>(); }
  int32_t positions() const { return positions_; }

 private:
  std::unique_ptr<Buffer> cos_, sin_;  // (positions, rotary_dim / 2)
  int32_t positions_ = 0;
};

// The largest max_context of a model: its max_positions, and with dynamic rope scaling its factor
// times that. Dynamic scaling adapts to max_context, not to each sequence: keys in the cache must
// stay what they were.
int32_t MaxContext(const DecoderConfig& config);

struct DecoderOptions {
  Mode mode = Mode::kFast;
  int32_t max_rows = 512;       // tokens in one step
  int32_t max_logit_rows = 64;  // rows of logits in one step
  int32_t max_context = 0;      // positions; 0 = the model's max_positions
};

// A whole decoder.
class Decoder {
 public:
  // Unimplemented by scheme name if the backend has no kernel; ResourceExhausted if memory is
  // short.
  static absl::StatusOr<std::unique_ptr<Decoder>> Load(Backend& backend,
                                                       const DecoderConfig& config,
                                                       const WeightSource& source,
                                                       const DecoderOptions& options);
  ~Decoder();

  const DecoderConfig& config() const;
  const DecoderOptions& options() const;
  Backend& backend() const;
  KvSpec MakeKvSpec(const KvFormat& format) const;
  size_t resident_bytes() const;  // prepared weights, tables and workspace

  // Runs one step: appends to `kv`, returns logits (batch.num_logits, vocab) f32 in backend memory,
  // valid until the next Forward (nullptr if num_logits is 0). Needs batch.rows <= max_rows,
  // batch.num_logits <= max_logit_rows, positions < max_context.
  float* Forward(const BatchView& batch, const KvPool& kv);
  // Where Forward leaves logits: the same place every time.
  float* logits() const;

 private:
  struct Impl;
  explicit Decoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nibble
