// SPDX-License-Identifier: Apache-2.0
// Settings of the CUDA backend.
#pragma once

namespace nibble {

struct CudaOptions {
  // Results of a token have the same bits whatever else is in the step: every product has one way
  // for any number of tokens, without the library, whose order of a sum changes with their number.
  // Slower. Without it, only the same steps give the same bits.
  bool batch_invariant = false;
};

}  // namespace nibble
