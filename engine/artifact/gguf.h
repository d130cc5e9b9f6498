// SPDX-License-Identifier: Apache-2.0
// The GGUF container, versions 2 and 3: typed key-value pairs, tensor infos, data in blocks.
// Source: ggml-org/ggml, docs/gguf.md and include/gguf.h.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"

namespace nibble {

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// A value of a key. Texts and arrays of numbers point into the file.
struct GgufValue {
  GgufType type = GgufType::kU8;        // kArray: of `element`
  GgufType element = GgufType::kU8;     // of an array
  int64_t integer = 0;                  // every integer type and kBool; kU64 above 2^63 is refused
  double real = 0;                      // kF32, kF64
  std::string_view text;                // kString
  std::vector<std::string_view> texts;  // array of strings
  std::string_view numbers;             // array of fixed-size elements, little-endian
  int64_t count = 0;                    // elements of an array
};

// How the elements of a tensor are stored: the formats that are read, under ggml's numbers.
enum class GgmlType : uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBF16 = 30 };
struct GgmlFormat {
  GgmlType type;
  std::string_view name;  // "Q8_0"
  int64_t block;          // elements of a block along a row
  int64_t bytes;          // of a block
  DType dtype;            // of a plain format, else kNone
};
// nullptr for a format that is not read.
const GgmlFormat* FindGgmlFormat(uint32_t id);
// The name of any format of ggml, "type 99" if there is none of that number.
std::string GgmlFormatName(uint32_t id);

// One row of `cols` elements to f32; cols is a multiple of format.block.
void DequantizeRow(const GgmlFormat& format, const char* blocks, int64_t cols, float* out);

struct GgufTensor {
  std::string name;
  const GgmlFormat* format = nullptr;
  std::vector<int64_t> shape;  // as torch has it: the fastest dimension last
  std::string_view bytes;
};

struct GgufFile {
  std::map<std::string, GgufValue, std::less<>> values;
  std::vector<GgufTensor> tensors;  // in the order of their data

  // The value of a key, nullptr if absent.
  const GgufValue* Find(std::string_view key) const;
  // Scalars of a key; InvalidArgument naming the key if it has another type, or is absent and there
  // is no fallback.
  absl::StatusOr<int64_t> Integer(std::string_view key) const;
  absl::StatusOr<double> Real(std::string_view key) const;
  absl::StatusOr<std::string> Text(std::string_view key) const;
};

// Reads the header of a file whose whole contents are `file`; the result points into it. Every
// count, length and offset is checked against the file's size before it is used.
// InvalidArgument names `label` (the file), key or tensor, and value; Unimplemented names a tensor
// and its format if that is not read.
absl::StatusOr<GgufFile> ParseGguf(std::string_view file, std::string_view label);

// Whether the file begins like a GGUF file.
bool IsGguf(std::string_view file);

}  // namespace nibble
