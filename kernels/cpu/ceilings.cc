// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "kernels/cpu/memory.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A pass is about a millisecond, so that on a busy machine some run undisturbed.
constexpr int kPasses = 48;

// Reads more memory than any cache holds, a part in each pass. 0 if there is none to spare.
double ReadGbPerS(ThreadPool& pool, const KernelTable& kernels) {
  constexpr size_t kBytes = size_t{192} << 20;
  constexpr size_t kPart = size_t{32} << 20;
  constexpr size_t kChunk = size_t{1} << 20;
  auto pages = Pages::Map(kBytes);
  if (!pages.ok()) return 0;
  uint8_t* data = (*pages)->data();
  std::memset(data, 1, kBytes);
  std::vector<uint64_t> sums(static_cast<size_t>(pool.threads()));
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const uint8_t* part = data + static_cast<size_t>(pass) % (kBytes / kPart) * kPart;
    const Clock::time_point start = Clock::now();
    pool.Run(kPart / kChunk, 2, [&](int64_t begin, int64_t end, int thread) {
      sums[static_cast<size_t>(thread)] += kernels.read_words(
          part + static_cast<size_t>(begin) * kChunk, static_cast<int64_t>(kChunk) * (end - begin));
    });
    best = std::max(best, static_cast<double>(kPart) / SecondsSince(start) / 1e9);
  }
  return best;
}

// 10^9 operations a second of a loop that returns its multiply-adds, two operations each.
double GigaOps(ThreadPool& pool, double (*loop)(int64_t)) {
  // About 0.2 ms a piece, in any tier.
  int64_t iterations = 1000;
  for (;; iterations *= 2) {
    const Clock::time_point start = Clock::now();
    loop(iterations);
    if (SecondsSince(start) > 2e-4) break;
  }
  double best = 0;
  std::vector<double> done(static_cast<size_t>(pool.threads()) * 4);
  for (int pass = 0; pass < kPasses; ++pass) {
    const Clock::time_point start = Clock::now();
    pool.Run(static_cast<int64_t>(done.size()), 1, [&](int64_t begin, int64_t, int) {
      done[static_cast<size_t>(begin)] = loop(iterations);
    });
    const double seconds = SecondsSince(start);
    double total = 0;
    for (const double macs : done) total += macs;
    best = std::max(best, 2 * total / seconds / 1e9);
  }
  return best;
}

}  // namespace

Ceilings MeasureCpuCeilings(ThreadPool& pool, const CpuTier& tier) {
  Ceilings ceilings;
  ceilings.read_gb_per_s = ReadGbPerS(pool, *tier.kernels);
  ceilings.int8_gops = GigaOps(pool, tier.kernels->peak_int8);
  // Without dot products of bfloat16, its weights are expanded to single precision.
  ceilings.bf16_gflops =
      GigaOps(pool, tier.bf16 != nullptr ? tier.bf16->peak : tier.kernels->peak_f32);
  return ceilings;
}

}  // namespace nibble
