// SPDX-License-Identifier: Apache-2.0
// Products with one packed panel. Included inside the namespace of a tier.
//
// linear_float: acc[n] = fma(x[k], w[k][n], acc[n]) for k = 0, 1, ...
// linear_int8:  the products of a group are summed exactly in int32, then
//               acc[n] = fma(float(sum), x_scale * w_scale, acc[n]) for group 0, 1, ...,
//               acc[n] = fma(x[j], w[j][n], acc[n]) for outlier feature j = 0, 1, ...
// Neither depends on how many rows are computed together.
#pragma once

// Expands features [k, k + count) of a quantized panel to floats [count][32].
inline void ExpandPanel(const PackedMatrix& w, int64_t panel, int64_t k, int64_t count,
                        float* out) {
  const uint8_t* codes = w.codes + static_cast<size_t>(panel) * w.panel_bytes;
  const int step = w.packing == Packing::kU4 ? 8 : 4;
  const int32_t middle = w.packing == Packing::kU4 ? 8 : 128;
  for (int64_t done = 0; done < count; done += step) {
    const int64_t at = k + done;
    const int64_t scale_row = (panel * w.groups + at / w.group) * kPanelRows;
    const uint8_t* words = codes + at / step * 128;
    for (int v = 0; v < 2; ++v) {
      const F scale = LoadBF16(w.scales + scale_row + 16 * v);
      const I zero = w.zeros != nullptr ? LoadU8(w.zeros + scale_row + 16 * v) : SetI(middle);
      const auto emit = [&](I code, int j) {
        Store(out + (done + j) * kPanelRows + 16 * v, Mul(Convert(SubI(code, zero)), scale));
      };
      const Bytes word = LoadBytes(words + 64 * v);
      if (step == 8) {
        const Bytes low = LowNibbles(word);
        const Bytes high = HighNibbles(word);
        emit(ByteOf<0>(low), 0);
        emit(ByteOf<1>(low), 1);
        emit(ByteOf<2>(low), 2);
        emit(ByteOf<3>(low), 3);
        emit(ByteOf<0>(high), 4);
        emit(ByteOf<1>(high), 5);
        emit(ByteOf<2>(high), 6);
        emit(ByteOf<3>(high), 7);
      } else {
        emit(ByteOf<0>(word), 0);
        emit(ByteOf<1>(word), 1);
        emit(ByteOf<2>(word), 2);
        emit(ByteOf<3>(word), 3);
      }
    }
  }
}

// An integer that a lambda receives as a constant.
template <int n>
struct Rows {
  static constexpr int value = n;
};

// Calls body(Rows<0>()), ..., body(Rows<n - 1>()). Arrays that are only indexed so stay in
// registers, which no loop over their rows would promise.
template <typename Body, int... i>
inline void UnrollOver(const Body& body, std::integer_sequence<int, i...>) {
  (body(Rows<i>()), ...);
}
template <int n, typename Body>
inline void Unroll(const Body& body) {
  UnrollOver(body, std::make_integer_sequence<int, n>());
}

// Calls body(Rows<n>()) for n = rows, 1 <= rows <= kMost: register tiles need constant sizes.
template <int kMost, typename Body>
inline void WithRows(int64_t rows, const Body& body) {
  if (rows == kMost) {
    body(Rows<kMost>());
  } else if constexpr (kMost > 1) {
    WithRows<kMost - 1>(rows, body);
  }
}

// acc[m][32] += x[m][0..count) * w[count][32] for kRows rows, kVectors vectors of the panel; w in
// any of the float packings.
template <int kRows, int kVectors, Packing kPacking>
inline void FloatTile(const float* x, int64_t stride, const uint8_t* w, int64_t count, float* acc) {
  constexpr int kBytes = kPacking == Packing::kF32 ? 4 : 2;
  F sum[kRows][kVectors];
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kVectors; ++v) sum[m][v] = Load(acc + m * kPanelRows + 16 * v);
  }
  for (int64_t k = 0; k < count; ++k, w += kPanelRows * kBytes) {
    Prefetch(w + kPrefetchBytes);
    F weight[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const uint8_t* at = w + 16 * v * kBytes;
      if constexpr (kPacking == Packing::kF32) {
        weight[v] = Load(reinterpret_cast<const float*>(at));
      } else if constexpr (kPacking == Packing::kF16) {
        weight[v] = LoadF16(reinterpret_cast<const uint16_t*>(at));
      } else {
        weight[v] = LoadBF16(reinterpret_cast<const uint16_t*>(at));
      }
    }
    for (int m = 0; m < kRows; ++m) {
      const F a = Set(x[m * stride + k]);
      for (int v = 0; v < kVectors; ++v) sum[m][v] = Fma(a, weight[v], sum[m][v]);
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kVectors; ++v) Store(acc + m * kPanelRows + 16 * v, sum[m][v]);
  }
}

