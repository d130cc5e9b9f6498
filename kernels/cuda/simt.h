// SPDX-License-Identifier: Apache-2.0
// The vocabulary in which every kernel of this directory is written.
//
// A kernel is a struct with `Params` (plain data), `kThreads` (largest block), `kMinBlocks` (blocks
// that must fit a multiprocessor) and `static NIBBLE_DEVICE void Run(const Params&)`, the code of
// one thread. Run uses this header and nothing of CUDA's own. nvcc compiles it for the device
// (simt_device.h); the host compiler compiles the same file against an emulator that runs each
// thread of a block as a fibre (tests/support/cuda/simt_emulator.h), so that index maps, packing,
// fragments, barriers and copies are tested where there is no GPU. What the emulator cannot show is
// the memory model: it is sequentially consistent.
//
// Blocks are one-dimensional; a warp is 32 consecutive threads. Warp-wide operations must be
// reached by all 32 lanes.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"

// NIBBLE_UNROLL stands before a loop whose register arrays need constant indices, NIBBLE_ROLL
// before one that would need too many registers if it were unrolled, NIBBLE_UNROLL_4 between them.
#ifdef __CUDACC__
#define NIBBLE_DEVICE __device__ __forceinline__
#define NIBBLE_UNROLL _Pragma("unroll")
#define NIBBLE_ROLL _Pragma("unroll 1")
#define NIBBLE_UNROLL_4 _Pragma("unroll 4")
#else
#define NIBBLE_DEVICE inline
#define NIBBLE_UNROLL
#define NIBBLE_ROLL
#define NIBBLE_UNROLL_4
#endif

namespace nibble::simt {

inline constexpr int kWarp = 32;

// 16 bytes that are loaded and stored at once.
struct alignas(16) Vec16 {
  uint32_t word[4];
};
struct alignas(8) Vec8 {
  uint32_t word[2];
};

#ifdef __CUDACC__
#define NIBBLE_SIMT(declaration) __device__ __forceinline__ declaration
#else
#define NIBBLE_SIMT(declaration) declaration
#endif

// ---- Where this thread is
NIBBLE_SIMT(int Thread());  // in its block
NIBBLE_SIMT(int Threads());
NIBBLE_SIMT(int BlockX());
NIBBLE_SIMT(int BlockY());
NIBBLE_SIMT(int BlockZ());
NIBBLE_SIMT(int GridX());
NIBBLE_SIMT(int GridY());
// The block's dynamic shared memory, aligned to 128 bytes; LaunchShape::shared_bytes of it, not
// initialized.
NIBBLE_SIMT(uint8_t* Shared());
NIBBLE_DEVICE int Lane() { return Thread() % kWarp; }
NIBBLE_DEVICE int WarpIndex() { return Thread() / kWarp; }

// The same value, not negative; what follows from it is computed where this is reached, not before
// a loop around it, to be kept in registers.
NIBBLE_SIMT(int Afresh(int value));

// ---- Barriers and exchange
NIBBLE_SIMT(void SyncThreads());
NIBBLE_SIMT(void SyncWarp());
NIBBLE_SIMT(uint32_t ShuffleXorBits(uint32_t value, int mask));
NIBBLE_SIMT(uint32_t ShuffleBits(uint32_t value, int from_lane));
NIBBLE_SIMT(uint32_t Ballot(bool predicate));
// The index of the lowest bit that is set; there is one. (nvcc 13.0 makes std::countr_zero 32.)
NIBBLE_SIMT(int LowestBit(uint32_t bits));

NIBBLE_DEVICE float ShuffleXor(float value, int mask) {
  return std::bit_cast<float>(ShuffleXorBits(std::bit_cast<uint32_t>(value), mask));
}
NIBBLE_DEVICE int32_t ShuffleXor(int32_t value, int mask) {
  return std::bit_cast<int32_t>(ShuffleXorBits(std::bit_cast<uint32_t>(value), mask));
}
NIBBLE_DEVICE uint64_t ShuffleXor(uint64_t value, int mask) {
  const uint32_t high = ShuffleXorBits(static_cast<uint32_t>(value >> 32), mask);
  return uint64_t{high} << 32 | ShuffleXorBits(static_cast<uint32_t>(value), mask);
}
NIBBLE_DEVICE float Shuffle(float value, int from_lane) {
  return std::bit_cast<float>(ShuffleBits(std::bit_cast<uint32_t>(value), from_lane));
}
NIBBLE_DEVICE int32_t Shuffle(int32_t value, int from_lane) {
  return std::bit_cast<int32_t>(ShuffleBits(std::bit_cast<uint32_t>(value), from_lane));
}
NIBBLE_DEVICE uint64_t Shuffle(uint64_t value, int from_lane) {
  const uint32_t high = ShuffleBits(static_cast<uint32_t>(value >> 32), from_lane);
  return uint64_t{high} << 32 | ShuffleBits(static_cast<uint32_t>(value), from_lane);
}

// ---- Global memory between blocks
NIBBLE_SIMT(int32_t LoadAcquire(const int32_t* address));
NIBBLE_SIMT(void StoreRelease(int32_t* address, int32_t value));
NIBBLE_SIMT(int32_t AtomicAdd(int32_t* address, int32_t value));     // relaxed; the old value
NIBBLE_SIMT(uint32_t AtomicAdd(uint32_t* address, uint32_t value));  // also in shared memory
// Makes this thread's earlier writes visible to the whole device before its later ones.
NIBBLE_SIMT(void FenceDevice());
// In a loop that waits for another block.
NIBBLE_SIMT(void Pause());

// ---- Asynchronous copies of 16 (4) bytes from global to shared memory; both ends aligned to them
// Without `valid`, zero bytes are written and `global` is not read.
NIBBLE_SIMT(void CopyAsync16(void* shared, const void* global, bool valid));
NIBBLE_SIMT(void CopyAsync4(void* shared, const void* global, bool valid));
// For memory that is read once and in order: the second-level cache fetches the next lines too.
NIBBLE_SIMT(void CopyAsync16Stream(void* shared, const void* global, bool valid));
NIBBLE_SIMT(void CommitCopies());
// Waits until at most kPending of this thread's committed groups are under way. Other threads see
// the bytes after a barrier that follows.
#ifdef __CUDACC__
template <int kPending>
__device__ __forceinline__ void WaitCopies();
#else
void WaitCopiesUpTo(int pending);
template <int kPending>
void WaitCopies() {
  WaitCopiesUpTo(kPending);
}
#endif

// ---- Matrix fragments (PTX ISA, "Warp-level matrix instructions")
// Four 8 x 8 matrices of 16-bit elements in shared memory; lane i names row i % 8 of matrix i / 8
// (16 bytes, aligned). r[j] of lane l holds elements 2 (l % 4) and + 1 of row l / 4 of matrix j;
// transposed, elements (2 (l % 4), l / 4) and (2 (l % 4) + 1, l / 4).
NIBBLE_SIMT(void LoadMatrix4(uint32_t (&r)[4], const void* row));
NIBBLE_SIMT(void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row));
// d += a b, f32 sums. With g = lane / 4, t = lane % 4: a of 16 x 16 is {(g, 2t), (g + 8, 2t),
// (g, 2t + 8), (g + 8, 2t + 8)}, two elements each; b of 16 x 8 is {(2t, g), (2t + 8, g)}, two
// elements each along the first index; d of 16 x 8 is {(g, 2t), (g, 2t + 1), (g + 8, 2t),
// (g + 8, 2t + 1)}.
NIBBLE_SIMT(void MmaBF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]));
NIBBLE_SIMT(void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]));
// The same with int8, 32 along the summed axis: a is {(g, 4t), (g + 8, 4t), (g, 4t + 16),
// (g + 8, 4t + 16)}, four elements each; b is {(4t, g), (4t + 16, g)}; d as above.
NIBBLE_SIMT(void MmaS8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]));

