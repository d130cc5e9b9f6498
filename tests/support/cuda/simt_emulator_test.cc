// SPDX-License-Identifier: Apache-2.0
// The emulator against the definitions in kernels/cuda/simt.h, and what it refuses.
#include "tests/support/cuda/simt_emulator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels/cuda/launch.h"

namespace nibble::testing {
namespace {

LaunchShape Block(int threads, size_t shared = 0, int grid = 1) {
  LaunchShape shape;
  shape.grid_x = grid;
  shape.threads = threads;
  shape.shared_bytes = shared;
  return shape;
}

template <typename T>
T* SharedAs() {
  return reinterpret_cast<T*>(simt::Shared());
}

TEST(Emulator, EveryThreadOfEveryBlockRunsOnce) {
  LaunchShape shape = Block(96);
  shape.grid_x = 3;
  shape.grid_y = 4;
  shape.grid_z = 5;
  std::vector<int> count(96 * 60);
  EmulateLaunch(shape, [&] {
    const int block = simt::BlockX() + 3 * (simt::BlockY() + 4 * simt::BlockZ());
    ++count[static_cast<size_t>(block * 96 + simt::Thread())];
  });
  EXPECT_EQ(count, std::vector<int>(96 * 60, 1));
}

TEST(Emulator, ABarrierSeparatesWritesFromReads) {
  for (const Schedule schedule : {Schedule::kAscending, Schedule::kDescending}) {
    Emulator().schedule = schedule;
    std::vector<int> seen(256);
    EmulateLaunch(Block(256, 1024), [&] {
      SharedAs<int>()[simt::Thread()] = simt::Thread();
      simt::SyncThreads();
      seen[static_cast<size_t>(simt::Thread())] = SharedAs<int>()[255 - simt::Thread()];
    });
    for (int i = 0; i < 256; ++i) EXPECT_EQ(seen[static_cast<size_t>(i)], 255 - i);
  }
  Emulator().schedule = Schedule::kAscending;
}

TEST(Emulator, AMissingBarrierShowsInOneOfTheSchedules) {
  bool differs = false;
  for (const Schedule schedule : {Schedule::kAscending, Schedule::kDescending}) {
    Emulator().schedule = schedule;
    EmulateLaunch(Block(64, 256), [&] {
      SharedAs<int>()[simt::Thread()] = simt::Thread();
      if (SharedAs<int>()[63 - simt::Thread()] != 63 - simt::Thread()) differs = true;
    });
  }
  Emulator().schedule = Schedule::kAscending;
  EXPECT_TRUE(differs);
}

TEST(Emulator, AMissingBarrierBetweenWarpsThatAreFarApartShows) {
  bool differs = false;
  for (const Schedule schedule : {Schedule::kAscending, Schedule::kDescending}) {
    Emulator().schedule = schedule;
    for (const int late : {0, 1}) {
      EmulateLaunch(Block(64, 256), [&] {
        SharedAs<int>()[simt::Thread()] = simt::Thread();
        simt::SyncThreads();
        if (simt::WarpIndex() == late) {
          for (int i = 0; i < 9; ++i) simt::SyncWarp();
          SharedAs<int>()[simt::Thread()] = -1;
        } else {
          simt::SyncWarp();
          if (SharedAs<int>()[63 - simt::Thread()] != 63 - simt::Thread()) differs = true;
        }
      });
    }
    EXPECT_TRUE(differs);
    differs = false;
  }
  Emulator().schedule = Schedule::kAscending;
}

TEST(Emulator, ShufflesReductionsAndBallots) {
  EmulateLaunch(Block(64), [&] {
    const int lane = simt::Lane();
    EXPECT_EQ(simt::ShuffleXor(lane, 5), lane ^ 5);
    EXPECT_EQ(simt::Shuffle(lane * 1.5f, 7), 10.5f);
    EXPECT_EQ(simt::ShuffleXor(uint64_t{1} << (lane + 16), 5), uint64_t{1} << ((lane ^ 5) + 16));
    EXPECT_EQ(simt::Shuffle(~uint64_t{0} - static_cast<uint64_t>(lane), 9), ~uint64_t{0} - 9);
    EXPECT_EQ(simt::WarpSum(1 + lane), 528);
    EXPECT_EQ(simt::WarpSum(0.5f), 16.0f);
    EXPECT_EQ(simt::WarpMax(static_cast<float>((lane * 5) % 32)), 31.0f);
    EXPECT_EQ(simt::Ballot(lane % 2 == 0), 0x55555555u);
  });
}

TEST(Emulator, AnAsynchronousCopyArrivesWhenItIsWaitedForAndNotBefore) {
  alignas(16) float from[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  EmulateLaunch(Block(32, 64), [&] {
    auto* to = SharedAs<float>();
    if (simt::Thread() == 0) {
      simt::CopyAsync16(to, from, true);
      simt::CommitCopies();
      simt::CopyAsync16(to + 4, from + 4, true);
      simt::CommitCopies();
      simt::CopyAsync16(to + 8, from, false);
      simt::CommitCopies();
      EXPECT_TRUE(std::isnan(to[0]));
      simt::WaitCopies<2>();
      EXPECT_EQ(to[3], 4.0f);
      EXPECT_TRUE(std::isnan(to[4]));
      simt::WaitCopies<0>();
      EXPECT_EQ(to[7], 8.0f);
      EXPECT_EQ(to[8], 0.0f);
      to[1] = 9.0f;
      simt::CopyAsync4(to, from + 5, true);
      simt::CopyAsync4(to + 2, from + 5, false);
      simt::CommitCopies();
      EXPECT_TRUE(std::isnan(to[0]));
      simt::WaitCopies<0>();
      EXPECT_EQ(to[0], 6.0f);
      EXPECT_EQ(to[1], 9.0f);
      EXPECT_EQ(to[2], 0.0f);
    }
  });
}

TEST(Emulator, ALockBetweenBlocksIsPassedOn) {
  int32_t lock = 0;
  std::vector<int> order;
  EmulateLaunch(Block(32, 0, 4), [&] {
    if (simt::Thread() != 0) return;
    const int turn = 3 - simt::BlockX();
    while (simt::LoadAcquire(&lock) != turn) simt::Pause();
    order.push_back(simt::BlockX());
    simt::StoreRelease(&lock, turn + 1);
  });
  EXPECT_EQ(order, (std::vector<int>{3, 2, 1, 0}));
}

TEST(Emulator, AtomicSumsWrapAndGiveTheOldValue) {
  uint32_t sum = 0u - 20u, wraps = 0;
  EmulateLaunch(Block(64), [&] {
    if (simt::AtomicAdd(&sum, 1u) == ~0u) simt::AtomicAdd(&wraps, 1u);
  });
  EXPECT_EQ(sum, 44u);
  EXPECT_EQ(wraps, 1u);
}

// a (16, k) and b (k, 8) of small whole numbers, exact in every type.
int A(int row, int k) { return (row * 7 + k * 3) % 11 - 5; }
int B(int k, int column) { return (k * 5 + column * 2) % 9 - 4; }
float Product(int row, int column, int depth) {
  int sum = 0;
  for (int k = 0; k < depth; ++k) sum += A(row, k) * B(k, column);
  return static_cast<float>(sum);
}

TEST(Emulator, MatrixFragmentsLieAsThePtxManualSays) {
  EmulateLaunch(Block(32), [&] {
    const int g = simt::Lane() / 4, t = simt::Lane() % 4;
    const auto a = [&](int row, int k) {
      return std::pair{static_cast<float>(A(row, k)), static_cast<float>(A(row, k + 1))};
    };
    const auto b = [&](int k) {
      return std::pair{static_cast<float>(B(k, g)), static_cast<float>(B(k + 1, g))};
    };
    for (const bool bf16 : {true, false}) {
      const auto pack = [&](std::pair<float, float> pair) {
        return bf16 ? simt::PackBF16x2(pair.first, pair.second)
                    : simt::PackF16x2(pair.first, pair.second);
      };
      const uint32_t fa[4] = {pack(a(g, 2 * t)), pack(a(g + 8, 2 * t)), pack(a(g, 2 * t + 8)),
                              pack(a(g + 8, 2 * t + 8))};
      const uint32_t fb[2] = {pack(b(2 * t)), pack(b(2 * t + 8))};
      float d[4] = {1, 1, 1, 1};
      bf16 ? simt::MmaBF16(d, fa, fb) : simt::MmaF16(d, fa, fb);
      for (int e = 0; e < 4; ++e) {
        EXPECT_EQ(d[e], 1 + Product(g + 8 * (e / 2), 2 * t + e % 2, 16));
      }
    }
    const auto bytes = [](auto&& value) {
      uint32_t word = 0;
      for (int e = 0; e < 4; ++e) word |= static_cast<uint32_t>(value(e) & 0xff) << (8 * e);
      return word;
    };
    uint32_t fa[4], fb[2];
    for (int r = 0; r < 4; ++r) {
      fa[r] = bytes([&](int e) { return A(g + 8 * (r % 2), 4 * t + 16 * (r / 2) + e); });
    }
    for (int r = 0; r < 2; ++r) fb[r] = bytes([&](int e) { return B(4 * t + 16 * r + e, g); });
    int32_t d[4] = {-1, -1, -1, -1};
    simt::MmaS8(d, fa, fb);
    for (int e = 0; e < 4; ++e) {
      EXPECT_EQ(static_cast<float>(d[e]), Product(g + 8 * (e / 2), 2 * t + e % 2, 32) - 1);
    }
  });
}

TEST(Emulator, MatrixLoadsLieAsThePtxManualSays) {
  EmulateLaunch(Block(32, 512), [&] {
    auto* shared = SharedAs<uint16_t>();
    for (int i = simt::Lane(); i < 256; i += 32) shared[i] = static_cast<uint16_t>(i);
    simt::SyncWarp();
    const int lane = simt::Lane();
    uint32_t r[4];
    simt::LoadMatrix4(r, shared + 8 * lane);
    for (int j = 0; j < 4; ++j) {
      const auto at = static_cast<uint32_t>(64 * j + 8 * (lane / 4) + 2 * (lane % 4));
      EXPECT_EQ(r[j], at | (at + 1) << 16);
    }
    simt::LoadMatrix4Transposed(r, shared + 8 * lane);
    for (int j = 0; j < 4; ++j) {
      const auto at = static_cast<uint32_t>(64 * j + 16 * (lane % 4) + lane / 4);
      EXPECT_EQ(r[j], at | (at + 8) << 16);
    }
  });
}

TEST(Emulator, PairsRoundOnce) {
  // 1 + 2^-8 + 2^-40 lies just above the middle between two bf16 numbers.
  const uint32_t one = simt::PackBF16x2(1.0f, -1.0f);
  const uint32_t half_step = simt::PackBF16x2(0x1p-8f, 0x1p-8f);
  EXPECT_EQ(simt::AddBF16x2(one, half_step), simt::PackBF16x2(1.0f, -(1.0f - 0x1p-8f)));
  const uint32_t third = simt::PackF16x2(1.0f / 3.0f, 3.0f);
  EXPECT_EQ(simt::FmaF16x2(third, third, third) & 0xffffu,
            F32ToF16(F16ToF32(F32ToF16(1.0f / 3.0f)) * F16ToF32(F32ToF16(1.0f / 3.0f)) +
                     F16ToF32(F32ToF16(1.0f / 3.0f))));
  EXPECT_EQ(simt::SubF16x2(third, third), 0u);
  EXPECT_EQ(simt::PickBytes(0x33221100u, 0x77665544u, 0x7150u), 0x77115500u);
}

TEST(Emulator, WhatAKernelMustNotDoThrows) {
  alignas(16) float global[8] = {};
  // Half a warp waits at a barrier for the other half, which waits for it in a shuffle; part of a
  // warp misses a shuffle; lanes disagree.
  EXPECT_THROW(EmulateLaunch(Block(32),
                             [&] {
                               if (simt::Lane() < 16) {
                                 simt::SyncThreads();
                               } else {
                                 simt::WarpSum(1);
                               }
                             }),
               std::logic_error);
  EXPECT_THROW(EmulateLaunch(Block(32),
                             [&] {
                               if (simt::Lane() < 31) simt::WarpSum(1);
                             }),
               std::logic_error);
  EXPECT_THROW(EmulateLaunch(Block(32),
                             [&] {
                               if (simt::Lane() < 16) {
                                 simt::SyncWarp();
                               } else {
                                 simt::Ballot(true);
                               }
                             }),
               std::logic_error);
  // Copies: misaligned, and beyond the shared memory that was asked for.
  EXPECT_THROW(
      EmulateLaunch(Block(32, 64), [&] { simt::CopyAsync16(simt::Shared() + 8, global, true); }),
      std::logic_error);
  EXPECT_THROW(
      EmulateLaunch(Block(32, 64), [&] { simt::CopyAsync16(simt::Shared(), global + 1, true); }),
      std::logic_error);
  EXPECT_THROW(
      EmulateLaunch(Block(32, 64), [&] { simt::CopyAsync16(simt::Shared() + 64, global, true); }),
      std::logic_error);
  EXPECT_THROW(EmulateLaunch(Block(48), [] {}), std::logic_error);
  EXPECT_THROW(EmulateLaunch(Block(32, size_t{228} << 10), [] {}), std::logic_error);
}

}  // namespace
}  // namespace nibble::testing
