// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/tiers.h"

#include <cpuid.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace nibble {
namespace {

bool HasAvx2() {
  // clang 14 does not know f16c by name.
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
bool HasAvx512BF16() { return HasAvx512() && __builtin_cpu_supports("avx512bf16"); }

// Best last.
constexpr CpuTier kTiers[] = {
    {"scalar", "cpu/scalar", &kScalarKernels, nullptr, [] { return true; }},
    {"avx2", "cpu/avx2", &kAvx2Kernels, nullptr, HasAvx2},
    {"avx512", "cpu/avx512-vnni", &kAvx512Kernels, nullptr, HasAvx512},
    {"avx512-bf16", "cpu/avx512-vnni-bf16", &kAvx512Kernels, &kAvx512BF16Kernels, HasAvx512BF16},
};

}  // namespace

absl::StatusOr<const CpuTier*> FindCpuTier(std::string_view option) {
  const CpuTier* chosen = nullptr;
  std::vector<std::string> available;
  for (const CpuTier& tier : kTiers) {
    if (!tier.supported()) continue;
    available.emplace_back(tier.option);
    if (option.empty() || option == tier.option) chosen = &tier;
  }
  if (chosen == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("tier: '", std::string(option),
                     "' is not one that this CPU has: ", absl::StrJoin(available, ", ")));
  }
  return chosen;
}

}  // namespace nibble
