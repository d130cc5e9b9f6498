// SPDX-License-Identifier: Apache-2.0
// int8 weights, in groups or with a scale per output feature, times bf16 activations. Tiling and
// limits: linear_packed_kernel.h; 8.125 bits a weight are streamed with groups of 128.
#include "kernels/cuda/linear_packed_kernel.h"

namespace nibble {
namespace {

template <bool kGrouped, int kTokens, int kStages>
using W8A16 = PackedLinearKernel<8, kGrouped, false, kTokens, kStages>;

// Stages: at least 32 KB of codes under way, within the shared memory of 8.0.
constexpr PackedLinearVariant kVariants[] = {
    PackedLinearRow<W8A16<true, 8, 4>>(),   PackedLinearRow<W8A16<true, 16, 4>>(),
    PackedLinearRow<W8A16<true, 32, 4>>(),  PackedLinearRow<W8A16<true, 64, 3>>(),
    PackedLinearRow<W8A16<false, 8, 4>>(),  PackedLinearRow<W8A16<false, 16, 4>>(),
    PackedLinearRow<W8A16<false, 32, 4>>(), PackedLinearRow<W8A16<false, 64, 3>>(),
};

}  // namespace

void LaunchLinearW8A16(Device& device, const PackedLinearArgs& args) {
  LaunchPackedLinear(device, args, kVariants);
}

}  // namespace nibble
