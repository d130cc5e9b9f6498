// SPDX-License-Identifier: Apache-2.0
// Round to nearest: q = clamp(rint(w / s) + z), the scale s wide enough for the largest weight of
// the group.
//
// Scales follow compressed-tensors: a symmetric b-bit grid spans 2^b - 1 steps, half of them on
// each side, so s = max|w| / ((2^b - 1) / 2) and the largest positive weight is cut by half a step;
// an asymmetric grid spans min..max, made to contain 0 so that 0 is a code. The largest values of
// e4m3 (448) and NF4 (1) meet max|w|.
#include <algorithm>
#include <cmath>

#include "engine/quant/algorithm.h"
#include "kernels/check.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

float RoundToStored(double value, DType type) {
  const auto f = static_cast<float>(value);
  if (type == DType::kBF16) return RoundToBF16(f);
  if (type == DType::kF16) return F16ToF32(F32ToF16(f));
  return f;
}

}  // namespace

ScaleAndZero SpanScale(const float* w, int64_t count, const Scheme& scheme, double ratio) {
  float low = 0;
  float high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = std::min(low, w[i]);
    high = std::max(high, w[i]);
  }
  if (scheme.symmetric()) {
    const double absmax = std::max(-static_cast<double>(low), static_cast<double>(high));
    return {RoundToStored(ratio * absmax / scheme.span(), scheme.scale), 0};
  }
  const double steps = scheme.code_max() - scheme.code_min();
  const double min = ratio * low;
  const float scale = RoundToStored((ratio * high - min) / steps, scheme.scale);
  if (scale == 0.0f) return {0.0f, 0};
  const double zero = std::nearbyint(scheme.code_min() - min / scale);
  return {scale, static_cast<int8_t>(std::clamp(zero, static_cast<double>(scheme.code_min()),
                                                static_cast<double>(scheme.code_max())))};
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

absl::StatusOr<QuantizedWeight> RoundRtn(const RoundingProblem& problem) {
  const Matrix& weight = *problem.weight;
  if (problem.scales != nullptr) {
    return RoundNearest(weight, *problem.scheme, *problem.scales, problem.threads);
  }
  return RoundNearest(weight, *problem.scheme,
                      AbsmaxScales(weight, *problem.scheme, problem.threads), problem.threads);
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
