// SPDX-License-Identifier: Apache-2.0
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/artifact/quantization_config.h"

#include <pcre2.h>

#include <algorithm>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/json.h"

namespace nibble {
namespace {

using nlohmann::json;

constexpr size_t kMaxPatterns = 65536;     // targets and ignored names together
constexpr size_t kMaxExpressions = 256;    // regular expressions and classes among them
constexpr size_t kMaxPatternBytes = 4096;  // of one of them
constexpr uint32_t kMatchLimit = 100'000;  // steps of the regular expression matcher per name
constexpr uint32_t kHeapLimitKib = 1024;
constexpr std::string_view kMethod = "compressed-tensors";
constexpr std::string_view kMixedFormat = "mixed-precision";
// The release of the package whose format this is: the first that packs 3-bit codes without gaps.
constexpr std::string_view kDialectVersion = "0.18.0";
constexpr std::string_view kLinear = "Linear";
constexpr std::string_view kEmbedding = "Embedding";
constexpr std::string_view kClasses[] = {kLinear, kEmbedding};

// The row of the container in that dialect.
constexpr std::string_view FormatOf(const Scheme& scheme) {
  switch (scheme.code) {
    case DType::kNF4:  // Not of the dialect: other readers must refuse it.
      return scheme.nested() ? "nf4-double-quantized" : "nf4-quantized";
    case DType::kF8E4M3:
      return scheme.activation == Activation::kFloat ? "naive-quantized" : "float-quantized";
    default:
      if (scheme.outliers) return "llm-int8-quantized";  // Neither.
      return scheme.container == Container::kPacked ? "pack-quantized" : "int-quantized";
  }
}

constexpr std::string_view TypeOf(const Scheme& scheme) {
  return scheme.code == DType::kNF4 ? "nf4" : scheme.code == DType::kF8E4M3 ? "float" : "int";
}

constexpr std::string_view InputOf(Activation activation) {
  return activation == Activation::kFloat          ? "float"
         : activation == Activation::kInt8PerToken ? "int8"
                                                   : "e4m3";
}

// What one group says of its weights and inputs; the columns of kSchemes in the dialect's words.
struct GroupArgs {
  int bits = 8;
  std::string type = "int";
  std::string strategy = "tensor";
  int64_t group = kWholeRow;
  bool symmetric = true;
  Activation activation = Activation::kFloat;
  std::string format;

