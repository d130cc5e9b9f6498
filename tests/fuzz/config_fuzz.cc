// SPDX-License-Identifier: Apache-2.0
// config.json with its quantization_config, and nibble.json.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/artifact/manifest.h"
#include "engine/artifact/quantization_config.h"
#include "engine/base/json.h"
#include "engine/model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = nibble::ParseJsonObject(text, "fuzz");
  if (!json.ok()) return 0;
  (void)nibble::ManifestFromJson(*json);
  const auto section = json->find("quantization_config");
  if (section != json->end()) {
    const auto quantization = nibble::QuantizationConfig::Parse(*section);
    if (quantization.ok()) (void)quantization->SchemeOf("model.layers.0.self_attn.q_proj");
  }
  const auto config = nibble::ParseDecoderConfig(*json);
  if (!config.ok()) return 0;
  const nibble::RopeTables tables =
      nibble::MakeRopeTables(config->rope, 2, config->max_positions, config->max_positions);
  for (const float value : tables.cos) {
    if (!std::isfinite(value)) std::abort();
  }
  return 0;
}
