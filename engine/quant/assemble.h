// SPDX-License-Identifier: Apache-2.0
// From finished blocks to an artifact on disk.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/artifact/artifact_writer.h"
#include "engine/artifact/file_system.h"
#include "engine/model/config.h"
#include "engine/quant/block_ledger.h"
#include "engine/quant/model_parts.h"
#include "engine/quant/pipeline.h"
#include "engine/quant/report.h"

namespace nibble {

struct AssemblyInputs {
  const PipelineSpec* spec;
  const DecoderConfig* config;
  const ModelParts* parts;
  const BlockLedger* ledger;  // every block is finished
};

// Writes `directory` (created here) from the ledger's blocks, one mapped block at a time, syncs it,
// and reads it back with the reader that serving uses: DataLoss if that sees anything else. Adds
// the modules' errors and sizes to `report`, and takes the digests from it.
absl::StatusOr<ArtifactSummary> Assemble(const AssemblyInputs& inputs, FileSystem& fs,
                                         const std::string& directory, JobHost& host,
                                         Report& report);

// Adds report.json, report.html and run.json, which no digest covers, and syncs them.
absl::Status WriteReport(const Report& report, FileSystem& fs, const std::string& directory);

}  // namespace nibble
