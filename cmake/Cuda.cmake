# SPDX-License-Identifier: Apache-2.0
# NIBBLE_CUDA: whether libnibble_cuda.so is built. By default where nvcc is there; sanitizer builds run
# the kernels in the emulator only.
include(CheckLanguage)
set(nibble_cuda_default OFF)
if(NIBBLE_SANITIZE STREQUAL "")
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
    set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
  endif()
  if(NOT DEFINED CMAKE_CUDA_HOST_COMPILER)
    set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(nibble_cuda_default ON)
  endif()
endif()
option(NIBBLE_CUDA "Build libnibble_cuda.so with nvcc" ${nibble_cuda_default})
if(NIBBLE_CUDA)
  # 8.0 serves everything before Hopper, 9.0a is Hopper; the PTX is for what comes later.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 80-virtual)
  enable_language(CUDA)
  # CMake 3.25 does not know that nvcc takes C++20.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  # What ptxas -v says is kept beside each object, for tests/check-spills.
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_SOURCE_DIR}/cmake/keep_ptxas_report.py)
  if(NIBBLE_CCACHE)
    list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER ${NIBBLE_CCACHE})
  endif()
endif()
