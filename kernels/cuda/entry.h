// SPDX-License-Identifier: Apache-2.0
// The one symbol of libnibble_cuda.so. Program and library are built together: the C++ types in it
// are the same on both sides.
#pragma once

#include <string>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_options.h"

namespace nibble {

// The backend of a GPU, owned by the caller, or nullptr and the reason in `why`.
using OpenCudaBackend = Backend*(int ordinal, const CudaOptions& options, std::string* why);
inline constexpr char kOpenCudaBackend[] = "nibble_open_cuda_backend";

}  // namespace nibble
