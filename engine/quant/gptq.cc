// SPDX-License-Identifier: Apache-2.0
// GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one after the other, and each
// column's error is compensated by the columns that are still to come.
//
//   minimise  tr((W - Q) H (W - Q)^T),   H = 2/n sum x x^T
//   for i = 1..K:  q_i = round(w_i);  e_i = (w_i - q_i) / U_ii;  w_j -= e_i U_ij  for j > i
//
// W (N, K) weights, x inputs, U the upper triangular factor of the damped Hessian's inverse,
// H^-1 = U^T U. Every row of W is a problem of its own.
//
// - Damping: a fraction of the mean diagonal is added to the diagonal, ten times as much whenever
//   the factor fails.
// - Dead columns (H_ii = 0: the input was always 0): W_i = 0, H_ii = 1.
// - Act-order: columns go by descending H_ii, so that the important ones are rounded while there is
//   most left to compensate with. Group scales are *static*: chosen from the original weights
//   before the loop, so codes land in their original places and nothing is gathered at run time.
// - Lazy blocks: within a block of columns updates are made at once, the rest of the row receives
//   the block's errors in one product.
// - A row whose codes came out worse than those of rounding to nearest keeps the latter.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/quant/algorithm.h"
#include "engine/quant/cholesky.h"
#include "kernels/check.h"

namespace nibble {
namespace {

constexpr int64_t kRowTile = 60;  // rows of W that a thread works on at once; not seen in results
constexpr int kDampingAttempts = 8;

// order[i] is the column that is rounded i-th; ties go to the lower index.
std::vector<int64_t> ColumnOrder(const Matrix& hessian, bool act_order) {
  std::vector<int64_t> order(static_cast<size_t>(hessian.rows));
  std::iota(order.begin(), order.end(), int64_t{0});
  if (act_order) {
    std::stable_sort(order.begin(), order.end(), [&hessian](int64_t a, int64_t b) {
      return hessian.at(a, a) > hessian.at(b, b);
    });
  }
  return order;
}

// U of the damped Hessian with rows and columns in `order`.
absl::StatusOr<Matrix> DampedFactor(const RoundingProblem& problem,
                                    const std::vector<int64_t>& order) {
  const Matrix& hessian = *problem.hessian;
  double damping = problem.gptq->damping;
  const int64_t k = hessian.rows;
  double sum = 0;
  int64_t alive = 0;
  for (int64_t i = 0; i < k; ++i) {
    sum += static_cast<double>(hessian.at(i, i));
    alive += hessian.at(i, i) > 0 ? 1 : 0;
  }
  const double mean = alive > 0 ? sum / static_cast<double>(alive) : 0;
  Matrix factor(k, k);
  for (int attempt = 0; attempt < kDampingAttempts; ++attempt, damping *= 10) {
    ParallelFor(problem.threads, k, [&](int64_t i) {
      const float* from = hessian.row(order[static_cast<size_t>(i)]);
      float* to = factor.row(i);
      for (int64_t j = 0; j < k; ++j) to[j] = from[order[static_cast<size_t>(j)]];
      to[i] = to[i] > 0 ? static_cast<float>(static_cast<double>(to[i]) + damping * mean) : 1.0f;
    });
    const absl::StatusOr<bool> factored =
        problem.device == nullptr ? UpperFactorOfInverse(factor, problem.threads)
                                  : problem.device->UpperFactorOfInverse(factor.row(0), k);
    if (!factored.ok()) return factored.status();
    if (*factored) return factor;
  }
  return absl::InternalError(absl::StrCat("GPTQ: the Hessian of ", k,
                                          " inputs has no Cholesky factor even with damping ",
                                          damping / 10, " times its mean diagonal"));
}

struct Tile {
  int64_t first;
  int64_t rows;
};

// Rounds the rows of one tile; `work` holds them with columns in order and is used up. Values and
// codes land in original column order.
void RoundTile(const Scheme& scheme, const GroupScales& scales, const Matrix& factor,
               const std::vector<int64_t>& order, int64_t block, Tile tile, Matrix& work,
               Matrix& values, std::vector<int8_t>& codes) {
  const int64_t k = work.cols;
  const int64_t width = scheme.GroupWidth(k);
  Matrix errors(tile.rows, block);
  for (int64_t begin = 0; begin < k; begin += block) {
    const int64_t end = std::min(begin + block, k);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t column = order[static_cast<size_t>(i)];
      const float* u = factor.row(i);
      for (int64_t r = 0; r < tile.rows; ++r) {
        float* w = work.row(r);
        const auto s = static_cast<size_t>((tile.first + r) * scales.groups + column / width);
        float q = 0;
        QuantizeSpan(w + i, 1, scales.scale[s], scales.zero[s], scheme, &q,
                     &codes[static_cast<size_t>(r * k + column)]);
        values.at(r, column) = q;
        const float error = (w[i] - q) / u[i];
        errors.at(r, i - begin) = error;
        for (int64_t j = i + 1; j < end; ++j) w[j] -= error * u[j];
      }
    }
    if (end < k) {
      MultiplyAdd(-1.0f, errors.row(0), block, factor.row(begin) + end, k, tile.rows, end - begin,
                  k - end, work.row(0) + end, k);
    }
  }
}

// Stores the codes of every row: what WeightRounding::GptqCodes chooses.
void RoundByThreads(const RoundingProblem& problem, const GroupScales& scales, const Matrix& factor,
                    const std::vector<int64_t>& order, QuantizedWeight& result) {
  const Matrix& weight = *problem.weight;
  const Scheme& scheme = *problem.scheme;
  const Matrix& hessian = *problem.hessian;
  const int64_t n = weight.rows;
  const int64_t k = weight.cols;
  const int64_t width = scheme.GroupWidth(k);
  ParallelFor(problem.threads, (n + kRowTile - 1) / kRowTile, [&](int64_t index) {
    const Tile tile{index * kRowTile, std::min(kRowTile, n - index * kRowTile)};
    Matrix work(tile.rows, k);
    Matrix error(tile.rows, k);          // W - Q of GPTQ
    Matrix nearest_error(tile.rows, k);  // and of rounding to nearest
    std::vector<int8_t> codes(static_cast<size_t>(tile.rows * k));
    std::vector<int8_t> nearest(static_cast<size_t>(tile.rows * k));
    for (int64_t r = 0; r < tile.rows; ++r) {
      const float* w = weight.row(tile.first + r);
      for (int64_t i = 0; i < k; ++i) work.at(r, i) = w[order[static_cast<size_t>(i)]];
    }
    RoundTile(scheme, scales, factor, order, problem.gptq->block_columns, tile, work, error, codes);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const float* w = weight.row(tile.first + r);
      for (int64_t g = 0; g < scales.groups; ++g) {
        const int64_t first = g * width;
        const auto s = static_cast<size_t>((tile.first + r) * scales.groups + g);
        QuantizeSpan(w + first, std::min(width, k - first), scales.scale[s], scales.zero[s], scheme,
                     nearest_error.row(r) + first, nearest.data() + r * k + first);
      }
      for (int64_t j = 0; j < k; ++j) {
        error.at(r, j) = w[j] - error.at(r, j);
        nearest_error.at(r, j) = w[j] - nearest_error.at(r, j);
      }
    }
    const std::vector<double> own = QuadraticForm(error, hessian.row(0), k, 1);
    const std::vector<double> other = QuadraticForm(nearest_error, hessian.row(0), k, 1);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const auto i = static_cast<size_t>(r);
      // Written so that an objective that is not a number loses.
      const bool keep = own[i] <= other[i];
      result.SetRow(tile.first + r, (keep ? codes : nearest).data() + r * k);
    }
  });
}

}  // namespace

