// SPDX-License-Identifier: Apache-2.0
// The words of simt_hopper.h, by the PTX ISA's definitions. Descriptors are decoded here from the
// manual's words and not from the code that makes them.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "kernels/cuda/simt_hopper.h"
#include "kernels/dtype.h"
#include "tests/support/cuda/emulator_state.h"

namespace nibble {
namespace emulator {
namespace {

// Where shared memory begins in its window: at a multiple of 128 and not of 1024.
constexpr uint32_t kWindow = 1024 + 128;

size_t PlaceOf(const Block& block, const void* shared) {
  return static_cast<size_t>(static_cast<const uint8_t*>(shared) - block.shared);
}

Block& Peer(uint32_t rank) {
  const Cluster& cluster = *Self().block->cluster;
  if (rank >= cluster.blocks.size()) Fail("a block outside of the cluster");
  Block& block = *cluster.blocks[rank];
  if (block.live == 0) Fail("a block of the cluster that has ended");
  return block;
}

PhaseBarrier& BarrierAt(Block& block, size_t place) {
  const auto found = block.barriers.find(place);
  if (found == block.barriers.end()) Fail("a barrier that was not initialized");
  return found->second;
}
PhaseBarrier& BarrierOf(const simt::Barrier* barrier) {
  Block& block = *Self().block;
  return BarrierAt(block, PlaceOf(block, barrier));
}

void EndPhase(PhaseBarrier& barrier) {
  if (barrier.awaited > 0 || barrier.bytes != 0) return;
  barrier.awaited = barrier.arrivals;
  ++barrier.phase;
  ++barrier.events;
}
void ArriveOn(PhaseBarrier& barrier, int64_t bytes) {
  if (barrier.awaited == 0) Fail("more arrivals than the phase of a barrier has");
  barrier.bytes += bytes;
  --barrier.awaited;
  EndPhase(barrier);
}

// "Strides", K-major, 128-byte swizzle: rows of 128 bytes, eight rows an atom, the stride
// dimension byte offset from atom to atom; address bits 4 to 6 are exclusive-ored with bits 7 to 9.
std::vector<uint8_t> ReadOperand(uint64_t descriptor, int rows) {
  Block& block = *Self().block;
  const auto field = [descriptor](int low, int bits) {
    return static_cast<uint32_t>(descriptor >> low & ((uint64_t{1} << bits) - 1));
  };
  const uint32_t start = field(0, 14) << 4, stride = field(32, 14) << 4;
  if (field(62, 2) != 1) Fail("an operand without the 128-byte swizzle");
  if (field(49, 3) != 0 || (start >> 7 & 7) != 0) {
    Fail("an operand whose swizzled rows do not begin at a multiple of 1024");
  }
  std::vector<uint8_t> bytes(static_cast<size_t>(rows) * 32);
  for (uint32_t r = 0; r < static_cast<uint32_t>(rows); ++r) {
    for (uint32_t unit = 0; unit < 2; ++unit) {
      const uint32_t linear = start + r / 8 * stride + r % 8 * 128 + 16 * unit;
      const uint32_t place = (linear ^ (linear >> 7 & 7) << 4) - kWindow;
      CheckShared(block.shared + place, 16, 1, "an operand");
      if (block.unfenced[place / 16] != 0) Fail("an operand was copied without a proxy fence");
      std::memcpy(bytes.data() + 32 * r + 16 * unit, block.shared + place, 16);
    }
  }
  return bytes;
}

Warpgroup& GroupOf(const Fibre& lane) {
  return lane.block->warpgroups[static_cast<size_t>(lane.thread / simt::kWarpgroup)];
}

// Of rows of 32 bytes.
uint32_t AddInt8(uint32_t d, const uint8_t* row, const uint8_t* column) {
  auto sum = static_cast<int32_t>(d);
  for (size_t k = 0; k < 32; ++k) {
    sum += static_cast<int8_t>(row[k]) * static_cast<int8_t>(column[k]);
  }
  return static_cast<uint32_t>(sum);
}
uint32_t AddBF16(uint32_t d, const uint8_t* row, const uint8_t* column) {
  const auto value = [](const uint8_t* bytes, size_t k) {
    uint16_t half;
    std::memcpy(&half, bytes + 2 * k, sizeof(half));
    return static_cast<double>(BF16ToF32(half));
  };
  double sum = 0;
  for (size_t k = 0; k < 16; ++k) sum += value(row, k) * value(column, k);
  return std::bit_cast<uint32_t>(std::bit_cast<float>(d) + static_cast<float>(sum));
}

// This thread's part of a product: two rows.
void Add(const Fibre& lane, const Product& product, std::vector<uint32_t>& d) {
  const auto row =
      static_cast<size_t>(lane.thread % simt::kWarpgroup / 32 * 16 + lane.thread % 32 / 4);
  for (size_t i = 0; i < d.size(); ++i) {
    const size_t r = row + i % 4 / 2 * 8;
    const size_t c = i / 4 * 8 + static_cast<size_t>(lane.thread % 4) * 2 + i % 2;
    d[i] = (product.bf16 ? AddBF16 : AddInt8)(product.add ? d[i] : 0, product.rows.data() + 32 * r,
                                              product.columns.data() + 32 * c);
  }
}

void FinishProduct(Fibre& lane, const IssuedProduct& issued) {
  Warpgroup& group = GroupOf(lane);
  Product& product = group.products[static_cast<size_t>(issued.number - group.first)];
  Sums& sums = lane.sums[issued.d];
  Add(lane, product, sums.words);
  if (--sums.products == 0) {
    std::memcpy(issued.d, sums.words.data(), sums.words.size() * sizeof(uint32_t));
    lane.sums.erase(issued.d);
  }
  if (++product.waited < simt::kWarpgroup) return;
  if (ReadOperand(product.a, 64) != product.rows ||
      ReadOperand(product.b, product.n) != product.columns) {
    Fail("an operand was overwritten before its product was waited for");
  }
  while (!group.products.empty() && group.products.front().waited == simt::kWarpgroup) {
    group.products.pop_front();
    ++group.first;
  }
}

void Issue(void* d, int n, bool bf16, uint64_t a, uint64_t b, bool add) {
  Fibre& lane = Self();
  if (lane.block->warpgroups.empty() ||
      static_cast<size_t>(lane.thread / simt::kWarpgroup) >= lane.block->warpgroups.size()) {
    Fail("a product of less than a warpgroup");
  }
  if (!lane.wgmma_fence) Fail("a product without a fence between it and its sums");
  Warpgroup& group = GroupOf(lane);
  const uint64_t number = lane.products++;
  if (number == group.first + group.products.size()) {
    group.products.push_back({a, b, n, bf16, add, ReadOperand(a, 64), ReadOperand(b, n), 0});
  }
  const Product& product = group.products[static_cast<size_t>(number - group.first)];
  if (product.a != a || product.b != b || product.n != n || product.bf16 != bf16 ||
      product.add != add) {
    Fail("a product that is another one in another thread of the warpgroup");
  }
  Sums& sums = lane.sums[d];
  if (sums.products++ == 0) {
    sums.words.resize(static_cast<size_t>(n / 2));
    std::memcpy(sums.words.data(), d, sums.words.size() * sizeof(uint32_t));
    std::memset(d, kPoison, sums.words.size() * sizeof(uint32_t));
  }
  lane.open_products.push_back({number, d});
}

void StartCopy(Block& to, size_t place, const void* global, size_t bytes, size_t barrier) {
  std::memset(to.shared + place, kPoison, bytes);
  PhaseBarrier& state = BarrierAt(to, barrier);
  state.copies.push_back({to.shared + place, global, bytes});
  ++state.events;
}

// What the emulator keeps in a TileMap.
struct Matrix {
  const uint8_t* data;
  int64_t rows, cols;
  int tile_rows;
};
static_assert(sizeof(Matrix) <= sizeof(TileMap));

// A tile to the place that `shared` is of this block, in block `to`. The copy engine swizzles as
// products do: by address.
void StartTileCopy(Block& to, const void* shared, const TileMap& map, int column, int row,
                   const simt::Barrier* barrier) {
  Matrix matrix;
  std::memcpy(&matrix, map.opaque, sizeof(matrix));
  const Block& block = *Self().block;
  const size_t place = PlaceOf(block, shared);
  CheckShared(shared, static_cast<size_t>(matrix.tile_rows) * 128, 1, "the target of a tile");
  if ((place + kWindow) % 1024 != 0) Fail("a tile that does not begin at a multiple of 1024");
  for (int r = 0; r < matrix.tile_rows; ++r) {
    for (int c = 0; c < 128; c += 16) {
      const bool inside =
          row + r >= 0 && row + r < matrix.rows && column + c >= 0 && column + c < matrix.cols;
      const size_t linear = place + kWindow + static_cast<size_t>(128 * r + c);
      StartCopy(to, (linear ^ (linear >> 7 & 7) << 4) - kWindow,
                inside ? matrix.data + (row + r) * matrix.cols + column + c : nullptr, 16,
                PlaceOf(block, barrier));
    }
  }
}

// Not in WaitPhase: a fibre that is dropped while it waits destroys nothing.
void MakeCopies(PhaseBarrier& barrier) {
  for (const PendingCopy& copy : std::exchange(barrier.copies, {})) {
    MakeCopy(copy);
    barrier.bytes -= static_cast<int64_t>(copy.bytes);
  }
  EndPhase(barrier);
}

}  // namespace

void CheckEnded(const Fibre& lane) {
  if (!lane.open_products.empty() || !lane.product_groups.empty()) {
    Fail("a thread ended before its products");
  }
  if (lane.block->live > 1) return;
  for (const auto& [place, barrier] : lane.block->barriers) {
    if (!barrier.copies.empty()) Fail("a block ended before its copies of tiles");
  }
}

}  // namespace emulator

TileMap MapTiles(Stream&, const void* data, int64_t rows, int64_t cols, int tile_rows) {
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0 || cols % 16 != 0 || tile_rows > 256) {
    emulator::Fail("a matrix that the copy engine does not take");
  }
  const emulator::Matrix matrix{static_cast<const uint8_t*>(data), rows, cols, tile_rows};
  TileMap map{};
  std::memcpy(map.opaque, &matrix, sizeof(matrix));
  return map;
}

