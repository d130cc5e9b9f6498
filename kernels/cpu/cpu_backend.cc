// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/check.h"
#include "kernels/codec.h"
#include "kernels/cpu/ceilings.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/prepared.h"
#include "kernels/cpu/sampler.h"
#include "kernels/cpu/scalar_codes.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/tiers.h"

namespace nibble {
namespace {

KvHead HeadOf(const KvPool& pool, int32_t layer, int32_t head) {
  const KvSpec& spec = pool.spec;
  const auto block = static_cast<size_t>(spec.BytesPerBlock());
  const size_t per_head =
      block / static_cast<size_t>(spec.layers) / static_cast<size_t>(spec.kv_heads);
  const size_t index =
      static_cast<size_t>(layer) * static_cast<size_t>(spec.kv_heads) + static_cast<size_t>(head);
  return KvHead{spec.format, spec.head_dim, static_cast<uint8_t*>(pool.data) + index * per_head,
                block};
}

// Queries (rows times heads) that share one pass over the keys and values, and heads among them.
constexpr int64_t kQueriesPerItem = 64;
constexpr int64_t kHeadsPerItem = 32;
static_assert(kQueriesPerItem <= kMaxAttentionQueries && kHeadsPerItem <= kQueriesPerItem);
// Elements of a loop over rows, and multiply-adds, that are not worth waking another thread for.
constexpr int64_t kSerialElements = 16384;
constexpr int64_t kSerialMacs = int64_t{1} << 17;

const float* FloatData(const Floats& floats) {
  NIBBLE_CHECK(floats.data == nullptr || floats.dtype == DType::kF32);
  return static_cast<const float*>(floats.data);
}
float* MutableFloatData(const Floats& floats) {
  NIBBLE_CHECK(floats.dtype == DType::kF32);
  return static_cast<float*>(floats.data);
}

RowTarget TargetOf(const ActView& view, int64_t row) {
  RowTarget target{};
  target.dtype = view.format.dtype;
  const int64_t groups = view.format.GroupsPerRow(view.cols);
  target.group = view.format.group < 0 ? view.cols : view.format.group;
  target.data = static_cast<uint8_t*>(view.data) +
                static_cast<size_t>(row * view.cols) * BytesOf(view.format.dtype);
  if (groups > 0) {
    target.scales = view.scales + row * groups;
    target.sums = view.sums + row * groups;
  }
  target.features = view.format.outliers;
  if (target.features.count > 0) {
    target.outliers =
        static_cast<float*>(view.outliers) + row * OutlierStride(target.features.count);
  }
  return target;
}

class CpuBackend : public Backend {
 public:
  CpuBackend(const CpuTier& tier, int threads)
      : tier_(tier),
        k_(*tier.kernels),
        pool_(threads),
        row_scratch_(static_cast<size_t>(threads)),
        samplers_(static_cast<size_t>(threads)) {}

