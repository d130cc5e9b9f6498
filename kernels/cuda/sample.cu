// SPDX-License-Identifier: Apache-2.0
// Draws a token per row of logits: the semantics of SamplingRow (kernels/ops.h).
//
// The draw walks the tokens in descending order until their mass exceeds a target. Nothing is
// sorted for that: a histogram over orders (sample.h) tells in which bin the target lies; a bin
// with too many tokens is divided again, one with few is gathered, sorted and walked. Masses are
// integers, so atomic additions in any order give the same bits. top_k and top_p are the same
// search for another target.
//
// Tiling: a row's logits are divided among its blocks, up to kMostSampleParts while there are fewer
// rows than blocks that can be resident. Those of a row wait for each other: they are neighbours,
// blocks begin in the order of their index, and all of a launch can be resident. A block keeps its
// part in shared memory if it fits there and passes over it 3 times for a plain draw, and once or
// twice more for each of top_k, top_p, min_p and top log-probabilities. Between passes the blocks
// of a row exchange integers through memory: the largest logit, histograms, candidates. Each then
// finds the same token. No result depends on the number of blocks.
//
// Limit: latency. One block took 166 us on an H100 for a draw from 128256 tokens with top_k, top_p
// and min_p, six passes: some 50 instructions a token and pass. In 16 parts a pass is 32 tokens a
// thread. The same draw is then one read of 32 KiB a block, six exchanges of some 2 us, and scans
// of a block: below 20 us, a plain draw (three exchanges) about 10. Reasoned, not measured yet.
#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda/row_sampler.h"

namespace nibble {
namespace {

constexpr int64_t kLeastSamplePart = 1024;  // logits of a block
constexpr int kResidentSamplers = 2;        // blocks of a multiprocessor

struct SampleKernel {
  using Params = SampleParams;
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = kResidentSamplers;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX() / p.parts;
    const auto* rows = static_cast<const PackedSamplingRow*>(p.launch.packed);
    const PackedSamplingRow& packed = rows[row];
    RowSampler sampler(p, row, simt::BlockX() % p.parts);
    simt::WaitForPreviousKernel();
    sampler.Edit(packed, reinterpret_cast<const int32_t*>(rows + p.launch.rows), p.launch.tokens);
    Sample(sampler, packed.row, p.launch.results[row]);
    sampler.Leave();
    simt::StartNextKernel();
  }

  static NIBBLE_DEVICE void Sample(RowSampler& sampler, const SamplingRow& params,
                                   SampleResult& result) {
    const bool finite = sampler.FindLargest();
    if (sampler.writes()) {
      for (int i = simt::Thread(); i < kMaxLogprobs; i += simt::Threads()) {
        result.top_ids[static_cast<size_t>(i)] = 0;
        result.top_logprobs[static_cast<size_t>(i)] = 0.0f;
      }
      if (simt::Thread() == 0) {
        result.finite = finite;
        result.token = 0;
        result.logprob = 0.0f;
        result.num_top = 0;
      }
      simt::SyncThreads();
    }
    if (!finite) return;
    const uint64_t token = params.temperature > 0.0f ? sampler.Draw(params) : sampler.best();
    if (sampler.writes() && simt::Thread() == 0) {
      result.token = static_cast<int32_t>(IdOfOrder(token));
    }
    if (params.logprobs >= 0) sampler.LogProbabilities(params.logprobs, token, result);
  }
};

// Blocks of a row: all of a launch are resident.
int PartsOf(const DeviceInfo& device, int64_t rows, int64_t vocabulary) {
  const int64_t resident = int64_t{kResidentSamplers} * device.multiprocessors;
  const int64_t worth = (vocabulary + kLeastSamplePart - 1) / kLeastSamplePart;
  return static_cast<int>(
      std::max<int64_t>(1, std::min({int64_t{kMostSampleParts}, resident / rows, worth})));
}

}  // namespace

size_t SampleScratchBytes(const DeviceInfo& device, int64_t rows) {
  // More rows have a block each.
  const int64_t shared = int64_t{kResidentSamplers} * device.multiprocessors / 2;
  return static_cast<size_t>(std::min(rows, shared)) * sizeof(SampleExchange);
}

void LaunchSample(Device& device, const SampleLaunch& args) {
  if (args.rows == 0) return;
  NIBBLE_CHECK(args.vocabulary >= 1 && args.vocabulary <= kMaxSampleVocabulary);
  SampleParams params{};
  params.launch = args;
  params.parts = PartsOf(device.info(), args.rows, args.vocabulary);
  params.part = ((args.vocabulary + params.parts - 1) / params.parts + 3) / 4 * 4;
  const size_t kept = sizeof(SampleShared) + static_cast<size_t>(params.part) * sizeof(float);
  constexpr size_t kReserved = 1024;  // of a block, by the device
  params.cached = params.parts > 1 &&
                  kResidentSamplers * (kept + kReserved) <= device.info().shared_bytes_per_block;
  LaunchShape shape;
  shape.grid_x = static_cast<int>(args.rows) * params.parts;
  shape.threads = params.part >= 1024 ? SampleKernel::kThreads : 64;
  shape.shared_bytes = params.cached ? kept : sizeof(SampleShared);
  Launch<SampleKernel>(device.stream(), shape, params);
}

}  // namespace nibble
