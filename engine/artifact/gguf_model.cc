// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/gguf_model.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <utility>

#include "engine/artifact/mapped_file.h"
#include "engine/base/cat.h"
#include "engine/base/json.h"
#include "engine/base/status.h"

namespace nibble {
namespace {

using nlohmann::json;

struct Architecture {
  std::string_view name;        // general.architecture
  std::string_view model_type;  // of config.json
  std::string_view class_name;
  bool interleaved;  // q and k rows are in interleaved rotary order
};
constexpr Architecture kArchitectures[] = {
    {"llama", "llama", "LlamaForCausalLM", true},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", false},
    {"qwen3", "qwen3", "Qwen3ForCausalLM", false},
};

struct NamePair {
  std::string_view gguf;
  std::string_view hf;
};
constexpr NamePair kModelNames[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};
constexpr NamePair kBlockNames[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};
constexpr std::string_view kRopeFactors = "rope_freqs.weight";  // divisors of the frequencies

absl::StatusOr<const Architecture*> FindArchitecture(const GgufFile& file) {
  absl::StatusOr<std::string> name = file.Text("general.architecture");
  if (!name.ok()) return name.status();
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    if (architecture.name == *name) return &architecture;
    known += Cat(known.empty() ? "" : ", ", architecture.name);
  }
  return absl::UnimplementedError(
      Cat("general.architecture is ", ShownJson(*name), ", known are ", known));
}

// Reads the keys of one architecture and remembers the first error.
class Keys {
 public:
  Keys(const GgufFile& file, std::string_view prefix) : file_(file), prefix_(prefix) {}

  const absl::Status& status() const { return status_; }
  bool Has(std::string_view key) const { return file_.Find(Cat(prefix_, ".", key)) != nullptr; }

  int64_t Integer(std::string_view key) { return Kept(file_.Integer(Cat(prefix_, ".", key))); }
  int64_t Integer(std::string_view key, int64_t fallback) {
    return Has(key) ? Integer(key) : fallback;
  }
  double Real(std::string_view key) { return Kept(file_.Real(Cat(prefix_, ".", key))); }
  double Real(std::string_view key, double fallback) { return Has(key) ? Real(key) : fallback; }
  std::string Text(std::string_view key, std::string_view fallback) {
    return Has(key) ? Kept(file_.Text(Cat(prefix_, ".", key))) : std::string(fallback);
  }

 private:
  template <typename Value>
  Value Kept(absl::StatusOr<Value> value) {
    if (value.ok()) return *std::move(value);
    if (status_.ok()) status_ = value.status();
    return Value{};
  }