  std::string Description() const override {
    return absl::StrCat("cpu (", std::string(tier_.name.substr(4)), ", ", pool_.threads(),
                        pool_.threads() == 1 ? " thread)" : " threads)");
  }
  std::string Tier() const override { return std::string(tier_.name); }
  DType activation_type() const override { return DType::kF32; }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    return AllocateCpuBuffer(bytes);
  }
  void Upload(void* device, const void* host, size_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void Download(void* host, const void* device, size_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }

  absl::StatusOr<std::unique_ptr<PreparedLinear>> Prepare(const LinearGroup& group,
                                                          Mode mode) override {
    return PrepareCpuLinear(group, mode, tier_, arena_, pool_);
  }
  absl::StatusOr<std::unique_ptr<PreparedEmbedding>> PrepareEmbedding(
      const WeightView& table) override {
    return PrepareCpuEmbedding(table, arena_);
  }
  std::unique_ptr<PreparedEmbedding> EmbeddingOf(const PreparedLinear& linear) override {
    const auto& prepared = static_cast<const CpuLinear&>(linear);
    NIBBLE_CHECK(prepared.num_weights == 1);
    auto embedding = std::make_unique<CpuEmbedding>();
    embedding->packed = prepared.weights.data();
    return embedding;
  }
  absl::StatusOr<std::unique_ptr<Buffer>> AllocateKv(const KvSpec& spec, int32_t num_blocks,
                                                     KvPool* pool) override;
  void CopyKvBlock(const KvPool& pool, int32_t from, int32_t to) override;

  void Embed(const EmbedArgs& args) override;
  void RmsNorm(const RmsNormArgs& args) override;
  void Linear(const LinearArgs& args) override;
  void RopeAppend(const RopeAppendArgs& args) override;
  void Attention(const AttentionArgs& args) override;
  void GatedActivation(const GatedActivationArgs& args) override;
  void AccumulateHessian(const HessianArgs& args) override;
  void Sample(const SampleArgs& args) override;
  absl::Status Sync() override { return absl::OkStatus(); }
  Ceilings MeasureCeilings() override { return MeasureCpuCeilings(pool_, tier_); }

 private:
  // The values of the input's e4m3 view, (rows, cols); nullptr if it has none.
  const float* DecodeInput(const LinearArgs& args);

  // Scratch only grows, so that an operation of a size seen before allocates nothing.
  static float* Grow(std::vector<float>& scratch, int64_t floats) {
    if (static_cast<int64_t>(scratch.size()) < floats) scratch.resize(static_cast<size_t>(floats));
    return scratch.data();
  }
  // `floats` of scratch for every thread, before a loop starts.
  void GrowRowScratch(int64_t floats) {
    for (std::vector<float>& scratch : row_scratch_) Grow(scratch, floats);
  }
  float* RowScratch(int thread) { return row_scratch_[static_cast<size_t>(thread)].data(); }

  // Runs body(row, thread) for all rows, on the caller alone if there is little to do.
  template <typename Body>
  void ForRows(int64_t rows, int64_t elements_per_row, Body&& body) {
    const int64_t grain = std::max<int64_t>(
        1, std::min(rows, kSerialElements / std::max<int64_t>(1, elements_per_row)));
    pool_.Run(rows, grain, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t row = begin; row < end; ++row) body(row, thread);
    });
  }

  const CpuTier& tier_;
  const KernelTable& k_;
  ThreadPool pool_;
  WeightArena arena_;
  std::vector<std::vector<float>> row_scratch_;  // per thread
  std::vector<float> shared_scratch_;
  std::vector<SamplerScratch> samplers_;  // per thread
};

absl::StatusOr<std::unique_ptr<Buffer>> CpuBackend::AllocateKv(const KvSpec& spec,
                                                               int32_t num_blocks, KvPool* pool) {
  NIBBLE_CHECK(spec.format != nullptr && spec.head_dim <= kMaxHeadDim && num_blocks >= 1);
  const auto per_block = static_cast<size_t>(spec.BytesPerBlock());
  if (per_block > std::numeric_limits<size_t>::max() / 4 / static_cast<size_t>(num_blocks)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("cpu memory: ", num_blocks, " KV blocks of ", per_block, " bytes wanted"));
  }
  auto buffer = Allocate(per_block * static_cast<size_t>(num_blocks));
  if (!buffer.ok()) return buffer.status();
  *pool = KvPool{spec, num_blocks, (*buffer)->data()};
  return buffer;
}

void CpuBackend::CopyKvBlock(const KvPool& pool, int32_t from, int32_t to) {
  const auto bytes = static_cast<size_t>(pool.spec.BytesPerBlock());
  auto* base = static_cast<uint8_t*>(pool.data);
  std::memcpy(base + static_cast<size_t>(to) * bytes, base + static_cast<size_t>(from) * bytes,
              bytes);
}

