// SPDX-License-Identifier: Apache-2.0
// Starts a kernel: on the device under nvcc, in the emulator otherwise (simt.h says what a kernel
// is).
#pragma once

#include <cstddef>

#include "kernels/cuda/simt.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include <functional>
#endif

namespace nibble {

struct LaunchShape {
  int grid_x = 1;
  int grid_y = 1;
  int grid_z = 1;
  int threads = 1;    // a multiple of 32
  int cluster_x = 1;  // neighbouring blocks that run at the same time; more than 1 on 9.0 only
  size_t shared_bytes = 0;
};

// What launches are ordered on; `handle` is a cudaStream_t. The first error sticks (a cudaError_t).
struct Stream {
  void* handle = nullptr;
  int error = 0;
  bool programmatic = false;  // launches may begin before their predecessor has ended
};

#ifdef __CUDACC__

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    Entry(const __grid_constant__ typename Kernel::Params params) {
  Kernel::Run(params);
}

template <class Kernel>
void Launch(Stream& stream, const LaunchShape& shape, const typename Kernel::Params& params) {
  if (stream.error != 0) return;
  if (shape.shared_bytes > 48 * 1024) {
    // Kept by the runtime per kernel and device; cheap beside a launch.
    const cudaError_t error =
        cudaFuncSetAttribute(Entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shape.shared_bytes));
    if (error != cudaSuccess) {
      stream.error = error;
      return;
    }
  }
  cudaLaunchAttribute attributes[2]{};
  int count = 0;
  if (stream.programmatic) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster_x > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {static_cast<unsigned>(shape.cluster_x), 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.grid_x), static_cast<unsigned>(shape.grid_y),
                        static_cast<unsigned>(shape.grid_z));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  config.attrs = attributes;
  config.numAttrs = static_cast<unsigned>(count);
  const cudaError_t error = cudaLaunchKernelEx(&config, Entry<Kernel>, params);
  if (error != cudaSuccess) stream.error = error;
}

#else

// Runs `thread` once per thread of the grid (tests/support/cuda/simt_emulator.cc).
void EmulateLaunch(const LaunchShape& shape, const std::function<void()>& thread);

template <class Kernel>
void Launch(Stream&, const LaunchShape& shape, const typename Kernel::Params& params) {
  static_assert(Kernel::kThreads % simt::kWarp == 0 && Kernel::kMinBlocks >= 1);
  EmulateLaunch(shape, [params] { Kernel::Run(params); });  // a copy: it may be recorded
}

#endif

}  // namespace nibble
