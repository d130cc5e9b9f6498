// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/recipe.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/quant/algorithm.h"
#include "kernels/ops.h"
#include "kernels/scheme.h"

namespace nibble {
namespace {

using Json = nlohmann::json;

struct Builtin {
  std::string_view name;
  std::vector<Transform> transforms;
  Rounder rounder;
  std::string_view scheme;  // the default
};

const std::vector<Builtin>& Builtins() {
  static const auto* const kBuiltins = new std::vector<Builtin>{
      {"rtn", {}, Rounder::kRtn, "int4-g128"},
      {"mse", {}, Rounder::kMse, "int4-g128"},
      {"gptq", {}, Rounder::kGptq, "int4-g128"},
      {"awq", {Transform::kAwq}, Rounder::kRtn, "int4-g128"},
      {"awq-gptq", {Transform::kAwq}, Rounder::kGptq, "int4-g128"},
      {"smoothquant", {Transform::kSmoothQuant}, Rounder::kRtn, "w8a8"},
      {"smoothquant-gptq", {Transform::kSmoothQuant}, Rounder::kGptq, "w8a8"},
  };
  return *kBuiltins;
}

std::string SchemeNames() {
  return absl::StrJoin(kSchemes, ", ", [](std::string* out, const Scheme& s) { *out += s.name; });
}

template <typename Table>
std::string Names(const Table& table) {
  return absl::StrJoin(table, ", ", [](std::string* out, const auto& e) { *out += e.name; });
}

absl::Status CheckScheme(std::string_view field, const std::string& name) {
  if (FindScheme(name) != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "recipe.", std::string(field), ": unknown scheme '", name, "'; known are ", SchemeNames()));
}

absl::Status CheckRange(std::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("recipe.", std::string(field), " is ", value,
                                                 "; it must be between ", low, " and ", high));
}

// `*` matches any run of characters, `?` one.
bool Matches(std::string_view pattern, std::string_view text) {
  size_t p = 0;
  size_t t = 0;
  size_t star = std::string_view::npos;
  size_t resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

// Reads the members of one JSON object and remembers which were asked for, so that what is left
// over can be refused.
class Members {
 public:
  Members(const Json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) Fail(absl::StrCat(where_, " must be an object"));
  }

  void Read(const char* key, std::string* to) {
    const Json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_string()) return Fail(absl::StrCat(where_, ".", key, " must be a string"));
    *to = value->get<std::string>();
  }
  void Read(const char* key, bool* to) {
    const Json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_boolean()) {
      return Fail(absl::StrCat(where_, ".", key, " must be true or false"));
    }
    *to = value->get<bool>();
  }
  void Read(const char* key, double* to) {
    const Json* value = Take(key);
    if (value == nullptr) return;
    if (!value->is_number()) return Fail(absl::StrCat(where_, ".", key, " must be a number"));
    *to = value->get<double>();
  }
  void Read(const char* key, int* to) {
    double number = *to;
    Read(key, &number);
    if (number != std::floor(number) || std::fabs(number) > 1e9) {
      return Fail(absl::StrCat(where_, ".", key, " is ", number, "; it must be a whole number"));
    }
    *to = static_cast<int>(number);
  }
  const Json* Take(const char* key) {
    if (!status_.ok()) return nullptr;
    seen_.push_back(key);
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  void Fail(std::string message) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(std::move(message));
  }
  // After everything was read.
  absl::Status Finish() {
    if (!status_.ok()) return status_;
    for (const auto& [key, value] : object_.items()) {
      if (std::find(seen_.begin(), seen_.end(), key) == seen_.end()) {
        return absl::InvalidArgumentError(absl::StrCat(
            where_, " has no field '", key, "'; its fields are ", absl::StrJoin(seen_, ", ")));
      }
    }
    return absl::OkStatus();
  }

 private:
  const Json& object_;
  std::string where_;
  std::vector<std::string> seen_;
  absl::Status status_;
};

const Json& EmptyObject() {
  static const auto* const kEmpty = new Json(Json::object());
  return *kEmpty;
}

}  // namespace

bool Recipe::needs_calibration() const {
  const auto has_outliers = [](std::string_view scheme_name) {
    const Scheme* found = FindScheme(scheme_name);
    return found != nullptr && found->outliers;
  };
  return !transforms.empty() || Find(rounder).needs != Needs::kNothing || has_outliers(scheme) ||
         std::any_of(overrides.begin(), overrides.end(),
                     [&](const SchemeOverride& o) { return has_outliers(o.scheme); });
}

