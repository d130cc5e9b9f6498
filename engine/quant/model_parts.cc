// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/model_parts.h"

#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "engine/base/cat.h"

namespace nibble {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens";
constexpr const char* kHead = "lm_head";
constexpr const char* kNorm = "model.norm.weight";

// The scheme like `scheme` whose group divides `cols`, or the one of whole rows.
std::string_view Fitting(const Scheme& scheme, int64_t cols) {
  for (const Scheme& other : kSchemes) {
    if (other.code == scheme.code && other.zero == scheme.zero &&
        other.activation == scheme.activation && other.group > 0 && cols % other.group == 0) {
      return other.name;
    }
  }
  return "int8";
}

std::vector<std::string> ModuleNames(const DecoderConfig& config) {
  std::vector<std::string> names = {kEmbedding};
  for (int layer = 0; layer < config.layers; ++layer) {
    for (const InputGroup group : kInputGroups) {
      for (const std::string& name : GroupModules(group)) {
        names.push_back(BlockModule(layer, name));
      }
    }
  }
  names.emplace_back(kHead);
  return names;
}

struct Misfits {
  int count = 0;
  std::string first;
  int64_t cols = 0;
};

}  // namespace

absl::Status CheckModules(const Recipe& recipe, const DecoderConfig& config,
                          const Checkpoint& source) {
  const std::vector<std::string> names = ModuleNames(config);
  for (size_t i = 0; i < recipe.overrides.size(); ++i) {
    Recipe alone;
    alone.scheme = alone.embedding_scheme = alone.head_scheme = "";
    alone.overrides = {{recipe.overrides[i].pattern, "matched"}};
    bool matched = false;
    for (const std::string& name : names) matched = matched || SchemeFor(alone, name) == "matched";
    if (!matched) {
      return absl::InvalidArgumentError(
          Cat("recipe.overrides[", i, "].pattern '", recipe.overrides[i].pattern,
              "' matches no module; names look like layers.0.mlp.down_proj, layers.0.self_attn."
              "q_proj, lm_head, embed_tokens"));
    }
  }
  std::map<std::string_view, Misfits> misfits;  // by scheme
  for (const std::string& name : names) {
    const std::string stored = name == kHead && config.tied_head ? kEmbedding : name;
    absl::StatusOr<WeightView> view = source.Weight(stored);
    if (!view.ok()) return view.status();
    const Scheme& scheme = *FindScheme(SchemeFor(recipe, name));
    if (name == kEmbedding && scheme.activation != Activation::kFloat) {
      return absl::InvalidArgumentError(Cat("an override gives ", name, " the scheme '",
                                            scheme.name,
                                            "', which quantizes activations; an embedding has "
                                            "none: choose a weight-only scheme"));
    }
    if (scheme.group == kWholeRow || view->cols % scheme.group == 0) continue;
    Misfits& entry = misfits[scheme.name];
    if (entry.count++ == 0) {
      entry.first = name;
      entry.cols = view->cols;
    }
  }
  for (const auto& [name, entry] : misfits) {
    const Scheme& scheme = *FindScheme(name);
    return absl::InvalidArgumentError(
        Cat("scheme '", name, "' needs input features in multiples of ", scheme.group, "; ",
            entry.first, " has ", entry.cols,
            entry.count > 1 ? Cat(" (and ", entry.count - 1, " more modules do not fit)") : "",
            ". Choose another scheme or add an override, e.g. ", entry.first, "=",
            Fitting(scheme, entry.cols)));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelParts> QuantizeParts(const Recipe& recipe, const DecoderConfig& config,
                                         const Checkpoint& source, int threads) {
  const Rounder rounder = recipe.rounder == Rounder::kRtn ? Rounder::kRtn : Rounder::kMse;
  std::vector<ModuleError> errors;
  auto round = [&](const char* module, const char* stored) -> absl::StatusOr<QuantizedWeight> {
    absl::StatusOr<Matrix> weight = LoadWeight(source, stored, threads);
    if (!weight.ok()) return weight.status();
    source.Release(stored);
    absl::StatusOr<RoundedModule> rounded = RoundModule(
        module, rounder,
        {&*weight, FindScheme(SchemeFor(recipe, module)), nullptr, nullptr, &recipe.gptq, threads});
    if (!rounded.ok()) return rounded.status();
    errors.push_back(std::move(rounded->error));
    return std::move(rounded->weight);
  };
  absl::StatusOr<QuantizedWeight> embedding = round(kEmbedding, kEmbedding);
  if (!embedding.ok()) return embedding.status();
  ModelParts parts{*std::move(embedding), std::nullopt, {}, {}};
  if (!config.tied_head || SchemeFor(recipe, kHead) != SchemeFor(recipe, kEmbedding)) {
    absl::StatusOr<QuantizedWeight> head = round(kHead, config.tied_head ? kEmbedding : kHead);
    if (!head.ok()) return head.status();
    parts.head.emplace(*std::move(head));
  }
  absl::StatusOr<std::vector<float>> norm = source.Vector(kNorm);
  if (!norm.ok()) return norm.status();
  for (const float value : *norm) {
    if (!std::isfinite(value)) {
      return absl::InvalidArgumentError(
          Cat(kNorm, " holds a value that is not finite; every weight must be finite"));
    }
  }
  parts.norm.values = *std::move(norm);
  for (const TensorInfo& tensor : source.tensors()) {
    if (tensor.name == kNorm) parts.norm.dtype = tensor.dtype;
  }
  parts.errors = std::move(errors);
  return parts;
}

}  // namespace nibble
