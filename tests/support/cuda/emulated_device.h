// SPDX-License-Identifier: Apache-2.0
// What the emulated GPU is like. Sizes apply to devices that are opened afterwards.
#pragma once

#include <cstddef>

namespace nibble::testing {

struct EmulatedDeviceOptions {
  int multiprocessors = 4;
  int major = 8;  // compute capability
  size_t memory_bytes = size_t{1} << 30;
  bool e4m3_products = false;  // whether the library multiplies e4m3, as on 9.0
  // The library's sums have an order that changes with the number of rows: sums of every
  // (rows % 4 + 1)-th product, rounded to bf16 (f32 would differ too little to be seen) and added.
  bool order_by_rows = false;
};
EmulatedDeviceOptions& EmulatedDevice();

}  // namespace nibble::testing
