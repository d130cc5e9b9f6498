// SPDX-License-Identifier: Apache-2.0
// Attention of a step: which instances of attention_table.h run, the fold of split sequences, and
// the quantization of rows for outputs with scales.
//
// Tiling: the fold takes a block per decoded sequence, tile of query heads and slice of the head, a
// thread two sums of a row; the quantization a block per row.
// Limit: the latency of the fold's loads, kAhead parts at a time, and of two more launches; a part
// is padded_dim + 8 floats of each query head beside 64 or 512 keys and values.
#include <algorithm>
#include <string>

#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_table.h"

namespace nibble {
namespace {

struct Format {
  KvCode k, v;
  const AttentionFormat* instances;
};
constexpr Format kFormats[] = {
    {KvCode::kF32, KvCode::kF32, &kAttentionF32},     //
    {KvCode::kBF16, KvCode::kBF16, &kAttentionBF16},  //
    {KvCode::kFp8, KvCode::kFp8, &kAttentionFp8},     //
    {KvCode::kInt8, KvCode::kInt8, &kAttentionInt8},  //
    {KvCode::kInt8, KvCode::kInt4, &kAttentionK8V4},
    {KvCode::kInt4, KvCode::kInt4, &kAttentionInt4},
};

// nullptr if there are none.
const AttentionInstances* FindInstances(const KvSpec& spec) {
  if (spec.head_dim % kCudaHeadDimMultiple != 0) return nullptr;
  for (const Format& format : kFormats) {
    if (format.k != spec.format->k || format.v != spec.format->v) continue;
    for (const AttentionInstances& instances : *format.instances) {
      if (spec.head_dim <= instances.largest_head_dim) return &instances;
    }
  }
  return nullptr;
}

// Warps of a block: `wanted`, or half of them as often as it takes to fit shared memory; 0 if not
// even `least` do.
int FittingWarps(const DeviceInfo& device, const AttentionInstance& instance, int wanted,
                 int least) {
  for (int warps = wanted; warps >= least; warps /= 2) {
    if (instance.shared_bytes(warps) <= device.shared_bytes_per_block) return warps;
  }
  return 0;
}
constexpr int kLeastDecodeWarps = 2, kLeastPrefillWarps = 2;
constexpr int kMostResidentBlocks = 16;  // of a multiprocessor

// Bytes of shared memory that two blocks of a multiprocessor can have at most.
constexpr size_t kHalfShared = 100 << 10;

// `wanted` 0: four, unless two blocks of them do not fit.
int DecodeWarps(const DeviceInfo& device, const AttentionInstance& instance, int wanted) {
  if (wanted == 0 && instance.shared_bytes(4) > kHalfShared) wanted = kLeastDecodeWarps;
  return FittingWarps(device, instance, wanted == 0 ? 4 : wanted, kLeastDecodeWarps);
}
int PrefillWarps(const DeviceInfo& device, const AttentionInstance& instance, int wanted) {
  return FittingWarps(device, instance, wanted == 0 ? instance.max_warps : wanted,
                      kLeastPrefillWarps);
}

struct FoldParams {
  AttentionParams attention;
  int pairs;  // of AttentionInstances
};

// out = the fold of the parts of a decoded sequence: tiles into runs, runs into the result.
struct FoldKernel {
  using Params = FoldParams;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 4;
  static constexpr int kAhead = 8;                          // loads under way
  static constexpr int kOperands = kThreads / simt::kWarp;  // of a block

