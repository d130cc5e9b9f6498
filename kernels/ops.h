// SPDX-License-Identifier: Apache-2.0
// Arguments of the operations that a decoder needs. Plain data, shapes and types at the end of each
// line. Standard library only. All pointers point into memory of the backend that runs the
// operation (Backend::Allocate), rows are tokens, matrices are row-major, and nothing is owned.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/dtype.h"

namespace nibble {

// ---- Activations
// -------------------------------------------------------------------------------------------------

// Features of an input that are not rounded with the others (Scheme::outliers). The array belongs
// to the linear that asks for them.
struct OutlierFeatures {
  int32_t count = 0;
  const int32_t* features = nullptr;  // (count) ascending

  friend constexpr bool operator==(const OutlierFeatures&, const OutlierFeatures&) = default;
};
// Elements of a row of ActView::outliers: whole steps of the products of matrices, zeros at the
// end.
inline constexpr int32_t kOutlierStep = 16;
constexpr int32_t OutlierStride(int32_t count) {
  return (count + kOutlierStep - 1) / kOutlierStep * kOutlierStep;
}

// How a linear wants its input. Float formats have group 0 and no scales.
struct ActFormat {
  DType dtype = DType::kF32;  // kF32 | kBF16 | kI8 | kF8E4M3
  int64_t group = 0;  // kI8, kF8E4M3: input features per scale; kWholeRow (-1) = one per token
  OutlierFeatures outliers{};  // kI8 per token: scaled and encoded as if they were 0

