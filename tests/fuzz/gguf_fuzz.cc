// SPDX-License-Identifier: Apache-2.0
// A GGUF file as a model: header, configuration, every weight, tokenizer.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/artifact/gguf.h"
#include "engine/artifact/gguf_checkpoint.h"
#include "engine/artifact/gguf_model.h"
#include "engine/artifact/gguf_tokenizer.h"
#include "engine/base/cat.h"
#include "engine/model/config.h"
#include "kernels/codec.h"

namespace {

void ReadModel(const std::string& path) {
  const auto checkpoint = nibble::OpenGgufCheckpoint(path);
  if (!checkpoint.ok()) return;
  (void)nibble::ParseDecoderConfig((*checkpoint)->config());
  volatile float sink = 0;
  for (const nibble::ModuleInfo& module : (*checkpoint)->modules()) {
    const auto view = (*checkpoint)->Weight(module.name);
    if (view.ok()) sink = nibble::ReadWeight(*view, view->rows - 1, view->cols - 1);
  }
  (void)sink;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto file = nibble::ParseGguf(bytes, "fuzz");
  if (!file.ok()) return 0;
  const auto vocab = nibble::GgufVocabulary(*file);
  if (vocab.ok()) (void)nibble::TokenizerFiles(*vocab);
  const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
  if (fd < 0) return 0;
  if (::write(fd, data, size) == static_cast<ssize_t>(size)) {
    ReadModel(nibble::Cat("/proc/self/fd/", fd));
  }
  ::close(fd);
  return 0;
}
