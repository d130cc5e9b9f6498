// SPDX-License-Identifier: Apache-2.0
#include "engine/artifact/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "engine/base/cat.h"
#include "engine/base/json.h"

namespace nibble {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "headers are read in place");

constexpr DType kStoredTypes[] = {DType::kF64,    DType::kF32, DType::kF16, DType::kBF16,
                                  DType::kF8E4M3, DType::kI64, DType::kI32, DType::kI16,
                                  DType::kI8,     DType::kU8,  DType::kBool};
constexpr int64_t kDataAlignment = 64;
constexpr std::string_view kMetadataKey = "__metadata__";

std::string KnownTypes() {
  std::string list;
  for (const DType type : kStoredTypes) {
    list += Cat(list.empty() ? "" : ", ", SafetensorsName(type));
  }
  return list;
}

absl::StatusOr<int64_t> ReadCount(const json& value, std::string_view where) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{1} << 62) {
    return absl::InvalidArgumentError(
        Cat(where, " is ", ShownJson(value), ", must be an integer in 0..2^62"));
  }
  return static_cast<int64_t>(value.get<uint64_t>());
}

absl::StatusOr<SafetensorsEntry> ReadEntry(const std::string& name, const json& value,
                                           int64_t data_bytes, std::string_view label) {
  const std::string where = Cat(label, ": tensor ", name);
  if (!value.is_object()) return absl::InvalidArgumentError(Cat(where, ": no object"));
  const auto dtype = value.find("dtype");
  const auto shape = value.find("shape");
  const auto offsets = value.find("data_offsets");
  if (dtype == value.end() || !dtype->is_string()) {
    return absl::InvalidArgumentError(Cat(where, ": dtype is missing or no string"));
  }
  if (shape == value.end() || !shape->is_array()) {
    return absl::InvalidArgumentError(Cat(where, ": shape is missing or no array"));
  }
  if (offsets == value.end() || !offsets->is_array() || offsets->size() != 2) {
    return absl::InvalidArgumentError(Cat(where, ": data_offsets is missing or no array of two"));
  }
  SafetensorsEntry entry;
  entry.name = name;
  entry.dtype = DTypeOfSafetensorsName(dtype->get_ref<const std::string&>());
  if (entry.dtype == DType::kNone) {
    return absl::InvalidArgumentError(
        Cat(where, ": dtype is ", ShownJson(*dtype), ", known are ", KnownTypes()));
  }
  if (shape->size() > static_cast<size_t>(kMaxTensorRank)) {
    return absl::InvalidArgumentError(
        Cat(where, ": shape has ", shape->size(), " extents, at most ", kMaxTensorRank));
  }
  for (const json& extent : *shape) {
    absl::StatusOr<int64_t> count = ReadCount(extent, Cat(where, ": shape"));
    if (!count.ok()) return count.status();
    entry.shape.push_back(*count);
  }
  absl::StatusOr<int64_t> begin = ReadCount((*offsets)[0], Cat(where, ": data_offsets"));
  if (!begin.ok()) return begin.status();
  absl::StatusOr<int64_t> end = ReadCount((*offsets)[1], Cat(where, ": data_offsets"));
  if (!end.ok()) return end.status();
  entry.begin = *begin;
  entry.end = *end;
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return absl::InvalidArgumentError(Cat(where, ": data_offsets is [", entry.begin, ", ",
                                          entry.end, "], must ascend within the ", data_bytes,
                                          " bytes of data in the file"));
  }
  absl::StatusOr<int64_t> bytes = TensorBytes(where, entry.dtype, entry.shape);
  if (!bytes.ok()) return bytes.status();
  if (*bytes != entry.end - entry.begin) {
    return absl::InvalidArgumentError(Cat(where, ": data_offsets span ", entry.end - entry.begin,
                                          " bytes, but shape ", ShownJson(*shape), " of ",
                                          SafetensorsName(entry.dtype), " takes ", *bytes));
  }
  return entry;
}

}  // namespace

DType DTypeOfSafetensorsName(std::string_view name) {
  for (const DType type : kStoredTypes) {
    if (SafetensorsName(type) == name) return type;
  }
  return DType::kNone;
}

