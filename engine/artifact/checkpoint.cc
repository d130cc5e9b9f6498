// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/checkpoint.h"

#include "engine/artifact/gguf_checkpoint.h"
#include "engine/artifact/hf_checkpoint.h"
#include "engine/artifact/source_files.h"
#include "engine/base/cat.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  absl::StatusOr<SourceFiles> files = ListSourceFiles(path);
  if (!files.ok()) return files.status();
  if (files->gguf) return OpenGgufCheckpoint(Cat(files->directory, "/", files->names[0]));
  return OpenHfCheckpoint(path);
}

}  // namespace nibble
