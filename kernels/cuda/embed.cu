// SPDX-License-Identifier: Apache-2.0
// out = scale * table[id], decoded by the functions of codec.h.
//
// Tiling: a block per row. Limit: with few rows the latency of one launch, with many bytes (the row
// read, four bytes an element written). bf16 tables are read 16 bytes at a time; quantized ones an
// element at a time, some ten instructions each.
#include <type_traits>

#include "kernels/cuda/embed.h"
#include "kernels/cuda/simt.h"

namespace nibble {
namespace {

template <typename Table>
struct EmbedParams {
  Table table;
  const int32_t* ids;
  const SampleResult* drawn;
  float scale;
  float* out;
  int32_t* tokens;

  NIBBLE_DEVICE int64_t Id(int64_t row) const {
    const int32_t id = ids[row] >= 0 ? ids[row] : drawn[-1 - ids[row]].token;
    if (tokens != nullptr && simt::Thread() == 0) tokens[row] = id;
    return id;
  }
};

template <typename Table>
struct EmbedKernel {
  using Params = EmbedParams<Table>;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    simt::WaitForPreviousKernel();
    const int64_t id = p.Id(row);
    float* out = p.out + row * p.table.cols();
    for (int64_t k = simt::Thread(); k < p.table.cols(); k += simt::Threads()) {
      out[k] = p.table.Read(id, k) * p.scale;
    }
    simt::StartNextKernel();
  }
};

// bf16, columns a multiple of 8.
struct EmbedBF16Kernel {
  using Params = EmbedParams<StoredTable>;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    const int64_t vectors = p.table.cols() / 8;
    simt::WaitForPreviousKernel();
    const int64_t id = p.Id(row);
    const auto* in = static_cast<const simt::Vec16*>(p.table.weight.codes) + id * vectors;
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
  std::visit(
      [&]<typename Table>(const Table& table) {
        LaunchShape shape;
        shape.grid_x = static_cast<int>(args.rows);
        shape.threads = table.cols() >= 1024 ? 256 : 64;
        const EmbedParams<Table> params{table,      args.ids, args.drawn,
                                        args.scale, args.out, args.tokens};
        if constexpr (std::is_same_v<Table, StoredTable>) {
          if (table.weight.scheme.code == DType::kBF16 && table.cols() % 8 == 0) {
            return Launch<EmbedBF16Kernel>(device.stream(), shape, params);
          }
        }
        Launch<EmbedKernel<Table>>(device.stream(), shape, params);
      },
      args.table);
}

}  // namespace nibble
