// SPDX-License-Identifier: Apache-2.0
// Rotary position tables. For pair i of d rotary dimensions the unscaled frequency is
// f_i = theta^(-2i/d); each scaling changes the frequencies, some also the size of cos and sin.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "engine/model/config.h"

namespace nibble {
namespace {

double Frequency(double theta, int pair, int dim) {
  return 1.0 / std::pow(theta, static_cast<double>(2 * pair) / dim);
}

// Llama 3.1: long waves are slowed by `factor`, short ones kept, those between interpolated.
double Llama3(const RopeConfig& rope, double frequency) {
  const auto original = static_cast<double>(rope.original_max_positions);
  const double wavelength = 2.0 * std::numbers::pi / frequency;
  if (wavelength < original / rope.high_freq_factor) return frequency;
  if (wavelength > original / rope.low_freq_factor) return frequency / rope.factor;
  const double smooth = (original / wavelength - rope.low_freq_factor) /
                        (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
}

// YaRN, section 3.2: dimensions that turn fewer than beta_slow times over the original context are
// interpolated, those that turn more than beta_fast times are kept, with a linear ramp between.
class YarnRamp {
 public:
  explicit YarnRamp(const RopeConfig& rope) {
    low_ = DimensionOf(rope, rope.beta_fast);
    high_ = DimensionOf(rope, rope.beta_slow);
    if (rope.truncate) {
      low_ = std::floor(low_);
      high_ = std::ceil(high_);
    }
    low_ = std::max(low_, 0.0);
    high_ = std::min(high_, static_cast<double>(rope.rotary_dim - 1));
    if (low_ == high_) high_ += 0.001;
  }
  // 1: interpolate, 0: keep.
  double operator()(int pair) const {
    return std::clamp((static_cast<double>(pair) - low_) / (high_ - low_), 0.0, 1.0);
  }

 private:
  // The pair that turns `rotations` times over the original context.
  static double DimensionOf(const RopeConfig& rope, double rotations) {
    return rope.rotary_dim *
           std::log(static_cast<double>(rope.original_max_positions) /
                    (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  }
  double low_;
  double high_;
};

// YaRN's temperature, 0.1 m ln(s) + 1.
double YarnScale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double AttentionFactor(const RopeConfig& rope) {
  if (rope.attention_factor > 0) return rope.attention_factor;
  if (rope.scaling == RopeScaling::kYarn) {
    if (rope.mscale != 0 && rope.mscale_all_dim != 0) {
      return YarnScale(rope.factor, rope.mscale) / YarnScale(rope.factor, rope.mscale_all_dim);
    }
    return YarnScale(rope.factor, 1.0);
  }
  if (rope.scaling == RopeScaling::kLongRope && rope.factor > 1.0) {
    return std::sqrt(1.0 + std::log(rope.factor) /
                               std::log(static_cast<double>(rope.original_max_positions)));
  }
  return 1.0;
}

std::vector<double> Frequencies(const RopeConfig& rope, int64_t context, int64_t max_positions) {
  const int dim = rope.rotary_dim;
  double theta = rope.theta;
  if (rope.scaling == RopeScaling::kDynamicNtk) {
    // A longer context raises the base so that the slowest wave still covers it.
    const double length = static_cast<double>(std::max(context, max_positions));
    theta *=
        std::pow(rope.factor * length / static_cast<double>(max_positions) - (rope.factor - 1.0),
                 static_cast<double>(dim) / (dim - 2));
  }
  std::optional<YarnRamp> ramp;
  if (rope.scaling == RopeScaling::kYarn) ramp.emplace(rope);
  const std::vector<double>& divisors =
      context > rope.original_max_positions ? rope.long_factor : rope.short_factor;
  std::vector<double> frequencies(static_cast<size_t>(dim / 2));
  for (int pair = 0; pair < dim / 2; ++pair) {
    const auto index = static_cast<size_t>(pair);
    double frequency = Frequency(theta, pair, dim);
    switch (rope.scaling) {
      case RopeScaling::kNone:
      case RopeScaling::kDynamicNtk:
        break;
      case RopeScaling::kLinear:
        frequency /= rope.factor;
        break;
      case RopeScaling::kYarn:
        frequency *= (*ramp)(pair) / rope.factor + (1.0 - (*ramp)(pair));
        break;
      case RopeScaling::kLongRope:
        frequency /= divisors[index];
        break;
      case RopeScaling::kLlama3:
        frequency = Llama3(rope, frequency);
        break;
    }
    frequencies[index] = frequency;
  }
  return frequencies;
}

}  // namespace

RopeTables MakeRopeTables(const RopeConfig& rope, int32_t positions, int64_t context,
                          int64_t max_positions) {
  const std::vector<double> frequencies = Frequencies(rope, context, max_positions);
  const double factor = AttentionFactor(rope);
  RopeTables tables;
  tables.positions = positions;
  tables.cos.reserve(static_cast<size_t>(positions) * frequencies.size());
  tables.sin.reserve(static_cast<size_t>(positions) * frequencies.size());
  for (int32_t position = 0; position < positions; ++position) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(position) * frequency;
      tables.cos.push_back(static_cast<float>(std::cos(angle) * factor));
      tables.sin.push_back(static_cast<float>(std::sin(angle) * factor));
    }
  }
  return tables;
}

}  // namespace nibble
