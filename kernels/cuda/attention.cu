// SPDX-License-Identifier: Apache-2.0
// Attention of a step: which instances of attention_kernel.h run, the fold of split sequences, and
// the quantization of rows for outputs with scales.
//
// Tiling: the fold takes a warp per sequence and query head, the quantization a block per row.
// Limit: bytes; head_dim + 2 floats per run of 512 tokens are small beside the keys and values of
// the run.
#include <algorithm>
#include <string>

#include "kernels/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_table.h"

namespace nibble {
namespace {

struct Format {
  KvCode k, v;
  const AttentionInstances* instances;
};
constexpr Format kFormats[] = {
    {KvCode::kF32, KvCode::kF32, &kAttentionF32},     //
    {KvCode::kBF16, KvCode::kBF16, &kAttentionBF16},  //
    {KvCode::kFp8, KvCode::kFp8, &kAttentionFp8},     //
    {KvCode::kInt8, KvCode::kInt8, &kAttentionInt8},  //
    {KvCode::kInt8, KvCode::kInt4, &kAttentionK8V4},
    {KvCode::kInt4, KvCode::kInt4, &kAttentionInt4},
};

// nullptr if there is none.
const AttentionInstance* FindInstance(const DeviceInfo& device, const KvSpec& spec, bool split) {
  if (spec.head_dim % kCudaHeadDimMultiple != 0) return nullptr;
  for (const Format& format : kFormats) {
    if (format.k != spec.format->k || format.v != spec.format->v) continue;
    for (const AttentionInstance& instance : *format.instances) {
      if (spec.head_dim <= instance.largest_head_dim && (instance.split || !split) &&
          instance.shared_bytes <= device.shared_bytes_per_block) {
        return &instance;
      }
    }
  }
  return nullptr;
}

// out = the fold of the runs of a split sequence, for one query head.
struct FoldKernel {
  using Params = AttentionParams;
  static constexpr int kThreads = 128;
  static constexpr int kMinBlocks = 1;
  static constexpr int kElements = kCudaMaxHeadDim / simt::kWarp;  // of a lane

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    const int64_t job = int64_t{simt::BlockX()} * (kThreads / simt::kWarp) + simt::WarpIndex();
    if (job < int64_t{p.batch.sequences} * p.heads) {
      FoldHead(p, static_cast<int32_t>(job / p.heads), static_cast<int32_t>(job % p.heads));
    }
    simt::StartNextKernel();
  }

  static NIBBLE_DEVICE int32_t Runs(const Params& p, int32_t sequence) {
    return PlanOf(p.batch, sequence, p.group, p.window).Pieces(true, p.group);
  }

  static NIBBLE_DEVICE void FoldHead(const Params& p, int32_t sequence, int32_t head) {
    const int32_t runs = Runs(p, sequence);
    if (runs <= 1) return;
    int32_t before = 0;
    for (int32_t s = simt::Lane(); s < sequence; s += simt::kWarp) before += Runs(p, s);
    before = simt::WarpSum(before);
    const int64_t stride = p.heads * PartialFloats(p.head_dim);
    const float* run = p.partials + before * stride + head * PartialFloats(p.head_dim);
    float largest = run[p.head_dim], sum = run[p.head_dim + 1];
    float o[kElements];
    NIBBLE_UNROLL
    for (int i = 0; i < kElements; ++i) {
      const int d = i * simt::kWarp + simt::Lane();
      o[i] = d < p.head_dim ? run[d] : 0.0f;
    }
    for (int32_t r = 1; r < runs; ++r) {
      run += stride;
      const RowFold fold = FoldRun(largest, sum, run[p.head_dim], run[p.head_dim + 1]);
      NIBBLE_UNROLL
      for (int i = 0; i < kElements; ++i) {
        const int d = i * simt::kWarp + simt::Lane();
        if (d < p.head_dim) o[i] = Fold(fold, o[i], run[d]);
      }
    }
    const float inverse = 1.0f / sum;
    NIBBLE_UNROLL
    for (int i = 0; i < kElements; ++i) {
      const int d = i * simt::kWarp + simt::Lane();
      if (d < p.head_dim) {
        WriteRowFloat(p.out, p.batch.query_start[sequence], int64_t{head} * p.head_dim + d,
                      o[i] * inverse);
      }
    }
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
  if (FindInstance(device, spec, true) != nullptr) return absl::OkStatus();
  return absl::UnimplementedError(
      "no attention kernel for " + device.name + ", KV cache in " + spec.format->name +
      " and heads of " + std::to_string(spec.head_dim) + "; heads can be multiples of " +
      std::to_string(kCudaHeadDimMultiple) + " up to " + std::to_string(kCudaMaxHeadDim) +
      ", if a tile fits the " + std::to_string(device.shared_bytes_per_block >> 10) +
      " KiB of shared memory");
}

size_t AttentionPartialBytes(int64_t sequences, int64_t max_blocks, int32_t heads,
                             int32_t head_dim) {
  return static_cast<size_t>(sequences * MaxRuns(max_blocks) * heads * PartialFloats(head_dim)) *
         sizeof(float);
}

void LaunchAttention(Device& device, const AttentionArgs& args, const AttentionScratch& scratch) {
  const BatchView& batch = *args.batch;
  if (batch.rows == 0 || batch.sequences == 0) return;
  const KvSpec& spec = args.kv->spec;
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
  p.partials = scratch.partials;
  const int64_t dim = int64_t{args.heads} * spec.head_dim;
  p.out = PlainOutputs(args.out, dim, scratch.rows);

  for (const bool split : {true, false}) {
    const AttentionInstance* instance = FindInstance(device.info(), spec, split);
    NIBBLE_CHECK(instance != nullptr);
    const int64_t pieces = MaxPieces(batch, p.group, split, instance->rows) * spec.kv_heads;
    if (pieces == 0) continue;
    p.split = split;
    LaunchShape shape;
    // More blocks than can be resident would only look for work.
    constexpr int64_t kResident = 8;
    shape.grid_x =
        static_cast<int>(std::min<int64_t>(pieces, kResident * device.info().multiprocessors));
    shape.threads = instance->threads;
    shape.shared_bytes = instance->shared_bytes;
    instance->launch(device.stream(), shape, p);
  }
  if (MaxRuns(batch.max_blocks) > 1) {
    p.split = true;
    constexpr int kWarps = FoldKernel::kThreads / simt::kWarp;
    LaunchShape shape;
    shape.grid_x = static_cast<int>((int64_t{batch.sequences} * p.heads + kWarps - 1) / kWarps);
    shape.threads = FoldKernel::kThreads;
    Launch<FoldKernel>(device.stream(), shape, p);
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
