// SPDX-License-Identifier: Apache-2.0
// From a WeightSource to prepared weights, with every shape checked against the configuration;
// private to engine/model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/artifact/weight_source.h"
#include "kernels/backend.h"

namespace nibble {

struct LinearSpec {
  std::string module;
  int64_t rows;  // output features that the configuration calls for
  int64_t cols;  // input features
  bool bias;
};

// InvalidArgument naming the module where a stored shape differs from the specified one.
absl::StatusOr<WeightView> CheckedWeight(const WeightSource& source, const std::string& module,
                                         int64_t rows, int64_t cols);
absl::StatusOr<std::unique_ptr<PreparedLinear>> PrepareLinears(
    Backend& backend, const WeightSource& source, const std::vector<LinearSpec>& linears,
    Mode mode);
absl::StatusOr<std::unique_ptr<Buffer>> UploadVector(Backend& backend, const WeightSource& source,
                                                     const std::string& tensor, int64_t size);

}  // namespace nibble
