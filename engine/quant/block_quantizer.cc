// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/block_quantizer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/status.h"
#include "engine/quant/fold.h"
#include "engine/quant/overlay_source.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

const char* const kVectors[] = {
    "input_layernorm.weight",  "post_attention_layernorm.weight",
    "self_attn.q_norm.weight", "self_attn.k_norm.weight",
    "self_attn.q_proj.bias",   "self_attn.k_proj.bias",
    "self_attn.v_proj.bias",   "self_attn.o_proj.bias",
    "mlp.gate_proj.bias",      "mlp.up_proj.bias",
    "mlp.down_proj.bias",
};

// ||x M^T||^2 over the calibration tokens.
absl::StatusOr<double> OutputEnergy(const Matrix& m, const RoundingProblem& problem) {
  const absl::StatusOr<std::vector<double>> rows =
      QuadraticForm(m, problem.hessian->row(0), m.cols, problem.threads, problem.device);
  if (!rows.ok()) return rows.status();
  double sum = 0;
  for (const double row : *rows) sum += row;
  return sum;
}

// The AWQ clip search leaves out q and k.
bool ClipsOutput(const std::string& relative) {
  return relative != "self_attn.q_proj" && relative != "self_attn.k_proj";
}

}  // namespace

// The block as far as it is done: float weights, replaced one by one.
struct BlockQuantizer::Block {
  int layer = 0;
  std::map<std::string, Matrix> floats;            // by relative name; not yet rounded
  std::map<std::string, const Scheme*> schemes;    // by relative name
  std::map<std::string, StoredVector> vectors;     // by relative name
  std::map<std::string, GroupScales> scales;       // chosen by AWQ's clip search
  std::map<InputGroup, InputStatistics> observed;  // from before rounding
  QuantizedBlock done;

  OverlaySource Source(const WeightSource& base) const {
    OverlaySource source(base);
    for (const auto& [name, weight] : floats) {
      source.SetWeight(BlockModule(layer, name),
                       WeightView{FindScheme("f32"), weight.rows, weight.cols, weight.values.data(),
                                  nullptr, nullptr});
    }
    for (const auto& [name, weight] : done.weights) source.SetWeight(name, weight.view());
    for (const auto& [name, vector] : vectors) {
      source.SetVector(BlockModule(layer, name), vector.values);
    }
    return source;
  }
};

Mode CalibrationMode(const Backend& backend) {
  return backend.activation_type() == DType::kF32 ? Mode::kExact : Mode::kFast;
}

std::string StoredBytes(const StoredVector& vector) {
  Matrix row(1, static_cast<int64_t>(vector.values.size()));
  row.values = vector.values;
  const QuantizedWeight stored = QuantizedWeight::FromFloat(*PlainScheme(vector.dtype), row);
  return {reinterpret_cast<const char*>(stored.bytes(0).data()), stored.bytes(0).size()};
}

absl::StatusOr<Matrix> LoadRows(const WeightView& weight, const std::string& module, int64_t first,
                                int64_t count, int threads) {
  Matrix rows = DequantizeRows(weight, first, count, threads);
  for (int64_t n = 0; n < rows.rows; ++n) {
    for (int64_t k = 0; k < rows.cols; ++k) {
      if (std::isfinite(rows.at(n, k))) continue;
      return absl::InvalidArgumentError(Cat("weight of ", module, " at [", first + n, ", ", k,
                                            "] is ", std::isnan(rows.at(n, k)) ? "NaN" : "infinite",
                                            "; every weight must be finite"));
    }
  }
  return rows;
}

absl::StatusOr<Matrix> LoadWeight(const WeightSource& source, const std::string& module,
                                  int threads) {
  absl::StatusOr<WeightView> view = source.Weight(module);
  if (!view.ok()) return view.status();
  return LoadRows(*view, module, 0, view->rows, threads);
}

absl::StatusOr<RoundedModule> RoundModule(const std::string& module, Rounder rounder,
                                          const RoundingProblem& problem) {
  const Matrix& weight = *problem.weight;
  absl::StatusOr<QuantizedWeight> rounded =
      !problem.scheme->quantized()
          ? absl::StatusOr<QuantizedWeight>(QuantizedWeight::FromFloat(*problem.scheme, weight))
      : problem.outliers != nullptr ? RoundBesideOutliers(Find(rounder), problem)
                                    : Find(rounder).round(problem);
  if (!rounded.ok()) {
    return Within(module, rounded.status());
  }
  RoundedModule result{*std::move(rounded),
                       ModuleError{module, std::string(problem.scheme->name), 0, false}};
  Matrix difference = Dequantize(result.weight.view(), problem.threads);
  for (size_t i = 0; i < difference.values.size(); ++i) difference.values[i] -= weight.values[i];
  const bool of_output = problem.hessian != nullptr;
  const absl::StatusOr<double> error =
      of_output ? OutputEnergy(difference, problem) : SquaredSum(difference);
  if (!error.ok()) return Within(module, error.status());
  const absl::StatusOr<double> whole =
      of_output ? OutputEnergy(weight, problem) : SquaredSum(weight);
  if (!whole.ok()) return Within(module, whole.status());
  result.error.relative_error = *whole > 0 ? std::max(0.0, *error) / *whole : 0.0;
  result.error.of_output = of_output;
  result.error.outliers = result.weight.view().outliers;
  return result;
}

