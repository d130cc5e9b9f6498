// SPDX-License-Identifier: Apache-2.0
// The words of simt.h that only compute capability 9.0 has: barriers in shared memory that count
// arrivals and bytes, copies of tiles that complete on them, clusters of blocks, products of a
// warpgroup. A kernel that uses them is launched on 9.0 only; built for anything else they trap.
//
// Two proxies reach shared memory. Copies of tiles and products go through the async proxy, loads,
// stores and CopyAsync16 through the generic one. What the generic proxy wrote is made visible to
// the async proxy by FenceAsyncShared() in the thread that wrote, before it arrives at the barrier
// that readers wait for (PTX ISA, "Async proxy"). Nothing is needed between such a copy and a
// product: both are async.
#pragma once

#include "kernels/cuda/simt.h"
#include "kernels/cuda/tile_map.h"

namespace nibble::simt {

inline constexpr int kWarpgroup = 128;  // threads; begins at a multiple of itself

#ifdef __CUDACC__
#define NIBBLE_SIMT(declaration) __device__ __forceinline__ declaration
#else
#define NIBBLE_SIMT(declaration) declaration
#endif

// ---- Registers
// This warpgroup takes (gives) registers until each of its threads has kRegisters, a multiple of 8;
// the first thing in a branch that whole warpgroups take. Blocks of such kernels have kMinBlocks 1
// and a multiple of 128 threads, which begin with 65536 / threads each, rounded down to 8.
#ifdef __CUDACC__
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters();
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters();
#else
template <int kRegisters>
void TakeRegisters() {}
template <int kRegisters>
void GiveRegisters() {}
#endif

// ---- Barriers (PTX ISA, "mbarrier"): in shared memory, aligned to 8 bytes
// A phase ends when `arrivals` threads have arrived and the bytes that they expect have been
// copied; then the next begins with the same number. The first phase is 0.
using Barrier = uint64_t;
NIBBLE_SIMT(void InitBarrier(Barrier* barrier, int arrivals));
// After InitBarrier, before the SyncThreads or SyncCluster that hands the barriers out.
NIBBLE_SIMT(void FenceBarrierInit());
// Releases what this thread did before.
NIBBLE_SIMT(void Arrive(Barrier* barrier));
// Adds bytes to what the phase expects, and arrives.
NIBBLE_SIMT(void ArriveExpecting(Barrier* barrier, int bytes));
// Until a phase of this parity has ended, the current one or the one before it: a fresh barrier
// lets parity 1 pass. Acquires what threads of this block released to the phase, and the copied
// bytes.
NIBBLE_SIMT(void WaitPhase(Barrier* barrier, uint32_t parity));

// ---- Copies from global to shared memory by the copy engine, which one thread asks for
// A tile of a matrix of bytes: the rows of a tile (MapTiles) from `row` on, 128 bytes each from
// `column` on, which lie in shared memory as SwizzledUnit() says, `shared` a multiple of 1024. What
// is outside of the matrix is zeros. All bytes of the tile count for the barrier.
NIBBLE_SIMT(void CopyTile(void* shared, const TileMap& map, int column, int row, Barrier* barrier));
// What this thread has written to shared memory, CopyAsync that it has waited for included, is
// there for products and the copy engine.
NIBBLE_SIMT(void FenceAsyncShared());

// ---- Clusters (LaunchShape::cluster_x): neighbours along x that run at the same time
NIBBLE_SIMT(int ClusterRank());  // of this block
// All threads of all blocks of the cluster; orders their accesses.
NIBBLE_SIMT(void SyncCluster());
// Arrives at the barrier that lies in block `rank` where `barrier` lies in this block. Orders no
// accesses to memory (that costs a fence of the whole device and the first-level cache): for saying
// that products which were waited for have read what may now be overwritten.
NIBBLE_SIMT(void ArriveInCluster(Barrier* barrier, int rank));
// CopyTile to the same place of every block whose bit is set in `ranks`, for its barrier.
NIBBLE_SIMT(void CopyTileToCluster(void* shared, const TileMap& map, int column, int row,
                                   Barrier* barrier, uint32_t ranks));

// ---- Products of a warpgroup (PTX ISA, "wgmma"); all 128 threads execute them together
// An address of shared memory as descriptors have it.
NIBBLE_SIMT(uint32_t SharedAddress(const void* shared));
// Before the first product, and between this thread's other accesses to sums and a product.
NIBBLE_SIMT(void FenceWgmma());
NIBBLE_SIMT(void CommitWgmma());
#ifdef __CUDACC__
// Until at most kPending committed groups are under way: those before have read their operands.
template <int kPending>
__device__ __forceinline__ void WaitWgmma();
// Until none is: the sums of d may be read. To be called for each array of sums.
template <int kCount>
__device__ __forceinline__ void WaitWgmma(int32_t (&d)[kCount]);
template <int kCount>
__device__ __forceinline__ void WaitWgmma(float (&d)[kCount]);
// d = a b, plus d if `add`, of 64 rows by kN columns of operands in shared memory and 32 bytes of
// each along the summed axis: 32 int8 with int32 sums, or 16 bf16 with f32 sums. With w = the warp
// of the group, g = lane / 4, t = lane % 4, d[4 j + e] is row 16 w + g + 8 (e / 2), column
// 8 j + 2 t + e % 2. kN is 32, 128 or 256.
template <int kN>
__device__ __forceinline__ void WgmmaS8(int32_t (&d)[kN / 2], uint64_t a, uint64_t b, bool add);
template <int kN>
__device__ __forceinline__ void WgmmaBF16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add);
#else
void WaitWgmmaUpTo(int pending);
template <int kPending>
void WaitWgmma() {
  WaitWgmmaUpTo(kPending);
}
template <typename Sum, int kCount>
void WaitWgmma(Sum (&)[kCount]) {
  WaitWgmmaUpTo(0);
}
void EmulateWgmma(int32_t* d, int n, uint64_t a, uint64_t b, bool add);  // by the type of its sums
void EmulateWgmma(float* d, int n, uint64_t a, uint64_t b, bool add);
template <int kN>
void WgmmaS8(int32_t (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(kN == 32 || kN == 128 || kN == 256);
  EmulateWgmma(d, kN, a, b, add);
}
template <int kN>
void WgmmaBF16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(kN == 32 || kN == 128 || kN == 256);
  EmulateWgmma(d, kN, a, b, add);
}
#endif

