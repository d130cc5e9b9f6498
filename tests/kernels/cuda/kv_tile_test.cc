// SPDX-License-Identifier: Apache-2.0
// The layout of the KV cache, the tiles of attention and the plan of its work: maps are one to one,
// codes expand exactly, every key that a row sees is in one piece.
#include "kernels/cuda/kv_tile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cuda/attention_plan.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/dtype.h"

namespace nibble {
namespace {

TEST(KvLayoutTest, PartsFillABlockAndDoNotOverlap) {
  for (const KvFormat& format : kKvFormats) {
    for (int32_t dim = kCudaHeadDimMultiple; dim <= kCudaMaxHeadDim; dim += kCudaHeadDimMultiple) {
      KvPool pool{KvSpec{&format, 3, 2, dim}, 2, nullptr};
      std::vector<uint8_t> memory(static_cast<size_t>(2 * pool.spec.BytesPerBlock()));
      pool.data = memory.data();
      std::vector<int64_t> starts;
      for (int32_t block = 0; block < 2; ++block) {
        for (int32_t layer = 0; layer < 3; ++layer) {
          for (int32_t head = 0; head < 2; ++head) {
            const KvLayout layout = KvLayoutOf(pool, layer);
            const int64_t part = layout.Head(block, head) - memory.data();
            for (const int64_t offset :
                 {int64_t{0}, layout.value_codes, layout.key_scales, layout.value_scales}) {
              starts.push_back(part + offset);
              EXPECT_EQ(starts.back() % 16, 0);
            }
            EXPECT_EQ(layout.block_bytes, pool.spec.BytesPerBlock());
          }
        }
      }
      starts.push_back(2 * pool.spec.BytesPerBlock());
      const int64_t sizes[] = {64 * KvCodeBytes(format.k, dim), 64 * KvCodeBytes(format.v, dim),
                               64 * KvScaleBytes(format.k, dim), 64 * KvScaleBytes(format.v, dim)};
      for (size_t i = 0; i + 1 < starts.size(); ++i) {
        EXPECT_EQ(starts[i + 1] - starts[i], sizes[i % 4]) << format.name << " " << dim;
      }
    }
  }
}

template <KvCode kTileCode, int kTileDim>
struct TileCase {
  static constexpr KvCode kCode = kTileCode;
  static constexpr int kDim = kTileDim;
  using Tile = KvTile<kCode, kDim>;
};
template <typename Case>
class KvTileTest : public ::testing::Test {};
using TileCases = ::testing::Types<
    TileCase<KvCode::kF32, 64>, TileCase<KvCode::kBF16, 64>, TileCase<KvCode::kBF16, 128>,
    TileCase<KvCode::kBF16, 256>, TileCase<KvCode::kFp8, 64>, TileCase<KvCode::kFp8, 128>,
    TileCase<KvCode::kFp8, 256>, TileCase<KvCode::kInt8, 64>, TileCase<KvCode::kInt8, 128>,
    TileCase<KvCode::kInt8, 256>, TileCase<KvCode::kInt4, 64>, TileCase<KvCode::kInt4, 128>,
    TileCase<KvCode::kInt4, 256>>;
TYPED_TEST_SUITE(KvTileTest, TileCases);

TYPED_TEST(KvTileTest, EveryByteHasOnePlace) {
  using Tile = typename TypeParam::Tile;
  std::set<int> keys, values;
  for (int token = 0; token < kKvBlockTokens; ++token) {
    for (int byte = 0; byte < Tile::kRowBytes; ++byte) {
      keys.insert(Tile::KeyOffset(token, byte));
      values.insert(Tile::ValueOffset(token, byte));
      EXPECT_EQ(Tile::KeyOffset(token, byte) - Tile::KeyOffset(token, byte / 16 * 16), byte % 16);
    }
  }
  for (const auto& places : {keys, values}) {
    EXPECT_EQ(places.size(), static_cast<size_t>(Tile::kBytes));
    EXPECT_EQ(*places.begin(), 0);
    EXPECT_EQ(*places.rbegin(), Tile::kBytes - 1);
  }
  std::set<int> positions, dims;
  for (int d = 0; d < TypeParam::kDim; ++d) positions.insert(Tile::KeyPosition(d));
  for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
    for (int pair = 0; pair < Tile::kPairs; ++pair) {
      for (int column = 0; column < 8; ++column) {
        dims.insert(Tile::ValueDim(chunk, pair, column));
      }
    }
  }
  for (const auto& indices : {positions, dims}) {
    EXPECT_EQ(indices.size(), static_cast<size_t>(TypeParam::kDim));
    EXPECT_EQ(*indices.rbegin(), TypeParam::kDim - 1);
  }
}

// The lanes of one phase of an access (128 bytes) meet 32 different banks.
TYPED_TEST(KvTileTest, NoAccessHasABankConflict) {
  using Tile = typename TypeParam::Tile;
  const auto expect_distinct = [](const std::vector<int>& offsets, int bytes) {
    std::set<int> banks;
    for (const int offset : offsets) {
      for (int b = 0; b < bytes; b += 4) banks.insert((offset + b) / 4 % 32);
    }
    EXPECT_EQ(banks.size(), 32u);
  };
  for (int segment = 0; segment < Tile::kSegments; ++segment) {
    constexpr int kPhase = 128 / Tile::kLoadBytes;
    for (int first = 0; first < 32; first += kPhase) {
      std::vector<int> offsets;
      for (int lane = first; lane < first + kPhase; ++lane) {
        offsets.push_back(
            Tile::KeyOffset(lane / 4, segment * Tile::kSegmentBytes + lane % 4 * Tile::kLoadBytes));
      }
      expect_distinct(offsets, Tile::kLoadBytes);
    }
  }
  for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
    for (int first = 0; first < 32; first += 8) {
      std::vector<int> offsets;
      for (int token = first; token < first + 8; ++token) {
        offsets.push_back(Tile::ValueOffset(token, 16 * chunk));
      }
      expect_distinct(offsets, 16);
    }
  }
}

