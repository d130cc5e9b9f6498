// SPDX-License-Identifier: Apache-2.0
// A device that runs a decoder. One abstract class; the CPU and the CUDA backend implement it, the
// forward pass is written once above it.
//
// Launches are ordered per Backend and may be asynchronous: results in backend memory are visible
// to later operations at once, to the host after Sync() or Wait(). No operation allocates device
// memory, reads back or synchronises. Shapes were checked by the caller. A Backend is driven by one
// thread at a time; several backends may be driven by several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "kernels/scheme.h"

namespace nibble {

class WeightRounding;  // weight_rounding.h

// exact: activations are not quantized (except where the scheme says so), weights are code * scale
//        in f32, f32 accumulation: the oracle, used to calibrate on the CPU and to compare
//        engines and devices. The same bits in every CPU tier.
// fast:  a low-bit product may quantize its activations to int8 per group of the weight, and a
//        product with bf16 weights may round them to bf16 (to nearest, ties to even, once per row)
//        where the device multiplies pairs of bf16: on the CPU with AVX-512 BF16, whose sums are
//        f32 in an order of their own and whose denormals are zero. On CUDA the inputs of products
//        are bf16, and so are weights that are stored as f32 or f16. Stated in reports and
//        benchmarks.
// On the CPU, and on CUDA if batch-invariant, no row's result depends on other rows or on threads.
enum class Mode : uint8_t { kExact, kFast };

// Memory of a backend, zeroed. Freed with the handle, which must not outlive its Backend.
class Buffer {
 public:
  virtual ~Buffer() = default;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 protected:
  Buffer(void* data, size_t bytes) : data_(data), bytes_(bytes) {}
  void* data_;
  size_t bytes_;
};

// The linears that read one input (q/k/v; gate/up; or a single one), repacked for the device.
class PreparedLinear {
 public:
  virtual ~PreparedLinear() = default;
  // The formats in which the input must arrive, in the order of LinearArgs::in.
  virtual std::span<const ActFormat> input_formats() const = 0;
  virtual size_t resident_bytes() const = 0;
};

// A token embedding table, repacked for the device.
class PreparedEmbedding {
 public:
  virtual ~PreparedEmbedding() = default;
  virtual size_t resident_bytes() const = 0;
};

// One to kMaxGroupWeights weights with equal `cols`; schemes may differ. Views need only live
// during Prepare.
struct LinearGroup {
  std::vector<WeightView> weights;
  std::vector<const float*> biases;  // per weight: (rows) f32 host memory or nullptr; may be empty
};

// The largest step: what a backend needs besides weights, cache and arguments depends on it.
struct StepLimits {
  int64_t rows = 0;         // tokens
  int64_t sequences = 0;    //
  int64_t max_blocks = 0;   // BatchView::max_blocks
  int32_t heads = 0;        // of queries
  int32_t head_dim = 0;     //
  int64_t sample_rows = 0;  // of one Sample; 0 if nothing is drawn
  int64_t vocabulary = 0;   // of those rows
};

struct Ceilings {
  double read_gb_per_s = 0;  // memory read bandwidth, all threads; of a GPU: bytes read and
                             // written by a copy
  double int8_gops = 0;      // int8 multiply-adds counted as two operations
  double bf16_gflops = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // One line for people: "cpu (avx512-vnni-bf16, 2 threads)".
  virtual std::string Description() const = 0;
  // The instruction tier that results depend on, recorded in artifacts: "cpu/avx512-vnni".
  virtual std::string Tier() const = 0;

  // The type of Floats: kF32 on the CPU, kBF16 on CUDA.
  virtual DType activation_type() const = 0;

  // Bytes that the device has left, where its memory is its own; nullopt where it is the machine's.
  virtual std::optional<size_t> MemoryLeft() const { return std::nullopt; }
  // ResourceExhausted when the device has no `bytes` left.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) = 0;
  virtual void Upload(void* device, const void* host, size_t bytes) = 0;
  // Valid after Sync, or Wait for a later mark.
  virtual void Download(void* host, const void* device, size_t bytes) = 0;

