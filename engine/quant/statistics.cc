// SPDX-License-Identifier: Apache-2.0
#include "engine/quant/statistics.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "engine/base/cat.h"

namespace nibble {
namespace {

// Rows kept as samples for searches on activations.
constexpr int64_t kSampleRows = 128;

}  // namespace

void StatisticsCollector::OnInput(InputGroup group, const float* x, int64_t rows, int64_t cols) {
  done_ = true;
  for (size_t later = static_cast<size_t>(group) + 1; later < wanted_.size(); ++later) {
    done_ = done_ && !wanted_[later].any();
  }
  const StatisticsWanted& wanted = wanted_[static_cast<size_t>(group)];
  if (!wanted.any() || !status_.ok()) return;
  Sums& sums = sums_[static_cast<size_t>(group)];
  sums.cols = cols;
  if (wanted.hessian) {
    if (sums.hessian == nullptr) {
      auto buffer = backend_.Allocate(static_cast<size_t>(cols * cols) * sizeof(float));
      if (!buffer.ok()) {
        status_ = buffer.status();
        return;
      }
      sums.hessian = *std::move(buffer);
    }
    backend_.AccumulateHessian({.x = x, .rows = rows, .dim = cols, .h = sums.hessian->as<float>()});
  }
  if (wanted.activations) {
    host_.resize(static_cast<size_t>(rows * cols));
    backend_.Download(host_.data(), x, host_.size() * sizeof(float));
    status_ = backend_.Sync();
    if (!status_.ok()) return;
    AddActivations(sums, host_.data(), rows, cols);
  }
  sums.seen += rows;
}

void StatisticsCollector::AddActivations(Sums& sums, const float* x, int64_t rows, int64_t cols) {
  const auto k = static_cast<size_t>(cols);
  sums.abs.resize(k, 0.0);
  sums.max.resize(k, 0.0f);
  const int64_t stride = std::max<int64_t>(1, rows_ / kSampleRows);
  for (int64_t t = 0; t < rows; ++t) {
    const float* row = x + t * cols;
    for (size_t j = 0; j < k; ++j) {
      const float a = std::fabs(row[j]);
      sums.abs[j] += static_cast<double>(a);
      sums.max[j] = std::max(sums.max[j], a);
    }
    if ((sums.seen + t) % stride == 0 &&
        sums.samples.size() < static_cast<size_t>(kSampleRows) * k) {
      sums.samples.insert(sums.samples.end(), row, row + cols);
    }
  }
}

absl::StatusOr<InputStatistics> StatisticsCollector::Take(InputGroup group,
                                                          std::string_view where) {
  if (!status_.ok()) return status_;
  const StatisticsWanted& wanted = wanted_[static_cast<size_t>(group)];
  Sums& sums = sums_[static_cast<size_t>(group)];
  const int64_t k = sums.cols;
  InputStatistics result;
  bool finite = true;
  if (wanted.hessian) {
    result.hessian = Matrix(k, k);
    backend_.Download(result.hessian.row(0), sums.hessian->data(),
                      result.hessian.values.size() * sizeof(float));
    if (absl::Status status = backend_.Sync(); !status.ok()) return status;
    sums.hessian.reset();
    ScaleAndMirror(result.hessian, 2.0 / static_cast<double>(sums.seen), threads_);
    for (int64_t i = 0; i < k; ++i) finite = finite && std::isfinite(result.hessian.at(i, i));
  }
  if (wanted.activations) {
    for (const double sum : sums.abs) {
      const auto mean = static_cast<float>(sum / static_cast<double>(sums.seen));
      finite = finite && std::isfinite(mean);
      result.mean_abs.push_back(mean);
    }
    result.max_abs = std::move(sums.max);
    result.samples.rows = static_cast<int64_t>(sums.samples.size()) / k;
    result.samples.cols = k;
    result.samples.values = std::move(sums.samples);
  }
  if (!finite) {
    return absl::InvalidArgumentError(
        Cat("activations at the input of ", where,
            " are not finite (NaN or infinity) on the calibration set; the model or its weights "
            "are broken there"));
  }
  return result;
}

}  // namespace nibble
