// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/model_parts.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/artifact/safetensors_writer.h"
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
    if (name == kHead && scheme.outliers) {
      return absl::InvalidArgumentError(
          Cat("an override gives ", name, " the scheme '", scheme.name,
              "', whose outliers are calibrated; the head is not: choose another scheme"));
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

namespace {

// Rounds the weight stored as `stored` by the scheme of `module`.
absl::StatusOr<RoundedModule> RoundPart(const PartsProblem& problem, const char* module,
                                        const char* stored) {
  const Recipe& recipe = *problem.recipe;
  const Rounder rounder = recipe.rounder == Rounder::kRtn ? Rounder::kRtn : Rounder::kMse;
  const Scheme& scheme = *FindScheme(SchemeFor(recipe, module));
  absl::StatusOr<WeightView> view = problem.source->Weight(stored);
  if (!view.ok()) return view.status();
  RoundedModule whole{QuantizedWeight(scheme, view->rows, view->cols),
                      ModuleError{module, std::string(scheme.name), 0, false}};
  // Nested scales are coded under an offset and scales that the whole matrix shares.
  const int64_t step =
      scheme.nested()
          ? view->rows
          : std::max<int64_t>(1, problem.slice_values / view->cols / kRowsOfWord) * kRowsOfWord;
  double error = 0;
  double energy = 0;
  for (int64_t first = 0; first < view->rows; first += step) {
    if (absl::Status status = problem.keep_going(); !status.ok()) return status;
    const int64_t count = std::min(step, view->rows - first);
    absl::StatusOr<Matrix> rows = LoadRows(*view, stored, first, count, problem.threads);
    if (!rows.ok()) return rows.status();
    absl::StatusOr<RoundedModule> rounded = RoundModule(
        module, rounder,
        {&*rows, &scheme, nullptr, nullptr, &recipe.gptq, problem.threads, problem.device});
    if (!rounded.ok()) return rounded.status();
    whole.weight.SetRows(first, rounded->weight);
    const double slice = SquaredSum(*rows);
    error += rounded->error.relative_error * slice;
    energy += slice;
  }
  problem.source->Release(stored);
  whole.error.relative_error = energy > 0 ? error / energy : 0.0;
  return whole;
}

absl::StatusOr<StoredPart> Store(const RoundedModule& part, FileSystem& fs, std::string path) {
  const QuantizedWeight& weight = part.weight;
  StoredPart stored;
  stored.module = {part.error.module, &weight.scheme(), weight.rows(), weight.cols(), 0};
  stored.error = part.error;
  stored.path = std::move(path);
  const std::vector<SafetensorsEntry> entries = WeightEntries(stored.module);
  absl::StatusOr<std::unique_ptr<SafetensorsWriter>> writer =
      SafetensorsWriter::Create(fs, stored.path, entries);
  if (!writer.ok()) return writer.status();
  for (size_t i = 0; i < entries.size(); ++i) {
    const std::vector<uint8_t>& bytes = weight.bytes(static_cast<int>(i));
    absl::Status status = (*writer)->Append(
        entries[i].name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    if (!status.ok()) return status;
  }
  if (absl::StatusOr<WrittenFile> written = (*writer)->Finish(); !written.ok()) {
    return written.status();
  }
  return stored;
}

absl::StatusOr<StoredVector> LoadNorm(const Checkpoint& source) {
  absl::StatusOr<std::vector<float>> values = source.Vector(kNorm);
  if (!values.ok()) return values.status();
  for (const float value : *values) {
    if (!std::isfinite(value)) {
      return absl::InvalidArgumentError(
          Cat(kNorm, " holds a value that is not finite; every weight must be finite"));
    }
  }
  StoredVector norm;
  norm.values = *std::move(values);
  for (const TensorInfo& tensor : source.tensors()) {
    if (tensor.name == kNorm) norm.dtype = tensor.dtype;
  }
  return norm;
}

}  // namespace

absl::StatusOr<ModelParts> QuantizeParts(const PartsProblem& problem, FileSystem& fs,
                                         const std::string& directory) {
  if (absl::Status status = fs.CreateDirectory(directory); !status.ok()) return status;
  ModelParts parts;
  {
    const absl::StatusOr<RoundedModule> embedding = RoundPart(problem, kEmbedding, kEmbedding);
    if (!embedding.ok()) return embedding.status();
    if (absl::Status status = problem.on_embedding(embedding->weight.view()); !status.ok()) {
      return status;
    }
    absl::StatusOr<StoredPart> stored =
        Store(*embedding, fs, Cat(directory, "/embedding.safetensors"));
    if (!stored.ok()) return stored.status();
    parts.embedding = *std::move(stored);
  }
  const bool tied = problem.config->tied_head;
  if (!tied || SchemeFor(*problem.recipe, kHead) != SchemeFor(*problem.recipe, kEmbedding)) {
    const absl::StatusOr<RoundedModule> head = RoundPart(problem, kHead, tied ? kEmbedding : kHead);
    if (!head.ok()) return head.status();
    absl::StatusOr<StoredPart> stored = Store(*head, fs, Cat(directory, "/head.safetensors"));
    if (!stored.ok()) return stored.status();
    parts.head = *std::move(stored);
  }
  absl::StatusOr<StoredVector> norm = LoadNorm(*problem.source);
  if (!norm.ok()) return norm.status();
  parts.norm = *std::move(norm);
  return parts;
}

}  // namespace nibble
