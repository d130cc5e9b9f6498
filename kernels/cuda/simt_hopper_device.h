// SPDX-License-Identifier: Apache-2.0
// simt_hopper.h on the device. wgmma exists in code built for 9.0a only, so that is where all of
// it does.
#pragma once

namespace nibble::simt {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define NIBBLE_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define NIBBLE_SM90A(...) __trap()
#endif

template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  NIBBLE_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  NIBBLE_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void InitBarrier(Barrier* barrier, int arrivals) {
  NIBBLE_SM90A("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
// For the async proxy and for the other blocks of the cluster.
__device__ __forceinline__ void FenceBarrierInit() {
  NIBBLE_SM90A("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void Arrive(Barrier* barrier) {
  NIBBLE_SM90A("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier))
               : "memory");
}
__device__ __forceinline__ void ArriveExpecting(Barrier* barrier, int bytes) {
  NIBBLE_SM90A("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void WaitPhase(Barrier* barrier, uint32_t parity) {
  uint32_t ended = 1;
  do {
    NIBBLE_SM90A(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 ended, [%1], %2;\n"
        "selp.b32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
  } while (ended == 0);
}

__device__ __forceinline__ void CopyTile(void* shared, const TileMap& map, int column, int row,
                                         Barrier* barrier) {
  NIBBLE_SM90A(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(column), "r"(row), "r"(SharedAddress(barrier))
      : "memory");
}
__device__ __forceinline__ void FenceAsyncShared() {
  NIBBLE_SM90A("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ int ClusterRank() {
  uint32_t rank = 0;
  NIBBLE_SM90A("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
__device__ __forceinline__ void SyncCluster() {
  NIBBLE_SM90A(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
__device__ __forceinline__ void ArriveInCluster(Barrier* barrier, int rank) {
  NIBBLE_SM90A(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void CopyTileToCluster(void* shared, const TileMap& map, int column,
                                                  int row, Barrier* barrier, uint32_t ranks) {
  NIBBLE_SM90A(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(SharedAddress(shared)),
      "l"(&map), "r"(column), "r"(row), "r"(SharedAddress(barrier)),
      "h"(static_cast<uint16_t>(ranks))
      : "memory");
}

__device__ __forceinline__ void FenceWgmma() {
  NIBBLE_SM90A("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void CommitWgmma() {
  NIBBLE_SM90A("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WaitWgmma() {
  NIBBLE_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kCount>
__device__ __forceinline__ void WaitWgmma(int32_t (&d)[kCount]) {
  WaitWgmma<0>();
  // Or the compiler moves reads of d before the wait, which does not name it.
  NIBBLE_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void WaitWgmma(float (&d)[kCount]) {
  WaitWgmma<0>();
  NIBBLE_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d: operands %(10 t) to %(10 t + 9), those of a product of n columns, and the registers behind
// them, of type c.
#define NIBBLE_TEN(t)                                                                              \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t \
  "9, "
#define NIBBLE_NAMES_32 NIBBLE_TEN() "%10, %11, %12, %13, %14, %15"
#define NIBBLE_NAMES_128 \
  NIBBLE_TEN() NIBBLE_TEN(1) NIBBLE_TEN(2) NIBBLE_TEN(3) NIBBLE_TEN(4) NIBBLE_TEN(5) "%60, %61, " \
                                                                                    "%62, %63"
#define NIBBLE_NAMES_256 \
  NIBBLE_TEN()           \
  NIBBLE_TEN(1) NIBBLE_TEN(2) NIBBLE_TEN(3) NIBBLE_TEN(4) NIBBLE_TEN(5) NIBBLE_TEN(6)      \
      NIBBLE_TEN(7) NIBBLE_TEN(8) NIBBLE_TEN(9) NIBBLE_TEN(10) NIBBLE_TEN(11) "%120, %121, " \
      "%122, %123, %124, %125, %126, %127"
#define NIBBLE_EIGHT(c, i)                                                            \
  c(d[i]), c(d[(i) + 1]), c(d[(i) + 2]), c(d[(i) + 3]), c(d[(i) + 4]), c(d[(i) + 5]), \
      c(d[(i) + 6]), c(d[(i) + 7])
#define NIBBLE_32(c, i) \
  NIBBLE_EIGHT(c, i), NIBBLE_EIGHT(c, (i) + 8), NIBBLE_EIGHT(c, (i) + 16), NIBBLE_EIGHT(c, (i) + 24)
#define NIBBLE_REGISTERS_32(c) NIBBLE_EIGHT(c, 0), NIBBLE_EIGHT(c, 8)
#define NIBBLE_REGISTERS_128(c) NIBBLE_32(c, 0), NIBBLE_32(c, 32)
#define NIBBLE_REGISTERS_256(c) NIBBLE_REGISTERS_128(c), NIBBLE_32(c, 64), NIBBLE_32(c, 96)
// `a`, `b`, `p`: operands behind those of d. Products of floats have factors of a and b, 1, and say
// that neither is transposed.
#define NIBBLE_WGMMA(Word, Sum, c, n, a, b, p, kind, factors)                                \
  template <>                                                                                \
  __device__ __forceinline__ void Word<n>(Sum(&d)[n / 2], uint64_t rows, uint64_t columns,   \
                                          bool add) {                                        \
    NIBBLE_SM90A(                                                                            \
        "{\n"                                                                                \
        ".reg .pred add;\n"                                                                  \
        "setp.ne.b32 add, %" #p                                                              \
        ", 0;\n"                                                                             \
        "wgmma.mma_async.sync.aligned.m64n" #n kind " {" NIBBLE_NAMES_##n "}, %" #a ", %" #b \
                                                                          ", add" factors    \
                                                                          ";\n"              \
                                                                          "}"                \
        : NIBBLE_REGISTERS_##n(c)                                                            \
        : "l"(rows), "l"(columns), "r"(static_cast<int>(add)));                              \
  }
NIBBLE_WGMMA(WgmmaS8, int32_t, "+r", 32, 16, 17, 18, "k32.s32.s8.s8", "")
NIBBLE_WGMMA(WgmmaS8, int32_t, "+r", 128, 64, 65, 66, "k32.s32.s8.s8", "")
NIBBLE_WGMMA(WgmmaS8, int32_t, "+r", 256, 128, 129, 130, "k32.s32.s8.s8", "")
NIBBLE_WGMMA(WgmmaBF16, float, "+f", 32, 16, 17, 18, "k16.f32.bf16.bf16", ", 1, 1, 0, 0")
NIBBLE_WGMMA(WgmmaBF16, float, "+f", 128, 64, 65, 66, "k16.f32.bf16.bf16", ", 1, 1, 0, 0")
NIBBLE_WGMMA(WgmmaBF16, float, "+f", 256, 128, 129, 130, "k16.f32.bf16.bf16", ", 1, 1, 0, 0")

#undef NIBBLE_WGMMA
#undef NIBBLE_REGISTERS_256
#undef NIBBLE_REGISTERS_128
#undef NIBBLE_REGISTERS_32
#undef NIBBLE_32
#undef NIBBLE_EIGHT
#undef NIBBLE_NAMES_256
#undef NIBBLE_NAMES_128
#undef NIBBLE_NAMES_32
#undef NIBBLE_TEN
#undef NIBBLE_SM90A

}  // namespace nibble::simt