void CpuBackend::Embed(const EmbedArgs& args) {
  const CpuEmbedding& table = *static_cast<const CpuEmbedding*>(args.table);
  const int64_t cols = table.cols();
  ForRows(args.rows, cols, [&](int64_t row, int) {
    float* out = args.out + row * cols;
    const int32_t id = args.ids[row] >= 0 ? args.ids[row] : args.drawn[-1 - args.ids[row]].token;
    if (args.tokens != nullptr) args.tokens[row] = id;
    for (int64_t k = 0; k < cols; ++k) out[k] = table.Read(id, k) * args.scale;
  });
}

void CpuBackend::RmsNorm(const RmsNormArgs& args) {
  const float* delta = FloatData(args.delta);
  GrowRowScratch(args.dim);
  ForRows(args.num_rows, 4 * args.dim, [&](int64_t i, int thread) {
    const int64_t row = args.rows != nullptr ? args.rows[i] : i;
    float* out = RowScratch(thread);
    k_.rms_norm(args.x + row * args.dim, delta != nullptr ? delta + row * args.dim : nullptr,
                args.weight, args.weight_offset, args.eps, args.dim, out);
    for (int f = 0; f < args.out.count; ++f) {
      k_.write_row(out, args.dim, TargetOf(args.out.views[static_cast<size_t>(f)], i));
    }
  });
}

const float* CpuBackend::DecodeInput(const LinearArgs& args) {
  for (int f = 0; f < args.in.count; ++f) {
    const ActView& in = args.in.views[static_cast<size_t>(f)];
    if (in.format.dtype != DType::kF8E4M3) continue;
    float* decoded = Grow(shared_scratch_, args.rows * in.cols);
    ForRows(args.rows, 4 * in.cols, [&](int64_t row, int) {
      DecodeE4M3(static_cast<const uint8_t*>(in.data) + row * in.cols, in.cols, in.scales[row],
                 decoded + row * in.cols);
    });
    return decoded;
  }
  return nullptr;
}

void CpuBackend::Linear(const LinearArgs& args) {
  const auto& linear = *static_cast<const CpuLinear*>(args.linear);
  NIBBLE_CHECK(args.in.count == linear.num_formats);
  if (args.rows == 0) return;
  GrowRowScratch(LinearScratchFloats(args.rows));
  const float* decoded = DecodeInput(args);
  // Few rows: runs of panels are read from memory in one stream. Many: panels are work enough.
  const int64_t macs = linear.panels * kPanelRows * linear.weights[0].cols * args.rows;
  const int64_t grain = macs < kSerialMacs ? linear.panels
                        : args.rows > 8
                            ? 1
                            : std::clamp<int64_t>(linear.panels / (8 * pool_.threads()), 1, 16);
  pool_.Run(linear.panels, grain, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t panel = item;
      size_t i = 0;
      while (panel >= linear.weights[i].panels) panel -= linear.weights[i++].panels;
      const PackedMatrix& w = linear.weights[i];
      const ActView& in = args.in.views[static_cast<size_t>(linear.format_of[i])];
      float* out = MutableFloatData(args.out[i]);
      if (in.format.dtype == DType::kF32 || in.format.dtype == DType::kF8E4M3) {
        k_.linear_float(
            w, panel, in.format.dtype == DType::kF32 ? static_cast<const float*>(in.data) : decoded,
            args.rows, out, RowScratch(thread));
      } else if (in.format.dtype == DType::kBF16) {
        tier_.bf16->linear(w, panel, static_cast<const uint16_t*>(in.data), args.rows, out,
                           RowScratch(thread));
      } else {
        const Int8Rows x{static_cast<const int8_t*>(in.data),
                         in.scales,
                         in.sums,
                         in.format.group < 0 ? w.cols : in.format.group,
                         in.format.GroupsPerRow(w.cols),
                         static_cast<const float*>(in.outliers)};
        k_.linear_int8(w, panel, x, args.rows, out);
      }
    }
  });
}

