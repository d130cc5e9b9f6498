// SPDX-License-Identifier: Apache-2.0
// Packs a stored int4 or int8 weight (packed_weight.h).
//
// Tiling: a block per record, a thread per word of it. Limit: bytes (stored read, packed written);
// it runs once, when a model is loaded, and reads single codes.
#include "kernels/cuda/pack_weight.h"

namespace nibble {
namespace {

struct PackWeightKernel {
  struct Params {
    DeviceWeight stored;
    PackedWeight packed;
    int first_tile;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    const PackedLayout& layout = p.packed.layout;
    const WeightView w = p.stored.view();
    const int64_t n_tile = simt::BlockX() / layout.k_tiles;
    const int64_t k_tile = simt::BlockX() % layout.k_tiles;
    const int64_t n0 = n_tile * kPackedTile, k0 = k_tile * kPackedTile;
    const int bits = layout.format.bits;
    const int bias = 1 << (bits - 1);
    const int64_t groups = w.scheme->GroupsPerRow(w.cols);
    const int64_t width = w.scheme->GroupWidth(w.cols);
    const auto zero = [&](int64_t n, int64_t group) {
      return bias + (n < w.rows && group < groups ? ReadZero(w, n, group) : 0);
    };
    auto* record = reinterpret_cast<uint32_t*>(
        p.packed.data + ((p.first_tile + n_tile) * layout.k_tiles + k_tile) * layout.RecordBytes());
    for (int i = simt::Thread(); i < layout.CodeBytes() / 4; i += kThreads) {
      uint32_t word = 0;
      for (int c = 0; c < 32 / bits; ++c) {
        const PackedPlace at = PackedPlaceOf(bits, i, c);
        const int64_t n = n0 + at.n, k = k0 + at.k;
        const int code = n < w.rows && k < w.cols ? ReadCode(w, n, k) + bias : zero(n, k / width);
        word |= static_cast<uint32_t>(code) << (bits * c);
      }
      record[i] = word;
    }
    if (layout.format.group == 0) {
      if (k_tile == 0) {
        auto* scales = reinterpret_cast<uint16_t*>(p.packed.data + layout.ChannelScales()) +
                       (p.first_tile + n_tile) * kPackedTile;
        for (int i = simt::Thread(); i < kPackedTile; i += kThreads) {
          scales[i] = n0 + i < w.rows ? F32ToBF16(ReadScale(w, n0 + i, 0)) : uint16_t{0};
        }
      }
      return;
    }
    auto* scales = reinterpret_cast<uint16_t*>(record + layout.CodeBytes() / 4);
    auto* zeros = reinterpret_cast<uint8_t*>(scales) + layout.ScaleBytes();
    const int64_t first_group = k0 / width;
    for (int i = simt::Thread(); i < layout.ScaleBytes() / 2; i += kThreads) {
      const int64_t n = n0 + FromLaneOrder(i % kPackedTile);
      const int64_t group = first_group + i / kPackedTile;
      scales[i] = n < w.rows && group < groups ? F32ToBF16(ReadScale(w, n, group)) : uint16_t{0};
    }
    for (int i = simt::Thread(); i < layout.ZeroBytes(); i += kThreads) {
      const int64_t group = first_group + 2 * i / kPackedTile;
      const auto at = [&](int j) { return n0 + FromLaneOrder((2 * i + j) % kPackedTile); };
      zeros[i] = static_cast<uint8_t>(zero(at(0), group) | zero(at(1), group) << 4);
    }
  }
};

}  // namespace

void LaunchPackWeight(Device& device, const DeviceWeight& stored, const PackedWeight& packed,
                      int first_tile) {
  LaunchShape shape;
  shape.grid_x = PackedTiles(stored.rows) * packed.layout.k_tiles;
  shape.threads = PackWeightKernel::kThreads;
  Launch<PackWeightKernel>(device.stream(), shape, {stored, packed, first_tile});
}

}  // namespace nibble
