// SPDX-License-Identifier: Apache-2.0
// Random weights that share an input, packed on the device.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/pack_weight.h"
#include "tests/kernels/cuda/on_device.h"

namespace nibble::testing {

inline std::vector<const Scheme*> PackedSchemes() {
  std::vector<const Scheme*> schemes;
  for (const Scheme& scheme : kSchemes) {
    if (HasPackedFormat(scheme)) schemes.push_back(&scheme);
  }
  return schemes;
}

class PackedGroup {
 public:
  // All of one scheme and of equal cols.
  explicit PackedGroup(const std::vector<const RandomWeight*>& weights)
      : layout_(Layout(weights)),
        memory_(OnDevice<uint8_t>::Poisoned(static_cast<size_t>(layout_.Bytes()))) {
    int tile = 0;
    for (const RandomWeight* random : weights) {
      const WeightOnDevice stored(random->view());
      LaunchPackWeight(TestDevice(), stored.weight(), weight(), tile);
      first_tiles_.push_back(tile);
      tile += PackedTiles(random->view().rows);
    }
  }

  PackedWeight weight() const { return {layout_, memory_.data()}; }
  int first_tile(size_t i) const { return first_tiles_[i]; }
  std::vector<uint8_t> Bytes() const { return memory_.Read(); }

 private:
  static PackedLayout Layout(const std::vector<const RandomWeight*>& weights) {
    PackedLayout layout;
    layout.format = PackedFormatOf(*weights[0]->view().scheme);
    layout.k_tiles = PackedTiles(weights[0]->view().cols);
    for (const RandomWeight* weight : weights) layout.n_tiles += PackedTiles(weight->view().rows);
    return layout;
  }

  PackedLayout layout_;
  OnDevice<uint8_t> memory_;
  std::vector<int> first_tiles_;
};

}  // namespace nibble::testing
