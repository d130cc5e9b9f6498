// SPDX-License-Identifier: Apache-2.0
#include "engine/model/config.h"

#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/json.h"

namespace nibble {
namespace {

using nlohmann::json;

// Where a family's attention has a bias, unless config.json says otherwise.
enum class QkvBias : uint8_t { kNever, kAlways, kByField };  // field: attention_bias
// Which layers see a sliding window.
enum class Windows : uint8_t {
  kNone,
  kAll,       // "sliding_window" for every layer, null = none
  kPerLayer,  // "use_sliding_window", "max_window_layers" or "layer_types"
};

// One row per family: what its config.json leaves unsaid. A family is listed once its logits have
// been compared with transformers. (Gemma would differ in norm_weight_offset, embedding_scale, the
// two softcaps, attention_scale and the activation: DecoderConfig has them, no row needs them yet.)
struct Family {
  std::string_view name;
  QkvBias qkv_bias;
  bool o_bias_by_field;    // "attention_bias" also gives o_proj one
  bool mlp_bias_by_field;  // "mlp_bias"
  bool qk_norm;
  Windows windows;
  int32_t default_kv_heads;  // 0: as many as heads
  int32_t default_head_dim;  // 0: hidden / heads
  int32_t default_window;
  int32_t default_bos;  // -1: none
  int32_t default_eos;  // -1: none
};

// clang-format off
constexpr Family kFamilies[] = {
    // name      qkv bias           o bias mlp    qk norm windows             kv  head window bos eos
    {"llama",   QkvBias::kByField, true,  true,  false, Windows::kNone,      0,  0,   0,    1,  2},
    {"mistral", QkvBias::kNever,   false, false, false, Windows::kAll,       8,  0,   4096, 1,  2},
    {"qwen2",   QkvBias::kAlways,  false, false, false, Windows::kPerLayer,  32, 0,   4096, -1, -1},
    {"qwen3",   QkvBias::kByField, true,  false, true,  Windows::kPerLayer,  32, 128, 4096, -1, -1},
};
// clang-format on

struct NamedActivation {
  std::string_view name;
  GateActivation activation;
};
constexpr NamedActivation kActivations[] = {
    {"silu", GateActivation::kSilu},
    {"swish", GateActivation::kSilu},
    {"gelu_pytorch_tanh", GateActivation::kGeluTanh},
};

struct NamedScaling {
  std::string_view name;
  RopeScaling scaling;
};
constexpr NamedScaling kScalings[] = {
    {"default", RopeScaling::kNone},       {"linear", RopeScaling::kLinear},
    {"dynamic", RopeScaling::kDynamicNtk}, {"yarn", RopeScaling::kYarn},
    {"longrope", RopeScaling::kLongRope},  {"llama3", RopeScaling::kLlama3},
};

constexpr int64_t kMaxPositions = int64_t{1} << 28;
constexpr double kMaxFactor = 1e6;

template <typename Table>
std::string Names(const Table& table) {
  std::string list;
  for (const auto& row : table) list += Cat(list.empty() ? "" : ", ", row.name);
  return list;
}

absl::Status Wrong(std::string_view field, const json& value, std::string_view allowed) {
  return absl::InvalidArgumentError(
      Cat("config.json: ", field, " is ", ShownJson(value), ", must be ", allowed));
}

// Reads fields of one object, remembers the first error and gives the fallback after it, so that
// the reading below stays a list of fields.
class Fields {
 public:
  Fields(const json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

  const absl::Status& status() const { return status_; }
  bool Has(const char* key) const { return Find(key) != nullptr; }
  // The value of a field that is there, even as null; an explicit null may mean "none" where an
  // absent field means a default.
  const json* FindEvenNull(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }
  const json* Find(const char* key) const {
    const json* found = FindEvenNull(key);
    return found == nullptr || found->is_null() ? nullptr : found;
  }

  // `fallback` stands for an absent or null field; without one the field is required.
  int64_t Int(const char* key, int64_t low, int64_t high, std::optional<int64_t> fallback) {
    const json* value = Find(key);
    if (value == nullptr) {
      if (!fallback.has_value()) Fail(key, json(), Cat("an integer in ", low, "..", high));
      return fallback.value_or(low);
    }
    // A number above 2^63 reads as negative, and is out of every range.
    if (!value->is_number_integer() || value->get<int64_t>() < low ||
        value->get<int64_t>() > high) {
      Fail(key, *value, Cat("an integer in ", low, "..", high));
      return low;
    }
    return value->get<int64_t>();
  }

  // In [0, kMaxFactor]; 0 stands for an absent field.
  double NonNegative(const char* key) {
    const json* value = Find(key);
    if (value == nullptr || *value == 0) return 0;
    return Real(key, 0, kMaxFactor, std::nullopt);
  }

  // In (low, high].
  double Real(const char* key, double low, double high, std::optional<double> fallback) {
    const json* value = Find(key);
    const std::string allowed =
        Cat("a number above ", json(low).dump(), " and at most ", json(high).dump());
    if (value == nullptr) {
      if (!fallback.has_value()) Fail(key, json(), allowed);
      return fallback.value_or(high);
    }
    const double number = value->is_number() ? value->get<double>() : 0;
    if (!value->is_number() || !(number > low && number <= high)) {
      Fail(key, *value, allowed);
      return high;
    }
    return number;
  }

  bool Bool(const char* key, bool fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) {
      Fail(key, *value, "true or false");
      return fallback;
    }
    return value->get<bool>();
  }

