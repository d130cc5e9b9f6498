// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/fold.h"

#include <cmath>

#include "engine/base/cat.h"
#include "engine/quant/block_quantizer.h"
#include "kernels/check.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

float RoundTo(DType type, float value) {
  if (type == DType::kBF16) return RoundToBF16(value);
  if (type == DType::kF16) return F16ToF32(F32ToF16(value));
  return value;
}

// Divides offset + weight by the factors as well as its type can; returns what it was divided by.
std::vector<float> DivideNorm(StoredVector& norm, float offset, std::vector<float> factors) {
  NIBBLE_CHECK(norm.values.size() == factors.size());
  for (size_t j = 0; j < factors.size(); ++j) {
    const float gain = offset + norm.values[j];
    const float rounded = RoundTo(norm.dtype, gain / factors[j] - offset);
    const float left = offset + rounded;
    const float factor = gain / left;
    if (!std::isfinite(factor) || factor <= 0) {  // a dead or unrepresentable gain stays
      factors[j] = 1.0f;
      continue;
    }
    norm.values[j] = rounded;
    factors[j] = factor;
  }
  return factors;
}

void DivideRows(const std::string& module, const std::vector<float>& factors,
                std::map<std::string, Matrix>& weights,
                std::map<std::string, StoredVector>& vectors) {
  Matrix& weight = weights.at(module);
  NIBBLE_CHECK(weight.rows == static_cast<int64_t>(factors.size()));
  for (int64_t n = 0; n < weight.rows; ++n) {
    const float factor = factors[static_cast<size_t>(n)];
    for (int64_t k = 0; k < weight.cols; ++k) weight.at(n, k) /= factor;
  }
  const auto bias = vectors.find(Cat(module, ".bias"));
  if (bias == vectors.end()) return;
  bias->second.dtype = DType::kF32;
  for (size_t j = 0; j < factors.size(); ++j) bias->second.values[j] /= factors[j];
}

}  // namespace

std::optional<FoldTarget> FindFoldTarget(const DecoderConfig& config, InputGroup group) {
  switch (group) {
    case InputGroup::kQkv:
      return FoldTarget{true, "input_layernorm.weight"};
    case InputGroup::kGateUp:
      return FoldTarget{true, "post_attention_layernorm.weight"};
    case InputGroup::kDown:
      return FoldTarget{false, "mlp.up_proj"};
    case InputGroup::kO:
      if (config.heads == config.kv_heads) return FoldTarget{false, "self_attn.v_proj"};
      return std::nullopt;
  }
  return std::nullopt;
}

void FoldFactors(const DecoderConfig& config, const FoldTarget& target, InputGroup group,
                 std::vector<float> factors, std::map<std::string, Matrix>& weights,
                 std::map<std::string, StoredVector>& vectors, InputStatistics& input) {
  if (target.norm) {
    factors = DivideNorm(vectors.at(target.name), config.norm_weight_offset, std::move(factors));
  } else {
    DivideRows(target.name, factors, weights, vectors);
  }
  const auto k = static_cast<int64_t>(factors.size());
  for (const std::string& name : GroupModules(group)) {
    Matrix& weight = weights.at(name);
    for (int64_t n = 0; n < weight.rows; ++n) {
      for (int64_t j = 0; j < k; ++j) weight.at(n, j) *= factors[static_cast<size_t>(j)];
    }
  }
  for (int64_t i = 0; i < input.hessian.rows; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      input.hessian.at(i, j) /= factors[static_cast<size_t>(i)] * factors[static_cast<size_t>(j)];
    }
  }
  for (size_t j = 0; j < input.mean_abs.size(); ++j) {
    input.mean_abs[j] /= factors[j];
    input.max_abs[j] /= factors[j];
  }
  for (int64_t t = 0; t < input.samples.rows; ++t) {
    for (int64_t j = 0; j < k; ++j) input.samples.at(t, j) /= factors[static_cast<size_t>(j)];
  }
}

}  // namespace nibble
