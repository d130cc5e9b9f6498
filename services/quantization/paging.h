// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace nibble {

struct Page {
  int32_t size = 0;
  int64_t cursor = 0;  // 0 = the beginning
};

// page_size 0 = 100, larger ones are cut to 1000. InvalidArgument if it is negative, or if `token`
// does not come from MakePageToken with the same `filter` (anything that says which list this is).
absl::StatusOr<Page> ParsePage(int32_t page_size, const std::string& token,
                               const std::string& filter);

// "" at the end of the list (`cursor` 0).
std::string MakePageToken(int64_t cursor, const std::string& filter);

}  // namespace nibble
