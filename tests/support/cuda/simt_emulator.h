// SPDX-License-Identifier: Apache-2.0
// Runs the kernels of kernels/cuda on the host. Each thread of a block is a fibre on one OS thread;
// a fibre runs until it waits for its warp, its block or another block. So the code of a kernel is
// the code that is tested, with its barriers, fragments, asynchronous copies and locks.
//
// What it is strict about: an asynchronous copy reaches shared memory only when its thread waits
// for it (until then the destination holds NaNs); shared memory starts as NaNs; a warp-wide
// operation without all 32 lanes, a barrier that part of a block never reaches, a misaligned copy
// or matrix row, and shared memory beyond what was asked for throw std::logic_error.
// Of simt_hopper.h it also asks for what a device would miss in silence: a tile arrives when a
// thread waits for it; a product reads its operands when it is issued, they must still be there
// when it is waited for, and its sums are poison until then; what CopyAsync wrote needs a proxy
// fence before a product reads it (what ordinary stores wrote is not seen), sums a fence before a
// product takes them; a block that ends before its copies or is arrived at afterwards throws.
// What it cannot show: other missing fences, and everything about speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace nibble::testing {

// Which runnable warp, and which of its threads, comes first; it goes on until it waits for others,
// so that warps get as far apart as barriers let them. A kernel's result may not depend on it.
enum class Schedule : uint8_t { kAscending, kDescending };

struct EmulatorOptions {
  Schedule schedule = Schedule::kAscending;
  int resident_blocks = 8;  // blocks that run at the same time: locks between them are real
};
EmulatorOptions& Emulator();  // applies to the launches that follow

// Where launches go instead of being run, while it is not nullptr.
using LaunchList = std::vector<std::function<void()>>;
LaunchList*& RecordedLaunches();

}  // namespace nibble::testing
