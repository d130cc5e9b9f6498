// SPDX-License-Identifier: Apache-2.0
// Operands of W8A8 products, and the definition that kernels are held to.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/codec.h"
#include "kernels/cuda/linear_rows.h"
#include "tests/kernels/activations.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/kernels/random_weight.h"
#include "tests/support/cuda/simt_emulator.h"

namespace nibble::testing {

inline const Scheme& W8A8() { return *FindScheme("w8a8"); }

// A weight as it is stored, and its scales.
struct Int8Weight {
  explicit Int8Weight(const WeightView& view)
      : stored(view), scales(OnDevice<float>::Poisoned(static_cast<size_t>(view.rows))) {
    LaunchRowScales(TestDevice(), stored.weight(), scales.data());
  }
  RowsWeight With(const float* bias, Floats out) const {
    const int64_t rows = stored.weight().rows;
    return {stored.weight().codes, scales.data(), bias, rows, out, rows};
  }
  WeightOnDevice stored;
  OnDevice<float> scales;
};

// Tokens of int8 codes with scales.
struct Int8Tokens {
  Int8Tokens(int64_t rows, int64_t cols, uint32_t seed) {
    std::mt19937 random(seed);
    for (int64_t i = 0; i < rows * cols; ++i) {
      codes.push_back(static_cast<int8_t>(static_cast<int>(random() % 255) - 127));
    }
    for (const float x : RandomFloats(rows, seed)) scales.push_back(0.01f + std::abs(x));
  }
  std::vector<int8_t> codes;
  std::vector<float> scales;
};

// What `launch` makes of weights that share `rows` tokens, to the bit, in both schedules; every out
// is of type `type`.
template <typename Launch>
void ExpectExactInt8(Launch&& launch, const std::vector<int64_t>& outs, int64_t rows, int64_t cols,
                     DType type, bool biased) {
  SCOPED_TRACE(std::to_string(rows) + " tokens, " + std::to_string(outs[0]) + " x " +
               std::to_string(cols));
  const Int8Tokens tokens(rows, cols, 7);
  const OnDevice<int8_t> x(tokens.codes);
  const OnDevice<float> scales(tokens.scales);
  LinearRowsArgs args;
  args.count = static_cast<int>(outs.size());
  args.x = x.data();
  args.scales = scales.data();
  args.rows = rows;
  args.cols = cols;
  std::vector<RandomWeight> weights;
  std::vector<std::vector<float>> biases;
  std::vector<std::unique_ptr<Int8Weight>> on_device;
  std::vector<OnDevice<float>> on_device_biases;
  for (size_t i = 0; i < outs.size(); ++i) {
    weights.emplace_back(W8A8(), outs[i], cols, static_cast<uint32_t>(i));
    on_device.push_back(std::make_unique<Int8Weight>(weights[i].view()));
    biases.push_back(RandomFloats(outs[i], static_cast<uint32_t>(i)));
    on_device_biases.emplace_back(biases[i]);
  }
  for (const Schedule schedule : {Schedule::kDescending, Schedule::kAscending}) {
    Emulator().schedule = schedule;
    std::vector<OnDevice<uint8_t>> out;
    for (size_t i = 0; i < outs.size(); ++i) {
      out.push_back(
          OnDevice<uint8_t>::Poisoned(static_cast<size_t>(rows * outs[i]) * BytesOf(type)));
      args.weights[i] =
          on_device[i]->With(biased ? on_device_biases[i].data() : nullptr, {out[i].data(), type});
    }
    launch(TestDevice(), args);
    for (size_t i = 0; i < outs.size(); ++i) {
      std::vector<float> expected;
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < outs[i]; ++n) {
          int32_t sum = 0;
          for (int64_t k = 0; k < cols; ++k) {
            sum +=
                tokens.codes[static_cast<size_t>(m * cols + k)] * ReadCode(weights[i].view(), n, k);
          }
          float y = static_cast<float>(sum) *
                    (tokens.scales[static_cast<size_t>(m)] * ReadScale(weights[i].view(), n, 0));
          if (biased) y += biases[i][static_cast<size_t>(n)];
          expected.push_back(y);
        }
      }
      if (type == DType::kF32) {
        EXPECT_EQ(As<float>(out[i].Read()), expected);
      } else {
        EXPECT_EQ(As<uint16_t>(out[i].Read()), ToBF16(expected));
      }
    }
  }
}

}  // namespace nibble::testing