BlockQuantizer::BlockQuantizer(const Context& context) : context_(context) {
  for (const TensorInfo& tensor : context.source->tensors()) {
    if (tensor.shape.size() == 1) vector_types_[tensor.name] = tensor.dtype;
  }
}

absl::StatusOr<BlockQuantizer::Block> BlockQuantizer::Load(int layer) const {
  Block block;
  block.layer = layer;
  for (const InputGroup group : kInputGroups) {
    for (const std::string& name : GroupModules(group)) {
      const std::string module = BlockModule(layer, name);
      absl::StatusOr<Matrix> weight = LoadWeight(*context_.source, module, context_.threads);
      if (!weight.ok()) return weight.status();
      context_.source->Release(module);
      block.floats[name] = *std::move(weight);
      block.schemes[name] = FindScheme(SchemeFor(*context_.recipe, module));
    }
  }
  for (const char* name : kVectors) {
    const std::string tensor = BlockModule(layer, name);
    if (!context_.source->HasVector(tensor)) continue;
    absl::StatusOr<std::vector<float>> values = context_.source->Vector(tensor);
    if (!values.ok()) return values.status();
    for (const float value : *values) {
      if (!std::isfinite(value)) {
        return absl::InvalidArgumentError(
            Cat(tensor, " holds a value that is not finite; every weight must be finite"));
      }
    }
    const auto type = vector_types_.find(tensor);
    block.vectors[name] =
        StoredVector{type == vector_types_.end() ? DType::kF32 : type->second, *std::move(values)};
  }
  return block;
}

absl::StatusOr<std::map<InputGroup, InputStatistics>> BlockQuantizer::Observe(
    const Block& block, const StatisticsCollector::Wanted& wanted, ActivationStore& stream) {
  const OverlaySource source = block.Source(*context_.source);
  absl::StatusOr<std::unique_ptr<DecoderBlock>> prepared = DecoderBlock::Prepare(
      *context_.backend, *context_.config, block.layer, source, CalibrationMode(*context_.backend));
  if (!prepared.ok()) return prepared.status();
  StatisticsCollector collector(*context_.backend, wanted, context_.calibration->rows(),
                                context_.threads);
  absl::Status status =
      context_.calibration->Run(**prepared, stream, &collector, /*advance=*/false);
  if (!status.ok()) return status;
  std::map<InputGroup, InputStatistics> result;
  for (const InputGroup group : kInputGroups) {
    if (!wanted[static_cast<size_t>(group)].any()) continue;
    absl::StatusOr<InputStatistics> statistics =
        collector.Take(group, BlockModule(block.layer, GroupModules(group)[0]));
    if (!statistics.ok()) return statistics.status();
    result[group] = *std::move(statistics);
  }
  return result;
}

absl::Status BlockQuantizer::ApplyTransforms(Block& block, ActivationStore& stream) {
  const Recipe& recipe = *context_.recipe;
  StatisticsWanted wanted;
  for (const Transform transform : recipe.transforms) {
    wanted.hessian = wanted.hessian || Find(transform).needs_hessian;
    wanted.activations = wanted.activations || Find(transform).needs_activations;
  }
  auto observed = Observe(block, {wanted, wanted, wanted, wanted}, stream);
  if (!observed.ok()) return observed.status();

  for (const Transform transform : recipe.transforms) {
    const TransformEntry& entry = Find(transform);
    for (const InputGroup group : kInputGroups) {
      if (absl::Status status = context_.keep_going(); !status.ok()) return status;
      InputStatistics& input = observed->at(group);
      TransformProblem problem{{},
                               {},
                               &input,
                               &recipe.awq,
                               &recipe.smoothquant,
                               context_.threads,
                               context_.backend->weight_rounding()};
      bool rounded_inputs = false;
      for (const std::string& name : GroupModules(group)) {
        problem.weights.push_back(&block.floats.at(name));
        problem.schemes.push_back(block.schemes.at(name));
        rounded_inputs = rounded_inputs || problem.schemes.back()->activation != Activation::kFloat;
      }
      if (!IsQuantized(block, group) || (transform == Transform::kSmoothQuant && !rounded_inputs))
        continue;
      const std::optional<FoldTarget> target = FindFoldTarget(*context_.config, group);
      if (!target.has_value() || (entry.norms_only && !target->norm)) {
        if (block.layer == 0) {
          context_.log(Cat(entry.name, ": inputs of ", GroupModules(group)[0],
                           " stay as they are: ",
                           !target.has_value()
                               ? "v_proj has fewer heads than o_proj reads, so nothing before it "
                                 "can take the scales"
                               : "it scales inputs that come from a norm only"));
        }
        continue;
      }
      const absl::StatusOr<std::vector<float>> factors = entry.search(problem);
      if (!factors.ok()) {
        return Within(BlockModule(block.layer, GroupModules(group)[0]), factors.status());
      }
      if (factors->empty()) continue;
      FoldFactors(*context_.config, *target, group, *factors, block.floats, block.vectors, input);
    }
  }
  const bool clip = recipe.awq.clip && std::count(recipe.transforms.begin(),
                                                  recipe.transforms.end(), Transform::kAwq) > 0;
  for (const InputGroup group : kInputGroups) {
    for (const std::string& name : GroupModules(group)) {
      const Scheme& scheme = *block.schemes.at(name);
      // The scales of rows with outliers are chosen without those.
      if (!clip || !scheme.quantized() || scheme.outliers || !ClipsOutput(name)) continue;
      absl::StatusOr<GroupScales> scales =
          OutputClipScales({&block.floats.at(name), &scheme, &observed->at(group).hessian, nullptr,
                            &recipe.gptq, context_.threads, context_.backend->weight_rounding()});
      if (!scales.ok()) return Within(BlockModule(block.layer, name), scales.status());
      block.scales.emplace(name, *std::move(scales));
    }
  }
  if (wanted.hessian) block.observed = *std::move(observed);
  return absl::OkStatus();
}

