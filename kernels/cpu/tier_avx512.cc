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
namespace tier_avx512 {
namespace {

// Sixteen of thirty-two registers hold sums.
inline constexpr int kFloatRows = 8;
inline constexpr int kFloatVectors = 2;
inline constexpr int kIntRows = 8;
// Queries that read one tile of keys together.
inline constexpr int kAttentionQueries = 4;
// How far ahead of use packed weights are prefetched.
inline constexpr int kPrefetchBytes = 8192;

// The order matters.
// clang-format off
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/lanes_math.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/kv_kernels.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/hessian_kernels.h"
#include "kernels/cpu/peak_kernels.h"
// clang-format on

}  // namespace
}  // namespace tier_avx512

const KernelTable kAvx512Kernels = {
    tier_avx512::LinearFloat, tier_avx512::LinearInt8, tier_avx512::RmsNorm,
    tier_avx512::WriteRow,    tier_avx512::Gate,       tier_avx512::RopeHead,
    tier_avx512::AppendKv,    tier_avx512::Attention,  tier_avx512::HessianTile,
    tier_avx512::ExpRow,      tier_avx512::PeakInt8,   tier_avx512::PeakF32,
    tier_avx512::ReadWords,
};

}  // namespace nibble