Json Recipe::ToJson() const {
  Json names = Json::array();
  for (const Transform transform : transforms) names.push_back(std::string(Find(transform).name));
  Json patterns = Json::array();
  for (const SchemeOverride& o : overrides) {
    patterns.push_back({{"pattern", o.pattern}, {"scheme", o.scheme}});
  }
  return {{"name", name},
          {"transforms", names},
          {"rounder", std::string(Find(rounder).name)},
          {"awq", {{"grid", awq.grid}, {"clip", awq.clip}}},
          {"smoothquant", {{"alpha", smoothquant.alpha}}},
          {"gptq",
           {{"block_columns", gptq.block_columns},
            {"damping", gptq.damping},
            {"act_order", gptq.act_order},
            {"mse_clip", gptq.mse_clip}}},
          {"llm_int8", {{"threshold", llm_int8.threshold}}},
          {"scheme", scheme},
          {"overrides", patterns},
          {"embedding_scheme", embedding_scheme},
          {"head_scheme", head_scheme},
          {"kv_format", kv_format},
          {"true_sequential", true_sequential}};
}

absl::StatusOr<Recipe> Recipe::FromJson(const Json& json) {
  Recipe recipe;
  Members top(json, "recipe");
  top.Read("name", &recipe.name);
  top.Read("scheme", &recipe.scheme);
  top.Read("embedding_scheme", &recipe.embedding_scheme);
  top.Read("head_scheme", &recipe.head_scheme);
  top.Read("kv_format", &recipe.kv_format);
  top.Read("true_sequential", &recipe.true_sequential);

  std::string rounder(Find(recipe.rounder).name);
  top.Read("rounder", &rounder);
  const auto* entry = std::find_if(std::begin(kRounders), std::end(kRounders),
                                   [&](const RounderEntry& e) { return e.name == rounder; });
  if (entry != std::end(kRounders)) {
    recipe.rounder = entry->rounder;
  } else {
    top.Fail(absl::StrCat("recipe.rounder: unknown rounder '", rounder, "'; known are ",
                          Names(kRounders)));
  }

  if (const Json* list = top.Take("transforms"); list != nullptr) {
    if (!list->is_array()) top.Fail("recipe.transforms must be an array of names");
    for (const Json& item : *list) {
      const std::string name = item.is_string() ? item.get<std::string>() : item.dump();
      const auto* found = std::find_if(std::begin(kTransforms), std::end(kTransforms),
                                       [&](const TransformEntry& e) { return e.name == name; });
      if (found != std::end(kTransforms)) {
        recipe.transforms.push_back(found->transform);
      } else {
        top.Fail(absl::StrCat("recipe.transforms: unknown transform '", name, "'; known are ",
                              Names(kTransforms)));
      }
    }
  }
  if (const Json* list = top.Take("overrides"); list != nullptr) {
    if (!list->is_array()) {
      top.Fail("recipe.overrides must be an array of {pattern, scheme}");
    } else {
      for (const Json& item : *list) {
        SchemeOverride& o = recipe.overrides.emplace_back();
        Members members(item, absl::StrCat("recipe.overrides[", recipe.overrides.size() - 1, "]"));
        members.Read("pattern", &o.pattern);
        members.Read("scheme", &o.scheme);
        if (const absl::Status status = members.Finish(); !status.ok()) return status;
      }
    }
  }
  const Json* part = top.Take("awq");
  Members awq(part == nullptr ? EmptyObject() : *part, "recipe.awq");
  awq.Read("grid", &recipe.awq.grid);
  awq.Read("clip", &recipe.awq.clip);
  part = top.Take("smoothquant");
  Members smoothquant(part == nullptr ? EmptyObject() : *part, "recipe.smoothquant");
  smoothquant.Read("alpha", &recipe.smoothquant.alpha);
  part = top.Take("gptq");
  Members gptq(part == nullptr ? EmptyObject() : *part, "recipe.gptq");
  gptq.Read("block_columns", &recipe.gptq.block_columns);
  gptq.Read("damping", &recipe.gptq.damping);
  gptq.Read("act_order", &recipe.gptq.act_order);
  gptq.Read("mse_clip", &recipe.gptq.mse_clip);

  part = top.Take("llm_int8");
  Members llm_int8(part == nullptr ? EmptyObject() : *part, "recipe.llm_int8");
  llm_int8.Read("threshold", &recipe.llm_int8.threshold);

  for (Members* members : {&top, &awq, &smoothquant, &gptq, &llm_int8}) {
    if (const absl::Status status = members->Finish(); !status.ok()) return status;
  }
  if (const absl::Status status = Validate(recipe); !status.ok()) return status;
  return recipe;
}

