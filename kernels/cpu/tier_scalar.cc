// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstring>
#include <iterator>
#include <type_traits>
#include <utility>

#include "kernels/cpu/kv_entries.h"
#include "kernels/cpu/scalar_codes.h"
#include "kernels/cpu/tier.h"

namespace nibble {
namespace tier_scalar {
namespace {

inline constexpr int kFloatRows = 1;
inline constexpr int kFloatVectors = 1;
inline constexpr int kIntRows = 1;
// Queries that read one tile of keys together.
inline constexpr int kAttentionQueries = 1;
// How far ahead of use packed weights are prefetched.
inline constexpr int kPrefetchBytes = 8192;

// The order matters.
// clang-format off
#include "kernels/cpu/lanes_scalar.h"
#include "kernels/cpu/lanes_math.h"
#include "kernels/cpu/linear_kernels.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/kv_kernels.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/hessian_kernels.h"
#include "kernels/cpu/peak_kernels.h"
// clang-format on

}  // namespace
}  // namespace tier_scalar

const KernelTable kScalarKernels = {
    tier_scalar::LinearFloat, tier_scalar::LinearInt8, tier_scalar::RmsNorm,
    tier_scalar::WriteRow,    tier_scalar::Gate,       tier_scalar::RopeHead,
    tier_scalar::AppendKv,    tier_scalar::Attention,  tier_scalar::HessianTile,
    tier_scalar::ExpRow,      tier_scalar::PeakInt8,   tier_scalar::PeakF32,
    tier_scalar::ReadWords,
};

}  // namespace nibble
