// SPDX-License-Identifier: Apache-2.0
// The instruction tiers of the CPU backend and which of them this CPU has.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/cpu/tier.h"

namespace nibble {

// Exact mode gives the same bits in every tier. A tier whose fast mode rounds otherwise than that
// of another has a name of its own: names are recorded, and a job does not resume under another
// one.
struct CpuTier {
  std::string_view option;  // CpuOptions::tier
  std::string_view name;    // Backend::Tier(): "cpu/" and the instructions
  const KernelTable* kernels;
  const BF16Kernels* bf16;  // nullptr: bf16 weights meet f32 activations in fast mode too
  bool (*supported)();
};

// The tier with this option, or for "" the best one that this CPU has. InvalidArgument, naming the
// ones there are, otherwise.
absl::StatusOr<const CpuTier*> FindCpuTier(std::string_view option);

}  // namespace nibble