  std::string String(const char* key, std::string_view fallback) {
    const json* value = Find(key);
    if (value == nullptr) return std::string(fallback);
    if (!value->is_string()) {
      Fail(key, *value, "a string");
      return std::string(fallback);
    }
    return value->get<std::string>();
  }

  std::vector<double> Reals(const char* key, size_t count) {
    const json* value = Find(key);
    const std::string allowed = Cat("an array of ", count, " numbers above 0");
    std::vector<double> numbers;
    if (value == nullptr || !value->is_array() || value->size() != count) {
      Fail(key, value == nullptr ? json() : *value, allowed);
      return numbers;
    }
    for (const json& number : *value) {
      if (!number.is_number() || !(number.get<double>() > 0) || number.get<double>() > kMaxFactor) {
        Fail(key, *value, allowed);
        return numbers;
      }
      numbers.push_back(number.get<double>());
    }
    return numbers;
  }

  void Fail(std::string_view key, const json& value, std::string_view allowed) {
    if (status_.ok()) status_ = Wrong(Cat(prefix_, key), value, allowed);
  }

 private:
  const json& object_;
  std::string prefix_;
  absl::Status status_;
};

absl::StatusOr<const Family*> FindFamily(const json& config) {
  const auto type = config.find("model_type");
  if (type != config.end() && type->is_string()) {
    for (const Family& family : kFamilies) {
      if (*type == std::string(family.name)) return &family;
    }
  }
  return Wrong("model_type", type == config.end() ? json() : *type,
               Cat("one of ", Names(kFamilies)));
}

// "rope_parameters" (transformers 5) holds everything; before, "rope_scaling" held the scaling and
// the top level theta. Source of defaults and precedence: transformers, modeling_rope_utils.py.
absl::StatusOr<RopeConfig> ReadRope(const json& config, int32_t head_dim, int32_t max_positions) {
  static const json* const none = new json(json::object());
  Fields top(config, "");
  const bool newer = top.Has("rope_parameters");
  const char* const name = newer ? "rope_parameters" : "rope_scaling";
  const json* section = top.Find(name);
  if (section != nullptr && !section->is_object()) {
    return Wrong(name, *section, "null or an object");
  }
  Fields fields(section != nullptr ? *section : *none, Cat(name, "."));
  RopeConfig rope;
  const double theta = top.Real("rope_theta", 0, 1e15, 10000.0);
  rope.theta = fields.Real("rope_theta", 0, 1e15, theta);
  const double partial =
      fields.Real("partial_rotary_factor", 0, 1, top.Real("partial_rotary_factor", 0, 1, 1.0));
  rope.rotary_dim = static_cast<int32_t>(head_dim * partial);
  if (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0) {
    fields.Fail("partial_rotary_factor", partial,
                Cat("such that an even, positive number of the ", head_dim, " dimensions rotate"));
  }
  const std::string type = fields.String("rope_type", fields.String("type", "default"));
  bool known = false;
  for (const NamedScaling& row : kScalings) {
    if (row.name == type) {
      rope.scaling = row.scaling;
      known = true;
    }
  }
  if (!known) fields.Fail("rope_type", type, Cat("one of ", Names(kScalings)));
  const bool has_original = rope.scaling == RopeScaling::kLlama3 ||
                            rope.scaling == RopeScaling::kYarn ||
                            rope.scaling == RopeScaling::kLongRope;
  if (has_original) {
    // At the top level in some families, and there it wins.
    rope.original_max_positions =
        top.Int("original_max_position_embeddings", 1, kMaxPositions,
                fields.Int("original_max_position_embeddings", 1, kMaxPositions, max_positions));
  }
  const double ratio =
      has_original && rope.original_max_positions > 0
          ? static_cast<double>(max_positions) / static_cast<double>(rope.original_max_positions)
          : 1.0;
  switch (rope.scaling) {
    case RopeScaling::kNone:
      break;
    case RopeScaling::kLinear:
      rope.factor = fields.Real("factor", 0, kMaxFactor, std::nullopt);
      break;
    case RopeScaling::kDynamicNtk:
      // base * (...)^(d / (d - 2))
      if (rope.rotary_dim == 2) fields.Fail("rope_type", type, "another: only 2 dimensions rotate");
      rope.factor = fields.Real("factor", 0, kMaxFactor, std::nullopt);
      rope.original_max_positions = max_positions;
      break;
    case RopeScaling::kYarn: {
      rope.factor = fields.Real("factor", 0, kMaxFactor, ratio);
      rope.attention_factor = fields.Real("attention_factor", 0, kMaxFactor, 0.0);
      rope.mscale = fields.NonNegative("mscale");
      rope.mscale_all_dim = fields.NonNegative("mscale_all_dim");
      rope.beta_fast = fields.Real("beta_fast", 0, kMaxFactor, 32.0);
      rope.beta_slow = fields.Real("beta_slow", 0, kMaxFactor, 1.0);
      rope.truncate = fields.Bool("truncate", true);
      if (rope.theta <= 1.0) fields.Fail("rope_theta", rope.theta, "above 1 with yarn");
      break;
    }
    case RopeScaling::kLongRope: {
      rope.factor = fields.Real("factor", 0, kMaxFactor, ratio);
      rope.attention_factor = fields.Real("attention_factor", 0, kMaxFactor, 0.0);
      const auto pairs = static_cast<size_t>(rope.rotary_dim / 2);
      rope.short_factor = fields.Reals("short_factor", pairs);
      rope.long_factor = fields.Reals("long_factor", pairs);
      if (rope.original_max_positions == 1 && rope.factor > 1) {
        fields.Fail("original_max_position_embeddings", 1, "at least 2 with longrope");
      }
      break;
    }
    case RopeScaling::kLlama3:
      rope.factor = fields.Real("factor", 0, kMaxFactor, std::nullopt);
      rope.low_freq_factor = fields.Real("low_freq_factor", 0, kMaxFactor, std::nullopt);
      rope.high_freq_factor = fields.Real("high_freq_factor", 0, kMaxFactor, std::nullopt);
      if (fields.status().ok() && rope.high_freq_factor <= rope.low_freq_factor) {
        fields.Fail("high_freq_factor", rope.high_freq_factor, "above low_freq_factor");
      }
      break;
  }
  if (!top.status().ok()) return top.status();
  if (!fields.status().ok()) return fields.status();
  return rope;
}

// The sliding window of each layer, 0 where attention is full.
std::vector<int32_t> ReadWindows(const Family& family, int32_t layers, Fields& fields) {
  std::vector<int32_t> window(static_cast<size_t>(layers), 0);
  if (family.windows == Windows::kNone) return window;
  const bool used = family.windows == Windows::kAll || fields.Bool("use_sliding_window", false);
  // An explicit null means none; an absent field means the family's default.
  const json* explicit_null = fields.FindEvenNull("sliding_window");
  const bool none = explicit_null != nullptr && explicit_null->is_null();
  const int64_t size = none ? 0
                            : fields.Int("sliding_window", 1, std::numeric_limits<int32_t>::max(),
                                         family.default_window);
  const bool active = used && !none;
  const int64_t first_windowed =
      family.windows == Windows::kAll ? 0 : fields.Int("max_window_layers", 0, 1 << 20, 28);
  for (int32_t layer = 0; layer < layers; ++layer) {
    if (active && layer >= first_windowed) {
      window[static_cast<size_t>(layer)] = static_cast<int32_t>(size);
    }
  }
  const json* types = fields.Find("layer_types");
  if (types == nullptr || family.windows == Windows::kAll) return window;
  const std::string allowed =
      Cat("an array of ", layers, " names, each full_attention or sliding_attention");
  if (!types->is_array() || types->size() != window.size()) {
    fields.Fail("layer_types", *types, allowed);
    return window;
  }
  for (size_t layer = 0; layer < window.size(); ++layer) {
    const json& type = (*types)[layer];
    if (type == "full_attention") {
      window[layer] = 0;
    } else if (type == "sliding_attention") {
      window[layer] = active ? static_cast<int32_t>(size) : 0;
    } else {
      fields.Fail("layer_types", *types, allowed);
    }
  }
  return window;
}

void ReadSpecialTokens(const Family& family, Fields& fields, DecoderConfig& config) {
  const json* bos = fields.Find("bos_token_id");
  config.bos_id = bos == nullptr && fields.FindEvenNull("bos_token_id") == nullptr
                      ? family.default_bos
                      : static_cast<int32_t>(fields.Int("bos_token_id", 0, config.vocab - 1, -1));
  const json* eos = fields.Find("eos_token_id");
  if (eos == nullptr) {
    if (fields.FindEvenNull("eos_token_id") == nullptr && family.default_eos >= 0) {
      config.eos_ids = {family.default_eos};
    }
    return;
  }
  const std::string allowed =
      Cat("an integer in 0..", config.vocab - 1, " or an array of at most 64 of them");
  const json list = eos->is_array() ? *eos : json::array({*eos});
  if (list.size() > 64) return fields.Fail("eos_token_id", *eos, allowed);
  for (const json& id : list) {
    // A number above 2^63 reads as negative.
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= config.vocab) {
      return fields.Fail("eos_token_id", *eos, allowed);
    }
    config.eos_ids.push_back(static_cast<int32_t>(id.get<int64_t>()));
  }
}

}  // namespace