// Every code in every place of a word: pair i is codes i and i + kPairs, exactly.
TYPED_TEST(KvTileTest, CodesExpandExactly) {
  using Tile = typename TypeParam::Tile;
  constexpr int kCodes = 1 << Tile::kBits;
  for (int code = 0; code < kCodes; ++code) {
    for (int place = 0; place < 2 * Tile::kPairs; ++place) {
      const auto at = [&](int p) {
        return static_cast<uint32_t>(code * (p == place ? 1 : 7) + 3 * (p != place)) % kCodes;
      };
      uint32_t word = 0;
      for (int p = 0; p < 2 * Tile::kPairs; ++p) word |= at(p) << (Tile::kBits * p);
      uint32_t pairs[Tile::kPairs];
      Tile::Expand(word, pairs);
      const float value = BF16ToF32(
          static_cast<uint16_t>(pairs[place % Tile::kPairs] >> (16 * (place / Tile::kPairs))));
      switch (TypeParam::kCode) {
        case KvCode::kF32:
        case KvCode::kBF16:
          EXPECT_EQ(std::bit_cast<uint32_t>(value), static_cast<uint32_t>(code) << 16);
          break;
        case KvCode::kFp8:
          if ((code & 0x7f) == 0x7f) break;  // NaN: not written
          EXPECT_EQ(value, E4M3ToF32(static_cast<uint8_t>(code)));
          break;
        case KvCode::kInt8:
          EXPECT_EQ(value, static_cast<float>(static_cast<int8_t>(code)));
          break;
        case KvCode::kInt4:
          EXPECT_EQ(value, static_cast<float>(code));
          break;
      }
    }
  }
}

TEST(AttentionPlanTest, TilesHoldWhatIsSeenAndNoMore) {
  for (int32_t position = 0; position < 400; ++position) {
    for (const int32_t window : {0, 1, 5, 64, 65, 130, 1000}) {
      const Interval tiles = VisibleTiles(position, position, window);
      const int32_t oldest = window > 0 ? std::max(0, position - window + 1) : 0;
      EXPECT_EQ(tiles.first, oldest / 64);
      EXPECT_EQ(tiles.first + tiles.count - 1, position / 64);
    }
  }
}

TEST(AttentionPlanTest, PiecesCoverRowsAndKeysWithinTheBound) {
  for (const int32_t group : {1, 4, 7, 16, 20}) {
    for (const int32_t window : {0, 100, 600}) {
      std::vector<int32_t> start = {0}, context;
      for (const auto& [length, tokens] : std::vector<std::pair<int32_t, int32_t>>{
               {1, 1}, {512, 1}, {513, 1}, {0, 0}, {1600, 1}, {1600, 40}, {70, 70}, {2, 2}}) {
        start.push_back(start.back() + tokens);
        context.push_back(length);
      }
      BatchView batch;
      batch.rows = start.back();
      batch.sequences = static_cast<int32_t>(context.size());
      batch.max_query = 70;
      batch.query_start = start.data();
      batch.context_length = context.data();
      batch.max_blocks = 25;
      for (const int32_t part_tiles : {1, kRunTiles}) {
        int64_t split = 0, whole = 0, parts = 0;
        for (int32_t s = 0; s < batch.sequences; ++s) {
          const SequencePlan plan = PlanOf(batch, s, group, window);
          const Interval cut = plan.Parts(part_tiles);
          if (plan.tokens == 1) {
            const Interval keys = VisibleTiles(plan.context - 1, plan.context - 1, window);
            EXPECT_EQ(cut.first, keys.first / part_tiles);
            EXPECT_EQ(cut.first + cut.count - 1, (keys.first + keys.count - 1) / part_tiles);
          } else {
            EXPECT_EQ(cut.count, 0);
            EXPECT_EQ(plan.RowTiles(16), (plan.rows() + 15) / 16);
            whole += plan.RowTiles(16);
          }
          parts += cut.count;
          split += cut.count * SplitRowTiles(group);
        }
        EXPECT_LE(split, MaxSplitPieces(batch, group, part_tiles));
        EXPECT_LE(whole, MaxRowPieces(batch, group, 16, part_tiles, kMaxPartialRuns));
        EXPECT_LE(parts, PartialCapacity(batch.sequences, batch.max_blocks));
      }
    }
  }
}

// A step that is within what was reserved has no more parts than were reserved; and the memory for
// them ends somewhere.
TEST(AttentionPlanTest, RoomForPartsGrowsWithTheStepUpToABound) {
  for (const int64_t sequences : {1, 7, 256}) {
    for (const int64_t blocks : {1, 8, 9, 2048}) {
      const int64_t capacity = PartialCapacity(sequences, blocks);
      EXPECT_LE(capacity, kMaxPartialRuns);
      EXPECT_LE(capacity, sequences * blocks);
      EXPECT_LE(capacity, PartialCapacity(sequences + 1, blocks));
      EXPECT_LE(capacity, PartialCapacity(sequences, blocks + 1));
    }
  }
  EXPECT_EQ(PartialCapacity(256, 2048), kMaxPartialRuns);
}

}  // namespace
}  // namespace nibble
