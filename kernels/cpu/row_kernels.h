// SPDX-License-Identifier: Apache-2.0
// Kernels on one row of activations. Included inside the namespace of a tier.
//
// Reductions: lane i of sixteen takes elements i, i + 16, ... in order, then Sum or Largest.
#pragma once

// 1 / sqrt(mean of squares + eps)
inline float InverseRms(const float* x, int64_t dim, float eps) {
  F squares = Set(0.0f);
  int64_t i = 0;
  for (; i + 16 <= dim; i += 16) squares = Fma(Load(x + i), Load(x + i), squares);
  if (i < dim) {
    const F tail = LoadN(x + i, static_cast<int>(dim - i));
    squares = Fma(tail, tail, squares);
  }
  return 1.0f / __builtin_sqrtf(Sum(squares) / static_cast<float>(dim) + eps);
}

inline void ScaleByNorm(const float* x, const float* weight, float offset, float inverse,
                        int64_t dim, float* out) {
  for (int64_t i = 0; i < dim; i += 16) {
    const int lanes = static_cast<int>(dim - i < 16 ? dim - i : 16);
    const F normed = Mul(LoadN(x + i, lanes), Set(inverse));
    StoreN(out + i, Mul(normed, Add(Set(offset), LoadN(weight + i, lanes))), lanes);
  }
}

inline void RmsNorm(float* x, const float* delta, const float* weight, float offset, float eps,
                    int64_t dim, float* out) {
  if (delta != nullptr) {
    for (int64_t i = 0; i < dim; i += 16) {
      const int lanes = static_cast<int>(dim - i < 16 ? dim - i : 16);
      StoreN(x + i, Add(LoadN(x + i, lanes), LoadN(delta + i, lanes)), lanes);
    }
  }
  ScaleByNorm(x, weight, offset, InverseRms(x, dim, eps), dim, out);
}

// A value that is not finite has no code: it reaches the logits through the scale, as `poison`.
struct Magnitude {
  float absmax;  // NaNs are passed over
  float poison;  // 0, or NaN if a value is not finite
};

inline Magnitude Measure(const float* x, int64_t count) {
  F largest = Set(0.0f);
  F poison = Set(0.0f);
  for (int64_t i = 0; i < count; i += 16) {
    const F value = LoadN(x + i, static_cast<int>(count - i < 16 ? count - i : 16));
    largest = Max(Abs(value), largest);
    poison = Fma(value, Set(0.0f), poison);
  }
  return {Largest(largest), Sum(poison)};
}

// EncodeInt8 of kernels/codec.h on sixteen lanes.
inline I EncodeLanes(F x, F inverse_scale) {
  return Round(Min(Max(Mul(x, inverse_scale), Set(-127.0f)), Set(127.0f)));
}

// Codes of `count` values with the inverse scale; returns their sum.
inline int32_t EncodeRun(const float* x, int64_t count, float inverse_scale, int8_t* out) {
  const F inverse = Set(inverse_scale);
  int32_t sum = 0;
  for (int64_t i = 0; i < count; i += 16) {
    const int lanes = static_cast<int>(count - i < 16 ? count - i : 16);
    const I codes = EncodeLanes(LoadN(x + i, lanes), inverse);
    sum += SumI(codes);
    if (lanes == 16) {
      StoreI8(out + i, codes);
    } else {
      int8_t tail[16];
      StoreI8(tail, codes);
      memcpy(out + i, tail, static_cast<size_t>(lanes));
    }
  }
  return sum;
}

inline float InverseScale(float absmax) { return absmax > 0.0f ? 127.0f / absmax : 0.0f; }

inline void WriteBF16(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; i += 16) {
    const int lanes = static_cast<int>(count - i < 16 ? count - i : 16);
    uint16_t halves[16];
    StoreBF16(halves, LoadN(x + i, lanes));
    memcpy(out + i, halves, static_cast<size_t>(lanes) * 2);
  }
}