  friend constexpr bool operator==(const ActFormat&, const ActFormat&) = default;
  constexpr int64_t GroupsPerRow(int64_t cols) const {
    if (dtype != DType::kI8 && dtype != DType::kF8E4M3) return 0;
    return group < 0 ? 1 : (cols + group - 1) / group;
  }
};
// Whether inputs of the two formats are the same: lists of outliers may be copies of each other.
inline bool SameInput(const ActFormat& a, const ActFormat& b) {
  return a.dtype == b.dtype && a.group == b.group &&
         std::equal(a.outliers.features, a.outliers.features + a.outliers.count,
                    b.outliers.features, b.outliers.features + b.outliers.count);
}

// A matrix of activations in one format.
struct ActView {
  ActFormat format;
  int64_t cols = 0;          // features
  void* data = nullptr;      // (rows, cols) of format.dtype
  float* scales = nullptr;   // (rows, groups) kI8 and kF8E4M3 only: x ~= data * scale
  int32_t* sums = nullptr;   // (rows, groups) kI8 only: sum of the codes of the group, for
                             // zero-point corrections
  void* outliers = nullptr;  // (rows, OutlierStride) of the backend's activation_type(): values of
                             // format.outliers, in order
};

// The linears that read one input may want it in more than one format (mixed schemes); the producer
// writes each once.
inline constexpr int kMaxActFormats = 3;
struct ActSet {
  int count = 0;
  std::array<ActView, kMaxActFormats> views{};
};

// Plain floats between operations. Their type is the backend's activation_type(): f32 on the CPU,
// bf16 on CUDA. The residual stream and the logits are always f32.
struct Floats {
  void* data = nullptr;
  DType dtype = DType::kF32;
};

// ---- What is in a step
// -------------------------------------------------------------------------------------------

struct SampleResult;

// One engine step over a mixed batch: decode sequences have one row, prefill chunks have many. Rows
// of one sequence are contiguous and in order of position. All arrays lie in fixed buffers of the
// backend.
struct BatchView {
  int32_t rows = 0;                         // tokens in this step
  int32_t sequences = 0;                    // sequences in this step
  int32_t max_query = 0;                    // longest run of rows of one sequence
  const int32_t* token_ids = nullptr;       // (rows) as EmbedArgs::ids
  const int32_t* positions = nullptr;       // (rows) position of the token in its sequence, from 0
  const int32_t* row_sequence = nullptr;    // (rows) index of the sequence in this step
  const int32_t* query_start = nullptr;     // (sequences + 1) first row of each sequence
  const int32_t* context_length = nullptr;  // (sequences) tokens in the KV cache after this step
  const int32_t* block_table =
      nullptr;  // (sequences, max_blocks) KV block of each run of kKvBlockTokens positions
  int32_t max_blocks = 0;
  const int32_t* logit_rows = nullptr;  // (num_logits) rows whose logits are wanted, ascending
  int32_t num_logits = 0;
  const SampleResult* drawn = nullptr;  // EmbedArgs::drawn
  int32_t* tokens = nullptr;            // (rows) EmbedArgs::tokens
};

// ---- KV cache
// ----------------------------------------------------------------------------------------------------

// Tokens in a block: also the key tile of attention, so tiles are anchored at position 0 of the
// sequence.
inline constexpr int kKvBlockTokens = 64;

// How the key or the value of one token and kv head, an entry, is stored. The quantizers are in
// kernels/kv_codec.h.
enum class KvCode : uint8_t {
  kF32,   // exact references
  kBF16,  //
  kFp8,   // e4m3, one f32 scale per entry
  kInt8,  // symmetric, one f32 scale per entry
  kInt4,  // unsigned, a bf16 scale and a bf16 lowest value per kKvInt4Group elements
};
inline constexpr int kKvInt4Group = 64;

struct KvFormat {
  const char* name;  // Public and stored in artifacts: never rename.
  KvCode k;
  KvCode v;
  constexpr bool quantized() const { return k > KvCode::kBF16 || v > KvCode::kBF16; }
};
inline constexpr KvFormat kKvFormats[] = {
    {"f32", KvCode::kF32, KvCode::kF32},     //
    {"bf16", KvCode::kBF16, KvCode::kBF16},  //
    {"fp8", KvCode::kFp8, KvCode::kFp8},     //
    {"int8", KvCode::kInt8, KvCode::kInt8},  //
    {"k8v4", KvCode::kInt8, KvCode::kInt4},  // keys are the more sensitive half
    {"int4", KvCode::kInt4, KvCode::kInt4},
};
constexpr const KvFormat* FindKvFormat(std::string_view name) {
  for (const KvFormat& format : kKvFormats) {
    if (format.name == name) return &format;
  }
  return nullptr;
}
// "f32, bf16, ...": for messages and help.
inline std::string KvFormatNames() {
  std::string names;
  for (const KvFormat& format : kKvFormats) {
    if (!names.empty()) names += ", ";
    names += format.name;
  }
  return names;
}

constexpr int KvCodeBits(KvCode code) {
  switch (code) {
    case KvCode::kF32:
      return 32;
    case KvCode::kBF16:
      return 16;
    case KvCode::kFp8:
    case KvCode::kInt8:
      return 8;
    case KvCode::kInt4:
      return 4;
  }
  return 0;
}
// Groups of an entry, each with a scale of four bytes; 0 for floats.
constexpr int64_t KvGroups(KvCode code, int64_t head_dim) {
  switch (code) {
    case KvCode::kF32:
    case KvCode::kBF16:
      return 0;
    case KvCode::kFp8:
    case KvCode::kInt8:
      return 1;
    case KvCode::kInt4:
      return (head_dim + kKvInt4Group - 1) / kKvInt4Group;
  }
  return 0;
}
// Bytes of the codes and of the scales of an entry.
constexpr int64_t KvCodeBytes(KvCode code, int64_t head_dim) {
  return (head_dim * KvCodeBits(code) + 7) / 8;
}
constexpr int64_t KvScaleBytes(KvCode code, int64_t head_dim) {
  return 4 * KvGroups(code, head_dim);
}

struct KvSpec {
  const KvFormat* format = nullptr;
  int32_t layers = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  // Bytes of one block over all layers, K and V and scales; what the block manager budgets with.
  constexpr int64_t BytesPerBlock() const {
    const auto entry = [this](KvCode code) {
      return KvCodeBytes(code, head_dim) + KvScaleBytes(code, head_dim);
    };
    return int64_t{layers} * kv_heads * kKvBlockTokens * (entry(format->k) + entry(format->v));
  }
};

// The pool; created by Backend::AllocateKv. Inside a block the layout belongs to the backend;
// AppendKv is the only writer.
struct KvPool {
  KvSpec spec;
  int32_t num_blocks = 0;
  void* data = nullptr;
};

// ---- Operations
// --------------------------------------------------------------------------------------------------

class PreparedEmbedding;
class PreparedLinear;

struct EmbedArgs {
  const PreparedEmbedding* table;
  const int32_t* ids;  // (rows), each in [0, vocabulary), or -1 - i: the token of drawn[i]
  int64_t rows;
  float scale;                          // multiplies the row (Gemma: sqrt(hidden)), otherwise 1
  float* out;                           // (rows, hidden) f32
  const SampleResult* drawn = nullptr;  // what ids below 0 stand for: SampleArgs::results of before
  int32_t* tokens = nullptr;            // (rows) becomes ids without any below 0; nullptr: unwanted
};

// Residual add, then norm: h = x + delta (stored back to x when delta is given), out = h / rms(h) *
// (offset + weight).
struct RmsNormArgs {
  float* x;      // (all rows, dim) f32, the residual stream; updated in place if there is a delta
  Floats delta;  // (all rows, dim); data == nullptr = none
  const float* weight;  // (dim) f32
  float weight_offset;  // 0; 1 for Gemma-style norms
  float eps;
  int64_t dim;
  const int32_t*
      rows;  // (num_rows) rows of x that are normed, output i belongs to rows[i]; nullptr = all
  int64_t num_rows;
  ActSet out;  // (num_rows, dim) in each format
};

// y_i = x * W_i^T + b_i for each weight i of a prepared group.
inline constexpr int kMaxGroupWeights = 3;
struct LinearArgs {
  const PreparedLinear* linear;
  ActSet in;  // (rows, cols): exactly linear->input_formats(), in that order
  int64_t rows;
  std::array<Floats, kMaxGroupWeights> out{};  // (rows, out features of weight i)
};

// Optional per-head RMS norm of q and k (Qwen3), rotary embedding of q and k in place, and append
// of k and v to the cache in the cache's format. Rotation pairs (i, i + rotary_dim / 2):
// rotate-half order.
struct RopeAppendArgs {
  const BatchView* batch;
  Floats q;  // (rows, heads * head_dim), rotated in place
  Floats k;  // (rows, kv_heads * head_dim), rotated in place
  Floats v;  // (rows, kv_heads * head_dim)
  int32_t heads;
  int32_t rotary_dim;        // <= head_dim, even
  const float* cos_table;    // (max positions, rotary_dim / 2) f32
  const float* sin_table;    // (max positions, rotary_dim / 2) f32
  const float* q_norm;       // (head_dim) f32 or nullptr
  const float* k_norm;       // (head_dim) f32 or nullptr
  float norm_weight_offset;  // as in RmsNormArgs
  float norm_eps;
  const KvPool* kv;
  int32_t layer;
};

// Causal attention of the step's rows over the cache (which already holds the step's own keys and
// values, in the cache's format): out = softmax(scale * q k^T) v. Grouped queries: query head h
// reads kv head h * kv_heads / heads.
struct AttentionArgs {
  const BatchView* batch;
  Floats q;  // (rows, heads * head_dim)
  int32_t heads;
  float scale;
  int32_t window;  // a key is seen if query_position - key_position < window; 0 = all earlier keys
  float softcap;   // scores become softcap * tanh(score / softcap); 0 = none
  const KvPool* kv;
  int32_t layer;
  ActSet out;  // (rows, heads * head_dim)
};

enum class GateActivation : uint8_t { kSilu, kGeluTanh };

struct GatedActivationArgs {
  Floats gate;  // (rows, dim)
  Floats up;    // (rows, dim)
  int64_t rows;
  int64_t dim;
  GateActivation activation;
  ActSet out;  // (rows, dim) = act(gate) * up
};

// h += x^T x, sums in order of rows; only the lower triangle (column <= row) is written.
// Deterministic for any number of threads.
struct HessianArgs {
  const float* x;  // (rows, dim) f32
  int64_t rows;
  int64_t dim;
  float* h;  // (dim, dim) f32
};

// ---- Sampling
// ----------------------------------------------------------------------------------------------------

inline constexpr int kMaxLogprobs = 20;

// Sampling parameters of one row of logits. Applied in this order: bias, mask (min_tokens),
// repetition / presence / frequency penalties, temperature, top_k, top_p, min_p, draw. Ties are
// broken towards the lower token id.
struct SamplingRow {
  float temperature = 1.0f;  // 0 = greedy
  int32_t top_k = 0;         // 0 = off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // over prompt and output
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output
  uint64_t seed = 0;
  uint32_t choice = 0;    // index among the request's n choices
  uint32_t position = 0;  // position of the token that is drawn: the key of the random number
  int32_t logprobs =
      -1;  // -1 = none, 0 = of the chosen token only, else also that many top ones, <= kMaxLogprobs
  // Sparse inputs; nullptr / 0 where unused. Ids are unique within each list and in [0,
  // vocabulary).
  const int32_t* bias_ids = nullptr;  // (num_bias)
  const float* bias = nullptr;        // (num_bias) added to the logits
  int32_t num_bias = 0;
  const int32_t* banned_ids = nullptr;  // (num_banned) never drawn
  int32_t num_banned = 0;
  const int32_t* seen_ids = nullptr;       // (num_seen) tokens of prompt and output
  const int32_t* output_counts = nullptr;  // (num_seen) how often in the output
  int32_t num_seen = 0;
  // The index in SampleArgs::tokens of a token of the output that the two lists do not know of yet,
  // once more than they say; -1: there is none.
  int32_t unlisted = -1;
};

struct SampleResult {
  int32_t token = 0;
  float logprob = 0.0f;  // natural log; of the model's distribution before temperature and
                         // truncation, after bias and penalties
  int32_t num_top = 0;
  std::array<int32_t, kMaxLogprobs> top_ids{};
  std::array<float, kMaxLogprobs> top_logprobs{};
  bool finite = true;  // false: the logits held a NaN or nothing but -inf; token is then 0 and the
                       // request fails alone
};

struct SampleArgs {
  float* logits;  // (rows, vocabulary) f32; may be overwritten
  int64_t rows;
  int64_t vocabulary;
  const SamplingRow* params;        // (rows) host memory
  SampleResult* results;            // (rows)
  const int32_t* tokens = nullptr;  // EmbedArgs::tokens of this step; for SamplingRow::unlisted
};

}  // namespace nibble
