// SPDX-License-Identifier: Apache-2.0
// What a decoder looks like, as data. A new Llama-like family is a row in the table of config.cc,
// not a new forward pass.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"

namespace nibble {

enum class RopeScaling : uint8_t { kNone, kLinear, kDynamicNtk, kYarn, kLongRope, kLlama3 };

struct RopeConfig {
  RopeScaling scaling = RopeScaling::kNone;
  double theta = 10000.0;
  int32_t rotary_dim = 0;              // even, <= head_dim
  double factor = 1.0;                 // > 0
  double low_freq_factor = 1.0;        // llama3
  double high_freq_factor = 4.0;       // llama3
  int64_t original_max_positions = 0;  // llama3, yarn, dynamic, longrope
  double beta_fast = 32.0;             // yarn
  double beta_slow = 1.0;              // yarn
  double mscale = 0.0;                 // yarn; 0 = absent
  double mscale_all_dim = 0.0;         // yarn
  double attention_factor = 0.0;       // yarn, longrope: 0 = derived
  bool truncate = true;                // yarn
  std::vector<double> short_factor;    // longrope, (rotary_dim / 2)
  std::vector<double> long_factor;     // longrope, (rotary_dim / 2)
};

struct DecoderConfig {
  std::string family;  // "llama", "mistral", "qwen2", "qwen3"
  int32_t layers = 0;  // 1..1024
  int32_t hidden = 0;
  int32_t intermediate = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;  // divides heads
  int32_t head_dim = 0;  // even, <= 512
  int32_t vocab = 0;
  int32_t max_positions = 0;
  float norm_eps = 1e-5f;
  float norm_weight_offset = 0.0f;  // Gemma: 1
  float embedding_scale = 1.0f;     // Gemma: sqrt(hidden)
  float attention_scale = 0.0f;     // usually 1 / sqrt(head_dim)
  float attention_softcap = 0.0f;   // Gemma 2
  float final_softcap = 0.0f;
  GateActivation activation = GateActivation::kSilu;
  bool qk_norm = false;  // Qwen3
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool tied_head = false;
  std::vector<int32_t>
      window;  // (layers) sliding window of each layer in tokens, 0 = full attention
  RopeConfig rope;
  std::vector<int32_t> eos_ids;
  int32_t bos_id = -1;  // -1 = none
};

// Reads config.json. InvalidArgument naming the field, its value and the allowed range; an unknown
// model_type lists the known ones.
absl::StatusOr<DecoderConfig> ParseDecoderConfig(const nlohmann::json& config);

// cos and sin of positions 0..positions-1, each (positions, rotary_dim / 2), computed in double and
// rounded once, multiplied with the attention factor of the scaling. Sources: LLaMA 3.1 (llama3),
// YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753), position interpolation (arXiv 2306.15595),
// dynamic NTK. `context` is the length that dynamic and longrope scaling adapt to.
struct RopeTables {
  int32_t positions = 0;
  std::vector<float> cos;
  std::vector<float> sin;
};
RopeTables MakeRopeTables(const RopeConfig& rope, int32_t positions, int64_t context,
                          int64_t max_positions);

}  // namespace nibble
