// SPDX-License-Identifier: Apache-2.0
// A weight as it is stored, in device memory. A WeightView names its scheme by an address in the
// host's table; kernels carry the row of the table with them.
#pragma once

#include "kernels/codec.h"
#include "kernels/scheme.h"

namespace nibble {

struct DeviceWeight {
  Scheme scheme{};
  int64_t rows = 0;             // output features
  int64_t cols = 0;             // input features
  const void* codes = nullptr;  // device memory, as StoredTensors() lays it out
  const void* scales = nullptr;
  const void* zeros = nullptr;
  const float* nested = nullptr;
  int64_t outliers = 0;
  const uint16_t* outlier_weights = nullptr;
  const int32_t* outlier_features = nullptr;

  // For the functions of codec.h; valid as long as this object.
  NIBBLE_HD WeightView view() const {
    WeightView view;
    view.scheme = &scheme;
    view.rows = rows;
    view.cols = cols;
    view.codes = codes;
    view.scales = scales;
    view.zeros = zeros;
    view.nested = nested;
    view.outliers = outliers;
    view.outlier_weights = outlier_weights;
    view.outlier_features = outlier_features;
    return view;
  }
};

}  // namespace nibble