  bool Describes(const Scheme& scheme) const {
    return scheme.quantized() && type == TypeOf(scheme) && bits == scheme.bits() &&
           symmetric == scheme.symmetric() && activation == scheme.activation &&
           format == FormatOf(scheme) && group == scheme.group &&
           strategy == (scheme.group == kWholeRow ? "channel" : "group");
  }
  std::string Text() const {
    return Cat(bits, "-bit ", type, ", strategy ", strategy, ", group_size ", group,
               symmetric ? ", symmetric" : ", asymmetric", ", ", InputOf(activation),
               " input, format ", format);
  }
};

absl::Status Wrong(std::string_view field, const json& value, std::string_view allowed) {
  return absl::InvalidArgumentError(
      Cat("quantization_config.", field, " is ", ShownJson(value), ", must be ", allowed));
}

// The member, or null. (A missing member and an explicit null mean the same in this dialect.)
const json& Member(const json& object, const char* key) {
  static const json* const null = new json();
  const auto found = object.find(key);
  return found == object.end() ? *null : *found;
}

absl::StatusOr<std::string> StringMember(const json& object, const char* key,
                                         std::string_view fallback, std::string_view where) {
  const json& value = Member(object, key);
  if (value.is_null()) return std::string(fallback);
  if (!value.is_string()) return Wrong(Cat(where, key), value, "a string");
  return value.get<std::string>();
}

absl::StatusOr<Activation> ReadActivation(const json& value, const std::string& where) {
  if (value.is_null()) return Activation::kFloat;
  if (!value.is_object()) return Wrong(where, value, "null or an object");
  const json& bits = Member(value, "num_bits");
  const json& type = Member(value, "type");
  const json& symmetric = Member(value, "symmetric");
  if ((bits.is_null() || bits == 8) && (symmetric.is_null() || symmetric == true) &&
      Member(value, "strategy") == "token" && Member(value, "dynamic") == true) {
    if (type.is_null() || type == "int") return Activation::kInt8PerToken;
    if (type == "float") return Activation::kE4M3PerToken;
  }
  return absl::UnimplementedError(
      Cat("quantization_config.", where, " is ", ShownJson(value),
          ", known are null and symmetric dynamic 8-bit int or float per token"));
}

absl::StatusOr<GroupArgs> ReadGroup(const json& group, const std::string& where,
                                    const std::string& format) {
  GroupArgs args;
  const json& weights = Member(group, "weights");
  const std::string at = Cat(where, ".weights.");
  if (!weights.is_object()) return Wrong(Cat(where, ".weights"), weights, "an object");
  if (const json& bits = Member(weights, "num_bits"); !bits.is_null()) {
    if (!bits.is_number_integer() || bits.get<int64_t>() < 1 || bits.get<int64_t>() > 16) {
      return Wrong(at + "num_bits", bits, "an integer in 1..16");
    }
    args.bits = static_cast<int>(bits.get<int64_t>());
  }
  absl::StatusOr<std::string> type = StringMember(weights, "type", "int", at);
  if (!type.ok()) return type.status();
  args.type = *type;
  const json& size = Member(weights, "group_size");
  if (!size.is_null()) {
    if (!size.is_number_integer() || size.get<int64_t>() < -1 || size.get<int64_t>() == 0) {
      return Wrong(at + "group_size", size, "null, -1 or a positive integer");
    }
    args.group = size.get<int64_t>();
  }
  absl::StatusOr<std::string> strategy =
      StringMember(weights, "strategy", args.group > 0 ? "group" : "channel", at);
  if (!strategy.ok()) return strategy.status();
  args.strategy = *strategy;
  if (const json& symmetric = Member(weights, "symmetric"); !symmetric.is_null()) {
    if (!symmetric.is_boolean()) return Wrong(at + "symmetric", symmetric, "true or false");
    args.symmetric = symmetric.get<bool>();
  }
  // "weight" keeps groups of neighbours; "group" permutes the columns and stores their order.
  const json& order = Member(weights, "actorder");
  if (!order.is_null() && order != "weight" && order != "static") {
    return absl::UnimplementedError(Cat("quantization_config.", at, "actorder is ",
                                        ShownJson(order),
                                        ", known are null, \"weight\" and \"static\""));
  }
  absl::StatusOr<Activation> activation =
      ReadActivation(Member(group, "input_activations"), where + ".input_activations");
  if (!activation.ok()) return activation.status();
  args.activation = *activation;
  if (const json& output = Member(group, "output_activations"); !output.is_null()) {
    return absl::UnimplementedError(Cat("quantization_config.", where, ".output_activations is ",
                                        ShownJson(output), ", known is null"));
  }
  absl::StatusOr<std::string> own = StringMember(group, "format", format, where + ".");
  if (!own.ok()) return own.status();
  args.format = *own;
  return args;
}

absl::StatusOr<const Scheme*> FindRow(const GroupArgs& args, const std::string& where) {
  for (const Scheme& scheme : kSchemes) {
    if (args.Describes(scheme)) return &scheme;
  }
  std::string known;
  for (const Scheme& scheme : kSchemes) {
    if (scheme.quantized()) known += Cat(known.empty() ? "" : ", ", scheme.name);
  }
  return absl::UnimplementedError(Cat("quantization_config.", where, " is ", args.Text(),
                                      ", which is none of the schemes ", known));
}

}  // namespace

struct QuantizationConfig::Pattern {
  Pattern() = default;
  ~Pattern() { pcre2_code_free(code); }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  static absl::StatusOr<std::shared_ptr<const Pattern>> Make(const json& value,
                                                             const std::string& where) {
    if (!value.is_string() || value.get_ref<const std::string&>().size() > kMaxPatternBytes) {
      return Wrong(where, value, Cat("a string of at most ", kMaxPatternBytes, " bytes"));
    }
    auto pattern = std::make_shared<Pattern>();
    pattern->text = value.get<std::string>();
    std::string_view expression = pattern->text;
    if (!expression.starts_with("re:")) return pattern;
    expression.remove_prefix(3);
    int error = 0;
    PCRE2_SIZE offset = 0;
    pattern->code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                      PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
    if (pattern->code == nullptr) return Wrong(where, value, "a valid regular expression");
    return pattern;
  }

