// SPDX-License-Identifier: Apache-2.0
// Nothing here is fast or needs to be.
#include "kernels/check.h"
#include "kernels/cuda/simt_hopper.h"
#include "tests/support/cuda/hopper_instructions.h"

namespace nibble::testing {
namespace {

struct CopyParams {
  const uint32_t* in;
  int rounds;
  uint32_t* out;
};

struct RingKernel {
  using Params = CopyParams;
  static constexpr int kThreads = 64;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = 2 * 128 + 4 * sizeof(simt::Barrier);

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* slots = reinterpret_cast<uint32_t*>(simt::Shared());
    auto* full = reinterpret_cast<simt::Barrier*>(simt::Shared() + 2 * 128);
    simt::Barrier* empty = full + 2;
    if (simt::Thread() == 0) {
      for (int s = 0; s < 2; ++s) {
        simt::InitBarrier(full + s, 32);
        simt::InitBarrier(empty + s, 1);
      }
      simt::FenceBarrierInit();
    }
    simt::SyncThreads();
    simt::WaitForPreviousKernel();
    const int lane = simt::Lane();
    uint32_t sum = 0;
    for (int round = 0; round < p.rounds; ++round) {
      const int slot = round % 2;
      const auto parity = static_cast<uint32_t>(round / 2 % 2);
      if (simt::WarpIndex() == 0) {
        simt::WaitPhase(empty + slot, parity ^ 1);
        slots[32 * slot + lane] = p.in[32 * round + lane];
        simt::Arrive(full + slot);
      } else {
        simt::WaitPhase(full + slot, parity);
        sum += slots[32 * slot + 31 - lane];
        simt::SyncWarp();
        if (lane == 0) simt::Arrive(empty + slot);
      }
    }
    if (simt::WarpIndex() == 1) p.out[lane] = sum;
    simt::StartNextKernel();
  }
};

struct TilesParams {
  TileMap in;
  int rounds;
  uint8_t* out;
};

struct ClusterTilesKernel {
  using Params = TilesParams;
  static constexpr int kThreads = 64;
  static constexpr int kMinBlocks = 1;
  static constexpr int kTileBytes = 8 * simt::kSwizzledRow;
  static constexpr size_t kSharedBytes = 1024 + 2 * kTileBytes + 2 * sizeof(simt::Barrier);

