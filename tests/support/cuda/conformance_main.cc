// SPDX-License-Identifier: Apache-2.0
// The tests of kernels on a GPU: lists its cases anywhere, runs them where there is a device, and
// ends with 77 after one line where there is none.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "kernels/cuda/device.h"
#include "tests/support/cuda/emulated_device.h"
#include "tests/support/cuda/simt_emulator.h"

// The tests set the emulator's schedule and abilities; a GPU has its own.
nibble::testing::EmulatorOptions& nibble::testing::Emulator() {
  static EmulatorOptions options;
  return options;
}

nibble::testing::EmulatedDeviceOptions& nibble::testing::EmulatedDevice() {
  static EmulatedDeviceOptions options;
  return options;
}

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (!GTEST_FLAG_GET(list_tests)) {
    const auto device = nibble::Device::Open(0);
    if (!device.ok()) {
      const std::string why(device.status().message());
      std::printf("cuda_conformance_test: %s\n", why.c_str());
      return 77;
    }
    std::printf("device: %s\n", (*device)->info().name.c_str());
  }
  return RUN_ALL_TESTS();
}
