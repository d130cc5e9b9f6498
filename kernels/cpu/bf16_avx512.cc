// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 pairs with AVX-512 BF16: acc[n] += x[k + 1] * w[k + 1][n], then
// acc[n] += x[k] * w[k][n], for k = 0, 2, ... The instruction (VDPBF16PS) takes and gives zero for
// denormals and always rounds to nearest. The order does not depend on how many rows are computed
// together.
#include <immintrin.h>

#include <cstring>
#include <utility>

#include "kernels/cpu/tier.h"

namespace nibble {
namespace {

// Two vectors of sums for each row, of thirty-two registers.
constexpr int kTileRows = 12;
constexpr int kPairBytes = 4;
constexpr int kLineBytes = kPanelRows * kPairBytes;
// Weights of this many pairs stay in the first-level cache while they meet all rows.
constexpr int64_t kChunkPairs = 128;
// How far ahead of use packed weights are prefetched.
constexpr int kPrefetchBytes = 8192;

// Not std::min: an inline function that is compiled here must not be linked into other tiers.
int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

__m512bh LoadPairs(const uint8_t* w) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(w)); }

// The sums of kRows rows of x, `stride` apart, with one panel. Loops over rows are pack expansions:
// a register has no index.
template <typename Indices>
struct Tile;
template <size_t... m>
struct Tile<std::index_sequence<m...>> {
  __m512 sum[sizeof...(m)][2];

  template <size_t kFeatures>
  static __m512bh Broadcast(const uint16_t* x) {
    int32_t pair = 0;
    std::memcpy(&pair, x, kFeatures * sizeof(uint16_t));
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
  }

  // A pair of features, or the last one of an odd number.
  template <size_t kFeatures>
  void Step(const uint16_t* x, int64_t stride, const uint8_t* w) {
    _mm_prefetch(reinterpret_cast<const char*>(w + kPrefetchBytes), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(w + kPrefetchBytes + 64), _MM_HINT_T0);
    const __m512bh w0 = LoadPairs(w);
    const __m512bh w1 = LoadPairs(w + 64);
    const auto row = [&](__m512(&acc)[2], const uint16_t* at) {
      const __m512bh a = Broadcast<kFeatures>(at);
      acc[0] = _mm512_dpbf16_ps(acc[0], w0, a);
      acc[1] = _mm512_dpbf16_ps(acc[1], w1, a);
    };
    (row(sum[m], x + static_cast<int64_t>(m) * stride), ...);
  }

  // acc[m][32] += x[m][0..features) * w[features][32]
  static void Run(const uint16_t* x, int64_t stride, const uint8_t* w, int64_t features,
                  float* acc) {
    Tile tile{
        {{_mm512_loadu_ps(acc + m * kPanelRows), _mm512_loadu_ps(acc + m * kPanelRows + 16)}...}};
    for (; features >= 2; features -= 2, x += 2, w += kLineBytes) {
      tile.template Step<2>(x, stride, w);
    }
    if (features == 1) tile.template Step<1>(x, stride, w);
    ((_mm512_storeu_ps(acc + m * kPanelRows, tile.sum[m][0]),
      _mm512_storeu_ps(acc + m * kPanelRows + 16, tile.sum[m][1])),
     ...);
  }
};

// The same for `rows` <= kMost rows: register tiles need constant sizes.
template <int kMost>
void TileOf(int64_t rows, const uint16_t* x, int64_t stride, const uint8_t* w, int64_t features,
            float* acc) {
  if (rows == kMost) {
    Tile<std::make_index_sequence<kMost>>::Run(x, stride, w, features, acc);
  } else if constexpr (kMost > 1) {
    TileOf<kMost - 1>(rows, x, stride, w, features, acc);
  }
}

void Linear(const PackedMatrix& w, int64_t panel, const uint16_t* x, int64_t rows, float* out,
            float* acc) {
  std::memset(acc, 0, static_cast<size_t>(rows) * kPanelRows * sizeof(float));
  const uint8_t* codes = w.codes + static_cast<size_t>(panel) * w.panel_bytes;
  const int64_t chunk = rows > kTileRows ? 2 * kChunkPairs : w.cols;
  for (int64_t k = 0; k < w.cols; k += chunk) {
    const int64_t count = Least(chunk, w.cols - k);
    for (int64_t m = 0; m < rows; m += kTileRows) {
      TileOf<kTileRows>(Least(kTileRows, rows - m), x + m * w.cols + k, w.cols,
                        codes + k / 2 * kLineBytes, count, acc + m * kPanelRows);
    }
  }
  const int64_t first = panel * kPanelRows;
  for (int v = 0; v < 2; ++v) {
    const int64_t column = first + 16 * v;
    if (column >= w.rows) return;
    const auto lanes = static_cast<__mmask16>((1u << Least(16, w.rows - column)) - 1u);
    const __m512 bias =
        w.bias != nullptr ? _mm512_maskz_loadu_ps(lanes, w.bias + column) : _mm512_setzero_ps();
    for (int64_t m = 0; m < rows; ++m) {
      const __m512 y = _mm512_add_ps(_mm512_loadu_ps(acc + m * kPanelRows + 16 * v), bias);
      _mm512_mask_storeu_ps(out + m * w.rows + column, lanes, y);
    }
  }
}

double Peak(int64_t iterations) {
  __m512 acc[8];
  for (int i = 0; i < 8; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512bh half = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
  for (int64_t n = 0; n < iterations; ++n) {
    for (int i = 0; i < 8; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], half, half);
  }
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += _mm512_reduce_add_ps(acc[i]);
  return static_cast<double>(iterations) * 8 * 32 + (sum < 0 ? 1 : 0);
}

}  // namespace

const BF16Kernels kAvx512BF16Kernels = {Linear, Peak};

}  // namespace nibble
