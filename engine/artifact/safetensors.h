// SPDX-License-Identifier: Apache-2.0
// The safetensors container: 8 bytes little-endian header length, a JSON header
// {"name": {"dtype": "BF16", "shape": [..], "data_offsets": [begin, end]}, "__metadata__": {..}},
// then the data that the offsets count from. What reader and writer share.
// Source: the format description of huggingface/safetensors.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"

namespace nibble {

inline constexpr int64_t kMaxSafetensorsHeader = 100'000'000;  // bytes, as the format's own limit
inline constexpr int64_t kMaxTensorRank = 8;

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kNone;
  std::vector<int64_t> shape;  // empty: a scalar
  int64_t begin = 0;           // bytes from the start of the data
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // ascending by begin
  std::map<std::string, std::string> metadata;
  int64_t data_start = 0;  // offset of the data in the file
};

// The dtype of that name in a header, kNone if it is not known here.
DType DTypeOfSafetensorsName(std::string_view name);

// Bytes of a tensor; InvalidArgument naming `name` if an extent is negative, the rank exceeds
// kMaxTensorRank or the product does not fit.
absl::StatusOr<int64_t> TensorBytes(std::string_view name, DType dtype,
                                    const std::vector<int64_t>& shape);

// Reads and checks the header of a file whose whole contents are `file`: every length and offset
// lies inside the file, sizes are the product of shape and dtype, tensors neither overlap nor leave
// holes, no name comes twice. InvalidArgument names `label` (the file), tensor, field and value.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view file,
                                                         std::string_view label);

// The first bytes of a file that holds `tensors` one after the other in the order given (begin and
// end are set here): deterministic, padded with spaces so that the data begins at a multiple of 64.
absl::StatusOr<std::string> BuildSafetensorsHeader(
    std::vector<SafetensorsEntry>& tensors, const std::map<std::string, std::string>& metadata);

}  // namespace nibble
