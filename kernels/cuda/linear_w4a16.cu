// SPDX-License-Identifier: Apache-2.0
// int4 weights in groups, symmetric and asymmetric, times bf16 activations. Tiling and limits:
// linear_packed_kernel.h; 4.125 bits a weight are streamed with symmetric groups of 128.
#include "kernels/cuda/linear_packed_kernel.h"

namespace nibble {
namespace {

template <bool kAsymmetric, int kTokens, int kMinBlocks>
using W4A16 = PackedLinearKernel<4, true, kAsymmetric, kTokens, kMinBlocks>;

// In KB of shared memory a block: 8.0 has 163, 8.6 and 8.9 have 99, 9.0 has 227, of which a
// multiprocessor has 228. Rows that are not the first for their tokens are there for smaller
// devices, and to be measured.
constexpr PackedLinearVariant kVariants[] = {
    PackedLinearRow<W4A16<false, 8, 2>>(4),  PackedLinearRow<W4A16<false, 8, 2>>(6),
    PackedLinearRow<W4A16<false, 8, 2>>(3),  PackedLinearRow<W4A16<false, 16, 1>>(6),
    PackedLinearRow<W4A16<false, 16, 1>>(4), PackedLinearRow<W4A16<false, 16, 1>>(2),
    PackedLinearRow<W4A16<false, 32, 1>>(4), PackedLinearRow<W4A16<false, 32, 1>>(3),
    PackedLinearRow<W4A16<true, 8, 2>>(4),   PackedLinearRow<W4A16<true, 8, 2>>(6),
    PackedLinearRow<W4A16<true, 8, 2>>(3),   PackedLinearRow<W4A16<true, 16, 1>>(6),
    PackedLinearRow<W4A16<true, 16, 1>>(4),  PackedLinearRow<W4A16<true, 16, 1>>(2),
    PackedLinearRow<W4A16<true, 32, 1>>(4),  PackedLinearRow<W4A16<true, 32, 1>>(3),
};

}  // namespace

std::span<const PackedLinearVariant> LinearW4A16Variants() { return kVariants; }

void LaunchLinearW4A16(Device& device, const PackedLinearArgs& args) {
  LaunchPackedLinear(device, args, kVariants);
}

}  // namespace nibble
