// SPDX-License-Identifier: Apache-2.0
#include "services/cli/synthetic.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "engine/artifact/artifact_writer.h"
#include "engine/artifact/file_system.h"
#include "engine/artifact/safetensors_writer.h"
#include "engine/base/cat.h"

namespace nibble {
namespace {

constexpr size_t kChunk = 1 << 20;
constexpr int kMaxPositions = 8192;

// splitmix64 (Steele, Lea and Flood 2014): fast, and good enough for noise.
class Noise {
 public:
  explicit Noise(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

uint16_t ToBf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

// A random bf16 of about the given size: random sign and mantissa.
uint16_t NoisyBf16(uint16_t size, uint64_t random) {
  return static_cast<uint16_t>((size & 0x7f80) | (random & 0x807f));
}

// Writes tensors one after the other.
class Filler {
 public:
  explicit Filler(ArtifactWriter& writer) : writer_(writer), chunk_(kChunk) {}

  // Weights of a linear of `cols` inputs are about +-1/sqrt(cols).
  absl::Status Weight(const ModuleWeight& module) {
    const float size = 1.0f / std::sqrt(static_cast<float>(module.cols));
    const float scale = size / static_cast<float>(module.scheme->span());
    // The NaNs of e4m3 are odd codes.
    const uint64_t mask = module.scheme->code == DType::kF8E4M3 ? 0xfefefefefefefefe : ~uint64_t{0};
    for (const StoredTensor& part :
         StoredTensors(*module.scheme, module.rows, module.cols, module.outliers)) {
      absl::Status status;
      const std::string name = Cat(module.name, part.suffix);
      switch (part.part) {
        case Part::kCodes:
          status = module.scheme->quantized()
                       ? Fill(name, part.bytes(), [&] { return noise_.Next() & mask; })
                       : FillPlain(name, part, size);
          break;
        case Part::kScales:  // Nested ones: 0 above the offset.
          status = Repeat(name, part.bytes(), module.scheme->nested() ? 0x7f7f : ToBf16(scale));
          break;
        case Part::kNested: {
          const uint64_t bits = std::bit_cast<uint32_t>(scale);
          status = Fill(name, part.bytes(), [bits] { return bits << 32 | bits; });
          break;
        }
        case Part::kZeros:
          status = Fill(name, part.bytes(), [&] { return noise_.Next(); });
          break;
        case Part::kOutlierWeights:
          status = FillBf16(name, part.bytes(), size);
          break;
        case Part::kOutlierFeatures: {  // spread evenly
          std::vector<int32_t> features;
          for (int64_t i = 0; i < module.outliers; ++i) {
            features.push_back(static_cast<int32_t>(i * module.cols / module.outliers));
          }
          status =
              writer_.Append(name, std::string_view(reinterpret_cast<const char*>(features.data()),
                                                    features.size() * sizeof(int32_t)));
          break;
        }
        case Part::kShape: {
          const int64_t shape[] = {module.rows, module.cols};
          status = writer_.Append(
              name, std::string_view(reinterpret_cast<const char*>(shape), sizeof(shape)));
          break;
        }
      }
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Ones(const std::string& name, int64_t count) {
    return Repeat(name, count * 2, ToBf16(1.0f));
  }

 private:
  template <typename F>
  absl::Status Fill(const std::string& name, int64_t bytes, F next) {
    while (bytes > 0) {
      const auto take = static_cast<size_t>(std::min<int64_t>(bytes, kChunk));
      for (size_t i = 0; i < take; i += sizeof(uint64_t)) {
        const uint64_t word = next();
        std::memcpy(&chunk_[i], &word, sizeof(word));
      }
      absl::Status status = writer_.Append(name, std::string_view(chunk_.data(), take));
      if (!status.ok()) return status;
      bytes -= static_cast<int64_t>(take);
    }
    return absl::OkStatus();
  }
  absl::Status Repeat(const std::string& name, int64_t bytes, uint16_t value) {
    const uint64_t word = value * uint64_t{0x0001000100010001};
    return Fill(name, bytes, [word] { return word; });
  }
  absl::Status FillPlain(const std::string& name, const StoredTensor& part, float size) {
    if (part.dtype == DType::kF32) {
      return Fill(name, part.bytes(), [&] {
        const uint64_t random = noise_.Next();
        return uint64_t{NoisyBf16(ToBf16(size), random)} << 16 |
               uint64_t{NoisyBf16(ToBf16(size), random >> 32)} << 48;
      });
    }
    return FillBf16(name, part.bytes(), size);
  }
  absl::Status FillBf16(const std::string& name, int64_t bytes, float size) {
    return Fill(name, bytes, [&] {
      const uint64_t random = noise_.Next();
      uint64_t word = 0;
      for (int i = 0; i < 4; ++i) {
        word |= uint64_t{NoisyBf16(ToBf16(size), random >> (16 * i))} << (16 * i);
      }
      return word;
    });
  }

  ArtifactWriter& writer_;
  Noise noise_{42};
  std::vector<char> chunk_;
};

nlohmann::json Config(const SyntheticShape& shape) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", shape.hidden},
          {"intermediate_size", shape.intermediate},
          {"num_hidden_layers", shape.layers},
          {"num_attention_heads", shape.heads},
          {"num_key_value_heads", shape.kv_heads},
          {"vocab_size", shape.vocabulary},
          {"max_position_embeddings", kMaxPositions},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", false},
          {"torch_dtype", "bfloat16"}};
}

// The byte-level vocabulary of GPT-2 without merges: id b is byte b.
nlohmann::json ByteTokenizer() {
  nlohmann::json vocab = nlohmann::json::object();
  int extra = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool shown =
        (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    const int point = shown ? byte : 256 + extra++;
    std::string text;
    if (point < 0x80) {
      text.push_back(static_cast<char>(point));
    } else {
      text.push_back(static_cast<char>(0xc0 | (point >> 6)));
      text.push_back(static_cast<char>(0x80 | (point & 0x3f)));
    }
    vocab[text] = byte;
  }
  const nlohmann::json byte_level = {{"type", "ByteLevel"},
                                     {"add_prefix_space", false},
                                     {"trim_offsets", true},
                                     {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", nlohmann::json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocab},
            {"merges", nlohmann::json::array()}}}};
}

absl::Status WriteJson(const std::string& path, const nlohmann::json& json) {
  std::ofstream file(path);
  file << json.dump(2) << "\n";
  file.close();
  if (file.good()) return absl::OkStatus();
  return absl::InternalError(Cat(path, " could not be written"));
}

// The artifact writer carries configuration and tokenizer over from a source.
absl::Status WriteSource(const SyntheticShape& shape, const std::string& directory) {
  FileSystem& fs = PosixFileSystem();
  for (const absl::Status& status :
       {fs.CreateDirectory(directory), WriteJson(directory + "/config.json", Config(shape)),
        WriteJson(directory + "/tokenizer.json", ByteTokenizer())}) {
    if (!status.ok()) return status;
  }
  SafetensorsEntry norm;
  norm.name = "model.norm.weight";
  norm.dtype = DType::kBF16;
  norm.shape = {shape.hidden};
  absl::StatusOr<std::unique_ptr<SafetensorsWriter>> weights =
      SafetensorsWriter::Create(fs, directory + "/model.safetensors", {norm});
  if (!weights.ok()) return weights.status();
  const std::string zeros(static_cast<size_t>(shape.hidden) * 2, '\0');
  if (absl::Status status = (*weights)->Append(norm.name, zeros); !status.ok()) return status;
  return (*weights)->Finish().status();
}

absl::StatusOr<const Scheme*> SchemeNamed(const std::string& name) {
  if (const Scheme* scheme = FindScheme(name)) return scheme;
  std::string known;
  for (const Scheme& scheme : kSchemes) known += Cat(known.empty() ? "" : ", ", scheme.name);
  return absl::InvalidArgumentError(Cat("scheme \"", name, "\" is unknown; there are ", known));
}

}  // namespace

absl::Status WriteSynthetic(const SyntheticSpec& spec, const std::string& directory) {
  const SyntheticShape& shape = *spec.shape;
  absl::StatusOr<const Scheme*> linear = SchemeNamed(spec.scheme);
  if (!linear.ok()) return linear.status();
  const std::string outer = (*linear)->quantized() ? "int8-g128" : spec.scheme;
  absl::StatusOr<const Scheme*> embedding =
      SchemeNamed(spec.embedding_scheme.empty() ? outer : spec.embedding_scheme);
  if (!embedding.ok()) return embedding.status();
  absl::StatusOr<const Scheme*> head =
      SchemeNamed(spec.head_scheme.empty() ? outer : spec.head_scheme);
  if (!head.ok()) return head.status();

  const int64_t head_dim = shape.hidden / shape.heads;
  const int64_t kv = shape.kv_heads * head_dim;
  std::vector<ModuleWeight> modules;
  modules.push_back({"model.embed_tokens", *embedding, shape.vocabulary, shape.hidden});
  std::vector<std::string> norms = {"model.norm.weight"};
  for (int layer = 0; layer < shape.layers; ++layer) {
    const std::string block = Cat("model.layers.", layer, ".");
    const auto add = [&](const char* name, int64_t rows, int64_t cols) {
      modules.push_back({block + name, *linear, rows, cols,
                         (*linear)->outliers ? std::min(cols / 64, kMaxOutlierFeatures) : 0});
    };
    add("self_attn.q_proj", shape.hidden, shape.hidden);
    add("self_attn.k_proj", kv, shape.hidden);
    add("self_attn.v_proj", kv, shape.hidden);
    add("self_attn.o_proj", shape.hidden, shape.hidden);
    add("mlp.gate_proj", shape.intermediate, shape.hidden);
    add("mlp.up_proj", shape.intermediate, shape.hidden);
    add("mlp.down_proj", shape.hidden, shape.intermediate);
    norms.push_back(block + "input_layernorm.weight");
    norms.push_back(block + "post_attention_layernorm.weight");
  }
  modules.push_back({"lm_head", *head, shape.vocabulary, shape.hidden});

  FileSystem& fs = PosixFileSystem();
  const std::string source = directory + ".source";
  if (absl::Status status = fs.RemoveTree(source); !status.ok()) return status;
  if (absl::Status status = WriteSource(shape, source); !status.ok()) return status;
  if (absl::Status status = fs.CreateDirectory(directory); !status.ok()) return status;

  ArtifactSpec artifact;
  artifact.source = source;
  artifact.modules = modules;
  artifact.recipe = {{"name", "synthetic"}, {"scheme", spec.scheme}};
  artifact.platform = {"cpu", "any", ""};
  for (const ModuleWeight& module : modules) {
    for (SafetensorsEntry& entry : WeightEntries(module)) {
      artifact.tensors.push_back(std::move(entry));
    }
  }
  for (const std::string& norm : norms) {
    SafetensorsEntry entry;
    entry.name = norm;
    entry.dtype = DType::kBF16;
    entry.shape = {shape.hidden};
    artifact.tensors.push_back(std::move(entry));
  }
  absl::StatusOr<std::unique_ptr<ArtifactWriter>> writer =
      ArtifactWriter::Create(fs, directory, std::move(artifact));
  if (!writer.ok()) return writer.status();
  Filler filler(**writer);
  for (const ModuleWeight& module : modules) {
    if (absl::Status status = filler.Weight(module); !status.ok()) return status;
  }
  for (const std::string& norm : norms) {
    if (absl::Status status = filler.Ones(norm, shape.hidden); !status.ok()) return status;
  }
  if (absl::Status status = (*writer)->Finish().status(); !status.ok()) return status;
  return fs.RemoveTree(source);
}

}  // namespace nibble
