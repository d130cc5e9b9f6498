// SPDX-License-Identifier: Apache-2.0
// What a Workspace holds; private to engine/model.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/model/decoder.h"

namespace nibble {

struct Workspace::Impl {
  // Room for one input of a linear group in one format.
  struct ActSlot {
    std::unique_ptr<Buffer> data;      // (max_rows, max_cols) of up to 4 bytes
    std::unique_ptr<Buffer> scales;    // (max_rows, max_groups) f32
    std::unique_ptr<Buffer> sums;      // (max_rows, max_groups) i32
    std::unique_ptr<Buffer> outliers;  // (max_rows, OutlierStride of the most)
  };

  Backend* backend = nullptr;
  std::unique_ptr<Buffer> residual;  // (max_rows, hidden) f32
  std::unique_ptr<Buffer> delta;     // (max_rows, hidden)
  std::unique_ptr<Buffer> q;         // (max_rows, heads * head_dim)
  std::unique_ptr<Buffer> k, v;      // (max_rows, kv_heads * head_dim)
  std::unique_ptr<Buffer> gate, up;  // (max_rows, intermediate)
  std::unique_ptr<Buffer> logits;    // (max_logit_rows, vocab) f32
  std::array<ActSlot, kMaxActFormats> acts;

  Floats Plain(const std::unique_ptr<Buffer>& buffer) const {
    return Floats{buffer->data(), backend->activation_type()};
  }
  // Views of the slots in these formats, one slot each. Producers write them, one linear consumes
  // them at once.
  ActSet Acts(std::span<const ActFormat> formats, int64_t cols) const;
};

}  // namespace nibble