absl::StatusOr<int64_t> TensorBytes(std::string_view name, DType dtype,
                                    const std::vector<int64_t>& shape) {
  if (shape.size() > static_cast<size_t>(kMaxTensorRank)) {
    return absl::InvalidArgumentError(
        Cat(name, ": shape has ", shape.size(), " extents, at most ", kMaxTensorRank));
  }
  auto bytes = static_cast<int64_t>(BytesOf(dtype));
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, extent, &bytes)) {
      return absl::InvalidArgumentError(Cat(name, ": extent ", extent,
                                            " of the shape is negative or makes the "
                                            "tensor larger than 2^63 bytes"));
    }
  }
  return bytes;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view file,
                                                         std::string_view label) {
  const auto file_bytes = static_cast<int64_t>(file.size());
  if (file_bytes < 8) {
    return absl::InvalidArgumentError(
        Cat(label, ": has ", file_bytes, " bytes, too short for a safetensors file"));
  }
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  const auto most = static_cast<uint64_t>(std::min(kMaxSafetensorsHeader, file_bytes - 8));
  if (length > most) {
    return absl::InvalidArgumentError(
        Cat(label, ": header length is ", length, ", must be in 0..", most));
  }
  SafetensorsHeader header;
  header.data_start = 8 + static_cast<int64_t>(length);
  const int64_t data_bytes = file_bytes - header.data_start;
  absl::StatusOr<json> parsed =
      ParseJsonObject(file.substr(8, length), Cat(label, ": header"), RepeatedMembers::kRefused);
  if (!parsed.ok()) return parsed.status();
  for (const auto& [name, value] : parsed->items()) {
    if (name == kMetadataKey) {
      if (!value.is_object()) {
        return absl::InvalidArgumentError(Cat(label, ": __metadata__ is no object"));
      }
      for (const auto& [key, text] : value.items()) {
        if (text.is_string()) header.metadata[key] = text.get_ref<const std::string&>();
      }
      continue;
    }
    absl::StatusOr<SafetensorsEntry> entry = ReadEntry(name, value, data_bytes, label);
    if (!entry.ok()) return entry.status();
    header.tensors.push_back(*std::move(entry));
  }
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  int64_t expected = 0;
  for (const SafetensorsEntry& entry : header.tensors) {
    if (entry.begin != expected) {
      return absl::InvalidArgumentError(Cat(label, ": tensor ", entry.name, ": data begins at ",
                                            entry.begin, ", but the data before it ends at ",
                                            expected,
                                            " (tensors must not overlap or leave holes)"));
    }
    expected = entry.end;
  }
  if (expected != data_bytes) {
    return absl::InvalidArgumentError(
        Cat(label, ": tensors end at byte ", expected, " of the data, the file at ", data_bytes));
  }
  return header;
}

absl::StatusOr<std::string> BuildSafetensorsHeader(
    std::vector<SafetensorsEntry>& tensors, const std::map<std::string, std::string>& metadata) {
  json header = json::object();  // Keys come out sorted, whatever the order of the data.
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  int64_t offset = 0;
  for (SafetensorsEntry& entry : tensors) {
    absl::StatusOr<int64_t> bytes = TensorBytes(entry.name, entry.dtype, entry.shape);
    if (!bytes.ok()) return bytes.status();
    entry.begin = offset;
    entry.end = offset + *bytes;
    offset = entry.end;
    if (header.contains(entry.name)) {
      return absl::InvalidArgumentError(Cat("tensor ", entry.name, " comes twice"));
    }
    header[entry.name] = {{"dtype", std::string(SafetensorsName(entry.dtype))},
                          {"shape", entry.shape},
                          {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = header.dump(-1, ' ', true, json::error_handler_t::replace);
  const int64_t used = 8 + static_cast<int64_t>(text.size());
  text.append(
      static_cast<size_t>((used + kDataAlignment - 1) / kDataAlignment * kDataAlignment - used),
      ' ');
  const auto length = static_cast<uint64_t>(text.size());
  if (text.size() > static_cast<size_t>(kMaxSafetensorsHeader)) {
    return absl::InvalidArgumentError(
        Cat("header has ", length, " bytes, at most ", kMaxSafetensorsHeader, " are allowed"));
  }
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + text;
}

}  // namespace nibble