void CpuBackend::RopeAppend(const RopeAppendArgs& args) {
  const BatchView& batch = *args.batch;
  const KvSpec& spec = args.kv->spec;
  const int64_t dim = spec.head_dim;
  float* q = MutableFloatData(args.q);
  float* k = MutableFloatData(args.k);
  const float* v = FloatData(args.v);
  const int64_t half = args.rotary_dim / 2;
  ForRows(batch.rows, dim * (args.heads + 2 * spec.kv_heads), [&](int64_t row, int) {
    const int32_t position = batch.positions[row];
    const float* cos = args.cos_table + position * half;
    const float* sin = args.sin_table + position * half;
    for (int32_t h = 0; h < args.heads; ++h) {
      k_.rope_head(q + (row * args.heads + h) * dim, spec.head_dim, args.q_norm,
                   args.norm_weight_offset, args.norm_eps, cos, sin, args.rotary_dim);
    }
    const int64_t sequence = batch.row_sequence[row];
    const int32_t block =
        batch.block_table[sequence * batch.max_blocks + position / kKvBlockTokens];
    for (int32_t h = 0; h < spec.kv_heads; ++h) {
      float* key = k + (row * spec.kv_heads + h) * dim;
      k_.rope_head(key, spec.head_dim, args.k_norm, args.norm_weight_offset, args.norm_eps, cos,
                   sin, args.rotary_dim);
      k_.append_kv(HeadOf(*args.kv, args.layer, h), block, position % kKvBlockTokens, key,
                   v + (row * spec.kv_heads + h) * dim);
    }
  });
}

void CpuBackend::Attention(const AttentionArgs& args) {
  const BatchView& batch = *args.batch;
  const KvSpec& spec = args.kv->spec;
  const int64_t width = int64_t{args.heads} * spec.head_dim;
  const int64_t heads_per_kv = args.heads / spec.kv_heads;
  const float* q = FloatData(args.q);
  // Groups of the output formats may span heads: rows are finished in a second loop.
  float* out = Grow(shared_scratch_, batch.rows * width);
  GrowRowScratch(AttentionScratchFloats(spec.head_dim, kQueriesPerItem));
  const int64_t heads_per_item = std::min<int64_t>(heads_per_kv, kHeadsPerItem);
  const int64_t head_parts = (heads_per_kv + heads_per_item - 1) / heads_per_item;
  const int64_t rows_per_item = kQueriesPerItem / heads_per_item;
  const int64_t chunks = (std::max(batch.max_query, 1) + rows_per_item - 1) / rows_per_item;
  const int64_t per_chunk = int64_t{batch.sequences} * spec.kv_heads * head_parts;
  int64_t scores = 0;
  for (int32_t i = 0; i < batch.sequences; ++i) {
    scores += int64_t{batch.query_start[i + 1] - batch.query_start[i]} * batch.context_length[i];
  }
  const int64_t grain = 2 * scores * width < kSerialMacs ? chunks * per_chunk : 1;
  pool_.Run(chunks * per_chunk, grain, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t chunk = chunks - 1 - index / per_chunk;  // Late chunks see more keys: first.
      const int64_t sequence = index % per_chunk / (spec.kv_heads * head_parts);
      const int64_t kv_head = index / head_parts % spec.kv_heads;
      const int64_t part = index % head_parts * heads_per_item;
      const int64_t first = batch.query_start[sequence] + chunk * rows_per_item;
      const int64_t rows =
          std::min<int64_t>(batch.query_start[sequence + 1] - first, rows_per_item);
      if (rows <= 0) continue;
      const int64_t offset = first * width + (kv_head * heads_per_kv + part) * spec.head_dim;
      AttentionItem item{};
      item.kv = HeadOf(*args.kv, args.layer, static_cast<int32_t>(kv_head));
      item.blocks = batch.block_table + sequence * batch.max_blocks;
      item.positions = batch.positions + first;
      item.rows = static_cast<int>(rows);
      item.heads = static_cast<int>(std::min(heads_per_item, heads_per_kv - part));
      item.q = q + offset;
      item.out = out + offset;
      item.q_stride = width;
      item.scale = args.scale;
      item.window = args.window;
      item.softcap = args.softcap;
      item.scratch = RowScratch(thread);
      k_.attention(item);
    }
  });
  ForRows(batch.rows, width, [&](int64_t row, int) {
    for (int f = 0; f < args.out.count; ++f) {
      k_.write_row(out + row * width, width, TargetOf(args.out.views[static_cast<size_t>(f)], row));
    }
  });
}

