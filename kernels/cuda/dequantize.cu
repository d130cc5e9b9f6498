// SPDX-License-Identifier: Apache-2.0
// Stored weights: a block per output feature, a thread per weight; decoding is the limit. Packed
// weights: a block per record, its 128 x 128 values exchanged through shared memory so that reads
// and writes are 16 bytes of a run; bytes are the limit, nearly all of them written.
#include "kernels/check.h"
#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/row_writer.h"

namespace nibble {
namespace {

struct DequantizeKernel {
  struct Params {
    DeviceWeight weight;
    int64_t first;
    Floats out;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    const WeightView weight = p.weight.view();
    const int64_t n = simt::BlockX();
    for (int64_t k = simt::Thread(); k < weight.cols; k += kThreads) {
      StoreFloat(p.out, n * weight.cols + k, ReadWeight(weight, p.first + n, k));
    }
  }
};

template <int kBits, bool kF32>
struct DequantizePackedKernel {
  using Params = DequantizePackedArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int kElement = kF32 ? 4 : 2;  // bytes
  static constexpr int kPerUnit = 16 / kElement;
  // Bytes of a row in shared memory; 16 more than its values, so that rows begin in other banks.
  static constexpr int kStride = kPackedTile * kElement + 16;
  static constexpr size_t kSharedBytes = size_t{kPackedTile} * kStride;

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    const PackedLayout& layout = p.weight.layout;
    const int64_t n_tile = simt::BlockX() / layout.k_tiles;
    const int64_t k_tile = simt::BlockX() % layout.k_tiles;
    const uint8_t* record =
        p.weight.data + ((p.first_tile + n_tile) * layout.k_tiles + k_tile) * layout.RecordBytes();
    uint8_t* tile = simt::Shared();
    // A warp decodes 32 x 32 weights at a time.
    for (int i = simt::WarpIndex(); i < 16; i += kThreads / simt::kWarp) {
      DecodeSpan(p, record, p.first_tile + n_tile, i % 4, i / 4, tile);
    }
    simt::SyncThreads();
    const int64_t n0 = n_tile * kPackedTile, k0 = k_tile * kPackedTile;
    constexpr int kUnits = kPackedTile / kPerUnit;
    for (int i = simt::Thread(); i < kPackedTile * kUnits; i += kThreads) {
      const int row = i / kUnits, column = i % kUnits * kPerUnit;
      const int64_t n = n0 + row, k = k0 + column;
      if (n >= p.rows || k >= p.cols) continue;
      const uint8_t* from = tile + row * kStride + column * kElement;
      uint8_t* to = static_cast<uint8_t*>(p.out.data) + (n * p.cols + k) * kElement;
      if (p.cols % kPerUnit == 0) {
        *reinterpret_cast<simt::Vec16*>(to) = *reinterpret_cast<const simt::Vec16*>(from);
        continue;
      }
      for (int e = 0; e < kPerUnit && k + e < p.cols; ++e) {
        if constexpr (kF32) {
          reinterpret_cast<float*>(to)[e] = reinterpret_cast<const float*>(from)[e];
        } else {
          reinterpret_cast<uint16_t*>(to)[e] = reinterpret_cast<const uint16_t*>(from)[e];
        }
      }
    }
  }

