// SPDX-License-Identifier: Apache-2.0
// Scaling the input of a group of linears without changing the block: what the input is divided
// by, the linears' columns are multiplied with, and whatever produces the input absorbs the
// division.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/decoder.h"
#include "engine/quant/algorithm.h"

namespace nibble {

struct StoredVector;

// What comes before a group: a norm, whose weight is divided, or a linear, whose output rows (and
// bias) are. Names relative to the block.
struct FoldTarget {
  bool norm;
  const char* name;
};

// qkv: the input norm; gate and up: the post-attention norm; down: up_proj, since the product with
// the activated gate is linear in it; o: v_proj, as attention averages its rows, but only where
// every query head has a v head of its own: nullopt otherwise.
std::optional<FoldTarget> FindFoldTarget(const DecoderConfig& config, InputGroup group);

// Divides the group's input by `factors` (K, > 0) and multiplies the columns of its weights. A
// norm's weight is rounded to its stored type first and the factors are adjusted to what is then
// left, so that the block's float function stays what it was; a bias that is divided becomes f32.
// `input` follows the new input. Weights and vectors by name relative to the block.
void FoldFactors(const DecoderConfig& config, const FoldTarget& target, InputGroup group,
                 std::vector<float> factors, std::map<std::string, Matrix>& weights,
                 std::map<std::string, StoredVector>& vectors, InputStatistics& input);

}  // namespace nibble
