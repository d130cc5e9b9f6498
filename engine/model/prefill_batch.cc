// SPDX-License-Identifier: Apache-2.0
#include "engine/model/prefill_batch.h"

#include <algorithm>

#include "kernels/check.h"

namespace nibble {

absl::StatusOr<std::unique_ptr<PrefillBatch>> PrefillBatch::Make(Backend& backend, int32_t max_rows,
                                                                 int32_t max_sequences,
                                                                 int32_t max_context) {
  NIBBLE_CHECK(max_rows > 0 && max_sequences > 0 && max_context > 0);
  std::unique_ptr<PrefillBatch> batch(new PrefillBatch());
  batch->backend_ = &backend;
  batch->max_rows_ = max_rows;
  batch->max_sequences_ = max_sequences;
  batch->max_blocks_ = BlocksFor(max_context);
  const size_t rows = static_cast<size_t>(max_rows);
  const size_t sequences = static_cast<size_t>(max_sequences);
  const size_t table = sequences * static_cast<size_t>(batch->max_blocks_);
  const size_t count = 4 * rows + (sequences + 1) + sequences + table;
  auto device = backend.Allocate(count * sizeof(int32_t));
  if (!device.ok()) return device.status();
  batch->device_ = *std::move(device);
  batch->host_.assign(count, 0);

  const int32_t* next = batch->device_->as<int32_t>();
  auto take = [&next](size_t length) {
    const int32_t* begin = next;
    next += length;
    return begin;
  };
  BatchView& view = batch->view_;
  view.token_ids = take(rows);
  view.positions = take(rows);
  view.row_sequence = take(rows);
  view.logit_rows = take(rows);
  view.query_start = take(sequences + 1);
  view.context_length = take(sequences);
  view.block_table = take(table);
  view.max_blocks = batch->max_blocks_;
  return batch;
}

const BatchView& PrefillBatch::Set(std::span<const Chunk> chunks, bool logits) {
  NIBBLE_CHECK(static_cast<int32_t>(chunks.size()) <= max_sequences_);
  const int32_t* base = device_->as<int32_t>();
  auto host = [&](const int32_t* device) { return host_.data() + (device - base); };
  int32_t* token_ids = host(view_.token_ids);
  int32_t* positions = host(view_.positions);
  int32_t* row_sequence = host(view_.row_sequence);
  int32_t* logit_rows = host(view_.logit_rows);
  int32_t* query_start = host(view_.query_start);
  int32_t* context_length = host(view_.context_length);
  int32_t* block_table = host(view_.block_table);

  int32_t row = 0;
  view_.max_query = 0;
  query_start[0] = 0;
  for (size_t s = 0; s < chunks.size(); ++s) {
    const Chunk& chunk = chunks[s];
    const int32_t length = static_cast<int32_t>(chunk.tokens.size());
    NIBBLE_CHECK(length > 0 && row + length <= max_rows_ && chunk.start + length <= max_context());
    for (int32_t i = 0; i < length; ++i, ++row) {
      token_ids[row] = chunk.tokens[static_cast<size_t>(i)];
      positions[row] = chunk.start + i;
      row_sequence[row] = static_cast<int32_t>(s);
      logit_rows[row] = row;
    }
    query_start[s + 1] = row;
    context_length[s] = chunk.start + length;
    view_.max_query = std::max(view_.max_query, length);
    int32_t* blocks = block_table + s * static_cast<size_t>(max_blocks_);
    for (int32_t b = 0; b < BlocksFor(chunk.start + length); ++b) blocks[b] = chunk.first_block + b;
  }
  view_.rows = row;
  view_.sequences = static_cast<int32_t>(chunks.size());
  view_.num_logits = logits ? row : 0;
  backend_->Upload(device_->data(), host_.data(), host_.size() * sizeof(int32_t));
  return view_;
}

}  // namespace nibble
