// SPDX-License-Identifier: Apache-2.0
// A fingerprint of what a model computes, by two roads that must agree: `nibble eval` runs the
// decoder on its own, `nibble bench` goes through the serving engine.
//
// A fixed prompt of 48 tokens ((37 i + 11) mod vocabulary) is continued greedily for 8 tokens;
// hashed are, after each, the 20 most probable tokens and the bits of their log-probabilities.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/model/decoder.h"
#include "engine/serve/engine.h"

namespace nibble {

// Hex, 64 characters. The decoder needs room for 64 positions.
absl::StatusOr<std::string> LogitsHash(Decoder& decoder, const KvFormat& kv);

// The same through Submit and Step; the engine's thread must not have been started and it must be
// idle.
absl::StatusOr<std::string> LogitsHash(Engine& engine);

}  // namespace nibble