absl::StatusOr<QuantizedWeight> RoundGptq(const RoundingProblem& problem) {
  NIBBLE_CHECK(problem.hessian != nullptr && problem.hessian->rows == problem.weight->cols);
  const Scheme& scheme = *problem.scheme;
  const Matrix& hessian = *problem.hessian;
  const int64_t n = problem.weight->rows;
  const int64_t k = problem.weight->cols;

  Matrix weight = *problem.weight;
  std::vector<float> diagonal(static_cast<size_t>(k));
  for (int64_t i = 0; i < k; ++i) {
    diagonal[static_cast<size_t>(i)] = hessian.at(i, i);
    if (hessian.at(i, i) > 0) continue;
    for (int64_t r = 0; r < n; ++r) weight.at(r, i) = 0;
  }
  RoundingProblem alive = problem;
  alive.weight = &weight;
  absl::StatusOr<GroupScales> scales = problem.scales != nullptr ? *problem.scales
                                       : problem.gptq->mse_clip
                                           ? MseClipScales(alive, diagonal.data())
                                           : AbsmaxScales(weight, scheme, problem.threads);
  if (!scales.ok()) return scales.status();
  const std::vector<int64_t> order = ColumnOrder(hessian, problem.gptq->act_order);
  const absl::StatusOr<Matrix> factor = DampedFactor(problem, order);
  if (!factor.ok()) return factor.status();

  QuantizedWeight result(scheme, n, k);
  result.SetScales(*scales);
  if (problem.device == nullptr) {
    RoundByThreads(alive, *scales, *factor, order, result);
    return result;
  }
  GptqCall call;
  call.weight = {&scheme, n, k, weight.row(0)};
  call.scales = {scales->scale.data(), scales->zero.data()};
  call.hessian = hessian.row(0);
  call.factor = factor->row(0);
  call.order = order.data();
  call.block = problem.gptq->block_columns;
  std::vector<int8_t> codes(weight.values.size());
  if (absl::Status status = problem.device->GptqCodes(call, codes.data()); !status.ok()) {
    return status;
  }
  ParallelFor(problem.threads, n, [&](int64_t r) { result.SetRow(r, codes.data() + r * k); });
  return result;
}

}  // namespace nibble