  bool IsName() const {
    return code == nullptr &&
           std::find(std::begin(kClasses), std::end(kClasses), text) == std::end(kClasses);
  }

  // 1: by a regular expression, 0: by the class, -1: no match.
  absl::StatusOr<int> Match(std::string_view module) const {
    if (code == nullptr) return text == ModuleClass(module) ? 0 : -1;
    pcre2_match_context* context = pcre2_match_context_create(nullptr);
    pcre2_match_data* data = pcre2_match_data_create_from_pattern(code, nullptr);
    int result = PCRE2_ERROR_NOMEMORY;
    if (context != nullptr && data != nullptr) {
      pcre2_set_match_limit(context, kMatchLimit);
      pcre2_set_heap_limit(context, kHeapLimitKib);
      result = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(module.data()), module.size(), 0, 0,
                           data, context);
    }
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (result >= 0) return 1;
    if (result == PCRE2_ERROR_NOMATCH) return -1;
    return absl::ResourceExhaustedError(Cat("quantization_config: the expression ", ShownJson(text),
                                            " takes too many steps on module ", module));
  }

  std::string text;
  pcre2_code* code = nullptr;
};

std::string_view ModuleClass(std::string_view module) {
  return module == "embed_tokens" || module.ends_with(".embed_tokens") ? "Embedding" : "Linear";
}

absl::StatusOr<QuantizationConfig> QuantizationConfig::Parse(const json& section) {
  if (!section.is_object()) {
    return absl::InvalidArgumentError(
        Cat("quantization_config is ", ShownJson(section), ", must be an object"));
  }
  const json& method = Member(section, "quant_method");
  if (method != std::string(kMethod)) {
    return absl::UnimplementedError(Cat("quantization_config.quant_method is ", ShownJson(method),
                                        ", known is \"", kMethod, "\""));
  }
  absl::StatusOr<std::string> format = StringMember(section, "format", "", "");
  if (!format.ok()) return format.status();
  const json& groups = Member(section, "config_groups");
  if (!groups.is_object()) return Wrong("config_groups", groups, "an object");
  const json& ignore = Member(section, "ignore");
  if (!ignore.is_null() && !ignore.is_array()) return Wrong("ignore", ignore, "null or an array");

  QuantizationConfig config;
  size_t patterns = ignore.size();
  for (const auto& [name, group] : groups.items()) {
    const std::string where = Cat("config_groups.", name);
    if (!group.is_object()) return Wrong(where, group, "an object");
    absl::StatusOr<GroupArgs> args = ReadGroup(group, where, *format);
    if (!args.ok()) return args.status();
    absl::StatusOr<const Scheme*> scheme = FindRow(*args, where);
    if (!scheme.ok()) return scheme.status();
    const json& targets = Member(group, "targets");
    if (!targets.is_array()) return Wrong(where + ".targets", targets, "an array");
    patterns += targets.size();
    if (patterns > kMaxPatterns) {
      return Wrong("config_groups", groups.size(),
                   Cat("groups of at most ", kMaxPatterns, " targets in all"));
    }
    for (const json& target : targets) {
      absl::StatusOr<std::shared_ptr<const Pattern>> pattern =
          Pattern::Make(target, where + ".targets");
      if (!pattern.ok()) return pattern.status();
      if ((*pattern)->IsName()) {
        config.named_.emplace((*pattern)->text, *scheme);
      } else {
        config.targets_.push_back({*std::move(pattern), *scheme});
      }
    }
  }
  for (const json& name : ignore) {
    absl::StatusOr<std::shared_ptr<const Pattern>> pattern = Pattern::Make(name, "ignore");
    if (!pattern.ok()) return pattern.status();
    if ((*pattern)->IsName()) {
      config.ignored_names_.insert((*pattern)->text);
    } else {
      config.ignored_.push_back(*std::move(pattern));
    }
  }
  if (config.targets_.size() + config.ignored_.size() > kMaxExpressions) {
    return Wrong("config_groups", groups.size(),
                 Cat("groups of at most ", kMaxExpressions, " regular expressions in all"));
  }
  return config;
}

