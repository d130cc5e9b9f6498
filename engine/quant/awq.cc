// SPDX-License-Identifier: Apache-2.0
// AWQ (Lin et al. 2023, arXiv 2306.00978): weights that meet large activations matter most; scaling
// them up before rounding and their inputs down makes their relative error smaller.
//
//   s_j(r) = mean|x_j|^r / mean|w_j|^(1-r), divided by sqrt(max s * min s)
//   r* = argmin_r sum over the group's linears of ||(W diag(s) quantized) diag(1/s) x - W x||^2
//
// x inputs, r on an even grid over [0, 1), mean|w_j| over all rows of the group's linears of
// |w_nj| / (largest |w| of its scale group). With D = W - (W diag(s) quantized) diag(1/s) the loss
// is tr(D H D^T): the Hessian stands for all tokens at once. A linear of more than 512 rows is
// judged by 512 of them, spread evenly: r is one number for thousands of rows. "No scaling" is a
// candidate too. Inputs that were always 0 keep factor 1.
//
// Clip search: per row and scale group, the range in {1, 0.95, ..., 0.5} of least output error
// (w - q)_g^T H_gg (w - q)_g. The caller skips q and k, whose errors meet in a product.
#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/quant/algorithm.h"
#include "kernels/check.h"

namespace nibble {
namespace {

constexpr int kClipRatios = 11;
constexpr double kClipStep = 0.05;
constexpr double kSmallest = 1e-4;
constexpr int64_t kSearchRows = 512;  // of a linear, to judge a candidate by

// mean over rows of |w_nj| / max|w| of its group, (K).
std::vector<double> MeanRelativeWeight(const TransformProblem& problem) {
  const int64_t k = problem.weights[0]->cols;
  std::vector<double> mean(static_cast<size_t>(k), 0.0);
  int64_t rows = 0;
  for (size_t i = 0; i < problem.weights.size(); ++i) {
    const Scheme& scheme = *problem.schemes[i];
    if (!scheme.quantized()) continue;
    const Matrix& weight = *problem.weights[i];
    const int64_t width = scheme.GroupWidth(k);
    rows += weight.rows;
    for (int64_t n = 0; n < weight.rows; ++n) {
      const float* w = weight.row(n);
      for (int64_t first = 0; first < k; first += width) {
        const int64_t end = std::min(first + width, k);
        float largest = 0;
        for (int64_t j = first; j < end; ++j) largest = std::max(largest, std::fabs(w[j]));
        if (largest == 0) continue;
        for (int64_t j = first; j < end; ++j) {
          mean[static_cast<size_t>(j)] += static_cast<double>(std::fabs(w[j]) / largest);
        }
      }
    }
  }
  for (double& value : mean) value /= static_cast<double>(rows);
  return mean;
}

std::vector<float> Candidate(const std::vector<float>& mean_abs, const std::vector<double>& weight,
                             double r) {
  const size_t k = mean_abs.size();
  std::vector<double> s(k, 1.0);
  double least = 0;
  double most = 0;
  for (size_t j = 0; j < k; ++j) {
    if (mean_abs[j] == 0) continue;
    s[j] = std::max(kSmallest, std::pow(static_cast<double>(mean_abs[j]), r) /
                                   (std::pow(weight[j], 1 - r) + kSmallest));
    least = least == 0 ? s[j] : std::min(least, s[j]);
    most = std::max(most, s[j]);
  }
  std::vector<float> factors(k, 1.0f);
  const double norm = std::sqrt(least * most);
  for (size_t j = 0; j < k; ++j) {
    if (mean_abs[j] != 0) factors[j] = static_cast<float>(s[j] / norm);
  }
  return factors;
}

// The rows of a quantized linear that candidates are judged by.
struct SearchedLinear {
  Matrix rows;
  const Scheme* scheme;
  double stands_for;  // rows of the linear for one of these
};

std::vector<SearchedLinear> SearchedLinears(const TransformProblem& problem) {
  std::vector<SearchedLinear> result;
  for (size_t i = 0; i < problem.weights.size(); ++i) {
    if (!problem.schemes[i]->quantized()) continue;
    const Matrix& weight = *problem.weights[i];
    const int64_t count = std::min(weight.rows, kSearchRows);
    Matrix rows(count, weight.cols);
    for (int64_t n = 0; n < count; ++n) {
      const float* from = weight.row(n * weight.rows / count);
      std::copy(from, from + weight.cols, rows.row(n));
    }
    result.push_back({std::move(rows), problem.schemes[i],
                      static_cast<double>(weight.rows) / static_cast<double>(count)});
  }
  return result;
}

// tr(D H D^T) summed over the linears.
absl::StatusOr<double> Loss(const TransformProblem& problem,
                            const std::vector<SearchedLinear>& linears,
                            const std::vector<float>& factors) {
  const int threads = problem.threads;
  const Matrix& hessian = problem.input->hessian;
  double loss = 0;
  for (const SearchedLinear& linear : linears) {
    const Matrix& weight = linear.rows;
    const int64_t k = weight.cols;
    Matrix work = ScaleColumns(weight, factors, threads);
    work =
        NearestValues(work, *linear.scheme, AbsmaxScales(work, *linear.scheme, threads), threads);
    ParallelFor(threads, weight.rows, [&](int64_t n) {
      for (int64_t j = 0; j < k; ++j) {
        work.at(n, j) = weight.at(n, j) - work.at(n, j) / factors[static_cast<size_t>(j)];
      }
    });
    const absl::StatusOr<std::vector<double>> rows =
        QuadraticForm(work, hessian.row(0), k, threads, problem.device);
    if (!rows.ok()) return rows.status();
    double sum = 0;
    for (const double row : *rows) sum += row;
    loss += linear.stands_for * sum;
  }
  return loss;
}

}  // namespace

absl::StatusOr<std::vector<float>> ScaleAwq(const TransformProblem& problem) {
  const InputStatistics& input = *problem.input;
  const size_t k = input.mean_abs.size();
  NIBBLE_CHECK(input.hessian.rows == static_cast<int64_t>(k));
  const std::vector<double> weight = MeanRelativeWeight(problem);
  std::vector<float> best;
  const std::vector<SearchedLinear> linears = SearchedLinears(problem);
  absl::StatusOr<double> least = Loss(problem, linears, std::vector<float>(k, 1.0f));
  if (!least.ok()) return least.status();
  for (int i = 0; i < problem.awq->grid; ++i) {
    std::vector<float> candidate =
        Candidate(input.mean_abs, weight, static_cast<double>(i) / problem.awq->grid);
    const absl::StatusOr<double> loss = Loss(problem, linears, candidate);
    if (!loss.ok()) return loss.status();
    if (*loss < *least) {
      least = loss;
      best = std::move(candidate);
    }
  }
  return best;
}

absl::StatusOr<GroupScales> OutputClipScales(const RoundingProblem& problem) {
  const Matrix& weight = *problem.weight;
  const Scheme& scheme = *problem.scheme;
  const int64_t n = weight.rows;
  const int64_t k = weight.cols;
  const int64_t groups = scheme.GroupsPerRow(k);
  const int64_t width = scheme.GroupWidth(k);
  GroupScales result(n, groups);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * width;
    const int64_t count = std::min(width, k - first);
    std::vector<double> least(static_cast<size_t>(n));
    for (int step = 0; step < kClipRatios; ++step) {
      Matrix error(n, count);
      std::vector<ScaleAndZero> chosen(static_cast<size_t>(n));
      ParallelFor(problem.threads, n, [&](int64_t r) {
        const float* w = weight.row(r) + first;
        const ScaleAndZero s = SpanScale(w, count, scheme, 1.0 - kClipStep * step);
        QuantizeSpan(w, count, s.scale, s.zero, scheme, error.row(r), nullptr);
        for (int64_t j = 0; j < count; ++j) error.at(r, j) = w[j] - error.at(r, j);
        chosen[static_cast<size_t>(r)] = s;
      });
      const absl::StatusOr<std::vector<double>> loss = QuadraticForm(
          error, problem.hessian->row(first) + first, k, problem.threads, problem.device);
      if (!loss.ok()) return loss.status();
      for (int64_t r = 0; r < n; ++r) {
        const auto i = static_cast<size_t>(r);
        if (step > 0 && !((*loss)[i] < least[i])) continue;
        least[i] = (*loss)[i];
        result.scale[static_cast<size_t>(r * groups + g)] = chosen[i].scale;
        result.zero[static_cast<size_t>(r * groups + g)] = chosen[i].zero;
      }
    }
  }
  return result;
}

}  // namespace nibble
