// SPDX-License-Identifier: Apache-2.0
// SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): a few input features hold outliers that spoil
// the int8 scale of a whole token; they are divided down, and the weights multiplied up.
//
//   s_j = max|x_j|^a / max|w_j|^(1-a)
//
// max|x_j| over the calibration tokens, max|w_j| over all rows of the group's linears, a (alpha)
// how much of the difficulty moves into the weights: fixed, or the one of {0, 0.05, ..., 1} with
// the least squared error of the group's outputs on sample tokens, weights and activations both
// rounded as the scheme says (or not smoothing at all, if that is better). Inputs that were always
// 0 keep factor 1.
#include <algorithm>
#include <cmath>

#include "engine/quant/algorithm.h"
#include "kernels/check.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

constexpr int kSteps = 20;
constexpr double kSmallest = 1e-5;

std::vector<float> Factors(const std::vector<float>& max_x, const std::vector<float>& max_w,
                           double alpha) {
  std::vector<float> s(max_x.size(), 1.0f);
  for (size_t j = 0; j < s.size(); ++j) {
    if (max_x[j] == 0 || max_w[j] == 0) continue;
    s[j] = static_cast<float>(
        std::max(kSmallest, std::pow(static_cast<double>(max_x[j]), alpha) /
                                std::pow(static_cast<double>(max_w[j]), 1 - alpha)));
  }
  return s;
}

// An activation after rounding under the scale of its token, whose largest magnitude is `absmax`.
float RoundActivation(float x, float absmax, Activation activation) {
  switch (activation) {
    case Activation::kInt8PerToken:
      return static_cast<float>(EncodeInt8(x, Int8InverseScale(absmax))) * Int8Scale(absmax);
    case Activation::kE4M3PerToken:
      return E4M3ToF32(F32ToE4M3(x * E4M3InverseScale(absmax))) * E4M3Scale(absmax);
    case Activation::kFloat:
      break;
  }
  return x;
}

// (K, T): the transposed sample inputs, divided by `factors` and, per token, through what the
// product consumes.
Matrix RoundedInputs(const Matrix& samples, const std::vector<float>& factors,
                     Activation activation) {
  Matrix result(samples.cols, samples.rows);
  std::vector<float> x(static_cast<size_t>(samples.cols));
  for (int64_t t = 0; t < samples.rows; ++t) {
    float absmax = 0;
    for (size_t j = 0; j < x.size(); ++j) {
      x[j] = samples.row(t)[j] / factors[j];
      absmax = std::max(absmax, std::fabs(x[j]));
    }
    for (size_t j = 0; j < x.size(); ++j) {
      result.at(static_cast<int64_t>(j), t) = RoundActivation(x[j], absmax, activation);
    }
  }
  return result;
}

// Squared error of the outputs of all quantized linears.
double Loss(const TransformProblem& problem, const Matrix& inputs_t,
            const std::vector<float>& factors) {
  constexpr int64_t kRows = 48;
  const int64_t tokens = inputs_t.cols;
  double loss = 0;
  for (size_t i = 0; i < problem.weights.size(); ++i) {
    const Scheme& scheme = *problem.schemes[i];
    if (!scheme.quantized()) continue;
    const Matrix& weight = *problem.weights[i];
    const int64_t k = weight.cols;
    const Matrix rounded_t = RoundedInputs(problem.input->samples, factors, scheme.activation);
    const Matrix scaled = ScaleColumns(weight, factors, problem.threads);
    const Matrix rounded = NearestValues(
        scaled, scheme, AbsmaxScales(scaled, scheme, problem.threads), problem.threads);
    std::vector<double> tiles(static_cast<size_t>((weight.rows + kRows - 1) / kRows));
    ParallelFor(problem.threads, static_cast<int64_t>(tiles.size()), [&](int64_t tile) {
      const int64_t first = tile * kRows;
      const int64_t rows = std::min(kRows, weight.rows - first);
      Matrix error(rows, tokens);
      MultiplyAdd(1.0f, rounded.row(first), k, rounded_t.row(0), tokens, rows, k, tokens,
                  error.row(0), tokens);
      MultiplyAdd(-1.0f, weight.row(first), k, inputs_t.row(0), tokens, rows, k, tokens,
                  error.row(0), tokens);
      double sum = 0;
      for (const float e : error.values) sum += static_cast<double>(e) * static_cast<double>(e);
      tiles[static_cast<size_t>(tile)] = sum;
    });
    for (const double sum : tiles) loss += sum;
  }
  return loss;
}

}  // namespace

absl::StatusOr<std::vector<float>> ScaleSmoothQuant(const TransformProblem& problem) {
  const InputStatistics& input = *problem.input;
  std::vector<float> max_w(input.max_abs.size(), 0.0f);
  for (const Matrix* weight : problem.weights) {
    NIBBLE_CHECK(weight->cols == static_cast<int64_t>(max_w.size()));
    for (int64_t n = 0; n < weight->rows; ++n) {
      for (size_t j = 0; j < max_w.size(); ++j) {
        max_w[j] = std::max(max_w[j], std::fabs(weight->row(n)[j]));
      }
    }
  }
  if (problem.smoothquant->alpha >= 0) {
    return Factors(input.max_abs, max_w, problem.smoothquant->alpha);
  }
  Matrix inputs_t(input.samples.cols, input.samples.rows);
  for (int64_t t = 0; t < input.samples.rows; ++t) {
    for (int64_t j = 0; j < input.samples.cols; ++j) inputs_t.at(j, t) = input.samples.at(t, j);
  }
  std::vector<float> best;
  double least = Loss(problem, inputs_t, std::vector<float>(max_w.size(), 1.0f));
  for (int i = 0; i <= kSteps; ++i) {
    std::vector<float> candidate = Factors(input.max_abs, max_w, static_cast<double>(i) / kSteps);
    const double loss = Loss(problem, inputs_t, candidate);
    if (loss < least) {
      least = loss;
      best = std::move(candidate);
    }
  }
  return best;
}

}  // namespace nibble
