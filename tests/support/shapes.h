// SPDX-License-Identifier: Apache-2.0
// The odd shapes that every kernel is tested on: one token, primes, tail groups, tails of a vector
// and of a panel.
#pragma once

#include <cstdint>

namespace nibble::testing {

struct LinearShape {
  int64_t rows;  // tokens
  int64_t out;   // output features
  int64_t in;    // input features
};

inline constexpr LinearShape kLinearShapes[] = {
    {1, 1, 1},       // the smallest
    {1, 32, 128},    // one panel, one group
    {1, 33, 129},    // one more
    {2, 31, 127},    // one less
    {3, 17, 64},     // stories260K: dim 64
    {5, 64, 172},    // stories260K: hidden 172, a tail group
    {7, 97, 211},    // primes
    {8, 96, 256},    // a full register tile
    {13, 130, 384},  // a tile and a tail
    {37, 70, 520},   // several tiles
};

// Lengths of rows: around multiples of the 16 lanes and of the groups.
inline constexpr int64_t kRowLengths[] = {1, 2, 15, 16, 17, 31, 64, 127, 128, 129, 172, 1000};

}  // namespace nibble::testing
