// SPDX-License-Identifier: Apache-2.0
// A model of which some weights and vectors are others: a block that is being quantized.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/artifact/weight_source.h"

namespace nibble {

// `base` and everything that views point to must outlive it. Reading is thread-safe.
class OverlaySource final : public WeightSource {
 public:
  explicit OverlaySource(const WeightSource& base) : base_(base) {}

  void SetWeight(const std::string& module, WeightView view) { weights_[module] = view; }
  void SetVector(const std::string& tensor, std::vector<float> values) {
    vectors_[tensor] = std::move(values);
  }

  absl::StatusOr<WeightView> Weight(std::string_view module) const override {
    const auto it = weights_.find(module);
    if (it != weights_.end()) return it->second;
    return base_.Weight(module);
  }
  absl::StatusOr<std::vector<float>> Vector(std::string_view tensor) const override {
    const auto it = vectors_.find(tensor);
    if (it != vectors_.end()) return it->second;
    return base_.Vector(tensor);
  }
  bool HasVector(std::string_view tensor) const override {
    return vectors_.contains(tensor) || base_.HasVector(tensor);
  }
  bool HasWeight(std::string_view module) const override {
    return weights_.contains(module) || base_.HasWeight(module);
  }

 private:
  const WeightSource& base_;
  std::map<std::string, WeightView, std::less<>> weights_;
  std::map<std::string, std::vector<float>, std::less<>> vectors_;
};

}  // namespace nibble
