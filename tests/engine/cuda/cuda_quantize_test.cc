// SPDX-License-Identifier: Apache-2.0
// Whole quantization jobs on the CUDA backend, whose kernels run on the emulator.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/quant/matrix.h"
#include "engine/quant/pipeline.h"
#include "kernels/cuda/cuda_weight_rounding.h"
#include "tests/engine/quant/test_host.h"
#include "tests/support/cuda/emulated_backend.h"
#include "tests/support/cuda/emulated_device.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"

namespace nibble {
namespace {

using testing::MakeEmulatedBackend;
using testing::TestHost;
using testing::TinyModel;

class CudaQuantize : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModel(dir_.File("model"), {.layers = 2});
    TinyModel::WriteIds(dir_.File("calibration.jsonl"), 4, 31, 5);
    TinyModel::WriteIds(dir_.File("heldout.jsonl"), 1, 20, 6);
  }

  PipelineSpec Spec(std::string_view recipe) {
    PipelineSpec spec;
    spec.model_path = dir_.File("model");
    spec.recipe = *BuiltinRecipe(recipe);
    if (spec.recipe.scheme == "int4-g128") spec.recipe.scheme = "int4-g32";
    spec.calibration_path = dir_.File("calibration.jsonl");
    spec.calibration_samples = 4;
    spec.calibration_length = 32;
    spec.eval_path = dir_.File("heldout.jsonl");
    spec.threads = 1;
    return spec;
  }

  PipelineResult Run(const PipelineSpec& spec, std::unique_ptr<Backend> backend) {
    TestHost host;
    const std::string work = dir_.File("attempt-" + std::to_string(++attempts_));
    std::filesystem::create_directories(work);
    absl::StatusOr<PipelineResult> result =
        RunPipeline(spec, *backend, PosixFileSystem(), work, work, host);
    EXPECT_TRUE(result.ok()) << result.status();
    return *std::move(result);
  }
  PipelineResult OnGpu(const PipelineSpec& spec) {
    return Run(spec, MakeEmulatedBackend().value());
  }
  PipelineResult OnCpu(const PipelineSpec& spec) {
    return Run(spec, MakeCpuBackend({.threads = 1, .tier = ""}).value());
  }

  TempDir dir_;
  int attempts_ = 0;
};

double ExactKl(const PipelineResult& result) {
  return result.report["evaluation"]["exact"]["kl"].get<double>();
}

nlohmann::json Manifest(const PipelineResult& result) {
  return nlohmann::json::parse(ReadFile(result.artifact_dir + "/nibble.json"));
}

TEST_F(CudaQuantize, RoundingToNearestGivesTheFilesOfTheCpu) {
  for (const char* recipe : {"rtn", "mse"}) {
    const PipelineResult gpu = OnGpu(Spec(recipe));
    const PipelineResult cpu = OnCpu(Spec(recipe));
    // Every file but the manifest itself, which names the device.
    EXPECT_EQ(Manifest(gpu)["files"], Manifest(cpu)["files"]) << recipe;
    EXPECT_EQ(Manifest(gpu)["platform"]["device"], "cuda");
    EXPECT_NEAR(ExactKl(gpu), ExactKl(cpu), 0.1 * ExactKl(cpu)) << recipe;
  }
}

TEST_F(CudaQuantize, GptqRepeatsItsBitsAndComesNearTheCpu) {
  const PipelineResult gpu = OnGpu(Spec("gptq"));
  const PipelineResult cpu = OnCpu(Spec("gptq"));
  EXPECT_EQ(OnGpu(Spec("gptq")).digest, gpu.digest);
  // Activations between operations are bf16 there, so the Hessians differ a little.
  EXPECT_NE(gpu.digest, cpu.digest);
  EXPECT_NEAR(ExactKl(gpu), ExactKl(cpu), 0.15 * ExactKl(cpu));
  const auto& on_gpu = gpu.report["modules"];
  const auto& on_cpu = cpu.report["modules"];
  ASSERT_EQ(on_gpu.size(), on_cpu.size());
  for (size_t i = 0; i < on_gpu.size(); ++i) {
    const double error = on_cpu[i]["relative_error"].get<double>();
    EXPECT_NEAR(on_gpu[i]["relative_error"].get<double>(), error, 0.15 * error) << on_cpu[i];
  }
}

TEST_F(CudaQuantize, EveryRecipeRunsThere) {
  for (const std::string_view name : BuiltinRecipeNames()) {
    PipelineSpec spec = Spec(name);
    // Where most inputs are int8: linears that read one input in two formats, observed in a third.
    if (spec.recipe.scheme == "w8a8") spec.recipe.overrides = {{"*.k_proj", "bf16"}};
    const PipelineResult result = OnGpu(spec);
    for (const nlohmann::json& module : result.report["modules"]) {
      EXPECT_LT(module["relative_error"].get<double>(), 0.05) << name << " " << module;
    }
  }
}

TEST_F(CudaQuantize, ObservesAnInputThatIsReadInEveryFormat) {
  PipelineSpec spec = Spec("gptq");
  spec.recipe.overrides = {{"*.q_proj", "w8a8"}, {"*.k_proj", "fp8"}};
  EXPECT_GT(ExactKl(OnGpu(spec)), 0.0);
  spec.recipe.overrides.push_back({"*.v_proj", "llm-int8"});
  EXPECT_GT(ExactKl(OnGpu(spec)), 0.0);
}

TEST(CudaWeightRoundingMemory, TooLittleIsResourceExhausted) {
  testing::EmulatedDevice().memory_bytes = size_t{1} << 20;
  const auto device = Device::Open(0).value();
  testing::EmulatedDevice() = {};
  const auto rounding = MakeCudaWeightRounding(*device);
  Matrix h(512, 512);
  EXPECT_EQ(rounding->UpperFactorOfInverse(h.row(0), h.rows).status().code(),
            absl::StatusCode::kResourceExhausted);
  std::vector<double> sums(512);
  EXPECT_EQ(rounding->QuadraticForm(h.row(0), 512, 512, h.row(0), 512, sums.data()).code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace nibble
