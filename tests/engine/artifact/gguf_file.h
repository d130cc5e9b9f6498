// SPDX-License-Identifier: Apache-2.0
// Writes GGUF files for the tests, byte by byte as ggml's docs/gguf.md describes them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

class GgufBuilder {
 public:
  template <typename Number>
  static std::string Bytes(Number number) {
    std::string bytes(sizeof(number), '\0');
    std::memcpy(bytes.data(), &number, sizeof(number));
    return bytes;
  }
  static std::string Text(std::string_view text) {
    return Bytes(static_cast<uint64_t>(text.size())) + std::string(text);
  }

  // A pair whose value is already encoded; `type` as in the file.
  GgufBuilder& Raw(std::string_view key, uint32_t type, const std::string& value) {
    pairs_ += Text(key) + Bytes(type) + value;
    ++pair_count_;
    return *this;
  }
  GgufBuilder& U32(std::string_view key, uint32_t value) { return Raw(key, 4, Bytes(value)); }
  GgufBuilder& F32(std::string_view key, float value) { return Raw(key, 6, Bytes(value)); }
  GgufBuilder& Bool(std::string_view key, bool value) {
    return Raw(key, 7, Bytes(static_cast<uint8_t>(value)));
  }
  GgufBuilder& String(std::string_view key, std::string_view value) {
    return Raw(key, 8, Text(value));
  }
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& values) {
    std::string bytes = Bytes(uint32_t{8}) + Bytes(static_cast<uint64_t>(values.size()));
    for (const std::string& value : values) bytes += Text(value);
    return Raw(key, 9, bytes);
  }
  template <typename Number>
  GgufBuilder& Numbers(std::string_view key, uint32_t type, const std::vector<Number>& values) {
    std::string bytes = Bytes(type) + Bytes(static_cast<uint64_t>(values.size()));
    for (const Number value : values) bytes += Bytes(value);
    return Raw(key, 9, bytes);
  }

  // `shape` in torch's order, `type` ggml's number.
  GgufBuilder& Tensor(std::string_view name, uint32_t type, const std::vector<int64_t>& shape,
                      const std::string& bytes) {
    infos_ += Text(name) + Bytes(static_cast<uint32_t>(shape.size()));
    for (auto extent = shape.rbegin(); extent != shape.rend(); ++extent) {
      infos_ += Bytes(static_cast<uint64_t>(*extent));
    }
    infos_ += Bytes(type) + Bytes(static_cast<uint64_t>(data_.size()));
    data_ += bytes;
    data_.resize((data_.size() + 31) / 32 * 32);
    ++tensor_count_;
    return *this;
  }

  std::string File(uint32_t version = 3) const {
    std::string file =
        "GGUF" + Bytes(version) + Bytes(tensor_count_) + Bytes(pair_count_) + pairs_ + infos_;
    file.resize((file.size() + 31) / 32 * 32);
    return file + data_;
  }

 private:
  std::string pairs_;
  std::string infos_;
  std::string data_;
  uint64_t pair_count_ = 0;
  uint64_t tensor_count_ = 0;
};

}  // namespace nibble