 private:
  // 32 output features of a slab, 32 input features of a span, by one warp.
  static NIBBLE_DEVICE void DecodeSpan(const Params& p, const uint8_t* record, int64_t n_tile,
                                       int slab, int span, uint8_t* tile) {
    const PackedLayout& layout = p.weight.layout;
    const int lane = simt::Lane(), g = lane / 4, t = lane % 4;
    simt::Vec16 codes[kBits / 4];
    NIBBLE_UNROLL for (int v = 0; v < kBits / 4; ++v) {
      codes[v] = reinterpret_cast<const simt::Vec16*>(
          record)[((span * 4 + slab) * (kBits / 4) + v) * simt::kWarp + lane];
    }
    const uint8_t* scales = record + layout.CodeBytes();
    const int group = span * 32 * layout.GroupsPerTile() / kPackedTile;
    const int order = group * kPackedTile + LaneOrder(slab * kPackedSlab + g);
    const uint32_t zeros =
        layout.format.asymmetric
            ? *reinterpret_cast<const uint16_t*>(scales + layout.ScaleBytes() + order / 2)
            : 0x8888u;
    NIBBLE_UNROLL for (int b = 0; b < 2; ++b) {
      float scale[2];  // rows g and g + 8
      NIBBLE_UNROLL for (int r = 0; r < 2; ++r) {
        const int row = slab * kPackedSlab + b * 16 + r * 8 + g;
        scale[r] =
            BF16ToF32(layout.format.group == 0
                          ? reinterpret_cast<const uint16_t*>(
                                p.weight.data + layout.ChannelScales())[n_tile * kPackedTile + row]
                          : reinterpret_cast<const uint16_t*>(scales)[order + 2 * b + r]);
      }
      const uint32_t zero[2] = {FragmentZero((zeros >> (8 * b)) & 15u),
                                FragmentZero((zeros >> (8 * b + 4)) & 15u)};
      NIBBLE_UNROLL for (int step = 0; step < 2; ++step) {
        uint32_t a[4];
        if constexpr (kBits == 4) {
          Int4Fragment(codes[0].word[b * 2 + step], zero, a);
        } else {
          Int8Fragment(codes[b].word[step * 2], codes[b].word[step * 2 + 1], a);
        }
        NIBBLE_UNROLL for (int r = 0; r < 4; ++r) {
          const int row = slab * kPackedSlab + b * 16 + r % 2 * 8 + g;
          const int column = span * 32 + step * 16 + r / 2 * 8 + t * 2;
          const float low = std::bit_cast<float>(a[r] << 16) * scale[r % 2];
          const float high = std::bit_cast<float>(a[r] & 0xffff0000u) * scale[r % 2];
          uint8_t* to = tile + row * kStride + column * kElement;
          if constexpr (kF32) {
            *reinterpret_cast<simt::Vec8*>(to) = {
                {std::bit_cast<uint32_t>(low), std::bit_cast<uint32_t>(high)}};
          } else {
            *reinterpret_cast<uint32_t*>(to) = simt::PackBF16x2(low, high);
          }
        }
      }
    }
  }
};

struct Variant {
  int bits;
  DType out;
  size_t shared_bytes;
  void (*launch)(Stream&, const LaunchShape&, const DequantizePackedArgs&);
};
template <int kBits, bool kF32>
constexpr Variant Row() {
  using Kernel = DequantizePackedKernel<kBits, kF32>;
  return {kBits, kF32 ? DType::kF32 : DType::kBF16, Kernel::kSharedBytes, &Launch<Kernel>};
}
constexpr Variant kVariants[] = {
    Row<4, false>(),
    Row<4, true>(),
    Row<8, false>(),
    Row<8, true>(),
};

}  // namespace

void LaunchDequantize(Device& device, const DeviceWeight& weight, int64_t first, int64_t count,
                      const Floats& out) {
  LaunchShape shape;
  shape.grid_x = static_cast<int>(count);
  shape.threads = DequantizeKernel::kThreads;
  Launch<DequantizeKernel>(device.stream(), shape, {weight, first, out});
}

void LaunchDequantizePacked(Device& device, const DequantizePackedArgs& args) {
  for (const Variant& variant : kVariants) {
    if (variant.bits != args.weight.layout.format.bits || variant.out != args.out.dtype) continue;
    LaunchShape shape;
    shape.grid_x = PackedTiles(args.rows) * args.weight.layout.k_tiles;
    shape.threads = 256;
    shape.shared_bytes = variant.shared_bytes;
    variant.launch(device.stream(), shape, args);
    return;
  }
  NIBBLE_CHECK(false);  // no other bits or output types
}

}  // namespace nibble
