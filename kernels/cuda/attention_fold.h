// SPDX-License-Identifier: Apache-2.0
// The fold over parts of the keys: {largest score, sum of weights, sum of weighted values} of a row
// take in those of the keys that follow (the associative step of online softmax: Dao 2023, arXiv
// 2307.08691). Tiles are folded into runs and runs into the result by these functions alone, so
// that every way to cut the work gives the same bits.
#pragma once

#include <cmath>

#include "kernels/cuda/simt.h"

namespace nibble {

// Factors of what was there and of the part.
struct RowFold {
  float keep = 0.0f;
  float add = 1.0f;
};

// Scores are in units of the exponent of two.
struct RowState {
  float largest = -INFINITY;
  float sum = 0.0f;

  NIBBLE_DEVICE RowFold Take(float part_largest, float part_sum) {
    const float now = part_largest > largest ? part_largest : largest;
    const float base = now == -INFINITY ? 0.0f : now;
    const RowFold fold{simt::Exp2(largest - base), simt::Exp2(part_largest - base)};
    largest = now;
    sum = std::fma(part_sum, fold.add, sum * fold.keep);
    return fold;
  }
};

// Of a sum of weighted values. Without the product if `keep` is one, the same.
NIBBLE_DEVICE float Fold(const RowFold& fold, float before, float part) {
  return std::fma(part, fold.add, before * fold.keep);
}

}  // namespace nibble
