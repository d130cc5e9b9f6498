// SPDX-License-Identifier: Apache-2.0
// LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339): a few input features, the outliers O, hold
// values many times larger than all others. They are multiplied as they are, the rest in int8:
//
//   y_n = s_x s_n sum_{k not in O} q_xk q_nk + sum_{k in O} x_k w_nk
//
// q and s: codes and scales of the token and of row n, both chosen as if the features of O were 0.
// The paper finds O in every input while it multiplies: the features with |x_k| >= 6 in some token.
// Here O is calibrated: those features over all calibration tokens, one list for all linears that
// read the input; so their weights are kept in bf16 and nothing is looked for at run time.
#include <algorithm>

#include "engine/quant/algorithm.h"

namespace nibble {
namespace {

// More than one feature in so many is no longer a few.
constexpr size_t kSmallestShare = 16;

}  // namespace

std::vector<int32_t> FindOutliers(const std::vector<float>& max_abs, double threshold) {
  std::vector<int32_t> features;
  for (size_t k = 0; k < max_abs.size(); ++k) {
    if (static_cast<double>(max_abs[k]) >= threshold) features.push_back(static_cast<int32_t>(k));
  }
  const size_t most =
      std::min(max_abs.size() / kSmallestShare, static_cast<size_t>(kMaxOutlierFeatures));
  if (features.size() > most) {
    std::stable_sort(features.begin(), features.end(), [&max_abs](int32_t a, int32_t b) {
      return max_abs[static_cast<size_t>(a)] > max_abs[static_cast<size_t>(b)];
    });
    features.resize(most);
    std::sort(features.begin(), features.end());
  }
  return features;
}

absl::StatusOr<QuantizedWeight> RoundBesideOutliers(const RounderEntry& rounder,
                                                    const RoundingProblem& problem) {
  const std::vector<int32_t>& features = *problem.outliers;
  Matrix weight = *problem.weight;
  Matrix hessian;
  RoundingProblem rest = problem;
  rest.weight = &weight;
  if (problem.hessian != nullptr) {
    hessian = *problem.hessian;
    rest.hessian = &hessian;
  }
  for (const int32_t k : features) {
    for (int64_t n = 0; n < weight.rows; ++n) weight.at(n, k) = 0;
    for (int64_t i = 0; i < hessian.rows; ++i) hessian.at(i, k) = hessian.at(k, i) = 0;
  }
  absl::StatusOr<QuantizedWeight> rounded = rounder.round(rest);
  if (rounded.ok()) rounded->SetOutliers(features, *problem.weight);
  return rounded;
}

}  // namespace nibble
