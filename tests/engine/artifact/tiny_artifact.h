// SPDX-License-Identifier: Apache-2.0
// Small models for the tests of the artifact: one decoder block with a weight of every kind.
#pragma once

#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "engine/artifact/artifact_writer.h"
#include "engine/artifact/safetensors.h"
#include "engine/base/cat.h"
#include "kernels/codec.h"
#include "tests/support/temp_dir.h"

namespace nibble {

inline constexpr int kTinyHidden = 64;
inline constexpr int kTinyIntermediate = 172;
inline constexpr int kTinyVocab = 40;

inline nlohmann::json TinyConfig() {
  return {{"model_type", "llama"},          {"architectures", {"LlamaForCausalLM"}},
          {"hidden_size", kTinyHidden},     {"intermediate_size", kTinyIntermediate},
          {"num_hidden_layers", 1},         {"num_attention_heads", 4},
          {"num_key_value_heads", 2},       {"vocab_size", kTinyVocab},
          {"max_position_embeddings", 128}, {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},          {"torch_dtype", "float32"},
          {"tie_word_embeddings", true}};
}

// The linears and the embedding of the model, all in `linear`, the embedding in `embedding`.
inline std::vector<ModuleWeight> TinyModules(const Scheme* linear, const Scheme* embedding) {
  const std::string block = "model.layers.0.";
  std::vector<ModuleWeight> modules = {
      {"model.embed_tokens", embedding, kTinyVocab, kTinyHidden},
      {block + "self_attn.q_proj", linear, kTinyHidden, kTinyHidden},
      {block + "self_attn.k_proj", linear, kTinyHidden / 2, kTinyHidden},
      {block + "self_attn.v_proj", linear, kTinyHidden / 2, kTinyHidden},
      {block + "self_attn.o_proj", linear, kTinyHidden, kTinyHidden},
      {block + "mlp.gate_proj", linear, kTinyIntermediate, kTinyHidden},
      {block + "mlp.up_proj", linear, kTinyIntermediate, kTinyHidden},
      {block + "mlp.down_proj", linear, kTinyHidden, kTinyIntermediate}};
  for (ModuleWeight& module : modules) module.outliers = module.scheme->outliers ? 3 : 0;
  return modules;
}

inline std::vector<SafetensorsEntry> TinyNorms(DType dtype = DType::kBF16) {
  std::vector<SafetensorsEntry> norms;
  for (const char* name : {"model.layers.0.input_layernorm.weight",
                           "model.layers.0.post_attention_layernorm.weight", "model.norm.weight"}) {
    norms.push_back({name, dtype, {kTinyHidden}, 0, 0});
  }
  return norms;
}

// Every tensor of the model: the modules' in their order, then the norms.
inline std::vector<SafetensorsEntry> TinyTensors(const std::vector<ModuleWeight>& modules) {
  std::vector<SafetensorsEntry> tensors;
  for (const ModuleWeight& module : modules) {
    for (SafetensorsEntry& entry : WeightEntries(module)) tensors.push_back(std::move(entry));
  }
  for (SafetensorsEntry& norm : TinyNorms()) tensors.push_back(std::move(norm));
  return tensors;
}

// Valid contents of a tensor that depend on nothing but its name and shape.
inline std::string TinyBytes(const SafetensorsEntry& tensor,
                             const std::vector<ModuleWeight>& modules) {
  std::string bytes(static_cast<size_t>(*TensorBytes(tensor.name, tensor.dtype, tensor.shape)),
                    '\0');
  if (tensor.name.ends_with(".weight_shape")) {
    for (const ModuleWeight& module : modules) {
      const int64_t shape[] = {module.rows, module.cols};
      if (tensor.name == module.name + ".weight_shape") std::memcpy(bytes.data(), shape, 16);
    }
    return bytes;
  }
  if (tensor.name.ends_with(".outlier_features")) {
    for (int32_t i = 0; i < tensor.shape[0]; ++i) {
      const int32_t feature = 7 * i + 2;
      std::memcpy(bytes.data() + 4 * i, &feature, 4);
    }
    return bytes;
  }
  uint32_t seed = 1;
  for (const char c : tensor.name) seed = seed * 31 + static_cast<unsigned char>(c);
  std::mt19937 random(seed);
  const size_t size = BytesOf(tensor.dtype);
  for (size_t i = 0; i < bytes.size(); i += size) {
    uint64_t value = random();
    if (tensor.dtype == DType::kBF16) {
      value = F32ToBF16(static_cast<float>(value % 1000 + 1) * 0.001f);
    }
    if (tensor.dtype == DType::kF16) value = F32ToF16(static_cast<float>(value % 1000) * 0.001f);
    if (tensor.dtype == DType::kF32) {
      value = std::bit_cast<uint32_t>(static_cast<float>(value % 1000) * 0.001f - 0.5f);
    }
    std::memcpy(bytes.data() + i, &value, size);
  }
  return bytes;
}

// A plain source model with a tokenizer file in `directory`.
inline void WriteTinySource(const std::string& directory, const char* dtype = "f32") {
  const Scheme* scheme = FindScheme(dtype);
  const std::vector<ModuleWeight> modules = TinyModules(scheme, scheme);
  std::vector<SafetensorsEntry> tensors = TinyTensors(modules);
  std::string file = *BuildSafetensorsHeader(tensors, {});
  for (const SafetensorsEntry& tensor : tensors) file += TinyBytes(tensor, modules);
  WriteFile(directory + "/model.safetensors", file);
  WriteFile(directory + "/config.json", TinyConfig().dump());
  WriteFile(directory + "/tokenizer.json", R"({"model": "as it is"})");
  WriteFile(directory + "/notes.txt", "is no part of the model");
}

inline ArtifactSpec TinySpec(const std::string& source, std::vector<ModuleWeight> modules) {
  ArtifactSpec spec;
  spec.source = source;
  spec.tensors = TinyTensors(modules);
  spec.modules = std::move(modules);
  spec.recipe = {{"name", "test"}};
  spec.source_digest = std::string(64, 'a');
  spec.kv_format = "int8";
  spec.platform = {"cpu", "avx2", "Haswell"};
  return spec;
}

// Writes the whole artifact into `directory`.
inline absl::StatusOr<ArtifactSummary> WriteTinyArtifact(FileSystem& fs,
                                                         const std::string& directory,
                                                         const ArtifactSpec& spec) {
  absl::StatusOr<std::unique_ptr<ArtifactWriter>> writer =
      ArtifactWriter::Create(fs, directory, spec);
  if (!writer.ok()) return writer.status();
  for (const SafetensorsEntry& tensor : spec.tensors) {
    absl::Status status = (*writer)->Append(tensor.name, TinyBytes(tensor, spec.modules));
    if (!status.ok()) return status;
  }
  return (*writer)->Finish();
}

}  // namespace nibble
