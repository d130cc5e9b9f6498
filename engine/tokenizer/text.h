// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace nibble {

// Bytes [begin, end) of a text.
struct TextRange {
  size_t begin = 0;
  size_t end = 0;
};

// Whether [begin, end) has a byte in common with one of `ranges`, which ascend and do not overlap.
inline bool Touches(absl::Span<const TextRange> ranges, size_t begin, size_t end) {
  const auto* const found =
      std::upper_bound(ranges.begin(), ranges.end(), begin,
                       [](size_t at, const TextRange& range) { return at < range.end; });
  return found != ranges.end() && found->begin < end;
}

// `text` with every occurrence of `from` (not empty), left to right, replaced by `to`.
inline std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, done)) {
    out.append(text.substr(done, at - done)).append(to);
    done = at + from.size();
  }
  return out.append(text.substr(done));
}

// Abseil as Debian packages it has a string_view of its own, which its hash tables do not exchange
// with std::string_view. These look up std::string_view.
struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const {
    return absl::Hash<absl::string_view>()(absl::string_view(text.data(), text.size()));
  }
};

struct TextEqual {
  using is_transparent = void;
  bool operator()(std::string_view a, std::string_view b) const { return a == b; }
};

// Keyed by text, looked up by std::string_view.
template <typename Value>
using TextMap = absl::flat_hash_map<std::string, Value, TextHash, TextEqual>;
template <typename Value>
using TextViewMap = absl::flat_hash_map<std::string_view, Value, TextHash, TextEqual>;

}  // namespace nibble