// The same for any number of rows.
template <Packing kPacking>
inline void FloatRows(const float* x, int64_t stride, int64_t rows, const uint8_t* w, int64_t count,
                      float* acc) {
  constexpr int kBytes = kPacking == Packing::kF32 ? 4 : 2;
  for (int64_t m = 0; m < rows; m += kFloatRows) {
    WithRows<kFloatRows>(rows - m < kFloatRows ? rows - m : kFloatRows, [&](auto tile) {
      for (int v = 0; v < 2; v += kFloatVectors) {
        FloatTile<decltype(tile)::value, kFloatVectors, kPacking>(
            x + m * stride, stride, w + 16 * v * kBytes, count, acc + m * kPanelRows + 16 * v);
      }
    });
  }
}

inline void StorePanelRow(const PackedMatrix& w, int64_t panel, const F* value, float* out) {
  const int64_t first = panel * kPanelRows;
  for (int v = 0; v < 2; ++v) {
    const int64_t left = w.rows - first - 16 * v;
    if (left <= 0) return;
    const int lanes = left < 16 ? static_cast<int>(left) : 16;
    F y = value[v];
    if (w.bias != nullptr) y = Add(y, LoadN(w.bias + first + 16 * v, lanes));
    StoreN(out + first + 16 * v, y, lanes);
  }
}

inline void LinearFloat(const PackedMatrix& w, int64_t panel, const float* x, int64_t rows,
                        float* out, float* scratch) {
  float* expanded = scratch;
  float* acc = scratch + int64_t{kFloatChunk} * kPanelRows;
  memset(acc, 0, static_cast<size_t>(rows) * kPanelRows * sizeof(float));
  const uint8_t* codes = w.codes + static_cast<size_t>(panel) * w.panel_bytes;
  // Chunks keep weights in the first-level cache while they meet all rows; one tile needs no
  // chunks.
  const bool expand =
      w.packing == Packing::kU8 || w.packing == Packing::kU4 || w.packing == Packing::kStored;
  const int64_t chunk = expand || rows > kFloatRows ? kFloatChunk : w.cols;
  for (int64_t k = 0; k < w.cols; k += chunk) {
    const int64_t count = w.cols - k < chunk ? w.cols - k : chunk;
    if (w.packing == Packing::kF16) {
      FloatRows<Packing::kF16>(x + k, w.cols, rows, codes + k * kPanelRows * 2, count, acc);
    } else if (w.packing == Packing::kBF16) {
      FloatRows<Packing::kBF16>(x + k, w.cols, rows, codes + k * kPanelRows * 2, count, acc);
    } else if (w.packing == Packing::kF32) {
      FloatRows<Packing::kF32>(x + k, w.cols, rows, codes + k * kPanelRows * 4, count, acc);
    } else {
      if (w.packing == Packing::kStored) {
        ExpandStored(w, panel, k, count, expanded);
      } else {
        ExpandPanel(w, panel, k, count, expanded);
      }
      FloatRows<Packing::kF32>(x + k, w.cols, rows, reinterpret_cast<const uint8_t*>(expanded),
                               count, acc);
    }
  }
  for (int64_t m = 0; m < rows; ++m) {
    const F value[2] = {Load(acc + m * kPanelRows), Load(acc + m * kPanelRows + 16)};
    StorePanelRow(w, panel, value, out + m * w.rows);
  }
}

