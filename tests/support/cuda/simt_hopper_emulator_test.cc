// SPDX-License-Identifier: Apache-2.0
// What the emulator refuses of the words of simt_hopper.h; what they do is shown by
// tests/kernels/cuda/hopper_instructions_test.cc.
#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt_hopper.h"
#include "tests/support/cuda/simt_emulator.h"

namespace nibble::testing {
namespace {

// What the emulator says of a block (of a cluster of `cluster`) whose threads run `thread`.
std::string Refused(int threads, int cluster, const std::function<void()>& thread) {
  LaunchShape shape;
  shape.grid_x = shape.cluster_x = cluster;
  shape.threads = threads;
  shape.shared_bytes = size_t{64} << 10;
  try {
    EmulateLaunch(shape, thread);
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "";
}

simt::Barrier* FreshBarrier(int arrivals) {
  auto* barrier = reinterpret_cast<simt::Barrier*>(simt::Shared());
  if (simt::Thread() == 0) simt::InitBarrier(barrier, arrivals);
  simt::FenceBarrierInit();
  simt::SyncThreads();
  return barrier;
}

TEST(HopperEmulator, BarriersAndCopiesOfTiles) {
  alignas(16) static const uint32_t kNumbers[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  Stream stream;
  const TileMap map = MapTiles(stream, kNumbers, 1, 32, 1);
  // Bytes are there after the wait and not before, zeros beyond the matrix.
  EXPECT_EQ(Refused(32, 1,
                    [&map] {
                      simt::Barrier* barrier = FreshBarrier(1);
                      auto* words =
                          reinterpret_cast<uint32_t*>(simt::SwizzleAlignedShared() + 1024);
                      simt::WaitPhase(barrier, 1);
                      simt::SyncThreads();
                      if (simt::Thread() == 0) {
                        words[3] = 0;
                        simt::CopyTile(words, map, 0, 0, barrier);
                        EXPECT_EQ(words[3], ~0u);
                        simt::ArriveExpecting(barrier, 128);
                      }
                      simt::WaitPhase(barrier, 0);
                      EXPECT_EQ(words[3], 4u);
                      EXPECT_EQ(words[7], 8u);
                      EXPECT_EQ(words[8], 0u);
                    }),
            "");
  const auto lone = [](const std::function<void(simt::Barrier*)>& body) {
    return Refused(32, 1, [&] {
      simt::Barrier* barrier = FreshBarrier(1);
      if (simt::Thread() == 0) body(barrier);
    });
  };
  const auto copy = [&map](int offset, simt::Barrier* barrier) {
    simt::CopyTile(simt::SwizzleAlignedShared() + 1024 + offset, map, 0, 0, barrier);
  };
  EXPECT_NE(lone([](simt::Barrier* b) { simt::Arrive(b + 1); }), "");
  EXPECT_NE(lone([](simt::Barrier* b) { simt::InitBarrier(b, 1); }), "");
  EXPECT_NE(lone([](simt::Barrier* b) { simt::WaitPhase(b, 0); }), "");
  EXPECT_NE(lone([&](simt::Barrier* b) {
              simt::ArriveExpecting(b, 128);
              copy(128, b);
              simt::WaitPhase(b, 0);
            }),
            "");
  // Nobody waits for a copy; more bytes are expected than come.
  EXPECT_NE(lone([&](simt::Barrier* b) { copy(0, b); }), "");
  EXPECT_NE(lone([&](simt::Barrier* b) {
              simt::ArriveExpecting(b, 256);
              copy(0, b);
              simt::WaitPhase(b, 0);
            }),
            "");
  EXPECT_THROW(MapTiles(stream, kNumbers + 1, 1, 16, 1), std::logic_error);
  EXPECT_THROW(MapTiles(stream, kNumbers, 2, 8, 1), std::logic_error);
}

TEST(HopperEmulator, ABlockOfAClusterThatHasEndedIsNotArrivedAt) {
  const auto arrive = [](bool stay) {
    return Refused(32, 2, [stay] {
      simt::Barrier* barrier = FreshBarrier(32);
      simt::SyncCluster();
      if (simt::ClusterRank() == 1) simt::ArriveInCluster(barrier, 0);
      if (simt::ClusterRank() == 0) simt::WaitPhase(barrier, 0);
      if (stay) simt::SyncCluster();
      if (simt::ClusterRank() == 0) simt::ArriveInCluster(barrier, 1);
      if (stay) simt::SyncCluster();
    });
  };
  EXPECT_EQ(arrive(true), "");
  EXPECT_NE(arrive(false), "");
}

// One product of zeros; `mistake` names what is done wrong.
enum class Mistake {
  kNone,
  kNoRegisterFence,
  kNoProxyFence,
  kMisaligned,
  kOverwritten,
  kNotWaitedFor,
  kOtherOperands,
  kBeyond,
};
std::string Product(Mistake mistake) {
  alignas(16) static const uint8_t kZeros[16] = {};
  return Refused(128, 1, [mistake] {
    uint8_t* operand = simt::SwizzleAlignedShared();
    for (int i = simt::Thread(); i < 128 * 8; i += 128) {
      simt::CopyAsync16(operand + 16 * i, kZeros, true);
    }
    simt::CommitCopies();
    simt::WaitCopies<0>();
    if (mistake != Mistake::kNoProxyFence) simt::FenceAsyncShared();
    simt::SyncThreads();
    if (mistake != Mistake::kNoRegisterFence) simt::FenceWgmma();
    if (mistake == Mistake::kMisaligned) operand += 128;
    if (mistake == Mistake::kBeyond) operand += 48 << 10;
    int32_t d[64] = {};
    simt::WgmmaS8<128>(
        d, simt::SwizzledOperand(operand, mistake == Mistake::kOtherOperands ? simt::Lane() : 0),
        simt::SwizzledOperand(operand, 32), false);
    EXPECT_EQ(d[63], -1);
    simt::CommitWgmma();
    if (mistake == Mistake::kOverwritten && simt::Thread() == 0) operand[0] = 1;
    if (mistake == Mistake::kNotWaitedFor) return;
    simt::WaitWgmma(d);
    EXPECT_EQ(d[63], 0);
  });
}

TEST(HopperEmulator, ProductsNeedTheirFencesAndWaits) {
  EXPECT_EQ(Product(Mistake::kNone), "");
  for (const Mistake mistake :
       {Mistake::kNoRegisterFence, Mistake::kNoProxyFence, Mistake::kMisaligned,
        Mistake::kOverwritten, Mistake::kNotWaitedFor, Mistake::kOtherOperands, Mistake::kBeyond}) {
    EXPECT_NE(Product(mistake), "") << static_cast<int>(mistake);
  }
}

}  // namespace
}  // namespace nibble::testing