// ---- Operands of products
// Both are rows (of a, columns of b) of 128 bytes along the summed axis, eight of them in 1024
// bytes that begin at a multiple of 1024. Unit u (16 bytes) of row r lies at unit u ^ r % 8 of its
// row, so that a column of units meets all banks ("128-byte swizzle").
inline constexpr int kSwizzledRow = 128;
NIBBLE_HD constexpr int SwizzledUnit(int row, int unit) {
  return row * kSwizzledRow + (unit ^ row % 8) * 16;
}
// Of rows that lie so at `shared`, their bytes [offset, offset + 32) of 128. "Matrix descriptor
// format": address, distance of eight rows from the next, swizzle, each without its low four bits.
NIBBLE_DEVICE uint64_t SwizzledOperand(const void* shared, int offset) {
  const auto address = static_cast<uint64_t>(SharedAddress(shared)) + static_cast<uint64_t>(offset);
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{8 * kSwizzledRow / 16} << 32 |
         uint64_t{1} << 62;
}
// Shared memory from its first multiple of 1024 on: up to 1008 bytes are lost before it.
NIBBLE_DEVICE uint8_t* SwizzleAlignedShared() {
  uint8_t* shared = Shared();
  return shared + (0u - SharedAddress(shared)) % 1024u;
}

#undef NIBBLE_SIMT

}  // namespace nibble::simt

#ifdef __CUDACC__
#include "kernels/cuda/simt_hopper_device.h"
#endif
