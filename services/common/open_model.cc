// SPDX-License-Identifier: Apache-2.0
#include "services/common/open_model.h"

#include <utility>

namespace nibble {

absl::StatusOr<OpenedModel> OpenModel(const std::string& path) {
  OpenedModel opened;
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) return checkpoint.status();
  opened.checkpoint = *std::move(checkpoint);
  absl::StatusOr<DecoderConfig> config = ParseDecoderConfig(opened.checkpoint->config());
  if (!config.ok()) return config.status();
  opened.config = *std::move(config);
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = Tokenizer::FromDirectory(path);
  if (!tokenizer.ok()) return tokenizer.status();
  opened.tokenizer = *std::move(tokenizer);
  return opened;
}

}  // namespace nibble
