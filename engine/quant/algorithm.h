// SPDX-License-Identifier: Apache-2.0
// The algorithms of the quantizer: pure functions on float matrices, one file each, and the tables
// that list them.
//
// A *transform* looks at one input group (the linears that read one input) and returns a factor per
// input feature: the input is divided by it, the weights' columns are multiplied with it, the float
// function stays the same and rounds better. A *rounder* picks scales and codes for one linear. No
// algorithm knows packing, files or models.
//
// All functions are deterministic for any number of threads, and thread-safe. Weights are finite
// and (N, K) = (output features, input features); K is a multiple of the scheme's group.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/quant/matrix.h"
#include "engine/quant/quantized_weight.h"
#include "engine/quant/recipe.h"
#include "kernels/span_scale.h"
#include "kernels/weight_rounding.h"

namespace nibble {

// What calibration says about the input of a group. Fields that nobody asked for stay empty.
struct InputStatistics {
  Matrix hessian;               // (K, K), both triangles: 2/n sum of x x^T over n tokens
  std::vector<float> mean_abs;  // (K) mean |x|
  std::vector<float> max_abs;   // (K) max |x|
  Matrix samples;               // (some tokens, K): inputs spread evenly over the calibration set
};

// What a rounder has to be given beside the weight.
enum class Needs : uint8_t {
  kNothing,
  kHessian,  // InputStatistics::hessian
};

// ---- Rounders ----------------------------------------------------------------------------------

struct RoundingProblem {
  const Matrix* weight;       // (N, K)
  const Scheme* scheme;       // quantized
  const Matrix* hessian;      // (K, K); nullptr where the rounder does not need it
  const GroupScales* scales;  // already chosen (AWQ's clip search), or nullptr
  const GptqOptions* gptq;    // never nullptr
  int threads = 1;
  WeightRounding* device = nullptr;  // does the heavy parts, to the same bits; nullptr: threads do
  // Schemes with outliers: these features, ascending; nullptr: none.
  const std::vector<int32_t>* outliers = nullptr;
};

// rtn.cc: nearest codes under the widest scales.
absl::StatusOr<QuantizedWeight> RoundRtn(const RoundingProblem& problem);
// mse_clip.cc: nearest codes under the scales of least squared error.
absl::StatusOr<QuantizedWeight> RoundMse(const RoundingProblem& problem);
// gptq.cc: codes that compensate each other's errors.
absl::StatusOr<QuantizedWeight> RoundGptq(const RoundingProblem& problem);

struct RounderEntry {
  Rounder rounder;
  std::string_view name;  // in recipes
  Needs needs;
  absl::StatusOr<QuantizedWeight> (*round)(const RoundingProblem&);
};

// clang-format off
inline constexpr RounderEntry kRounders[] = {
    {Rounder::kRtn,  "rtn",  Needs::kNothing, RoundRtn},
    {Rounder::kMse,  "mse",  Needs::kNothing, RoundMse},
    {Rounder::kGptq, "gptq", Needs::kHessian, RoundGptq},
};
// clang-format on

// ---- Transforms --------------------------------------------------------------------------------

struct TransformProblem {
  std::vector<const Matrix*> weights;  // of the group's linears, each (N_i, K)
  std::vector<const Scheme*> schemes;  // of the same; those that are not quantized do not count
  const InputStatistics* input;
  const AwqOptions* awq;                  // never nullptr
  const SmoothQuantOptions* smoothquant;  // never nullptr
  int threads = 1;
  WeightRounding* device = nullptr;  // as in RoundingProblem
};

// awq.cc: spares the weights that large activations meet.
absl::StatusOr<std::vector<float>> ScaleAwq(const TransformProblem& problem);
// smoothquant.cc: moves the outliers of the activations into the weights.
absl::StatusOr<std::vector<float>> ScaleSmoothQuant(const TransformProblem& problem);

struct TransformEntry {
  Transform transform;
  std::string_view name;  // in recipes
  bool needs_hessian;
  bool needs_activations;
  bool norms_only;  // folds into the norm before the group only, not into a linear before it
  // (K) factors > 0, or empty for "leave the group as it is".
  absl::StatusOr<std::vector<float>> (*search)(const TransformProblem&);
};

// clang-format off
inline constexpr TransformEntry kTransforms[] = {
    // transform                name           hessian  activations  norms_only  search
    {Transform::kAwq,          "awq",         true,    true,        false,      ScaleAwq},
    {Transform::kSmoothQuant,  "smoothquant", false,   true,        true,       ScaleSmoothQuant},
};
// clang-format on

// The rows of the tables; every enumerator has one.
const RounderEntry& Find(Rounder rounder);
const TransformEntry& Find(Transform transform);

// ---- Outliers ----------------------------------------------------------------------------------

// outliers.cc. The features, ascending, with max_abs >= threshold: at most one in 16 and
// kMaxOutlierFeatures, the largest ones.
std::vector<int32_t> FindOutliers(const std::vector<float>& max_abs, double threshold);
// outliers.cc. By `rounder`, as if the problem's outliers were always 0; their weights in bf16.
absl::StatusOr<QuantizedWeight> RoundBesideOutliers(const RounderEntry& rounder,
                                                    const RoundingProblem& problem);

// ---- Parts of several algorithms ---------------------------------------------------------------

// rtn.cc. RangeScale() of the range of `count` weights, made to contain 0.
ScaleAndZero SpanScale(const float* w, int64_t count, const Scheme& scheme, double ratio);

// rtn.cc. Every group's scale at ratio 1.
GroupScales AbsmaxScales(const Matrix& weight, const Scheme& scheme, int threads);
// mse_clip.cc. Every group's scale at the ratio that minimises sum_k importance_k (w_k - q_k)^2;
// importance (K) or nullptr for ones.
GroupScales MseClipScales(const Matrix& weight, const Scheme& scheme, const float* importance,
                          int threads);
// The same by the problem's device, if it has one.
absl::StatusOr<GroupScales> MseClipScales(const RoundingProblem& problem, const float* importance);
// awq.cc. Every group's scale at the ratio that minimises the error of the group's share of the
// output, (w - q)_g^T H_gg (w - q)_g.
absl::StatusOr<GroupScales> OutputClipScales(const RoundingProblem& problem);

// rtn.cc. Nearest codes under given scales.
QuantizedWeight RoundNearest(const Matrix& weight, const Scheme& scheme, GroupScales scales,
                             int threads);
// The same by the problem's device, if it has one.
absl::StatusOr<QuantizedWeight> RoundNearest(const RoundingProblem& problem, GroupScales scales);
// rtn.cc. The float values of those codes.
Matrix NearestValues(const Matrix& weight, const Scheme& scheme, const GroupScales& scales,
                     int threads);

}  // namespace nibble
