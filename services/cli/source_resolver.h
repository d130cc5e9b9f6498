// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "services/common/settings.h"
#include "services/generation/model_source.h"

namespace nibble {

class QuantizationServer;

// Finds what LoadModel names: "artifacts/<identifier>" and "models/<identifier>" in the data
// directory, everything else beneath --model-root. Without a quantization service in this process
// the data directory's store is read, as another process's service leaves it. May block.
class SourceResolver {
 public:
  // `quantization` may be nullptr; both must outlive the resolver.
  SourceResolver(const Settings& settings, QuantizationServer* quantization)
      : settings_(settings), quantization_(quantization) {}

  absl::StatusOr<ModelSource> operator()(const std::string& source) const;

 private:
  absl::StatusOr<ModelSource> Artifact(const std::string& name) const;
  absl::StatusOr<ModelSource> Model(const std::string& name) const;

  const Settings& settings_;
  QuantizationServer* quantization_;
};

// Where copies of sources lie while they are loaded.
std::string ScratchDirectory(const Settings& settings);

}  // namespace nibble
