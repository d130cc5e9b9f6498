// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>

#include "kernels/cpu/kv_entries.h"
#include "kernels/cpu/scalar_codes.h"
#include "kernels/cpu/tier.h"

namespace nibble {
namespace tier_avx2 {
namespace {

// Twelve of sixteen registers hold sums.
inline constexpr int kFloatRows = 6;
inline constexpr int kFloatVectors = 1;
inline constexpr int kIntRows = 2;
// Queries that read one tile of keys together.
inline constexpr int kAttentionQueries = 1;
// How far ahead of use packed weights are prefetched.
inline constexpr int kPrefetchBytes = 8192;

// The order matters.
// clang-format off
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/lanes_math.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/kv_kernels.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/hessian_kernels.h"
#include "kernels/cpu/peak_kernels.h"
// clang-format on

}  // namespace
}  // namespace tier_avx2

const KernelTable kAvx2Kernels = {
    tier_avx2::LinearFloat, tier_avx2::LinearInt8, tier_avx2::RmsNorm,  tier_avx2::WriteRow,
    tier_avx2::Gate,        tier_avx2::RopeHead,   tier_avx2::AppendKv, tier_avx2::Attention,
    tier_avx2::HessianTile, tier_avx2::ExpRow,     tier_avx2::PeakInt8, tier_avx2::PeakF32,
    tier_avx2::ReadWords,
};

}  // namespace nibble