absl::StatusOr<DecoderConfig> ParseDecoderConfig(const json& config) {
  if (!config.is_object()) {
    return absl::InvalidArgumentError("config.json is no JSON object");
  }
  absl::StatusOr<const Family*> found = FindFamily(config);
  if (!found.ok()) return found.status();
  const Family& family = **found;
  Fields fields(config, "");
  DecoderConfig out;
  const auto int32 = [&fields](const char* key, int64_t low, int64_t high,
                               std::optional<int64_t> fallback) {
    return static_cast<int32_t>(fields.Int(key, low, high, fallback));
  };
  out.family = std::string(family.name);
  out.layers = int32("num_hidden_layers", 1, 1024, std::nullopt);
  out.hidden = int32("hidden_size", 1, 1 << 20, std::nullopt);
  out.intermediate = int32("intermediate_size", 1, 1 << 22, std::nullopt);
  out.heads = int32("num_attention_heads", 1, 4096, std::nullopt);
  if (!fields.status().ok()) return fields.status();
  out.kv_heads = int32("num_key_value_heads", 1, out.heads,
                       family.default_kv_heads > 0 ? family.default_kv_heads : out.heads);
  if (out.kv_heads > out.heads || out.heads % out.kv_heads != 0) {
    fields.Fail("num_key_value_heads", out.kv_heads,
                Cat("a divisor of num_attention_heads, which is ", out.heads));
  }
  const int32_t derived =
      family.default_head_dim > 0 ? family.default_head_dim : out.hidden / out.heads;
  out.head_dim = int32("head_dim", 2, 512, derived);
  if (out.head_dim < 2 || out.head_dim > 512 || out.head_dim % 2 != 0) {
    fields.Fail("head_dim", out.head_dim, "even and in 2..512");
  }
  out.vocab = int32("vocab_size", 1, 1 << 22, std::nullopt);
  out.max_positions = int32("max_position_embeddings", 1, kMaxPositions, std::nullopt);
  out.norm_eps = static_cast<float>(fields.Real("rms_norm_eps", 0, 1, 1e-6));
  const std::string activation =
      fields.String("hidden_activation", fields.String("hidden_act", "silu"));
  bool known = false;
  for (const NamedActivation& row : kActivations) {
    if (row.name == activation) {
      out.activation = row.activation;
      known = true;
    }
  }
  if (!known) fields.Fail("hidden_act", activation, Cat("one of ", Names(kActivations)));
  const bool attention_bias = fields.Bool("attention_bias", false);
  out.qkv_bias = family.qkv_bias == QkvBias::kAlways ||
                 (family.qkv_bias == QkvBias::kByField && attention_bias);
  out.o_bias = family.o_bias_by_field && attention_bias;
  out.mlp_bias = family.mlp_bias_by_field && fields.Bool("mlp_bias", false);
  out.qk_norm = family.qk_norm;
  out.tied_head = fields.Bool("tie_word_embeddings", false);
  if (!fields.status().ok()) return fields.status();

  out.attention_scale = 1.0f / std::sqrt(static_cast<float>(out.head_dim));
  out.window = ReadWindows(family, out.layers, fields);
  ReadSpecialTokens(family, fields, out);
  if (!fields.status().ok()) return fields.status();
  absl::StatusOr<RopeConfig> rope = ReadRope(config, out.head_dim, out.max_positions);
  if (!rope.ok()) return rope.status();
  out.rope = *std::move(rope);
  return out;
}

}  // namespace nibble
