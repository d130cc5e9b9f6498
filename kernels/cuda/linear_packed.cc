// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/linear_packed.h"

#include <algorithm>

#include "kernels/check.h"

namespace nibble {

bool TakesPackedLinear(const PackedLinearVariant& variant, const PackedFormat& format,
                       const DeviceInfo& info) {
  return variant.grouped == (format.group != 0) && variant.asymmetric == format.asymmetric &&
         variant.shared_bytes <= info.shared_bytes_per_block;
}

const PackedLinearVariant& ChoosePackedLinear(std::span<const PackedLinearVariant> variants,
                                              const PackedFormat& format, const DeviceInfo& info,
                                              int64_t rows) {
  const PackedLinearVariant* chosen = nullptr;
  for (const PackedLinearVariant& variant : variants) {
    if (!TakesPackedLinear(variant, format, info)) continue;
    if (chosen == nullptr || (variant.tokens > chosen->tokens && chosen->tokens < rows)) {
      chosen = &variant;
    }
  }
  NIBBLE_CHECK(chosen != nullptr);
  return *chosen;
}

void LaunchPackedLinear(Device& device, const PackedLinearArgs& args,
                        std::span<const PackedLinearVariant> variants) {
  const PackedLayout& layout = args.weight.layout;
  PackedLinearParams p{};
  p.records = args.weight.data;
  p.channel_scales = reinterpret_cast<const uint16_t*>(args.weight.data + layout.ChannelScales());
  p.record_bytes = layout.RecordBytes();
  p.groups_per_tile = layout.GroupsPerTile();
  p.x = args.x;
  p.cols = static_cast<int>(args.cols);
  p.aligned = args.cols % 8 == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
  p.early = device.stream().programmatic;
  p.plan = PlanLinear(layout.n_tiles, layout.k_tiles, device.info().multiprocessors);
  p.num_segments = args.num_segments;
  for (int i = 0; i < args.num_segments; ++i) {
    p.segments[i] = args.segments[static_cast<size_t>(i)];
  }
  p.scratch = args.scratch;
  for (int64_t left = args.rows; left > 0; left -= p.rows) {
    p.rows = static_cast<int>(std::min<int64_t>(left, kMaxLinearTokens));
    const PackedLinearVariant& variant =
        ChoosePackedLinear(variants, layout.format, device.info(), p.rows);
    p.passes = (p.rows + variant.tokens - 1) / variant.tokens;
    NIBBLE_CHECK(p.passes <= kMaxLinearPasses);
    p.stages = variant.stages;
    LaunchShape shape;
    shape.grid_x = p.plan.blocks;
    shape.threads = kPackedLinearThreads;
    shape.shared_bytes = variant.shared_bytes;
    variant.launch(device.stream(), shape, p);
    p.x += p.rows * args.cols;
    for (LinearSegment& segment : p.segments) {
      segment.out.data =
          static_cast<uint8_t*>(segment.out.data) +
          p.rows * segment.features * static_cast<int64_t>(BytesOf(segment.out.dtype));
    }
  }
}

}  // namespace nibble
