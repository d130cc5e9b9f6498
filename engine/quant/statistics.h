// SPDX-License-Identifier: Apache-2.0
// Statistics of what a block's linears read, gathered while it runs over the calibration tokens.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/decoder.h"
#include "engine/quant/algorithm.h"
#include "kernels/backend.h"

namespace nibble {

// What to gather about one input group.
struct StatisticsWanted {
  bool hessian = false;
  bool activations = false;
  bool any() const { return hessian || activations; }
};

// Gathers statistics while a block runs over all `rows` tokens. Use once.
class StatisticsCollector final : public BlockObserver {
 public:
  using Wanted = std::array<StatisticsWanted, 4>;  // by InputGroup

  // `threads` of the host do what is left to it.
  StatisticsCollector(Backend& backend, const Wanted& wanted, int64_t rows, int threads)
      : backend_(backend), wanted_(wanted), rows_(rows), threads_(threads) {}

  bool Wants(InputGroup group) const override { return wanted_[static_cast<size_t>(group)].any(); }
  void OnInput(InputGroup group, const float* x, int64_t rows, int64_t cols) override;
  bool Done() const override { return done_; }

  // The group's statistics, after the last step. InvalidArgument, naming `where`, if an activation
  // was not finite; ResourceExhausted if memory was short.
  absl::StatusOr<InputStatistics> Take(InputGroup group, std::string_view where);

 private:
  struct Sums {
    std::unique_ptr<Buffer> hessian;  // (cols, cols) f32, lower triangle of sum x x^T
    std::vector<double> abs;          // (cols)
    std::vector<float> max;           // (cols)
    std::vector<float> samples;       // (some rows, cols)
    int64_t cols = 0;
    int64_t seen = 0;  // rows
  };

  void AddActivations(Sums& sums, const float* x, int64_t rows, int64_t cols);

  Backend& backend_;
  const Wanted wanted_;
  const int64_t rows_;
  const int threads_;
  std::array<Sums, 4> sums_;
  std::vector<float> host_;
  bool done_ = false;  // in this step
  absl::Status status_;
};

}  // namespace nibble
