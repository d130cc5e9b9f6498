// SPDX-License-Identifier: Apache-2.0
// Where small copies between host and device are staged: host memory in two halves that are filled
// in turn, so that a copy only waits for what was staged a whole half ago.
#pragma once

#include <cstddef>

#include "kernels/check.h"

namespace nibble {

// Places in the two halves; whose memory they are is the caller's business.
class StagingHalves {
 public:
  explicit StagingHalves(size_t half_bytes) : half_bytes_(half_bytes) {}

  struct Place {
    size_t offset = 0;    // from the beginning of both halves, a multiple of 16
    int half = 0;         // 0 | 1
    bool turned = false;  // the first place in this half since the other was left: what was staged
                          // here before must be done
  };
  // bytes <= half_bytes.
  Place Take(size_t bytes) {
    NIBBLE_CHECK(bytes <= half_bytes_);
    const bool turned = bytes > half_bytes_ - used_;
    if (turned) {
      half_ = 1 - half_;
      used_ = 0;
    }
    const Place place{static_cast<size_t>(half_) * half_bytes_ + used_, half_, turned};
    const size_t end = used_ + (bytes + 15) / 16 * 16;
    used_ = end < half_bytes_ ? end : half_bytes_;
    return place;
  }
  size_t bytes() const { return 2 * half_bytes_; }

 private:
  const size_t half_bytes_;  // a multiple of 16
  size_t used_ = 0;
  int half_ = 0;
};

}  // namespace nibble
