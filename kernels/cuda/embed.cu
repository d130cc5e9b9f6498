// SPDX-License-Identifier: Apache-2.0
// out = scale * table[id], decoded by the functions of codec.h.
//
// Tiling: a block per row. Limit: with few rows the latency of one launch, with many bytes (the row
// read, four bytes an element written). bf16 tables are read 16 bytes at a time; quantized ones an
// element at a time, some ten instructions each.
#include "kernels/cuda/embed.h"
#include "kernels/cuda/linear_int8.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

struct EmbedKernel {
  using Params = DeviceEmbedArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    const WeightView table = p.table.view();
    simt::WaitForPreviousKernel();
    const int64_t id = p.ids[row];
    float* out = p.out + row * table.cols;
    for (int64_t k = simt::Thread(); k < table.cols; k += simt::Threads()) {
      out[k] = ReadWeight(table, id, k) * p.scale;
    }
    simt::StartNextKernel();
  }
};

struct EmbedPackedKernel {
  using Params = DeviceEmbedArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    simt::WaitForPreviousKernel();
    const int64_t id = p.ids[row];
    float* out = p.out + row * p.table.cols;
    for (int64_t k = simt::Thread(); k < p.table.cols; k += simt::Threads()) {
      out[k] = ReadPackedWeight(p.packed, id, k) * p.scale;
    }
    simt::StartNextKernel();
  }
};

struct EmbedInt8Kernel {
  using Params = DeviceEmbedArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    simt::WaitForPreviousKernel();
    const int64_t id = p.ids[row];
    const Int8Layout layout{p.table.rows, p.table.cols};
    const float weight_scale = reinterpret_cast<const float*>(p.int8 + layout.code_bytes())[id];
    float* out = p.out + row * p.table.cols;
    for (int64_t k = simt::Thread(); k < p.table.cols; k += simt::Threads()) {
      const auto code = static_cast<int8_t>(p.int8[layout.Index(id, k)]);
      out[k] = DecodeInt(code, weight_scale, 0) * p.scale;
    }
    simt::StartNextKernel();
  }
};

// bf16, cols a multiple of 8.
struct EmbedBF16Kernel {
  using Params = DeviceEmbedArgs;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    const int64_t vectors = p.table.cols / 8;
    simt::WaitForPreviousKernel();
    const int64_t id = p.ids[row];
    const auto* in = static_cast<const simt::Vec16*>(p.table.codes) + id * vectors;
    auto* out = reinterpret_cast<simt::Vec16*>(p.out) + 2 * row * vectors;
    for (int64_t v = simt::Thread(); v < vectors; v += simt::Threads()) {
      const simt::Vec16 halves = in[v];
      simt::Vec16 floats[2];
      NIBBLE_UNROLL
      for (int e = 0; e < 8; ++e) {
        const auto half = static_cast<uint16_t>(halves.word[e / 2] >> (16 * (e % 2)));
        floats[e / 4].word[e % 4] = std::bit_cast<uint32_t>(BF16ToF32(half) * p.scale);
      }
      out[2 * v] = floats[0];
      out[2 * v + 1] = floats[1];
    }
    simt::StartNextKernel();
  }
};

}  // namespace

void LaunchEmbed(Device& device, const DeviceEmbedArgs& args) {
  if (args.rows == 0) return;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(args.rows);
  shape.threads = args.table.cols >= 1024 ? 256 : 64;
  if (args.int8 != nullptr) {
    Launch<EmbedInt8Kernel>(device.stream(), shape, args);
  } else if (args.packed.data != nullptr) {
    Launch<EmbedPackedKernel>(device.stream(), shape, args);
  } else if (args.table.scheme.code == DType::kBF16 && args.table.cols % 8 == 0) {
    Launch<EmbedBF16Kernel>(device.stream(), shape, args);
  } else {
    Launch<EmbedKernel>(device.stream(), shape, args);
  }
}

}  // namespace nibble
