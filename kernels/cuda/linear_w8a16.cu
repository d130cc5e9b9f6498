// SPDX-License-Identifier: Apache-2.0
// int8 weights, in groups or with a scale per output feature, times bf16 activations. Tiling and
// limits: linear_packed_kernel.h; 8.125 bits a weight are streamed with groups of 128.
#include "kernels/cuda/linear_packed_kernel.h"

namespace nibble {
namespace {

template <bool kGrouped, int kTokens, int kMinBlocks>
using W8A16 = PackedLinearKernel<8, kGrouped, false, kTokens, kMinBlocks>;

// In KB of shared memory a block: 8.0 has 163, 8.6 and 8.9 have 99, 9.0 has 227, of which a
// multiprocessor has 228. Rows that are not the first for their tokens are there for smaller
// devices, and to be measured.
constexpr PackedLinearVariant kVariants[] = {
    PackedLinearRow<W8A16<true, 8, 1>>(4),   PackedLinearRow<W8A16<true, 8, 1>>(3),
    PackedLinearRow<W8A16<true, 8, 1>>(2),   PackedLinearRow<W8A16<true, 16, 1>>(4),
    PackedLinearRow<W8A16<true, 16, 1>>(3),  PackedLinearRow<W8A16<true, 32, 1>>(3),
    PackedLinearRow<W8A16<true, 32, 1>>(2),  PackedLinearRow<W8A16<false, 8, 1>>(4),
    PackedLinearRow<W8A16<false, 8, 1>>(3),  PackedLinearRow<W8A16<false, 8, 1>>(2),
    PackedLinearRow<W8A16<false, 16, 1>>(4), PackedLinearRow<W8A16<false, 16, 1>>(3),
    PackedLinearRow<W8A16<false, 32, 1>>(3), PackedLinearRow<W8A16<false, 32, 1>>(2),
};

}  // namespace

std::span<const PackedLinearVariant> LinearW8A16Variants() { return kVariants; }

void LaunchLinearW8A16(Device& device, const PackedLinearArgs& args) {
  LaunchPackedLinear(device, args, kVariants);
}

}  // namespace nibble