void CpuBackend::GatedActivation(const GatedActivationArgs& args) {
  const float* gate = FloatData(args.gate);
  const float* up = FloatData(args.up);
  GrowRowScratch(args.dim);
  ForRows(args.rows, 4 * args.dim, [&](int64_t row, int thread) {
    float* out = RowScratch(thread);
    k_.gate(gate + row * args.dim, up + row * args.dim, args.dim, args.activation, out);
    for (int f = 0; f < args.out.count; ++f) {
      k_.write_row(out, args.dim, TargetOf(args.out.views[static_cast<size_t>(f)], row));
    }
  });
}

void CpuBackend::AccumulateHessian(const HessianArgs& args) {
  if (args.rows == 0) return;
  const int64_t panels = (args.dim + kPanelRows - 1) / kPanelRows;
  const auto width_of = [&](int64_t panel) {
    return static_cast<int>(std::min<int64_t>(kPanelRows, args.dim - panel * kPanelRows));
  };
  // [panel][row][32], so that a tile reads two contiguous runs.
  float* packed = Grow(shared_scratch_, panels * args.rows * kPanelRows);
  pool_.Run(panels, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const auto width = static_cast<size_t>(width_of(panel));
      for (int64_t row = 0; row < args.rows; ++row) {
        float* out = packed + (panel * args.rows + row) * kPanelRows;
        std::memcpy(out, args.x + row * args.dim + panel * kPanelRows, width * sizeof(float));
        std::fill(out + width, out + kPanelRows, 0.0f);
      }
    }
  });
  // Tile (i, j), j <= i, is item i (i + 1) / 2 + j: item i of the loop does the row of tiles.
  pool_.Run(panels, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t i = panels - 1 - index;  // Long rows first.
      for (int64_t j = 0; j <= i; ++j) {
        k_.hessian_tile(packed + i * args.rows * kPanelRows, packed + j * args.rows * kPanelRows,
                        args.rows, args.h + i * kPanelRows * args.dim + j * kPanelRows, args.dim,
                        width_of(i), width_of(j), i == j);
      }
    }
  });
}

void CpuBackend::Sample(const SampleArgs& args) {
  for (SamplerScratch& scratch : samplers_) {
    if (static_cast<int64_t>(scratch.weights.size()) < args.vocabulary) {
      scratch.weights.resize(static_cast<size_t>(args.vocabulary));
      scratch.candidates.reserve(static_cast<size_t>(args.vocabulary));
    }
  }
  ForRows(args.rows, args.vocabulary, [&](int64_t row, int thread) {
    args.results[row] =
        SampleRow(k_, args.params[row], args.tokens, args.logits + row * args.vocabulary,
                  args.vocabulary, samplers_[static_cast<size_t>(thread)]);
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options) {
  if (options.threads < 0 || options.threads > 256) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: ", options.threads, " is not in 0..256"));
  }
  const int threads = options.threads > 0 ? options.threads : std::min(AvailableCpus(), 256);
  const absl::StatusOr<const CpuTier*> tier = FindCpuTier(options.tier);
  if (!tier.ok()) return tier.status();
  return std::make_unique<CpuBackend>(**tier, threads);
}

}  // namespace nibble