absl::StatusOr<const Scheme*> QuantizationConfig::SchemeOf(std::string_view module) const {
  const auto named = named_.find(module);
  const Scheme* scheme = named != named_.end() ? named->second : nullptr;
  int best = named != named_.end() ? 2 : -1;
  for (const Target& target : targets_) {
    if (best == 2) break;
    absl::StatusOr<int> match = target.pattern->Match(module);
    if (!match.ok()) return match.status();
    if (*match > best) {
      best = *match;
      scheme = target.scheme;
    }
  }
  if (scheme == nullptr) return scheme;
  if (ignored_names_.contains(module)) return nullptr;
  for (const std::shared_ptr<const Pattern>& ignored : ignored_) {
    absl::StatusOr<int> match = ignored->Match(module);
    if (!match.ok()) return match.status();
    if (*match >= 0) return nullptr;
  }
  return scheme;
}

namespace {

json WeightArgs(const Scheme& scheme) {
  const bool whole_row = scheme.group == kWholeRow;
  return {{"num_bits", scheme.bits()},
          {"type", TypeOf(scheme)},
          {"symmetric", scheme.symmetric()},
          {"strategy", whole_row ? "channel" : "group"},
          {"group_size", whole_row ? json() : json(scheme.group)},
          {"block_structure", json()},
          {"dynamic", false},
          {"actorder", json()}};
}

json InputArgs(const Scheme& scheme) {
  if (scheme.activation == Activation::kFloat) return json();
  const char* type = scheme.activation == Activation::kInt8PerToken ? "int" : "float";
  return {{"num_bits", 8},       {"type", type},         {"symmetric", true},
          {"strategy", "token"}, {"group_size", json()}, {"block_structure", json()},
          {"dynamic", true},     {"actorder", json()}};
}

}  // namespace

json BuildQuantizationConfig(const ModuleSchemes& modules) {
  std::set<const Scheme*> linear_schemes;
  json ignore = json::array();
  if (!modules.contains("lm_head")) ignore.push_back("lm_head");
  for (const auto& [module, scheme] : modules) {
    if (ModuleClass(module) != kLinear) continue;
    if (scheme->quantized()) {
      linear_schemes.insert(scheme);
    } else {
      ignore.push_back(module);
    }
  }
  const bool uniform = linear_schemes.size() == 1;
  json groups = json::object();
  std::set<std::string_view> formats;
  for (const Scheme& scheme : kSchemes) {
    if (!scheme.quantized()) continue;
    json targets = json::array();
    if (uniform && linear_schemes.contains(&scheme)) targets.push_back(kLinear);
    for (const auto& [module, own] : modules) {
      if (own == &scheme && !(uniform && ModuleClass(module) == kLinear)) targets.push_back(module);
    }
    if (targets.empty()) continue;
    formats.insert(FormatOf(scheme));
    groups[Cat("group_", groups.size())] = {{"targets", targets},
                                            {"format", FormatOf(scheme)},
                                            {"weights", WeightArgs(scheme)},
                                            {"input_activations", InputArgs(scheme)},
                                            {"output_activations", json()}};
  }
  if (groups.empty()) return json();
  return {{"quant_method", kMethod},
          {"version", kDialectVersion},
          {"quantization_status", "compressed"},
          {"format", formats.size() == 1 ? *formats.begin() : kMixedFormat},
          {"config_groups", groups},
          {"ignore", ignore},
          {"kv_cache_scheme", json()},
          {"global_compression_ratio", json()},
          {"sparsity_config", json::object()},
          {"transform_config", json::object()}};
}

}  // namespace nibble
