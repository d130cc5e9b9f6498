// SPDX-License-Identifier: Apache-2.0
#include "engine/model/workspace.h"

#include <algorithm>

#include "kernels/check.h"

namespace nibble {
namespace {

// The narrowest activation group that any scheme asks for, which bounds the number of scales of a
// row.
constexpr int64_t kNarrowestGroup = 32;

}  // namespace

Workspace::Workspace(std::unique_ptr<Impl> impl, int64_t max_rows)
    : impl_(std::move(impl)), max_rows_(max_rows) {}
Workspace::~Workspace() = default;

float* Workspace::residual() const { return impl_->residual->as<float>(); }
Floats Workspace::delta() const { return impl_->Plain(impl_->delta); }

absl::StatusOr<std::unique_ptr<Workspace>> Workspace::Make(Backend& backend,
                                                           const DecoderConfig& config,
                                                           int64_t max_rows,
                                                           int64_t max_logit_rows) {
  NIBBLE_CHECK(max_rows > 0 && max_logit_rows > 0);
  auto impl = std::make_unique<Impl>();
  impl->backend = &backend;
  const int64_t plain = static_cast<int64_t>(BytesOf(backend.activation_type()));
  const int64_t q_cols = int64_t{config.heads} * config.head_dim;
  const int64_t kv_cols = int64_t{config.kv_heads} * config.head_dim;
  const int64_t widest = std::max({int64_t{config.hidden}, int64_t{config.intermediate}, q_cols});
  const int64_t groups = (widest + kNarrowestGroup - 1) / kNarrowestGroup;
  const int64_t act_rows = std::max(max_rows, max_logit_rows);

  struct Need {
    std::unique_ptr<Buffer>* buffer;
    int64_t rows, cols, bytes;
  };
  std::vector<Need> needs = {
      {&impl->residual, max_rows, config.hidden, 4},
      {&impl->delta, max_rows, config.hidden, plain},
      {&impl->q, max_rows, q_cols, plain},
      {&impl->k, max_rows, kv_cols, plain},
      {&impl->v, max_rows, kv_cols, plain},
      {&impl->gate, max_rows, config.intermediate, plain},
      {&impl->up, max_rows, config.intermediate, plain},
      {&impl->logits, max_logit_rows, config.vocab, 4},
  };
  for (Impl::ActSlot& slot : impl->acts) {
    needs.push_back({&slot.data, act_rows, widest, 4});
    needs.push_back({&slot.scales, act_rows, groups, 4});
    needs.push_back({&slot.sums, act_rows, groups, 4});
    needs.push_back({&slot.outliers, act_rows, OutlierStride(kMaxOutlierFeatures), plain});
  }
  for (const Need& need : needs) {
    auto buffer = backend.Allocate(static_cast<size_t>(need.rows * need.cols * need.bytes));
    if (!buffer.ok()) return buffer.status();
    *need.buffer = *std::move(buffer);
  }
  return std::unique_ptr<Workspace>(new Workspace(std::move(impl), max_rows));
}

ActSet Workspace::Impl::Acts(std::span<const ActFormat> formats, int64_t cols) const {
  NIBBLE_CHECK(formats.size() <= acts.size());
  ActSet set;
  for (const ActFormat& format : formats) {
    NIBBLE_CHECK(format.dtype != DType::kI8 || format.group < 0 || format.group >= kNarrowestGroup);
    const ActSlot& slot = acts[static_cast<size_t>(set.count)];
    set.views[static_cast<size_t>(set.count++)] = ActView{format,
                                                          cols,
                                                          slot.data->data(),
                                                          slot.scales->as<float>(),
                                                          slot.sums->as<int32_t>(),
                                                          slot.outliers->data()};
  }
  return set;
}

}  // namespace nibble
