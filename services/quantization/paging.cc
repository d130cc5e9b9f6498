// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/paging.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/artifact/sha256.h"

namespace nibble {
namespace {

constexpr int32_t kDefaultPage = 100;
constexpr int32_t kLargestPage = 1000;
constexpr size_t kTagLength = 8;

std::string Tag(const std::string& filter) { return Sha256Hex(filter).substr(0, kTagLength); }

}  // namespace

absl::StatusOr<Page> ParsePage(int32_t page_size, const std::string& token,
                               const std::string& filter) {
  if (page_size < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size: ", page_size, " is not within 0..", kLargestPage));
  }
  Page page;
  page.size = page_size == 0 ? kDefaultPage : std::min(page_size, kLargestPage);
  if (token.empty()) return page;
  const bool ours = token.size() > kTagLength && token.compare(0, kTagLength, Tag(filter)) == 0 &&
                    absl::SimpleAtoi(token.substr(kTagLength), &page.cursor) && page.cursor > 0;
  if (ours) return page;
  return absl::InvalidArgumentError(
      absl::StrCat("page_token: '", absl::CHexEscape(token.substr(0, 64)),
                   "' is not a next_page_token of this list and filter"));
}

std::string MakePageToken(int64_t cursor, const std::string& filter) {
  return cursor == 0 ? "" : absl::StrCat(Tag(filter), cursor);
}

}  // namespace nibble