template <int kRows, bool kNibbles>
inline void Int8Tile(const PackedMatrix& w, int64_t panel, const Int8Rows& x, int64_t first,
                     float* out) {
  const uint8_t* words = w.codes + static_cast<size_t>(panel) * w.panel_bytes;
  const int8_t* a = x.data + first * w.cols;
  alignas(64) float acc[kRows][kPanelRows];
  memset(acc, 0, sizeof(acc));
  for (int64_t g = 0; g < x.groups; ++g) {
    const int64_t begin = g * x.group;
    const int64_t end = begin + x.group < w.cols ? begin + x.group : w.cols;
    const int64_t scale_row = (panel * w.groups + (w.groups == 1 ? 0 : g)) * kPanelRows;
    I sum[kRows][2];
    if (kNibbles && w.zeros != nullptr) {
      const I zero0 = LoadU8(w.zeros + scale_row);
      const I zero1 = LoadU8(w.zeros + scale_row + 16);
      Unroll<kRows>([&](auto m) {
        const I total = SetI(x.sums[(first + m.value) * x.groups + g]);
        sum[m.value][0] = SubI(SetI(0), MulI(total, zero0));
        sum[m.value][1] = SubI(SetI(0), MulI(total, zero1));
      });
    } else {
      Unroll<kRows>([&](auto m) {
        const int32_t total = x.sums[(first + m.value) * x.groups + g];
        sum[m.value][0] = sum[m.value][1] = SetI((kNibbles ? -8 : -128) * total);
      });
    }
    if constexpr (kNibbles) {
      for (int64_t k = begin; k < end;) {
        const int64_t stop = end - k < kNibbleRun ? end : k + kNibbleRun;
        NibbleSum run[kRows][2];
        Unroll<kRows>([&](auto m) {
          run[m.value][0] = BeginRun(sum[m.value][0]);
          run[m.value][1] = BeginRun(sum[m.value][1]);
        });
        for (; k < stop; k += 8, words += 128) {
          const Bytes word0 = LoadBytes(words);
          const Bytes word1 = LoadBytes(words + 64);
          Prefetch(words + kPrefetchBytes);
          Prefetch(words + kPrefetchBytes + 64);
          const Bytes low0 = LowNibbles(word0);
          const Bytes low1 = LowNibbles(word1);
          const Bytes high0 = HighNibbles(word0);
          const Bytes high1 = HighNibbles(word1);
          Unroll<kRows>([&](auto m) {
            const NibbleQuad near = LoadNibbleQuad(a + m.value * w.cols + k);
            run[m.value][0] = DotNibbles(run[m.value][0], low0, near);
            run[m.value][1] = DotNibbles(run[m.value][1], low1, near);
            const NibbleQuad far = LoadNibbleQuad(a + m.value * w.cols + k + 4);
            run[m.value][0] = DotNibbles(run[m.value][0], high0, far);
            run[m.value][1] = DotNibbles(run[m.value][1], high1, far);
          });
        }
        Unroll<kRows>([&](auto m) {
          sum[m.value][0] = EndRun(sum[m.value][0], run[m.value][0]);
          sum[m.value][1] = EndRun(sum[m.value][1], run[m.value][1]);
        });
      }
    } else {
      for (int64_t k = begin; k < end; k += 4, words += 128) {
        const Bytes word0 = LoadBytes(words);
        const Bytes word1 = LoadBytes(words + 64);
        Prefetch(words + kPrefetchBytes);
        Prefetch(words + kPrefetchBytes + 64);
        Unroll<kRows>([&](auto m) {
          const Quad quad = LoadQuad(a + m.value * w.cols + k);
          sum[m.value][0] = Dot(sum[m.value][0], word0, quad);
          sum[m.value][1] = Dot(sum[m.value][1], word1, quad);
        });
      }
    }
    const F scale0 = LoadBF16(w.scales + scale_row);
    const F scale1 = LoadBF16(w.scales + scale_row + 16);
    Unroll<kRows>([&](auto m) {
      float* row = acc[m.value];
      const F s = Set(x.scales[(first + m.value) * x.groups + g]);
      Store(row, Fma(Convert(sum[m.value][0]), Mul(s, scale0), Load(row)));
      Store(row + 16, Fma(Convert(sum[m.value][1]), Mul(s, scale1), Load(row + 16)));
    });
  }
  if (w.outliers > 0) {
    const int64_t stride = OutlierStride(static_cast<int32_t>(w.outliers));
    FloatRows<Packing::kBF16>(x.outliers + first * stride, stride, kRows,
                              w.outlier_weights + panel * w.outliers * kPanelRows * 2, w.outliers,
                              acc[0]);
  }
  for (int m = 0; m < kRows; ++m) {
    const F value[2] = {Load(acc[m]), Load(acc[m] + 16)};
    StorePanelRow(w, panel, value, out + (first + m) * w.rows);
  }
}

template <bool kNibbles>
inline void Int8Panel(const PackedMatrix& w, int64_t panel, const Int8Rows& x, int64_t rows,
                      float* out) {
  for (int64_t m = 0; m < rows; m += kIntRows) {
    WithRows<kIntRows>(rows - m < kIntRows ? rows - m : kIntRows, [&](auto tile) {
      Int8Tile<decltype(tile)::value, kNibbles>(w, panel, x, m, out);
    });
  }
}

inline void LinearInt8(const PackedMatrix& w, int64_t panel, const Int8Rows& x, int64_t rows,
                       float* out) {
  if (w.packing == Packing::kU4) {
    Int8Panel<true>(w, panel, x, rows, out);
  } else {
    Int8Panel<false>(w, panel, x, rows, out);
  }
}
