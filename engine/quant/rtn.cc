// SPDX-License-Identifier: Apache-2.0
// Round to nearest: q = clamp(rint(w / s) + z), the scale s wide enough for the largest weight of
// the group: RangeScale() of kernels/span_scale.h.
#include <algorithm>
#include <utility>
#include <vector>

#include "engine/quant/algorithm.h"
#include "kernels/check.h"

namespace nibble {

ScaleAndZero SpanScale(const float* w, int64_t count, const Scheme& scheme, double ratio) {
  float low = 0;
  float high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, w[i]);
    high = std::max(high, w[i]);
  }
  return RangeScale(low, high, scheme, ratio);
}

GroupScales AbsmaxScales(const Matrix& weight, const Scheme& scheme, int threads) {
  const int64_t groups = scheme.GroupsPerRow(weight.cols);
  const int64_t width = scheme.GroupWidth(weight.cols);
  GroupScales result(weight.rows, groups);
  ParallelFor(threads, weight.rows, [&](int64_t n) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * width;
      const auto i = static_cast<size_t>(n * groups + g);
      const ScaleAndZero chosen =
          SpanScale(weight.row(n) + first, std::min(width, weight.cols - first), scheme, 1.0);
      result.scale[i] = chosen.scale;
      result.zero[i] = chosen.zero;
    }
  });
  return result;
}

namespace {

// One row's values, and its codes where `codes` is not null.
void NearestRow(const float* w, int64_t cols, const Scheme& scheme, const GroupScales& scales,
                int64_t n, float* values, int8_t* codes) {
  const int64_t width = scheme.GroupWidth(cols);
  for (int64_t g = 0; g < scales.groups; ++g) {
    const int64_t first = g * width;
    const auto i = static_cast<size_t>(n * scales.groups + g);
    QuantizeSpan(w + first, std::min(width, cols - first), scales.scale[i], scales.zero[i], scheme,
                 values + first, codes == nullptr ? nullptr : codes + first);
  }
}

}  // namespace

QuantizedWeight RoundNearest(const Matrix& weight, const Scheme& scheme, GroupScales scales,
                             int threads) {
  QuantizedWeight result(scheme, weight.rows, weight.cols);
  result.SetScales(scales);
  ParallelFor(threads, weight.rows, [&](int64_t n) {
    std::vector<float> values(static_cast<size_t>(weight.cols));
    std::vector<int8_t> codes(static_cast<size_t>(weight.cols));
    NearestRow(weight.row(n), weight.cols, scheme, scales, n, values.data(), codes.data());
    result.SetRow(n, codes.data());
  });
  return result;
}

Matrix NearestValues(const Matrix& weight, const Scheme& scheme, const GroupScales& scales,
                     int threads) {
  Matrix result(weight.rows, weight.cols);
  ParallelFor(threads, weight.rows, [&](int64_t n) {
    NearestRow(weight.row(n), weight.cols, scheme, scales, n, result.row(n), nullptr);
  });
  return result;
}

absl::StatusOr<QuantizedWeight> RoundNearest(const RoundingProblem& problem, GroupScales scales) {
  const Matrix& weight = *problem.weight;
  if (problem.device == nullptr) {
    return RoundNearest(weight, *problem.scheme, std::move(scales), problem.threads);
  }
  QuantizedWeight result(*problem.scheme, weight.rows, weight.cols);
  result.SetScales(scales);
  std::vector<int8_t> codes(weight.values.size());
  const absl::Status status =
      problem.device->NearestCodes({problem.scheme, weight.rows, weight.cols, weight.row(0)},
                                   {scales.scale.data(), scales.zero.data()}, codes.data());
  if (!status.ok()) return status;
  ParallelFor(problem.threads, weight.rows,
              [&](int64_t n) { result.SetRow(n, codes.data() + n * weight.cols); });
  return result;
}

absl::StatusOr<QuantizedWeight> RoundRtn(const RoundingProblem& problem) {
  return RoundNearest(problem,
                      problem.scales != nullptr
                          ? *problem.scales
                          : AbsmaxScales(*problem.weight, *problem.scheme, problem.threads));
}

const RounderEntry& Find(Rounder rounder) {
  for (const RounderEntry& entry : kRounders) {
    if (entry.rounder == rounder) return entry;
  }
  NIBBLE_CHECK(false);
}

const TransformEntry& Find(Transform transform) {
  for (const TransformEntry& entry : kTransforms) {
    if (entry.transform == transform) return entry;
  }
  NIBBLE_CHECK(false);
}

}  // namespace nibble
