// SPDX-License-Identifier: Apache-2.0
// Text for tests of serving: tokens that stand for the strings a test names.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/serve/text_assembler.h"

namespace nibble::testing {

// Copies share their table.
class FakeText {
 public:
  explicit FakeText(int32_t first_token = 100) : first_(first_token) {}

  // The token of this string, made when it is first named.
  int32_t Token(const std::string& piece) {
    for (size_t i = 0; i < table_->size(); ++i) {
      if ((*table_)[i] == piece) return first_ + static_cast<int32_t>(i);
    }
    table_->push_back(piece);
    return first_ + static_cast<int32_t>(table_->size()) - 1;
  }

  // Other tokens have no text.
  std::unique_ptr<TextDecoder> Decoder() const {
    return std::make_unique<TableDecoder>(first_, table_);
  }
  TextDecoderFactory Factory() const {
    return [self = *this](bool) { return self.Decoder(); };
  }

 private:
  using Table = std::shared_ptr<std::vector<std::string>>;

  class TableDecoder final : public TextDecoder {
   public:
    TableDecoder(int32_t first, Table table) : first_(first), table_(std::move(table)) {}
    void Append(int32_t token, std::string* out) override {
      const int32_t index = token - first_;
      if (index < 0 || index >= static_cast<int32_t>(table_->size())) return;
      *out += (*table_)[static_cast<size_t>(index)];
    }
    void Flush(std::string*) override {}

   private:
    const int32_t first_;
    const Table table_;
  };

  const int32_t first_;
  const Table table_ = std::make_shared<std::vector<std::string>>();
};

}  // namespace nibble::testing
