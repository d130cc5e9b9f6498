// SPDX-License-Identifier: Apache-2.0
// What each scheme costs on the model that the project ships: jobs that round to nearest,
// judged by the divergence of the artifact's predictions on held-out text.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include "engine/quant/pipeline.h"
#include "tests/engine/quant/test_host.h"
#include "tests/support/source_dir.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

const std::string kDemo = SourceDir().string() + "/deploy/demo-model";

struct Quality {
  double kl;    // in exact mode, nats per token
  double bits;  // per weight
};

Quality QualityOf(const std::string& scheme) {
  const TempDir dir;
  PipelineSpec spec;
  spec.model_path = kDemo + "/model";
  spec.recipe = *BuiltinRecipe("rtn");
  spec.recipe.scheme = scheme;
  spec.eval_path = kDemo + "/heldout.jsonl";
  spec.eval_max_tokens = 600;
  std::filesystem::create_directories(dir.File("job/work"));
  testing::TestHost host;
  const std::unique_ptr<Backend> backend = *MakeCpuBackend({2, ""});
  const absl::StatusOr<PipelineResult> result =
      RunPipeline(spec, *backend, PosixFileSystem(), dir.File("job/work"), dir.File("job"), host);
  EXPECT_TRUE(result.ok()) << result.status();
  return {result->report["evaluation"]["exact"]["kl"].get<double>(),
          result->report["bits_per_weight"].get<double>()};
}

TEST(SchemeQualityTest, FewerBitsCostMoreAndOtherGridsLieWhereTheirBitsPutThem) {
  std::map<std::string, Quality> of;
  for (const char* scheme : {"int8", "int4-g64", "int3-g64", "int3-g64-asym", "int2-g64",
                             "int2-g64-asym", "nf4", "nf4-dq", "fp8", "fp8-w8a16"}) {
    of[scheme] = QualityOf(scheme);
    EXPECT_GT(of[scheme].kl, 0) << scheme;
  }
  EXPECT_LT(of["int4-g64"].kl, of["int3-g64"].kl);
  EXPECT_LT(of["int3-g64"].kl, of["int2-g64"].kl);
  EXPECT_LT(of["int3-g64-asym"].kl, of["int2-g64-asym"].kl);
  for (const char* eight : {"fp8", "fp8-w8a16"}) EXPECT_LT(of[eight].kl, of["int4-g64"].kl);
  for (const char* four : {"nf4", "nf4-dq"}) {
    EXPECT_GT(of[four].kl, of["int8"].kl) << four;
    EXPECT_LT(of[four].kl, of["int3-g64"].kl) << four;
  }
  EXPECT_NEAR(of["int3-g64"].bits, 3.25, 0.02);
  EXPECT_NEAR(of["int2-g64-asym"].bits, 2.25 + 2.0 / 64, 0.02);
  EXPECT_NEAR(of["nf4"].bits, 4.25, 0.02);
  EXPECT_NEAR(of["nf4-dq"].bits, 4 + 8.0 / 64 + 32.0 / 64 / 256, 0.02);
}

}  // namespace
}  // namespace nibble