  static NIBBLE_DEVICE void Run(const Params& params) {
    simt::WaitForPreviousKernel();
    simt::StartNextKernel();
    const AttentionParams& p = params.attention;
    const int32_t row_tiles = SplitRowTiles(p.group);
    const int32_t slices = PaddedHeadDim(p.head_dim) / 8 / kOperands;
    int32_t item = simt::BlockX();
    const int32_t slice = item % slices;
    item /= slices;
    const int32_t row_tile = item % row_tiles;
    item /= row_tiles;
    const int32_t kv_head = item % p.kv_heads, sequence = item / p.kv_heads;

    const Interval parts = PlanOf(p.batch, sequence, p.group, p.window).Parts(p.part_tiles);
    if (parts.count <= 1) return;
    int32_t before = 0;
    for (int32_t s = simt::Lane(); s < sequence; s += simt::kWarp) {
      before += PlanOf(p.batch, s, p.group, p.window).Parts(p.part_tiles).count;
    }
    before = simt::WarpSum(before);
    if (before + parts.count > p.capacity) return;

    const int32_t first_row = row_tile * kSplitRows, row = simt::Lane() / 4;
    const int32_t left = p.group - first_row, rows = left < kSplitRows ? left : kSplitRows;
    if (row >= rows) return;
    const int32_t operand = slice * kOperands + simt::WarpIndex();
    const int64_t stride = p.heads * PartialFloats(PaddedHeadDim(p.head_dim)) / 2;
    const auto* states = reinterpret_cast<const simt::Vec8*>(p.Partial(before, kv_head, first_row));
    const simt::Vec8* sums = states + operand * 4 * rows + simt::Lane();
    states += slices * kOperands * 4 * rows + simt::Lane();

    RowState run, total;
    float run_sums[2] = {}, total_sums[2] = {};
    bool folded = false;
    for (int32_t first = 0; first < parts.count; first += kAhead) {
      simt::Vec8 state[kAhead], sum[kAhead];
      NIBBLE_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        const int32_t part = first + i < parts.count ? first + i : parts.count - 1;
        state[i] = states[part * stride];
        sum[i] = sums[part * stride];
      }
      NIBBLE_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= parts.count) break;
        FoldInto(state[i], sum[i], run, run_sums);
        const bool last = first + i + 1 == parts.count;
        if (!last && (parts.first + first + i + 1) * p.part_tiles % kRunTiles != 0) continue;
        if (folded) {
          const RowFold fold = total.Take(run.largest, run.sum);
          NIBBLE_UNROLL
          for (int e = 0; e < 2; ++e) total_sums[e] = Fold(fold, total_sums[e], run_sums[e]);
        } else {
          total = run;
          total_sums[0] = run_sums[0];
          total_sums[1] = run_sums[1];
        }
        folded = true;
        run = RowState();
        run_sums[0] = run_sums[1] = 0.0f;
      }
    }
    const int64_t head = kv_head * p.group + first_row + row;
    const float inverse = 1.0f / total.sum;
    NIBBLE_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int column = simt::Lane() % 4 * 2 + e;
      const int d = (operand / params.pairs * 8 + column) * params.pairs + operand % params.pairs;
      if (d < p.head_dim) {
        WriteRowFloat(p.out, p.batch.query_start[sequence], head * p.head_dim + d,
                      total_sums[e] * inverse);
      }
    }
  }

  static NIBBLE_DEVICE void FoldInto(const simt::Vec8& state, const simt::Vec8& sum, RowState& row,
                                     float (&sums)[2]) {
    const RowFold fold =
        row.Take(std::bit_cast<float>(state.word[0]), std::bit_cast<float>(state.word[1]));
    NIBBLE_UNROLL
    for (int e = 0; e < 2; ++e) sums[e] = Fold(fold, sums[e], std::bit_cast<float>(sum.word[e]));
  }
};

struct QuantizeRowsKernel {
  struct Params {
    const float* rows;
    int64_t dim;
    ActSet out;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    auto* values = reinterpret_cast<float*>(simt::Shared());
    const int64_t row = simt::BlockX();
    simt::WaitForPreviousKernel();
    for (int64_t k = simt::Thread(); k < p.dim; k += kThreads) values[k] = p.rows[row * p.dim + k];
    simt::SyncThreads();
    WriteRowCodes(p.out, row, values);
    simt::StartNextKernel();
  }
};

// The plain formats of `out`, and the rows to quantize from if there are others.
ActSet PlainOutputs(const ActSet& out, int64_t dim, float* rows) {
  ActSet plain;
  bool scaled = false;
  for (int f = 0; f < out.count; ++f) {
    const ActView& view = out.views[static_cast<size_t>(f)];
    if (view.format.GroupsPerRow(view.cols) == 0) {
      plain.views[static_cast<size_t>(plain.count++)] = view;
    } else {
      scaled = true;
    }
  }
  if (scaled) {
    ActView& view = plain.views[static_cast<size_t>(plain.count++)];
    view.cols = dim;
    view.data = rows;
  }
  return plain;
}

}  // namespace

