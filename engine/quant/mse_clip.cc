// SPDX-License-Identifier: Apache-2.0
// Clip search by squared error: a narrower range cuts the few largest weights of a group and rounds
// all others finer.
//
//   r* = argmin_r sum_k h_k (w_k - Q_r(w_k))^2,  r in {1, 0.98, ..., 0.5}
//
// Q_r rounds to nearest under the scale of the range r * [min, max]; h_k weighs input feature k, as
// E[x_k^2], or 1. Ties go to the wider range. The search by squared error is the "mse" observer of
// the tools that write compressed-tensors.
#include <algorithm>
#include <utility>

#include "engine/quant/algorithm.h"

namespace nibble {
namespace {

double Error(const float* w, const float* q, const float* importance, int64_t count) {
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double d = static_cast<double>(w[k]) - static_cast<double>(q[k]);
    sum += importance == nullptr ? d * d : d * d * static_cast<double>(importance[k]);
  }
  return sum;
}

ScaleAndZero SearchSpan(const float* w, const float* importance, int64_t count,
                        const Scheme& scheme, float* scratch) {
  ScaleAndZero best = SpanScale(w, count, scheme, 1.0);
  double least = 0;
  for (int i = 0; i < kMseClipRatios; ++i) {
    const ScaleAndZero candidate = SpanScale(w, count, scheme, MseClipRatio(i));
    if (candidate.scale == 0.0f) break;
    QuantizeSpan(w, count, candidate.scale, candidate.zero, scheme, scratch, nullptr);
    const double error = Error(w, scratch, importance, count);
    if (i == 0 || error < least) {
      least = error;
      best = candidate;
    }
  }
  return best;
}

}  // namespace

GroupScales MseClipScales(const Matrix& weight, const Scheme& scheme, const float* importance,
                          int threads) {
  const int64_t groups = scheme.GroupsPerRow(weight.cols);
  const int64_t width = scheme.GroupWidth(weight.cols);
  GroupScales result(weight.rows, groups);
  ParallelFor(threads, weight.rows, [&](int64_t n) {
    std::vector<float> scratch(static_cast<size_t>(width));
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * width;
      const ScaleAndZero best =
          SearchSpan(weight.row(n) + first, importance == nullptr ? nullptr : importance + first,
                     std::min(width, weight.cols - first), scheme, scratch.data());
      const auto i = static_cast<size_t>(n * groups + g);
      result.scale[i] = best.scale;
      result.zero[i] = best.zero;
    }
  });
  return result;
}

absl::StatusOr<GroupScales> MseClipScales(const RoundingProblem& problem, const float* importance) {
  const Matrix& weight = *problem.weight;
  if (problem.device == nullptr) {
    return MseClipScales(weight, *problem.scheme, importance, problem.threads);
  }
  GroupScales result(weight.rows, problem.scheme->GroupsPerRow(weight.cols));
  const absl::Status status =
      problem.device->ClipScales({problem.scheme, weight.rows, weight.cols, weight.row(0)},
                                 importance, result.scale.data(), result.zero.data());
  if (!status.ok()) return status;
  return result;
}

absl::StatusOr<QuantizedWeight> RoundMse(const RoundingProblem& problem) {
  if (problem.scales != nullptr) return RoundNearest(problem, *problem.scales);
  absl::StatusOr<GroupScales> scales = MseClipScales(problem, nullptr);
  if (!scales.ok()) return scales.status();
  return RoundNearest(problem, *std::move(scales));
}

}  // namespace nibble