// ---- Pairs of 16-bit floats in one register, low half first; one rounding per operation
NIBBLE_SIMT(uint32_t AddBF16x2(uint32_t a, uint32_t b));
NIBBLE_SIMT(uint32_t SubBF16x2(uint32_t a, uint32_t b));
NIBBLE_SIMT(uint32_t MulBF16x2(uint32_t a, uint32_t b));
NIBBLE_SIMT(uint32_t FmaBF16x2(uint32_t a, uint32_t b, uint32_t c));
NIBBLE_SIMT(uint32_t AddF16x2(uint32_t a, uint32_t b));
NIBBLE_SIMT(uint32_t SubF16x2(uint32_t a, uint32_t b));
NIBBLE_SIMT(uint32_t MulF16x2(uint32_t a, uint32_t b));
NIBBLE_SIMT(uint32_t FmaF16x2(uint32_t a, uint32_t b, uint32_t c));
NIBBLE_SIMT(uint32_t PackBF16x2(float low, float high));  // to nearest, ties to even
NIBBLE_SIMT(uint32_t PackF16x2(float low, float high));
// a & mask | bits, in one instruction even where mask and bits are constants.
NIBBLE_SIMT(uint32_t MaskOr(uint32_t a, uint32_t mask, uint32_t bits));
// Bytes picked from the eight of (low, high) by the four nibbles of `selector`, lowest first.
NIBBLE_SIMT(uint32_t PickBytes(uint32_t low, uint32_t high, uint32_t selector));

// ---- Approximate functions: a few units in the last place on the device
NIBBLE_SIMT(float Exp2(float x));
NIBBLE_SIMT(float Log2(float x));
NIBBLE_SIMT(float Tanh(float x));
NIBBLE_SIMT(float Reciprocal(float x));

// ---- Programmatic dependent launch: nothing where the device has none
// Before the first read of what the previous kernel wrote.
NIBBLE_SIMT(void WaitForPreviousKernel());
// The next kernel may start its independent part.
NIBBLE_SIMT(void StartNextKernel());

// ---- Reductions over a warp; every lane gets the result, the order is fixed
NIBBLE_DEVICE float WarpSum(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  return value;
}
NIBBLE_DEVICE int32_t WarpSum(int32_t value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  return value;
}
// No value is a NaN.
NIBBLE_DEVICE float WarpMax(float value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const float other = ShuffleXor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

#undef NIBBLE_SIMT

}  // namespace nibble::simt

#ifdef __CUDACC__
#include "kernels/cuda/simt_device.h"
#endif