absl::Status CheckAttention(const DeviceInfo& device, const KvSpec& spec) {
  const AttentionInstances* instances = FindInstances(spec);
  if (instances != nullptr && DecodeWarps(device, instances->decode, 0) > 0 &&
      PrefillWarps(device, instances->prefill, 0) > 0) {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      "no attention kernel for " + device.name + ", KV cache in " + spec.format->name +
      " and heads of " + std::to_string(spec.head_dim) + "; heads can be multiples of " +
      std::to_string(kCudaHeadDimMultiple) + " up to " + std::to_string(kCudaMaxHeadDim) +
      ", if a tile fits the " + std::to_string(device.shared_bytes_per_block >> 10) +
      " KiB of shared memory");
}

size_t AttentionPartialBytes(int64_t sequences, int64_t max_blocks, int32_t heads,
                             int32_t head_dim) {
  return static_cast<size_t>(PartialCapacity(sequences, max_blocks) * heads *
                             PartialFloats(PaddedHeadDim(head_dim))) *
         sizeof(float);
}

void LaunchAttention(Device& device, const AttentionArgs& args, const AttentionScratch& scratch,
                     const AttentionTuning& tuning) {
  const BatchView& batch = *args.batch;
  if (batch.rows == 0 || batch.sequences == 0) return;
  const DeviceInfo& info = device.info();
  const KvSpec& spec = args.kv->spec;
  const AttentionInstances* instances = FindInstances(spec);
  NIBBLE_CHECK(instances != nullptr);
  AttentionParams p{};
  p.batch = batch;
  p.q = args.q;
  p.heads = args.heads;
  p.kv_heads = spec.kv_heads;
  p.head_dim = spec.head_dim;
  p.group = args.heads / spec.kv_heads;
  p.scale = args.scale;
  p.window = args.window;
  p.softcap = args.softcap;
  p.kv = KvLayoutOf(*args.kv, args.layer);
  p.capacity = static_cast<int32_t>(PartialCapacity(batch.sequences, batch.max_blocks));
  if (tuning.max_parts > 0) p.capacity = std::min(p.capacity, tuning.max_parts);
  p.partials = scratch.partials;
  const int64_t dim = int64_t{args.heads} * spec.head_dim;
  p.out = PlainOutputs(args.out, dim, scratch.rows);

  // More blocks than can be resident would only look for work.
  const int64_t most_blocks = int64_t{kMostResidentBlocks} * info.multiprocessors;
  const auto launch = [&](const AttentionInstance& instance, int warps, int64_t pieces) {
    LaunchShape shape;
    shape.grid_x = static_cast<int>(std::min(pieces * spec.kv_heads, most_blocks));
    shape.threads = warps * simt::kWarp;
    shape.shared_bytes = instance.shared_bytes(warps);
    instance.launch(device.stream(), shape, p);
  };

  // Runs, unless there are fewer than multiprocessors.
  const int64_t runs = MaxSplitPieces(batch, p.group, kRunTiles) * spec.kv_heads;
  const bool tiles = tuning.part_tiles == 0 ? runs < info.multiprocessors : tuning.part_tiles == 1;
  p.part_tiles =
      tiles && int64_t{batch.sequences} * batch.max_blocks <= kMaxPartialTiles ? 1 : kRunTiles;
  launch(instances->decode,
         p.part_tiles == 1 ? 1 : DecodeWarps(info, instances->decode, tuning.decode_warps),
         MaxSplitPieces(batch, p.group, p.part_tiles));
  const int warps = PrefillWarps(info, instances->prefill, tuning.prefill_warps);
  if (const int64_t pieces = MaxRowPieces(batch, p.group, warps * instances->prefill.warp_rows,
                                          p.part_tiles, p.capacity);
      pieces > 0) {
    launch(instances->prefill, warps, pieces);
  }
  if (MaxParts(batch.max_blocks, p.part_tiles) > 1) {
    LaunchShape shape;
    shape.grid_x = batch.sequences * p.kv_heads * SplitRowTiles(p.group) *
                   (PaddedHeadDim(p.head_dim) / 8 / FoldKernel::kOperands);
    shape.threads = FoldKernel::kThreads;
    Launch<FoldKernel>(device.stream(), shape, {p, instances->pairs});
  }
  if (WantsCodes(args.out)) {
    LaunchShape shape;
    shape.grid_x = batch.rows;
    shape.threads = QuantizeRowsKernel::kThreads;
    shape.shared_bytes = RowSharedBytes(dim);
    Launch<QuantizeRowsKernel>(device.stream(), shape, {scratch.rows, dim, args.out});
  }
}

}  // namespace nibble
