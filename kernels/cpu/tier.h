// SPDX-License-Identifier: Apache-2.0
// The kernels of one instruction tier. Every function works on one item of a parallel loop, keeps
// no state and computes each output in one fixed order of operations, which is the same in all
// tiers: tiers, threads and batches agree to the bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"
#include "kernels/scheme.h"

namespace nibble {

// Output rows of one packed panel: two vectors of sixteen lanes.
inline constexpr int kPanelRows = 32;
// Input features of one 32-bit word of 4-bit codes; packed rows are padded to this many.
inline constexpr int kPanelStep = 8;

enum class Packing : uint8_t {
  kF32,        // [k][32] float
  kF16,        // [k][32] half
  kBF16,       // [k][32] bfloat16
  kBF16Pairs,  // [k / 2][32][2] bfloat16
  kU8,         // [k / 4][32][4] code + 128
  kStored,     // as StoredTensors() says: PackedMatrix::stored
  kU4,  // [k / 8][32][4] bytes; byte j = (code + 8) of k + j, and of k + 4 + j in the high nibble
};

// One weight in panels of kPanelRows output rows. Rows and features beyond the matrix are zero
// bytes, with scale 0.
struct PackedMatrix {
  Packing packing = Packing::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t group = 0;   // features per weight scale
  int64_t groups = 0;  // scales per row; 0 for floats
  int64_t panels = 0;
  size_t panel_bytes = 0;  // codes of one panel
  const uint8_t* codes = nullptr;
  WeightView stored;                 // kStored only; codes, scales and zeros are unused then
  const uint16_t* scales = nullptr;  // (panels, groups, 32) bfloat16
  const uint8_t* zeros = nullptr;    // (panels, groups, 32) zero point + bias; nullptr = symmetric
  const float* bias = nullptr;       // (rows) or nullptr
  int64_t outliers = 0;              // outlier features; their codes are 0
  const int32_t* outlier_features = nullptr;  // (outliers)
  const uint8_t* outlier_weights = nullptr;   // (panels, outliers, 32) bfloat16
};

struct Int8Rows {
  const int8_t* data;   // (rows, cols)
  const float* scales;  // (rows, groups)
  const int32_t* sums;  // (rows, groups)
  int64_t group;        // features per scale, a multiple of kPanelStep unless it is all of them
  int64_t groups;       // those of the weight, unless the weight has only one
  const float* outliers = nullptr;  // (rows, OutlierStride) values of the weight's outlier features
};

// Where a row of activations goes in one format.
struct RowTarget {
  DType dtype;
  int64_t group;  // features per scale
  void* data;     // (cols)
  float* scales;
  int32_t* sums;
  OutlierFeatures features;
  float* outliers;  // (OutlierStride)
};

// One layer and kv head of the block pool: block b begins at base + b * stride. What lies in it is
// said in kv_kernels.h.
struct KvHead {
  const KvFormat* format;
  int head_dim;  // <= kMaxHeadDim
  uint8_t* base;
  size_t stride;
};
inline constexpr int kMaxHeadDim = 512;
// Elements of an int4 entry that are packed together: see EncodeInt4Entry.
inline constexpr int kInt4Run = 32;
static_assert(kKvInt4Group % kInt4Run == 0);

// Consecutive query rows of one sequence and the query heads that share a kv head.
struct AttentionItem {
  KvHead kv;
  const int32_t* blocks;     // block of each run of 64 positions
  const int32_t* positions;  // (rows)
  int rows;
  int heads;
  const float* q;  // (rows, heads, head_dim): rows are q_stride floats apart
  float* out;      // as q
  int64_t q_stride;
  float scale;
  int32_t window;
  float softcap;
  float* scratch;  // AttentionScratchFloats(head_dim, rows * heads)
};
constexpr int64_t PaddedHead(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr int64_t AttentionScratchFloats(int64_t head_dim, int64_t queries) {
  return (2 * kKvBlockTokens + queries) * PaddedHead(head_dim);
}
// Largest rows * heads of an AttentionItem.
inline constexpr int kMaxAttentionQueries = 128;

struct KernelTable {
  // out is (rows, w.rows); `scratch` holds LinearScratchFloats(rows).
  void (*linear_float)(const PackedMatrix& w, int64_t panel, const float* x, int64_t rows,
                       float* out, float* scratch);
  void (*linear_int8)(const PackedMatrix& w, int64_t panel, const Int8Rows& x, int64_t rows,
                      float* out);

  // h = x + delta (delta may be nullptr; stored to x otherwise), out = h / rms(h) * (offset + w).
  void (*rms_norm)(float* x, const float* delta, const float* weight, float offset, float eps,
                   int64_t dim, float* out);
  void (*write_row)(const float* row, int64_t cols, const RowTarget& target);
  void (*gate)(const float* gate, const float* up, int64_t cols, GateActivation activation,
               float* out);
  // Rotates one head in place after an optional norm (weight may be nullptr).
  void (*rope_head)(float* head, int head_dim, const float* norm, float offset, float eps,
                    const float* cos, const float* sin, int rotary_dim);
  void (*append_kv)(const KvHead& kv, int64_t block, int slot, const float* k, const float* v);
  void (*attention)(const AttentionItem& item);

  // h[i][j] += sum over rows of a[r][i] * b[r][j] for one 32 x 32 tile, a and b packed [rows][32];
  // h is `stride` floats per row; only i < height, j < width and, if `diagonal`, j <= i are
  // written.
  void (*hessian_tile)(const float* a, const float* b, int64_t rows, float* h, int64_t stride,
                       int height, int width, bool diagonal);

  // out[i] = e^((x[i] - shift) / temperature); returns the sum in a fixed order.
  double (*exp_row)(const float* x, int64_t count, float shift, float temperature, float* out);

  // Register-only loops for MeasureCeilings: multiply-adds done per call with `iterations`.
  double (*peak_int8)(int64_t iterations);
  double (*peak_f32)(int64_t iterations);
  // Touches `bytes` (a multiple of 256) and returns something that depends on all of them.
  uint64_t (*read_words)(const uint8_t* data, int64_t bytes);
};

// Features whose weights linear_float expands at a time.
inline constexpr int kFloatChunk = 128;
constexpr int64_t LinearScratchFloats(int64_t rows) {
  return int64_t{kFloatChunk} * kPanelRows + rows * kPanelRows;
}

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;

// Dot products of bfloat16 pairs, which some CPUs add to a tier.
struct BF16Kernels {
  // w is packed in pairs, x is (rows, w.cols) bfloat16, out is (rows, w.rows); `scratch` holds
  // LinearScratchFloats(rows).
  void (*linear)(const PackedMatrix& w, int64_t panel, const uint16_t* x, int64_t rows, float* out,
                 float* scratch);
  double (*peak)(int64_t iterations);  // as KernelTable::peak_f32
};

extern const BF16Kernels kAvx512BF16Kernels;

}  // namespace nibble
