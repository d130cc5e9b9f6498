// SPDX-License-Identifier: Apache-2.0
// What the emulator keeps of a launch, for simt_emulator.cc (simt.h) and simt_hopper_emulator.cc
// (simt_hopper.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt.h"
#include "tests/support/cuda/fiber.h"

namespace nibble::emulator {

inline constexpr int kLanes = simt::kWarp;
inline constexpr uint8_t kPoison = 0xff;  // NaN in every float format, -1 as an integer
inline constexpr int kMaxWords = 8;       // that a lane hands to a warp-wide operation

[[noreturn]] void Fail(const std::string& what);

struct PendingCopy {
  void* shared;
  const void* global;  // nullptr: zeros
  size_t bytes;
};

void MakeCopy(const PendingCopy& copy);

// What the lanes of a warp exchange. The last lane to arrive computes for all.
struct Warp {
  int arrived = 0;
  int live = 0;
  uint32_t round = 0;
  const char* operation = nullptr;
  std::array<std::array<uint32_t, kMaxWords>, kLanes> in{};
  std::array<std::array<uint32_t, kMaxWords>, kLanes> out{};
  std::array<const void*, kLanes> pointers{};
};

// A barrier in shared memory. Copies of tiles are made when a thread waits for them and not
// before.
struct PhaseBarrier {
  int arrivals = 0;
  int awaited = 0;  // in this phase
  int64_t bytes = 0;
  uint32_t phase = 0;
  uint32_t events = 0;  // what a waiting thread wakes for: the end of a phase, a copy to make
  std::vector<PendingCopy> copies;
};

// A product that a warpgroup has issued, with what its operands were then.
struct Product {
  uint64_t a = 0, b = 0;
  int n = 0;
  bool bf16 = false;  // otherwise int8
  bool add = false;
  std::vector<uint8_t> rows, columns;  // (64, 32), (n, 32) bytes
  int waited = 0;                      // threads
};
struct Warpgroup {
  std::deque<Product> products;
  uint64_t first = 0;  // number of products[0]
};

struct Block;
struct Cluster {
  std::vector<Block*> blocks;  // by rank
  int arrived = 0;
  int live = 0;
  uint32_t round = 0;
};

struct Block {
  int x = 0, y = 0, z = 0;
  int arrived = 0;
  int live = 0;
  uint32_t round = 0;
  std::vector<uint8_t> memory;
  uint8_t* shared = nullptr;
  std::vector<Warp> warps;
  Cluster* cluster = nullptr;
  std::map<size_t, PhaseBarrier> barriers;  // by place in shared memory
  std::vector<Warpgroup> warpgroups;
  std::vector<uint8_t> unfenced;  // per 16 bytes: copied by a thread that made no proxy fence since
};

// The product of a thread, and the sums that it adds to.
struct IssuedProduct {
  uint64_t number;
  void* d;
};
struct Sums {
  std::vector<uint32_t> words;
  int products = 0;  // under way
};

struct Fibre {
  std::unique_ptr<testing::Fiber> fiber;
  Block* block = nullptr;
  int thread = 0;
  const uint32_t* round = nullptr;  // waits while *round == seen
  uint32_t seen = 0;
  int pauses = 0;
  std::vector<std::vector<PendingCopy>> groups;
  std::vector<PendingCopy> open;
  std::vector<size_t> unfenced;  // places in Block::unfenced
  std::vector<std::vector<IssuedProduct>> product_groups;
  std::vector<IssuedProduct> open_products;
  std::map<void*, Sums> sums;
  uint64_t products = 0;     // issued
  bool wgmma_fence = false;  // since the sums were last this thread's own

  Warp& warp() const { return block->warps[static_cast<size_t>(thread / kLanes)]; }
  size_t index() const { return static_cast<size_t>(thread % kLanes); }
};

struct Run {
  LaunchShape shape;
  Fibre* current = nullptr;
};
extern Run* g_run;

Fibre& Self();
void Wait(Fibre& lane, const uint32_t& round, uint32_t seen);
// `bytes` at `address` are in the block's shared memory, aligned to `alignment`.
void CheckShared(const void* address, size_t bytes, size_t alignment, const char* what);
// Nothing that this thread began is under way, nor anything that its block waits for.
void CheckEnded(const Fibre& lane);

}  // namespace nibble::emulator
