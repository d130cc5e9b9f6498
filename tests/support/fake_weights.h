// SPDX-License-Identifier: Apache-2.0
// A Llama-like decoder of random weights, in any scheme, for tests that need arithmetic but no
// meaning. The same seed gives the same weights.
#pragma once

#include <bit>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/artifact/weight_source.h"
#include "engine/model/config.h"
#include "kernels/check.h"

namespace nibble::testing {

inline DecoderConfig TinyConfig() {
  DecoderConfig config;
  config.family = "llama";
  config.layers = 2;
  config.hidden = 64;
  config.intermediate = 96;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.vocab = 160;
  config.max_positions = 512;
  config.attention_scale = 0.25f;
  config.rope.rotary_dim = 16;
  config.window = {0, 0};
  return config;
}

// Linears in `scheme`; the embedding and the head in f32.
class FakeWeights final : public WeightSource {
 public:
  FakeWeights(const DecoderConfig& config, const Scheme& scheme, uint64_t seed = 1)
      : random_(seed) {
    Add("model.embed_tokens", config.vocab, config.hidden, *FindScheme("f32"));
    Add("lm_head", config.vocab, config.hidden, *FindScheme("f32"));
    AddNorm("model.norm.weight", config.hidden);
    const int64_t q = int64_t{config.heads} * config.head_dim;
    const int64_t kv = int64_t{config.kv_heads} * config.head_dim;
    for (int layer = 0; layer < config.layers; ++layer) {
      const std::string at = absl::StrCat("model.layers.", layer, ".");
      AddNorm(at + "input_layernorm.weight", config.hidden);
      AddNorm(at + "post_attention_layernorm.weight", config.hidden);
      Add(at + "self_attn.q_proj", q, config.hidden, scheme);
      Add(at + "self_attn.k_proj", kv, config.hidden, scheme);
      Add(at + "self_attn.v_proj", kv, config.hidden, scheme);
      Add(at + "self_attn.o_proj", config.hidden, q, scheme);
      Add(at + "mlp.gate_proj", config.intermediate, config.hidden, scheme);
      Add(at + "mlp.up_proj", config.intermediate, config.hidden, scheme);
      Add(at + "mlp.down_proj", config.hidden, config.intermediate, scheme);
    }
  }

  absl::StatusOr<WeightView> Weight(std::string_view module) const override {
    const auto found = weights_.find(module);
    if (found == weights_.end()) return absl::NotFoundError("no such module");
    const Stored& stored = found->second;
    WeightView view;
    view.scheme = stored.scheme;
    view.rows = stored.rows;
    view.cols = stored.cols;
    view.outliers = stored.outliers;
    for (const StoredTensor& tensor : StoredTensors(view)) {
      view.Set(tensor.part, stored.parts.at(tensor.part).data());
    }
    return view;
  }
  absl::StatusOr<std::vector<float>> Vector(std::string_view tensor) const override {
    const auto found = vectors_.find(tensor);
    if (found == vectors_.end()) return absl::NotFoundError("no such tensor");
    return found->second;
  }
  bool HasVector(std::string_view tensor) const override { return vectors_.contains(tensor); }
  bool HasWeight(std::string_view module) const override { return weights_.contains(module); }

 private:
  struct Stored {
    const Scheme* scheme;
    int64_t rows, cols, outliers;
    std::map<Part, std::vector<uint32_t>> parts;  // words, so that they are aligned
  };

  void AddNorm(const std::string& name, int64_t size) {
    std::normal_distribution<float> normal(1.0f, 0.1f);
    std::vector<float>& values = vectors_[name];
    for (int64_t i = 0; i < size; ++i) values.push_back(normal(random_));
  }

  // Random codes, and scales that give outputs about as large as inputs.
  void Add(const std::string& name, int64_t rows, int64_t cols, const Scheme& scheme) {
    Stored& stored = weights_[name];
    stored.scheme = &scheme;
    stored.rows = rows;
    stored.cols = cols;
    stored.outliers = scheme.outliers ? cols / 16 : 0;
    const double deviation = 1.5 / std::sqrt(static_cast<double>(cols));
    std::normal_distribution<float> normal(0.0f, static_cast<float>(deviation));
    for (const StoredTensor& tensor : StoredTensors(scheme, rows, cols, stored.outliers)) {
      std::vector<uint32_t>& words = stored.parts[tensor.part];
      words.resize(static_cast<size_t>((tensor.bytes() + 3) / 4));
      const double spread = (scheme.quantized() ? scheme.span() : 1.0) * 0.58;  // of uniform codes
      const auto scale = static_cast<float>(deviation / spread);
      if (tensor.part == Part::kOutlierFeatures) {
        for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint32_t>(16 * i + 3);
      } else if (tensor.part == Part::kNested) {
        for (uint32_t& word : words) word = std::bit_cast<uint32_t>(scale);
      } else if (tensor.dtype == DType::kF32) {
        for (uint32_t& word : words) word = std::bit_cast<uint32_t>(normal(random_));
      } else if (tensor.part == Part::kScales) {  // Nested ones: 0 above the offset.
        const uint32_t half = scheme.nested() ? 0x7f7fu : F32ToBF16(scale);
        for (uint32_t& word : words) word = half * 0x10001u;
      } else if (tensor.dtype == DType::kBF16) {
        for (uint32_t& word : words) {
          const uint32_t low = F32ToBF16(normal(random_));
          word = low | static_cast<uint32_t>(F32ToBF16(normal(random_))) << 16;
        }
      } else {
        // The NaNs of e4m3 are odd codes.
        const uint32_t mask = tensor.dtype == DType::kF8E4M3 ? 0xfefefefeu : ~0u;
        for (uint32_t& word : words) word = static_cast<uint32_t>(random_()) & mask;
      }
    }
  }

  std::mt19937_64 random_;
  std::map<std::string, Stored, std::less<>> weights_;
  std::map<std::string, std::vector<float>, std::less<>> vectors_;
};

}  // namespace nibble::testing