absl::Status BlockQuantizer::RoundGroup(Block& block, InputGroup group,
                                        const InputStatistics* input) {
  const Recipe& recipe = *context_.recipe;
  std::vector<int32_t> outliers;
  if (HasOutliers(block, group)) outliers = FindOutliers(input->max_abs, recipe.llm_int8.threshold);
  const bool has_hessian = input != nullptr && !input->hessian.values.empty();
  for (const std::string& name : GroupModules(group)) {
    if (absl::Status status = context_.keep_going(); !status.ok()) return status;
    const auto scales = block.scales.find(name);
    const RoundingProblem problem{&block.floats.at(name),
                                  block.schemes.at(name),
                                  has_hessian ? &input->hessian : nullptr,
                                  scales == block.scales.end() ? nullptr : &scales->second,
                                  &recipe.gptq,
                                  context_.threads,
                                  context_.backend->weight_rounding(),
                                  block.schemes.at(name)->outliers ? &outliers : nullptr};
    const std::string module = BlockModule(block.layer, name);
    absl::StatusOr<RoundedModule> rounded = RoundModule(module, recipe.rounder, problem);
    if (!rounded.ok()) return rounded.status();
    context_.on_module(rounded->error);
    block.done.weights.emplace(module, std::move(rounded->weight));
    block.done.errors.push_back(std::move(rounded->error));
    block.floats.erase(name);
  }
  return absl::OkStatus();
}

bool BlockQuantizer::IsQuantized(const Block& block, InputGroup group) {
  const std::vector<std::string>& names = GroupModules(group);
  return std::any_of(names.begin(), names.end(), [&block](const std::string& name) {
    return block.schemes.at(name)->quantized();
  });
}

bool BlockQuantizer::HasOutliers(const Block& block, InputGroup group) {
  const std::vector<std::string>& names = GroupModules(group);
  return std::any_of(names.begin(), names.end(), [&block](const std::string& name) {
    return block.schemes.at(name)->outliers;
  });
}

absl::StatusOr<QuantizedBlock> BlockQuantizer::Quantize(int layer, ActivationStore* stream) {
  const Recipe& recipe = *context_.recipe;
  absl::StatusOr<Block> loaded = Load(layer);
  if (!loaded.ok()) return loaded.status();
  Block& block = *loaded;
  if (!recipe.transforms.empty()) {
    if (absl::Status status = ApplyTransforms(block, *stream); !status.ok()) return status;
  }
  const bool needs_hessian = Find(recipe.rounder).needs == Needs::kHessian;
  std::map<InputGroup, InputStatistics> observed = std::move(block.observed);
  const auto observe = [&](std::span<const InputGroup> groups) {
    StatisticsCollector::Wanted wanted{};
    bool any = false;
    for (const InputGroup group : groups) {
      StatisticsWanted& own = wanted[static_cast<size_t>(group)];
      own.hessian = needs_hessian && IsQuantized(block, group);
      own.activations = HasOutliers(block, group);
      any = any || own.any();
    }
    if (!any) return absl::OkStatus();
    auto now = Observe(block, wanted, *stream);
    if (!now.ok()) return now.status();
    for (auto& [group, statistics] : *now) {
      InputStatistics& known = observed[group];
      if (statistics.hessian.values.empty()) statistics.hessian = std::move(known.hessian);
      known = std::move(statistics);
    }
    return absl::OkStatus();
  };
  if (!recipe.true_sequential) {
    if (absl::Status status = observe(kInputGroups); !status.ok()) return status;
  }
  for (const InputGroup group : kInputGroups) {
    if (recipe.true_sequential) {
      if (absl::Status status = observe({&group, 1}); !status.ok()) return status;
    }
    const auto input = observed.find(group);
    absl::Status status =
        RoundGroup(block, group, input == observed.end() ? nullptr : &input->second);
    if (!status.ok()) return status;
    observed.erase(group);
  }
  for (auto& [name, vector] : block.vectors) {
    block.done.vectors.emplace(BlockModule(layer, name), std::move(vector));
  }
  return std::move(block.done);
}

}  // namespace nibble
