// SPDX-License-Identifier: Apache-2.0
// A random decoder of a few thousand weights, written as a Hugging Face directory, with text to
// calibrate and evaluate on.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "engine/artifact/file_system.h"
#include "engine/artifact/safetensors_writer.h"
#include "kernels/dtype.h"

namespace nibble::testing {

struct TinyModelOptions {
  int layers = 3;
  int hidden = 64;
  int intermediate = 128;
  int heads = 4;
  int kv_heads = 4;
  int head_dim = 16;
  int vocab = 96;
  bool tied = true;
  bool bf16 = true;  // otherwise f32
  bool bias = false;
  int sliding_window = 0;  // tokens, of a Mistral; 0 = a Llama, without one
  uint32_t seed = 1;
  std::string not_a_number = "";  // a tensor whose first value is NaN
};

class TinyModel {
 public:
  TinyModel(const std::string& directory, const TinyModelOptions& options) : options_(options) {
    std::filesystem::create_directories(directory);
    WriteConfig(directory);
    WriteTokenizer(directory);
    WriteWeights(directory + "/model.safetensors");
  }

  // JSON lines of `count` documents of `tokens` random ids.
  static void WriteIds(const std::string& path, int count, int tokens, uint32_t seed) {
    std::mt19937 generator(seed);
    std::ofstream file(path);
    for (int i = 0; i < count; ++i) {
      nlohmann::json ids = nlohmann::json::array();
      int id = 3;
      for (int t = 0; t < tokens; ++t) {
        // Some structure, so that there is something to calibrate on.
        id = generator() % 3 == 0 ? 3 + static_cast<int>(generator() % 90) : 3 + (id * 7 + 5) % 90;
        ids.push_back(id);
      }
      file << nlohmann::json{{"ids", ids}}.dump() << "\n";
    }
  }

 private:
  void WriteConfig(const std::string& directory) const {
    const bool windowed = options_.sliding_window > 0;
    nlohmann::json config = {
        {"architectures", {windowed ? "MistralForCausalLM" : "LlamaForCausalLM"}},
        {"model_type", windowed ? "mistral" : "llama"},
        {"hidden_size", options_.hidden},
        {"intermediate_size", options_.intermediate},
        {"num_hidden_layers", options_.layers},
        {"num_attention_heads", options_.heads},
        {"num_key_value_heads", options_.kv_heads},
        {"head_dim", options_.head_dim},
        {"vocab_size", options_.vocab},
        {"max_position_embeddings", 2048},
        {"rms_norm_eps", 1e-5},
        {"rope_theta", 10000.0},
        {"hidden_act", "silu"},
        {"attention_bias", options_.bias},
        {"mlp_bias", options_.bias},
        {"tie_word_embeddings", options_.tied},
        {"bos_token_id", 1},
        {"eos_token_id", 2},
        {"torch_dtype", options_.bf16 ? "bfloat16" : "float32"}};
    if (windowed) config["sliding_window"] = options_.sliding_window;
    std::ofstream(directory + "/config.json") << config.dump(2);
  }

  void WriteTokenizer(const std::string& directory) const {
    nlohmann::json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
    for (int id = 3; id < options_.vocab; ++id) {
      vocab[std::string(1, static_cast<char>('!' + id - 3))] = id;
    }
    nlohmann::json added = nlohmann::json::array();
    for (int id = 0; id < 3; ++id) {
      const char* const content[] = {"<unk>", "<s>", "</s>"};
      added.push_back({{"id", id},
                       {"content", content[id]},
                       {"special", true},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false}});
    }
    const nlohmann::json tokenizer = {{"version", "1.0"},
                                      {"added_tokens", added},
                                      {"normalizer", nullptr},
                                      {"pre_tokenizer", nullptr},
                                      {"post_processor", nullptr},
                                      {"decoder", nullptr},
                                      {"model",
                                       {{"type", "BPE"},
                                        {"unk_token", "<unk>"},
                                        {"vocab", vocab},
                                        {"merges", nlohmann::json::array()}}}};
    std::ofstream(directory + "/tokenizer.json") << tokenizer.dump();
    const nlohmann::json settings = {{"bos_token", "<s>"},
                                     {"eos_token", "</s>"},
                                     {"unk_token", "<unk>"},
                                     {"add_bos_token", true}};
    std::ofstream(directory + "/tokenizer_config.json") << settings.dump();
  }

  void Add(const std::string& name, std::vector<int64_t> shape, float mean, float deviation) {
    SafetensorsEntry entry;
    entry.name = name;
    entry.dtype = options_.bf16 ? DType::kBF16 : DType::kF32;
    entry.shape = shape;
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    std::normal_distribution<float> normal(mean, deviation);
    std::string bytes;
    for (int64_t i = 0; i < count; ++i) {
      float value = normal(generator_);
      // A few large gains make a few input features large, as in real models.
      if (name.ends_with("layernorm.weight") && i % 13 == 4) value *= 8.0f;
      if (i == 0 && name == options_.not_a_number) value = NAN;
      if (options_.bf16) {
        const uint16_t bits = F32ToBF16(value);
        bytes.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
      } else {
        bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
      }
    }
    entries_.push_back(std::move(entry));
    bytes_.push_back(std::move(bytes));
  }

  void WriteWeights(const std::string& path) {
    generator_.seed(options_.seed);
    const int64_t hidden = options_.hidden;
    const int64_t q = int64_t{options_.heads} * options_.head_dim;
    const int64_t kv = int64_t{options_.kv_heads} * options_.head_dim;
    const int64_t inner = options_.intermediate;
    auto linear = [this](const std::string& name, int64_t rows, int64_t cols) {
      Add(name + ".weight", {rows, cols}, 0.0f, 1.0f / std::sqrt(static_cast<float>(cols)));
      if (options_.bias) Add(name + ".bias", {rows}, 0.0f, 0.1f);
    };
    Add("model.embed_tokens.weight", {options_.vocab, hidden}, 0.0f, 0.1f);
    for (int layer = 0; layer < options_.layers; ++layer) {
      const std::string block = "model.layers." + std::to_string(layer) + ".";
      Add(block + "input_layernorm.weight", {hidden}, 1.0f, 0.2f);
      linear(block + "self_attn.q_proj", q, hidden);
      linear(block + "self_attn.k_proj", kv, hidden);
      linear(block + "self_attn.v_proj", kv, hidden);
      linear(block + "self_attn.o_proj", hidden, q);
      Add(block + "post_attention_layernorm.weight", {hidden}, 1.0f, 0.2f);
      linear(block + "mlp.gate_proj", inner, hidden);
      linear(block + "mlp.up_proj", inner, hidden);
      linear(block + "mlp.down_proj", hidden, inner);
    }
    Add("model.norm.weight", {hidden}, 1.0f, 0.1f);
    if (!options_.tied) {
      Add("lm_head.weight", {options_.vocab, hidden}, 0.0f,
          1.0f / std::sqrt(static_cast<float>(hidden)));
    }
    auto writer = SafetensorsWriter::Create(PosixFileSystem(), path, entries_, {{"format", "pt"}});
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (size_t i = 0; i < entries_.size(); ++i) {
      ASSERT_TRUE((*writer)->Append(entries_[i].name, bytes_[i]).ok());
    }
    ASSERT_TRUE((*writer)->Finish().ok());
  }

  const TinyModelOptions options_;
  std::mt19937 generator_;
  std::vector<SafetensorsEntry> entries_;
  std::vector<std::string> bytes_;
};

}  // namespace nibble::testing