  const GgufFile& file_;
  std::string prefix_;
  absl::Status status_;
};

const GgufTensor* FindTensor(const GgufFile& file, std::string_view name) {
  for (const GgufTensor& tensor : file.tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

// Llama 3's scaling comes as a tensor of divisors, which LongRoPE's formula expresses exactly.
json DivisorScaling(const GgufTensor& tensor, int64_t context) {
  std::vector<float> divisors(tensor.bytes.size() / sizeof(float));
  std::memcpy(divisors.data(), tensor.bytes.data(), tensor.bytes.size());
  return {{"rope_type", "longrope"}, {"short_factor", divisors},
          {"long_factor", divisors}, {"factor", 1.0},
          {"attention_factor", 1.0}, {"original_max_position_embeddings", context}};
}

absl::StatusOr<json> Scaling(const GgufFile& file, Keys& keys, int64_t context) {
  if (const GgufTensor* tensor = FindTensor(file, kRopeFactors)) {
    if (tensor->format->type != GgmlType::kF32 || tensor->shape.size() != 1) {
      return absl::InvalidArgumentError(Cat("tensor ", kRopeFactors, " must be F32 and flat"));
    }
    return DivisorScaling(*tensor, context);
  }
  const std::string type = keys.Text("rope.scaling.type", "none");
  if (type == "none") return json();
  const double factor = keys.Real("rope.scaling.factor", 1.0);
  if (type == "linear") return json{{"rope_type", "linear"}, {"factor", factor}};
  if (type == "yarn") {
    return json{{"rope_type", "yarn"},
                {"factor", factor},
                {"original_max_position_embeddings",
                 keys.Integer("rope.scaling.original_context_length", context)}};
  }
  return absl::UnimplementedError(
      Cat("rope.scaling.type is ", ShownJson(type), ", known are none, linear, yarn"));
}

template <typename Number>
std::vector<Number> Numbers(const GgufValue& value) {
  std::vector<Number> numbers(static_cast<size_t>(value.count));
  std::memcpy(numbers.data(), value.numbers.data(), value.numbers.size());
  return numbers;
}

absl::Status CheckArray(const GgufFile& file, std::string_view key, GgufType element, int64_t count,
                        bool required) {
  const GgufValue* value = file.Find(key);
  if (value == nullptr && !required) return absl::OkStatus();
  if (value == nullptr || value->type != GgufType::kArray || value->element != element) {
    return absl::InvalidArgumentError(Cat("key ", key, " is missing or no array of ",
                                          element == GgufType::kString ? "strings"
                                          : element == GgufType::kF32  ? "floats"
                                                                       : "32-bit integers"));
  }
  if (count >= 0 && value->count != count) {
    return absl::InvalidArgumentError(
        Cat("key ", key, " has ", value->count, " elements, tokenizer.ggml.tokens has ", count));
  }
  return absl::OkStatus();
}

absl::Status ReadId(const GgufFile& file, std::string_view key, int64_t tokens,
                    std::optional<int32_t>& out) {
  if (file.Find(key) == nullptr) return absl::OkStatus();
  absl::StatusOr<int64_t> id = file.Integer(key);
  if (!id.ok()) return id.status();
  // Converters write -1 or 2^32 - 1 for "none".
  if (*id == -1 || *id == int64_t{0xffffffff}) return absl::OkStatus();
  if (*id < 0 || *id >= tokens) {
    return absl::InvalidArgumentError(
        Cat("key ", key, " is ", *id, ", must be in 0..", tokens - 1));
  }
  out = static_cast<int32_t>(*id);
  return absl::OkStatus();
}

absl::Status ReadText(const GgufFile& file, std::string_view key, std::string& out) {
  if (file.Find(key) == nullptr) return absl::OkStatus();
  absl::StatusOr<std::string> text = file.Text(key);
  if (!text.ok()) return text.status();
  out = *std::move(text);
  return absl::OkStatus();
}

absl::Status ReadFlag(const GgufFile& file, std::string_view key, std::optional<bool>& out) {
  if (file.Find(key) == nullptr) return absl::OkStatus();
  absl::StatusOr<int64_t> flag = file.Integer(key);
  if (!flag.ok()) return flag.status();
  out = *flag != 0;
  return absl::OkStatus();
}

}  // namespace

std::optional<std::string> HfTensorName(std::string_view name) {
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view suffix = name.substr(dot);
  if (suffix != ".weight" && suffix != ".bias") return std::nullopt;
  const std::string_view stem = name.substr(0, dot);
  for (const NamePair& pair : kModelNames) {
    if (pair.gguf == stem) return Cat(pair.hf, suffix);
  }
  constexpr std::string_view kBlock = "blk.";
  if (!stem.starts_with(kBlock)) return std::nullopt;
  int layer = -1;
  const char* const begin = stem.data() + kBlock.size();
  const char* const end = stem.data() + stem.size();
  const auto [after, error] = std::from_chars(begin, end, layer);
  if (error != std::errc() || layer < 0 || after == end || *after != '.') return std::nullopt;
  const std::string_view part(after + 1, static_cast<size_t>(end - after - 1));
  for (const NamePair& pair : kBlockNames) {
    if (pair.gguf == part) return Cat("model.layers.", layer, ".", pair.hf, suffix);
  }
  return std::nullopt;
}

int64_t PermutedHeads(const GgufFile& file, std::string_view hf_name) {
  absl::StatusOr<const Architecture*> architecture = FindArchitecture(file);
  if (!architecture.ok() || !(*architecture)->interleaved) return 0;
  Keys keys(file, (*architecture)->name);
  const int64_t heads = keys.Integer("attention.head_count");
  if (hf_name.find(".self_attn.q_proj.") != std::string_view::npos) return heads;
  if (hf_name.find(".self_attn.k_proj.") == std::string_view::npos) return 0;
  return keys.Integer("attention.head_count_kv", heads);
}

absl::StatusOr<json> GgufConfig(const GgufFile& file) {
  absl::StatusOr<const Architecture*> found = FindArchitecture(file);
  if (!found.ok()) return found.status();
  const Architecture& architecture = **found;
  Keys keys(file, architecture.name);
  const GgufTensor* embedding = FindTensor(file, "token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError("tensor token_embd.weight is missing or no matrix");
  }
  if (keys.Integer("expert_count", 0) != 0) {
    return absl::UnimplementedError(
        Cat(architecture.name, ".expert_count is ", keys.Integer("expert_count"), ", known is 0"));
  }
  json config = {{"model_type", architecture.model_type},
                 {"architectures", {architecture.class_name}},
                 {"hidden_act", "silu"},
                 {"torch_dtype", "float32"}};
  config["vocab_size"] = embedding->shape[0];
  config["hidden_size"] = keys.Integer("embedding_length");
  config["intermediate_size"] = keys.Integer("feed_forward_length");
  config["num_hidden_layers"] = keys.Integer("block_count");
  const int64_t heads = keys.Integer("attention.head_count");
  config["num_attention_heads"] = heads;
  config["num_key_value_heads"] = keys.Integer("attention.head_count_kv", heads);
  const int64_t context = keys.Integer("context_length");
  config["max_position_embeddings"] = context;
  config["rms_norm_eps"] = keys.Real("attention.layer_norm_rms_epsilon");
  config["rope_theta"] = keys.Real("rope.freq_base", 10000.0);
  if (!keys.status().ok()) return keys.status();
  if (heads < 1) {
    return absl::InvalidArgumentError(
        Cat(architecture.name, ".attention.head_count is ", heads, ", must be positive"));
  }
  const int64_t head_dim =
      keys.Integer("attention.key_length", config["hidden_size"].get<int64_t>() / heads);
  config["head_dim"] = head_dim;
  const int64_t value_length = keys.Integer("attention.value_length", head_dim);
  const int64_t rotary = keys.Integer("rope.dimension_count", head_dim);
  if (value_length != head_dim) {
    return absl::UnimplementedError(Cat(architecture.name, ".attention.value_length is ",
                                        value_length, ", known is the key length ", head_dim));
  }
  if (rotary != head_dim && head_dim > 0) {
    config["partial_rotary_factor"] = static_cast<double>(rotary) / static_cast<double>(head_dim);
  }
  absl::StatusOr<json> scaling = Scaling(file, keys, context);
  if (!scaling.ok()) return scaling.status();
  if (!scaling->is_null()) config["rope_scaling"] = *std::move(scaling);
  config["tie_word_embeddings"] = FindTensor(file, "output.weight") == nullptr;
  config["attention_bias"] = FindTensor(file, "blk.0.attn_output.bias") != nullptr;
  config["mlp_bias"] = FindTensor(file, "blk.0.ffn_down.bias") != nullptr;
  const auto special = [&](const char* from, const char* to) {
    absl::StatusOr<int64_t> id = file.Integer(from);
    const bool valid = id.ok() && *id >= 0 && *id < embedding->shape[0];
    config[to] = valid ? json(*id) : json();
  };
  special("tokenizer.ggml.bos_token_id", "bos_token_id");
  special("tokenizer.ggml.eos_token_id", "eos_token_id");
  special("tokenizer.ggml.eot_token_id", "eot_token_id");
  // In config.json all ids that end a generation are eos_token_id.
  const json eot = config["eot_token_id"];
  config.erase("eot_token_id");
  if (!eot.is_null() && eot != config["eos_token_id"]) {
    config["eos_token_id"] =
        config["eos_token_id"].is_null() ? eot : json::array({config["eos_token_id"], eot});
  }
  if (!keys.status().ok()) return keys.status();
  return config;
}

absl::StatusOr<GgufVocab> GgufVocabulary(const GgufFile& file) {
  GgufVocab vocab;
  absl::StatusOr<std::string> model = file.Text("tokenizer.ggml.model");
  if (!model.ok()) return model.status();
  vocab.model = *std::move(model);
  absl::Status status =
      CheckArray(file, "tokenizer.ggml.tokens", GgufType::kString, -1, /*required=*/true);
  if (!status.ok()) return status;
  const GgufValue& tokens = *file.Find("tokenizer.ggml.tokens");
  vocab.tokens.assign(tokens.texts.begin(), tokens.texts.end());
  const int64_t count = tokens.count;
  for (const absl::Status& check :
       {CheckArray(file, "tokenizer.ggml.scores", GgufType::kF32, count, false),
        CheckArray(file, "tokenizer.ggml.token_type", GgufType::kI32, count, false),
        CheckArray(file, "tokenizer.ggml.merges", GgufType::kString, -1, false),
        ReadId(file, "tokenizer.ggml.bos_token_id", count, vocab.bos_token_id),
        ReadId(file, "tokenizer.ggml.eos_token_id", count, vocab.eos_token_id),
        ReadId(file, "tokenizer.ggml.eot_token_id", count, vocab.eot_token_id),
        ReadId(file, "tokenizer.ggml.unknown_token_id", count, vocab.unknown_token_id),
        ReadFlag(file, "tokenizer.ggml.add_bos_token", vocab.add_bos_token),
        ReadFlag(file, "tokenizer.ggml.add_space_prefix", vocab.add_space_prefix),
        ReadText(file, "tokenizer.ggml.pre", vocab.pre),
        ReadText(file, "tokenizer.chat_template", vocab.chat_template)}) {
    if (!check.ok()) return check;
  }
  if (const GgufValue* scores = file.Find("tokenizer.ggml.scores")) {
    vocab.scores = Numbers<float>(*scores);
  }
  if (const GgufValue* types = file.Find("tokenizer.ggml.token_type")) {
    vocab.token_type = Numbers<int32_t>(*types);
  }
  if (const GgufValue* merges = file.Find("tokenizer.ggml.merges")) {
    vocab.merges.assign(merges->texts.begin(), merges->texts.end());
  }
  return vocab;
}

absl::StatusOr<GgufVocab> ReadGgufVocab(const std::string& path) {
  absl::StatusOr<std::unique_ptr<MappedFile>> mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  absl::StatusOr<GgufFile> file = ParseGguf((*mapped)->bytes(), path);
  if (!file.ok()) return file.status();
  absl::StatusOr<GgufVocab> vocab = GgufVocabulary(*file);
  if (!vocab.ok()) {
    return Within(path, vocab.status());
  }
  return vocab;
}

}  // namespace nibble
