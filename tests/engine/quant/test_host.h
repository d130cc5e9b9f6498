// SPDX-License-Identifier: Apache-2.0
// A job's host that remembers what it is told and stops the job where a test wants it.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "engine/quant/pipeline.h"

namespace nibble::testing {

class TestHost final : public JobHost {
 public:
  std::vector<PipelineCheckpoint> Checkpoints() override { return checkpoints; }
  absl::Status Commit(const PipelineCheckpoint& checkpoint) override {
    checkpoints.push_back(checkpoint);
    ++commits;
    return absl::OkStatus();
  }
  void Report(const PipelineProgress& report) override {
    EXPECT_GE(report.fraction, last_fraction);
    EXPECT_LE(report.fraction, 1.0);
    last_fraction = report.fraction;
    progress.push_back(report);
  }
  void Log(std::string_view line) override { log.emplace_back(line); }
  absl::Status KeepGoing() override {
    ++asked;
    if (commits >= stop_after_commits || asked > stop_after_asked) {
      return absl::AbortedError("stopped by the test");
    }
    return absl::OkStatus();
  }

  std::vector<PipelineCheckpoint> checkpoints;
  std::vector<std::string> log;
  std::vector<PipelineProgress> progress;
  double last_fraction = 0;
  int commits = 0;
  int asked = 0;
  int stop_after_commits = std::numeric_limits<int>::max();
  int stop_after_asked = std::numeric_limits<int>::max();
};

}  // namespace nibble::testing
