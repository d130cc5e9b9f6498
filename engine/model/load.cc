// SPDX-License-Identifier: Apache-2.0
#include "engine/model/load.h"

#include "engine/base/cat.h"

namespace nibble {

absl::StatusOr<WeightView> CheckedWeight(const WeightSource& source, const std::string& module,
                                         int64_t rows, int64_t cols) {
  auto weight = source.Weight(module);
  if (!weight.ok()) return weight.status();
  if (weight->rows != rows || weight->cols != cols) {
    return absl::InvalidArgumentError(Cat(module, " has shape [", weight->rows, ", ", weight->cols,
                                          "]; config.json calls for [", rows, ", ", cols, "]"));
  }
  return weight;
}

static absl::StatusOr<std::vector<float>> CheckedVector(const WeightSource& source,
                                                        const std::string& tensor, int64_t size) {
  auto values = source.Vector(tensor);
  if (!values.ok()) return values.status();
  if (static_cast<int64_t>(values->size()) != size) {
    return absl::InvalidArgumentError(
        Cat(tensor, " has ", values->size(), " elements; config.json calls for ", size));
  }
  return values;
}

absl::StatusOr<std::unique_ptr<PreparedLinear>> PrepareLinears(
    Backend& backend, const WeightSource& source, const std::vector<LinearSpec>& linears,
    Mode mode) {
  LinearGroup group;
  std::vector<std::vector<float>> biases;
  biases.reserve(linears.size());
  for (const LinearSpec& linear : linears) {
    auto weight = CheckedWeight(source, linear.module, linear.rows, linear.cols);
    if (!weight.ok()) return weight.status();
    group.weights.push_back(*weight);
    group.biases.push_back(nullptr);
    if (linear.bias) {
      auto bias = CheckedVector(source, linear.module + ".bias", linear.rows);
      if (!bias.ok()) return bias.status();
      biases.push_back(*std::move(bias));
      group.biases.back() = biases.back().data();
    }
  }
  return backend.Prepare(group, mode);
}

absl::StatusOr<std::unique_ptr<Buffer>> UploadVector(Backend& backend, const WeightSource& source,
                                                     const std::string& tensor, int64_t size) {
  auto values = CheckedVector(source, tensor, size);
  if (!values.ok()) return values.status();
  const size_t bytes = values->size() * sizeof(float);
  auto buffer = backend.Allocate(bytes);
  if (!buffer.ok()) return buffer.status();
  backend.Upload((*buffer)->data(), values->data(), bytes);
  if (absl::Status status = backend.Sync(); !status.ok()) return status;
  return buffer;
}

}  // namespace nibble