absl::StatusOr<Recipe> BuiltinRecipe(std::string_view name) {
  for (const Builtin& builtin : Builtins()) {
    if (builtin.name != name) continue;
    Recipe recipe;
    recipe.name = std::string(builtin.name);
    recipe.transforms = builtin.transforms;
    recipe.rounder = builtin.rounder;
    recipe.scheme = std::string(builtin.scheme);
    return recipe;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown recipe '", std::string(name), "'; known are ", Names(Builtins())));
}

std::vector<std::string_view> BuiltinRecipeNames() {
  std::vector<std::string_view> names;
  for (const Builtin& builtin : Builtins()) names.push_back(builtin.name);
  return names;
}

absl::Status Validate(const Recipe& recipe) {
  if (recipe.name.empty() || recipe.name.size() > 100) {
    return absl::InvalidArgumentError(
        absl::StrCat("recipe.name has ", recipe.name.size(), " bytes; it must have 1 to 100"));
  }
  if (recipe.transforms.size() > std::size(kTransforms)) {
    return absl::InvalidArgumentError(absl::StrCat("recipe.transforms has ",
                                                   recipe.transforms.size(),
                                                   " entries; each transform may be named once"));
  }
  if (recipe.overrides.size() > 1000) {
    return absl::InvalidArgumentError(absl::StrCat("recipe.overrides has ", recipe.overrides.size(),
                                                   " entries; at most 1000 are allowed"));
  }
  for (const auto& [field, name] :
       {std::pair<std::string_view, const std::string&>("scheme", recipe.scheme),
        {"embedding_scheme", recipe.embedding_scheme},
        {"head_scheme", recipe.head_scheme}}) {
    if (const absl::Status status = CheckScheme(field, name); !status.ok()) return status;
  }
  for (size_t i = 0; i < recipe.overrides.size(); ++i) {
    const SchemeOverride& o = recipe.overrides[i];
    if (o.pattern.empty() || o.pattern.size() > 200) {
      return absl::InvalidArgumentError(absl::StrCat("recipe.overrides[", i, "].pattern has ",
                                                     o.pattern.size(),
                                                     " bytes; it must have 1 to 200"));
    }
    const absl::Status status = CheckScheme(absl::StrCat("overrides[", i, "].scheme"), o.scheme);
    if (!status.ok()) return status;
  }
  if (FindScheme(recipe.embedding_scheme)->activation != Activation::kFloat) {
    return absl::InvalidArgumentError(
        absl::StrCat("recipe.embedding_scheme is '", recipe.embedding_scheme,
                     "', which quantizes activations; an embedding has none: choose a "
                     "weight-only scheme such as int8 or int4-g128"));
  }
  if (FindScheme(recipe.head_scheme)->outliers) {
    return absl::InvalidArgumentError(
        absl::StrCat("recipe.head_scheme is '", recipe.head_scheme,
                     "', whose outliers are calibrated; the head is not: choose another scheme"));
  }
  if (FindKvFormat(recipe.kv_format) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "recipe.kv_format: unknown format '", recipe.kv_format, "'; known are ", KvFormatNames()));
  }
  for (size_t i = 0; i < recipe.transforms.size(); ++i) {
    const Transform transform = recipe.transforms[i];
    if (std::count(recipe.transforms.begin(), recipe.transforms.end(), transform) > 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "recipe.transforms names '", std::string(Find(transform).name), "' more than once"));
    }
    if (!FindScheme(recipe.scheme)->quantized()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "recipe.scheme is '", recipe.scheme, "', for which the transform '",
          std::string(Find(transform).name), "' has no meaning: choose a quantized scheme"));
    }
    if (transform == Transform::kSmoothQuant &&
        FindScheme(recipe.scheme)->activation == Activation::kFloat) {
      return absl::InvalidArgumentError(
          absl::StrCat("recipe.scheme is '", recipe.scheme,
                       "'; smoothquant needs a scheme that quantizes activations: w8a8 or fp8"));
    }
  }
  struct Range {
    std::string_view field;
    double value;
    double low;
    double high;
  };
  const Range ranges[] = {
      {"awq.grid", static_cast<double>(recipe.awq.grid), 1, 100},
      {"smoothquant.alpha", recipe.smoothquant.alpha, -1, 1},
      {"gptq.block_columns", static_cast<double>(recipe.gptq.block_columns), 16, 1024},
      {"gptq.damping", recipe.gptq.damping, 1e-6, 10},
      {"llm_int8.threshold", recipe.llm_int8.threshold, 1e-6, 1e30}};
  for (const Range& range : ranges) {
    const absl::Status status = CheckRange(range.field, range.value, range.low, range.high);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

const std::string& SchemeFor(const Recipe& recipe, std::string_view module) {
  constexpr std::string_view kPrefix = "model.";
  if (module.substr(0, kPrefix.size()) == kPrefix) module.remove_prefix(kPrefix.size());
  for (auto it = recipe.overrides.rbegin(); it != recipe.overrides.rend(); ++it) {
    if (Matches(it->pattern, module)) return it->scheme;
  }
  if (module == "lm_head") return recipe.head_scheme;
  if (module == "embed_tokens") return recipe.embedding_scheme;
  return recipe.scheme;
}

}  // namespace nibble
