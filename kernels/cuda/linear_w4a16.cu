// SPDX-License-Identifier: Apache-2.0
// int4 weights in groups, symmetric and asymmetric, times bf16 activations. Tiling and limits:
// linear_packed_kernel.h; 4.125 bits a weight are streamed with symmetric groups of 128.
#include "kernels/cuda/linear_packed_kernel.h"

namespace nibble {
namespace {

template <bool kAsymmetric, int kTokens, int kStages>
using W4A16 = PackedLinearKernel<4, true, kAsymmetric, kTokens, kStages>;

// Stages: at least 24 KB of codes under way, within the shared memory of 8.0.
constexpr PackedLinearVariant kVariants[] = {
    PackedLinearRow<W4A16<false, 8, 6>>(),  PackedLinearRow<W4A16<false, 16, 6>>(),
    PackedLinearRow<W4A16<false, 32, 5>>(), PackedLinearRow<W4A16<false, 64, 4>>(),
    PackedLinearRow<W4A16<true, 8, 6>>(),   PackedLinearRow<W4A16<true, 16, 6>>(),
    PackedLinearRow<W4A16<true, 32, 5>>(),  PackedLinearRow<W4A16<true, 64, 4>>(),
};

}  // namespace

void LaunchLinearW4A16(Device& device, const PackedLinearArgs& args) {
  LaunchPackedLinear(device, args, kVariants);
}

}  // namespace nibble
