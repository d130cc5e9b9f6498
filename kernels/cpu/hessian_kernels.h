// SPDX-License-Identifier: Apache-2.0
// Sums of outer products. Included inside the namespace of a tier, after linear_kernels.h.
#pragma once

// sum[i][0..16 * kFloatVectors) += a[r][i] * b[r][...] for kFloatRows rows of the tile.
template <int kRows>
inline void OuterTile(const float* a, const float* b, int64_t rows, float* sum) {
  F acc[kRows][kFloatVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kFloatVectors; ++v) acc[i][v] = Load(sum + i * kPanelRows + 16 * v);
  }
  for (int64_t r = 0; r < rows; ++r) {
    F right[kFloatVectors];
    for (int v = 0; v < kFloatVectors; ++v) right[v] = Load(b + r * kPanelRows + 16 * v);
    for (int i = 0; i < kRows; ++i) {
      const F left = Set(a[r * kPanelRows + i]);
      for (int v = 0; v < kFloatVectors; ++v) acc[i][v] = Fma(left, right[v], acc[i][v]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kFloatVectors; ++v) Store(sum + i * kPanelRows + 16 * v, acc[i][v]);
  }
}

inline void HessianTile(const float* a, const float* b, int64_t rows, float* h, int64_t stride,
                        int height, int width, bool diagonal) {
  alignas(64) float sum[kPanelRows * kPanelRows];
  memset(sum, 0, sizeof(sum));
  for (int i = 0; i < height; ++i) {
    const int columns = diagonal ? i + 1 : width;
    memcpy(sum + i * kPanelRows, h + i * stride, static_cast<size_t>(columns) * sizeof(float));
  }
  constexpr int kWhole = kPanelRows / kFloatRows * kFloatRows;
  for (int v = 0; v < 2; v += kFloatVectors) {
    for (int i = 0; i < kWhole; i += kFloatRows) {
      OuterTile<kFloatRows>(a + i, b + 16 * v, rows, sum + i * kPanelRows + 16 * v);
    }
    if constexpr (kWhole < kPanelRows) {
      OuterTile<kPanelRows - kWhole>(a + kWhole, b + 16 * v, rows,
                                     sum + kWhole * kPanelRows + 16 * v);
    }
  }
  for (int i = 0; i < height; ++i) {
    const int columns = diagonal ? i + 1 : width;
    memcpy(h + i * stride, sum + i * kPanelRows, static_cast<size_t>(columns) * sizeof(float));
  }
}