  // Unimplemented, naming device, scheme and mode, if there is no kernel; ResourceExhausted if
  // memory is short.
  virtual absl::StatusOr<std::unique_ptr<PreparedLinear>> Prepare(const LinearGroup& group,
                                                                  Mode mode) = 0;
  virtual absl::StatusOr<std::unique_ptr<PreparedEmbedding>> PrepareEmbedding(
      const WeightView& table) = 0;
  // The table that `linear`, prepared from one weight, was made from (a tied head): embeds to the
  // same bits as the table itself, without a second copy. `linear` must outlive it.
  virtual std::unique_ptr<PreparedEmbedding> EmbeddingOf(const PreparedLinear& linear) = 0;

  // Before the first Attention or Sample: makes room for every step within these limits; what was
  // reserved before stays enough for what it was reserved for. A larger step fails at Sync. Where
  // memory is the machine's there is nothing to reserve. Unimplemented if the device cannot draw
  // from such a vocabulary; ResourceExhausted.
  virtual absl::Status Reserve(const StepLimits&) { return absl::OkStatus(); }

  // The pool's memory; `pool` receives its description. num_blocks >= 1.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> AllocateKv(const KvSpec& spec, int32_t num_blocks,
                                                             KvPool* pool) = 0;
  // Copies whole blocks inside the pool, all layers (prefix sharing, forks).
  virtual void CopyKvBlock(const KvPool& pool, int32_t from, int32_t to) = 0;

  virtual void Embed(const EmbedArgs& args) = 0;
  virtual void RmsNorm(const RmsNormArgs& args) = 0;
  virtual void Linear(const LinearArgs& args) = 0;
  virtual void RopeAppend(const RopeAppendArgs& args) = 0;
  virtual void Attention(const AttentionArgs& args) = 0;
  virtual void GatedActivation(const GatedActivationArgs& args) = 0;
  virtual void AccumulateHessian(const HessianArgs& args) = 0;
  virtual void Sample(const SampleArgs& args) = 0;

  // The device's way to round weights, valid as long as the backend; nullptr: none but the
  // quantizer's own.
  virtual WeightRounding* weight_rounding() { return nullptr; }

  // Waits for everything launched. Device errors surface here and in Wait.
  virtual absl::Status Sync() = 0;

  // Whether operations return before they are done, so that there is something to gain from
  // launching more before one waits.
  virtual bool asynchronous() const { return false; }
  // A point in the order of launches, later than all marks before it.
  virtual uint64_t Mark() { return 0; }
  // Waits for what was launched before `mark`, as Sync does for everything.
  virtual absl::Status Wait(uint64_t) { return Sync(); }
  // The device's time from one mark to a later one, both waited for; 0 where it does not tell, and
  // if the first is not among the last kTimedMarks.
  virtual double Seconds(uint64_t, uint64_t) { return 0; }
  static constexpr uint64_t kTimedMarks = 8;

  // Runs `launches`, which does nothing but launch operations of this backend (no copies to or from
  // the host). May record them and replay the recording when `key` comes again: what differs
  // between calls with the same key may be the contents of memory only. A Prepare, PrepareEmbedding
  // or Reserve in between is allowed.
  virtual void Replay(uint64_t /*key*/, const std::function<void()>& launches) { launches(); }

  // Measures the device's ceilings now (about a second).
  virtual Ceilings MeasureCeilings() = 0;
};

// Settings of the CPU backend.
struct CpuOptions {
  int threads = 0;   // 0 = the number of CPUs this process may run on; otherwise 1..256
  std::string tier;  // "" = the best this CPU has; "scalar", "avx2", "avx512",
                     // "avx512-bf16"
};
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options);

}  // namespace nibble
