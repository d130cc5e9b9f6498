// SPDX-License-Identifier: Apache-2.0
// Opens a model: a Hugging Face directory (plain or compressed-tensors), or a GGUF file.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/artifact/weight_source.h"

namespace nibble {

struct TensorInfo {
  std::string name;
  DType dtype;                 // kNone for GGUF block formats
  std::vector<int64_t> shape;  // rows before columns, whatever the file format
  int64_t bytes;
  std::string type;  // the file format's name of the element type: "BF16", "Q8_0"
};

// The weight of a linear or embedding module as it is stored.
struct ModuleInfo {
  std::string name;
  std::string scheme;  // a name in kSchemes, or "gguf-q8_0" and the like
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t bytes = 0;  // of all its tensors, biases excepted
  bool quantized = false;
};

// An opened model. Files are mapped, so opening costs no memory; every name, type, shape and offset
// in them has been checked against the file's size before the open succeeds. Thread-safe. Weight()
// views point into the mapping, except for GGUF block formats, which are dequantized to f32 on
// first use and kept until Release().
class Checkpoint : public WeightSource {
 public:
  // InvalidArgument or NotFound with a message that names file, field, value and what is allowed.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);

  // The contents of config.json; for GGUF the equivalent built from its metadata.
  virtual const nlohmann::json& config() const = 0;
  // Every stored tensor under its name in the file.
  virtual std::vector<TensorInfo> tensors() const = 0;
  // Every module for which HasWeight() holds, sorted by name.
  virtual std::vector<ModuleInfo> modules() const = 0;
  // The files that make up the weights, for digests: paths relative to the directory, sorted.
  virtual std::vector<std::string> files() const = 0;
  virtual const std::string& path() const = 0;
  // Drops a module from memory after it was used, so that a walk over the model stays small: clean
  // mapped pages (views stay valid and are read again), and what was dequantized (views of this
  // module end).
  virtual void Release(std::string_view module) const = 0;
};

}  // namespace nibble
