// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/tile_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace nibble {
namespace {

static_assert(sizeof(TileMap) == sizeof(CUtensorMap) && alignof(TileMap) >= alignof(CUtensorMap));

// Of the driver, which the program is not linked to; nullptr if it has none.
decltype(&cuTensorMapEncodeTiled) EncodeTiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

TileMap MapTiles(Stream& stream, const void* data, int64_t rows, int64_t cols, int tile_rows) {
  static const auto encode = EncodeTiled();
  TileMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride = static_cast<cuuint64_t>(cols);
  const cuuint32_t box[2] = {128, static_cast<cuuint32_t>(tile_rows)};
  const cuuint32_t steps[2] = {1, 1};
  if (encode == nullptr ||
      encode(reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 2,
             const_cast<void*>(data), sizes, &stride, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
    if (stream.error == 0) stream.error = cudaErrorInvalidValue;
  }
  return map;
}

}  // namespace nibble