  static NIBBLE_DEVICE void Run(const Params& p) {
    uint8_t* tiles = simt::SwizzleAlignedShared();
    auto* full = reinterpret_cast<simt::Barrier*>(tiles + 2 * kTileBytes);
    simt::Barrier* empty = full + 1;
    if (simt::Thread() == 0) {
      simt::InitBarrier(full, 1);
      simt::InitBarrier(empty, 4);  // a lane of each warp of both blocks
      simt::FenceBarrierInit();
    }
    simt::SyncCluster();
    simt::WaitForPreviousKernel();
    const int rank = simt::ClusterRank();
    uint8_t* out = p.out + simt::BlockX() * p.rounds * 2 * kTileBytes;
    for (int round = 0; round < p.rounds; ++round) {
      const auto parity = static_cast<uint32_t>(round % 2);
      if (simt::Thread() == 0) {
        simt::WaitPhase(empty, parity ^ 1);
        simt::ArriveExpecting(full, 2 * kTileBytes);
        simt::CopyTileToCluster(tiles + (1 - rank) * kTileBytes, p.in, 128 * round, 8 * rank, full,
                                3);
      }
      simt::SyncWarp();
      simt::WaitPhase(full, parity);
      for (int i = simt::Thread(); i < 2 * kTileBytes; i += kThreads) {
        const int row = i / 128, byte = i % 128;
        out[round * 2 * kTileBytes + i] = tiles[simt::SwizzledUnit(row, byte / 16) + byte % 16];
      }
      simt::SyncWarp();
      if (simt::Lane() < 2) simt::ArriveInCluster(empty, simt::Lane());
    }
    // A block stays for the arrivals of the other.
    simt::SyncCluster();
    simt::StartNextKernel();
  }
};

template <typename Sum>
struct WgmmaParams {
  TileMap b;
  const uint8_t* a;
  int row_bytes;
  Sum* d;
};

template <int kN>
NIBBLE_DEVICE void Multiply(int32_t (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  simt::WgmmaS8<kN>(d, a, b, add);
}
template <int kN>
NIBBLE_DEVICE void Multiply(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  simt::WgmmaBF16<kN>(d, a, b, add);
}

template <typename Sum, int kN>
struct WgmmaKernel {
  using Params = WgmmaParams<Sum>;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;
  static constexpr int kRowBytes = simt::kSwizzledRow;
  static constexpr size_t kSharedBytes = 1024 + (128 + kN) * kRowBytes + sizeof(simt::Barrier);

  static NIBBLE_DEVICE void Run(const Params& p) {
    uint8_t* a = simt::SwizzleAlignedShared();
    uint8_t* b = a + 128 * kRowBytes;
    auto* full = reinterpret_cast<simt::Barrier*>(b + kN * kRowBytes);
    if (simt::Thread() == 0) {
      simt::InitBarrier(full, 1);
      simt::FenceBarrierInit();
    }
    simt::SyncThreads();
    simt::WaitForPreviousKernel();
    const int group = simt::Thread() / simt::kWarpgroup;
    Sum d[kN / 2];
    for (int step = 0; step < p.row_bytes / kRowBytes; ++step) {
      if (simt::Thread() == 0) {
        simt::ArriveExpecting(full, kN * kRowBytes);
        simt::CopyTile(b, p.b, step * kRowBytes, 0, full);
      }
      for (int i = simt::Thread(); i < 128 * 8; i += kThreads) {
        simt::CopyAsync16(a + simt::SwizzledUnit(i / 8, i % 8),
                          p.a + i / 8 * p.row_bytes + step * kRowBytes + i % 8 * 16, true);
      }
      simt::CommitCopies();
      simt::WaitCopies<0>();
      simt::FenceAsyncShared();
      simt::SyncThreads();
      simt::WaitPhase(full, static_cast<uint32_t>(step % 2));
      simt::FenceWgmma();
      NIBBLE_UNROLL
      for (int k = 0; k < kRowBytes; k += 32) {
        Multiply<kN>(d, simt::SwizzledOperand(a + group * 64 * kRowBytes, k),
                     simt::SwizzledOperand(b, k), step > 0 || k > 0);
      }
      simt::CommitWgmma();
      simt::WaitWgmma(d);
      simt::SyncThreads();
    }
    const int row = simt::Thread() / 32 * 16 + simt::Lane() / 4;
    NIBBLE_UNROLL
    for (int i = 0; i < kN / 2; ++i) {
      const int column = i / 4 * 8 + simt::Lane() % 4 * 2 + i % 2;
      p.d[(row + i % 4 / 2 * 8) * kN + column] = d[i];
    }
    simt::StartNextKernel();
  }
};

template <class Kernel>
void LaunchBlocks(Device& device, int clusters, int cluster,
                  const typename Kernel::Params& params) {
  LaunchShape shape;
  shape.grid_x = clusters * cluster;
  shape.cluster_x = cluster;
  shape.threads = Kernel::kThreads;
  shape.shared_bytes = Kernel::kSharedBytes;
  Launch<Kernel>(device.stream(), shape, params);
}

template <typename Sum>
void LaunchProduct(Device& device, const void* a, const void* b, int n, int row_bytes, Sum* d) {
  const WgmmaParams<Sum> params{MapTiles(device.stream(), b, n, row_bytes, n),
                                static_cast<const uint8_t*>(a), row_bytes, d};
  switch (n) {
    case 32:
      return LaunchBlocks<WgmmaKernel<Sum, 32>>(device, 1, 1, params);
    case 128:
      return LaunchBlocks<WgmmaKernel<Sum, 128>>(device, 1, 1, params);
    case 256:
      return LaunchBlocks<WgmmaKernel<Sum, 256>>(device, 1, 1, params);
  }
  NIBBLE_CHECK(false);
}

}  // namespace

void LaunchRing(Device& device, const uint32_t* in, int rounds, uint32_t* out) {
  LaunchBlocks<RingKernel>(device, 1, 1, {in, rounds, out});
}
void LaunchClusterTiles(Device& device, const uint8_t* in, int64_t rows, int64_t cols, int clusters,
                        int rounds, uint8_t* out) {
  const TileMap map = MapTiles(device.stream(), in, rows, cols, 8);
  LaunchBlocks<ClusterTilesKernel>(device, clusters, 2, {map, rounds, out});
}
void LaunchWgmma(Device& device, const int8_t* a, const int8_t* b, int n, int depth, int32_t* d) {
  LaunchProduct(device, a, b, n, depth, d);
}
void LaunchWgmma(Device& device, const uint16_t* a, const uint16_t* b, int n, int depth, float* d) {
  LaunchProduct(device, a, b, n, 2 * depth, d);
}

}  // namespace nibble::testing
