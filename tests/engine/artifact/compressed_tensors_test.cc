// SPDX-License-Identifier: Apache-2.0
// What the compressed-tensors package wrote, read here (make_golden.py).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "engine/artifact/checkpoint.h"
#include "engine/artifact/mapped_file.h"
#include "engine/artifact/safetensors.h"
#include "kernels/codec.h"
#include "tests/support/source_dir.h"

namespace nibble {
namespace {

const std::string kGolden = SourceDir().string() + "/tests/data/compressed_tensors";

TEST(CompressedTensorsTest, EverySchemeIsReadAsThePackageReadsIt) {
  auto checkpoint = Checkpoint::Open(kGolden);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto file = MappedFile::Open(kGolden + "/expected.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto header = ParseSafetensorsHeader((*file)->bytes(), "expected.safetensors");
  ASSERT_TRUE(header.ok()) << header.status();

  for (const Scheme& scheme : kSchemes) {
    // The package has neither NF4 nor outliers.
    if (!scheme.quantized() || scheme.code == DType::kNF4 || scheme.outliers) continue;
    SCOPED_TRACE(std::string(scheme.name));
    const std::string module = "model.layers.0." + std::string(scheme.name);
    const auto view = (*checkpoint)->Weight(module);
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_EQ(view->scheme, &scheme);
    const auto entry =
        std::find_if(header->tensors.begin(), header->tensors.end(),
                     [&module](const SafetensorsEntry& tensor) { return tensor.name == module; });
    ASSERT_NE(entry, header->tensors.end());
    ASSERT_EQ(entry->shape, (std::vector<int64_t>{view->rows, view->cols}));
    const char* expected = (*file)->bytes().data() + header->data_start + entry->begin;
    for (int64_t n = 0; n < view->rows; ++n) {
      for (int64_t k = 0; k < view->cols; ++k) {
        float value = 0;
        std::memcpy(&value, expected + (n * view->cols + k) * 4, 4);
        ASSERT_EQ(ReadWeight(*view, n, k), value) << "row " << n << ", column " << k;
      }
    }
  }
}

}  // namespace
}  // namespace nibble
