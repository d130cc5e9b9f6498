// SPDX-License-Identifier: Apache-2.0
// The vocabulary of kernels/cuda/simt.h, word by word, on whichever device there is: a GPU that
// differs from what the kernels were tested on is found here first, by name.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"

namespace nibble::testing {

enum class Instruction {
  kShuffleXor,   // in: value, mask
  kShuffle,      // in: value, lane
  kBallot,       // in: predicate
  kLowestBit,    // in: bits
  kLoadMatrix4,  // in: eight 16-bit elements of the lane's row; out: r
  kLoadMatrix4Transposed,
  kMmaBF16,  // in: a (4), b (2), d (4); out: d
  kMmaF16,
  kMmaS8,
  kAddBF16x2,  // in: a, b, c
  kSubBF16x2,
  kMulBF16x2,
  kFmaBF16x2,
  kAddF16x2,
  kSubF16x2,
  kMulF16x2,
  kFmaF16x2,
  kPackBF16x2,  // in: low, high (f32)
  kPackF16x2,
  kMaskOr,     // in: a, mask, bits
  kPickBytes,  // in: low, high, selector
  kExp2,       // in: x (f32)
  kLog2,
  kTanh,
  kReciprocal,
  kCopyAsync16,  // in: four words, valid
  kCopyAsync16Stream,
  kCopyAsync4,  // in: the word, valid in [4]
};

inline constexpr int kInstructionIn = 12;  // words of a lane
inline constexpr int kInstructionOut = 4;

// One warp executes it: in (32, kInstructionIn), out (32, kInstructionOut), device memory. Words
// that it does not give are not written.
void LaunchInstruction(Device& device, Instruction instruction, const uint32_t* in, uint32_t* out);

// Blocks pass a baton on, block 0 last: block b waits until `turn` is blocks - 1 - b, adds its
// number times 2^16 plus one to each of its 64 words of what its predecessor left in `data` (64),
// and releases. `arrived` counts the threads.
void LaunchBaton(Device& device, int blocks, int32_t* turn, uint32_t* data, uint32_t* arrived);

}  // namespace nibble::testing