namespace simt {

using namespace emulator;

void InitBarrier(Barrier* barrier, int arrivals) {
  CheckShared(barrier, sizeof(Barrier), sizeof(Barrier), "a barrier");
  Block& block = *Self().block;
  if (arrivals < 1) Fail("a barrier of no arrivals");
  PhaseBarrier fresh;
  fresh.arrivals = fresh.awaited = arrivals;
  if (!block.barriers.emplace(PlaceOf(block, barrier), fresh).second) {
    Fail("a barrier that was initialized before");
  }
}
void FenceBarrierInit() {}
void Arrive(Barrier* barrier) { ArriveOn(BarrierOf(barrier), 0); }
void ArriveExpecting(Barrier* barrier, int bytes) { ArriveOn(BarrierOf(barrier), bytes); }
void WaitPhase(Barrier* barrier, uint32_t parity) {
  PhaseBarrier& state = BarrierOf(barrier);
  while ((state.phase & 1) == parity) {
    MakeCopies(state);
    if ((state.phase & 1) == parity) Wait(Self(), state.events, state.events);
  }
}

void CopyTile(void* shared, const TileMap& map, int column, int row, Barrier* barrier) {
  StartTileCopy(*Self().block, shared, map, column, row, barrier);
}
void FenceAsyncShared() {
  Fibre& lane = Self();
  for (const size_t place : lane.unfenced) lane.block->unfenced[place] = 0;
  lane.unfenced.clear();
}

int ClusterRank() {
  const Block& block = *Self().block;
  const auto& blocks = block.cluster->blocks;
  return static_cast<int>(std::find(blocks.begin(), blocks.end(), &block) - blocks.begin());
}
void SyncCluster() {
  Fibre& lane = Self();
  Cluster& cluster = *lane.block->cluster;
  if (++cluster.arrived == cluster.live) {
    cluster.arrived = 0;
    ++cluster.round;
  } else {
    Wait(lane, cluster.round, cluster.round);
  }
}
void ArriveInCluster(Barrier* barrier, int rank) {
  const size_t place = PlaceOf(*Self().block, barrier);
  ArriveOn(BarrierAt(Peer(static_cast<uint32_t>(rank)), place), 0);
}
void CopyTileToCluster(void* shared, const TileMap& map, int column, int row, Barrier* barrier,
                       uint32_t ranks) {
  for (uint32_t rank = 0; rank < 32; ++rank) {
    if ((ranks >> rank & 1) != 0) StartTileCopy(Peer(rank), shared, map, column, row, barrier);
  }
}

uint32_t SharedAddress(const void* shared) {
  return kWindow + static_cast<uint32_t>(PlaceOf(*Self().block, shared));
}

void FenceWgmma() { Self().wgmma_fence = true; }
void CommitWgmma() {
  Fibre& lane = Self();
  lane.product_groups.push_back(std::move(lane.open_products));
  lane.open_products.clear();
}
void WaitWgmmaUpTo(int pending) {
  Fibre& lane = Self();
  while (lane.product_groups.size() > static_cast<size_t>(pending)) {
    for (const IssuedProduct& product : lane.product_groups.front()) FinishProduct(lane, product);
    lane.product_groups.erase(lane.product_groups.begin());
  }
  if (lane.sums.empty()) lane.wgmma_fence = false;
}

void EmulateWgmma(int32_t* d, int n, uint64_t a, uint64_t b, bool add) {
  Issue(d, n, false, a, b, add);
}
void EmulateWgmma(float* d, int n, uint64_t a, uint64_t b, bool add) {
  Issue(d, n, true, a, b, add);
}

}  // namespace simt
}  // namespace nibble
