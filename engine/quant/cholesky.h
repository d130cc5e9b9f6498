// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "engine/quant/matrix.h"

namespace nibble {

// Replaces the symmetric positive definite H (K, K; both triangles filled) by the upper triangular
// U with H^-1 = U^T U; below the diagonal zeros. False, with H destroyed, where H is not positive
// definite in f32.
//
// With J the reversal of indices and J H J = L L^T, H^-1 = J L^-T L^-1 J, so U = J L^-1 J: one
// Cholesky factor and one triangular inverse, both blocked. In row-major storage J X J is X read
// backwards.
bool UpperFactorOfInverse(Matrix& h, int threads);

}  // namespace nibble