// One scale of int8 for all features but the outliers, whose codes are 0.
inline void WriteSplitRow(const float* row, int64_t cols, const RowTarget& target) {
  const OutlierFeatures& split = target.features;
  // Runs of features between outliers.
  const auto begin = [&](int32_t i) { return i == 0 ? 0 : int64_t{split.features[i - 1]} + 1; };
  const auto end = [&](int32_t i) { return i == split.count ? cols : split.features[i]; };
  Magnitude size{0.0f, 0.0f};
  for (int32_t i = 0; i <= split.count; ++i) {
    const Magnitude run = Measure(row + begin(i), end(i) - begin(i));
    size.absmax = run.absmax > size.absmax ? run.absmax : size.absmax;
    size.poison += run.poison;
  }
  auto* codes = static_cast<int8_t*>(target.data);
  int32_t sum = 0;
  for (int32_t i = 0; i <= split.count; ++i) {
    sum +=
        EncodeRun(row + begin(i), end(i) - begin(i), InverseScale(size.absmax), codes + begin(i));
  }
  for (int32_t i = 0; i < split.count; ++i) {
    codes[split.features[i]] = 0;
    target.outliers[i] = row[split.features[i]];
  }
  for (int32_t i = split.count; i < OutlierStride(split.count); ++i) target.outliers[i] = 0.0f;
  target.scales[0] = size.absmax / 127.0f + size.poison;
  target.sums[0] = sum;
}

inline void WriteRow(const float* row, int64_t cols, const RowTarget& target) {
  if (target.dtype == DType::kF32) {
    if (target.data != row) memcpy(target.data, row, static_cast<size_t>(cols) * sizeof(float));
    return;
  }
  if (target.dtype == DType::kBF16) {
    WriteBF16(row, cols, static_cast<uint16_t*>(target.data));
    return;
  }
  if (target.dtype == DType::kF8E4M3) {
    const Magnitude size = Measure(row, cols);
    target.scales[0] = size.absmax / kMaxE4M3 + size.poison;
    EncodeE4M3(row, cols, size.absmax, static_cast<uint8_t*>(target.data));
    return;
  }
  if (target.features.count > 0) {
    WriteSplitRow(row, cols, target);
    return;
  }
  auto* codes = static_cast<int8_t*>(target.data);
  int64_t g = 0;
  for (int64_t begin = 0; begin < cols; begin += target.group, ++g) {
    const int64_t count = cols - begin < target.group ? cols - begin : target.group;
    const Magnitude size = Measure(row + begin, count);
    target.scales[g] = size.absmax / 127.0f + size.poison;
    target.sums[g] = EncodeRun(row + begin, count, InverseScale(size.absmax), codes + begin);
  }
}

inline void Gate(const float* gate, const float* up, int64_t cols, GateActivation activation,
                 float* out) {
  for (int64_t i = 0; i < cols; i += 16) {
    const int lanes = static_cast<int>(cols - i < 16 ? cols - i : 16);
    const F x = LoadN(gate + i, lanes);
    const F act = activation == GateActivation::kSilu ? Silu(x) : GeluTanh(x);
    StoreN(out + i, Mul(act, LoadN(up + i, lanes)), lanes);
  }
}

inline void RopeHead(float* head, int head_dim, const float* norm, float offset, float eps,
                     const float* cos, const float* sin, int rotary_dim) {
  if (norm != nullptr) {
    ScaleByNorm(head, norm, offset, InverseRms(head, head_dim, eps), head_dim, head);
  }
  const int half = rotary_dim / 2;
  for (int i = 0; i < half; i += 16) {
    const int lanes = half - i < 16 ? half - i : 16;
    const F x = LoadN(head + i, lanes);
    const F y = LoadN(head + half + i, lanes);
    const F c = LoadN(cos + i, lanes);
    const F s = LoadN(sin + i, lanes);
    StoreN(head + i, Sub(Mul(x, c), Mul(y, s)), lanes);
    StoreN(head + half + i, Add(Mul(y, c), Mul(x, s)), lanes);
  }
}

inline double ExpRow(const float* x, int64_t count, float shift, float temperature, float* out) {
  // Sixteen double sums would need a second lane type: float sums of 256 elements, then double.
  double total = 0;
  const F base = Set(shift);
  const F divisor = Set(temperature);
  for (int64_t begin = 0; begin < count; begin += 256) {
    const int64_t end = begin + 256 < count ? begin + 256 : count;
    F sum = Set(0.0f);
    for (int64_t i = begin; i < end; i += 16) {
      const int lanes = static_cast<int>(end - i < 16 ? end - i : 16);
      const F value = Exp(Div(Sub(LoadN(x + i, lanes), base), divisor));
      const F kept = Select(Between(0, lanes), value, Set(0.0f));
      StoreN(out + i, kept, lanes);
      sum = Add(sum, kept);
    }
    total += static_cast<double>(Sum(sum));
  }
  return total;
}
