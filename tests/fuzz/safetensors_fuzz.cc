// SPDX-License-Identifier: Apache-2.0
// The header of a safetensors file: what is accepted lies inside the file.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/artifact/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const auto header = nibble::ParseSafetensorsHeader(file, "fuzz");
  if (!header.ok()) return 0;
  const auto data_bytes = static_cast<int64_t>(size) - header->data_start;
  int64_t expected = 0;
  for (const nibble::SafetensorsEntry& entry : header->tensors) {
    const auto bytes = nibble::TensorBytes(entry.name, entry.dtype, entry.shape);
    if (entry.begin != expected || !bytes.ok() || entry.end - entry.begin != *bytes) std::abort();
    expected = entry.end;
  }
  if (expected != data_bytes) std::abort();
  return 0;
}
