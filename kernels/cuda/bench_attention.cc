// SPDX-License-Identifier: Apache-2.0
// Times the CUDA backend's attention over a paged cache of every format, beside the device's
// ceilings, in one run on one device. Every case is checked against softmax in double precision
// before it is timed. One JSON object per line, flushed.
//
//   bench_cuda_attention [--device 0] [--model 8b|70b|tiny] [--kv bf16,int8,...]
//                        [--cases 1x2048,16x4096,1x2048+512,...] [--rounds 100] [--sweep 0]
//
// A case is SEQUENCES x CONTEXT tokens in the cache, and after + the query tokens of each sequence
// (1: decode). Layers of the cache are added until they are far larger than the second-level cache
// and taken in turn; launches are replayed as a graph. `of_read` is bytes of the cache over time
// over the copy ceiling, `of_peak` operations over time over the bf16 ceiling. With --sweep 1 a
// case is also timed with every way to cut it (AttentionTuning), which must change no bit.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/bench_common.h"
#include "kernels/cuda/ceilings.h"
#include "kernels/cuda/device_memory.h"

namespace nibble {
namespace {

struct Model {
  const char* name;
  int32_t heads, kv_heads, head_dim;
};
constexpr Model kModels[] = {{"8b", 32, 8, 128}, {"70b", 64, 8, 128}, {"tiny", 4, 2, 64}};

struct Case {
  int32_t sequences, context, queries;
};

struct Settings {
  int device = 0;
  const Model* model = &kModels[0];
  std::vector<const KvFormat*> kv = {FindKvFormat("bf16"), FindKvFormat("fp8"),
                                     FindKvFormat("int8"), FindKvFormat("k8v4"),
                                     FindKvFormat("int4")};
  std::vector<Case> cases = {{1, 2048, 1},  {1, 65536, 1},   {16, 4096, 1},
                             {64, 2048, 1}, {1, 2048, 2048}, {1, 16384, 512}};
  int rounds = 100;
  int sweep = 0;
  bool tiny() const { return model->name == std::string("tiny"); }
};

// Of standard normal keys, values and queries: what the format itself costs, and some more. The
// conformance tests compare with the stored codes.
double Tolerance(const KvFormat& format) {
  if (format.v == KvCode::kInt4) return 0.25;
  return format.v == KvCode::kFp8 ? 0.1 : 0.02;
}

// Standard normal numbers; a table is walked through, so that long caches take no time to make. Its
// length is prime, so that no two tokens are alike.
class Normal {
 public:
  explicit Normal(uint32_t seed) : table_(100'003) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& x : table_) x = normal(random);
  }
  float operator[](int64_t i) const { return table_[static_cast<size_t>(i) % table_.size()]; }

 private:
  std::vector<float> table_;
};

const std::vector<AttentionTuning> kDecodeTunings = {{1, 0, 0, 0}, {8, 2, 0, 0}, {8, 4, 0, 0}};
const std::vector<AttentionTuning> kPrefillTunings = {{0, 0, 2, 0}, {0, 0, 4, 0}, {0, 0, 8, 0}};

class Bench {
 public:
  Bench(Device& device, const Settings& settings) : device_(device), settings_(settings) {}

  void MeasureCeilings() {
    if (!settings_.tiny()) ceilings_ = MeasureCudaCeilings(device_);
    PrintLine({{"case", "ceilings"},
               {"device", device_.info().name},
               {"copy_gb_per_s", ceilings_.read_gb_per_s},
               {"bf16_tflops", 1e-3 * ceilings_.bf16_gflops}});
  }

  absl::Status Run(const KvFormat& format, const Case& of) {
    memory_.clear();
    const Model& model = *settings_.model;
    const int64_t width = int64_t{model.heads} * model.head_dim;
    const int64_t kv_width = int64_t{model.kv_heads} * model.head_dim;
    const int64_t rows = int64_t{of.sequences} * of.queries;
    const int32_t blocks = (of.context + kKvBlockTokens - 1) / kKvBlockTokens;
    KvPool pool;
    pool.spec = {&format, 1, model.kv_heads, model.head_dim};
    if (absl::Status status = CheckAttention(device_.info(), pool.spec); !status.ok()) {
      return status;
    }
    pool.num_blocks = of.sequences * blocks;
    const double bytes =
        static_cast<double>(pool.spec.BytesPerBlock()) / kKvBlockTokens * of.sequences * of.context;
    const auto wanted = static_cast<int32_t>(static_cast<double>(kDistinctBytes) / bytes) + 1;
    pool.spec.layers = settings_.tiny() ? 2 : std::clamp(wanted, 1, kMaxCopies);
    const auto pool_bytes =
        static_cast<size_t>(pool.spec.BytesPerBlock()) * static_cast<size_t>(pool.num_blocks);
    pool.data = Take(pool_bytes);

    std::vector<int32_t> table(static_cast<size_t>(pool.num_blocks));
    for (size_t b = 0; b < table.size(); ++b) table[b] = static_cast<int32_t>(b);
    std::shuffle(table.begin(), table.end(), std::mt19937(3));
    table_ = Upload(table);
    Fill(pool, of, blocks, kv_width);

    std::vector<uint16_t> q(static_cast<size_t>(rows * width));
    for (size_t i = 0; i < q.size(); ++i) q[i] = F32ToBF16(queries_[static_cast<int64_t>(i)]);
    const BatchView batch = Batch(of.sequences, of.context, of.queries, blocks, table_);
    const ActFormat plain{DType::kBF16, 0};
    AttentionArgs args{};
    args.batch = &batch;
    args.q = {Upload(q), DType::kBF16};
    args.heads = model.heads;
    args.scale = 1.0f / std::sqrt(static_cast<float>(model.head_dim));
    args.kv = &pool;
    args.out.count = 1;
    args.out.views[0] = {plain, width, Take(static_cast<size_t>(2 * rows * width)), nullptr,
                         nullptr};
    const AttentionScratch scratch{static_cast<float*>(Take(AttentionPartialBytes(
                                       of.sequences, blocks, model.heads, model.head_dim))),
                                   nullptr};
    if (!failed_.ok()) return failed_;

    nlohmann::json result = {{"case", "attention"},       {"kv", format.name},
                             {"sequences", of.sequences}, {"context", of.context},
                             {"queries", of.queries},     {"copies", pool.spec.layers}};
    std::vector<uint16_t> y(static_cast<size_t>(rows * width));
    const auto attend = [&](const AttentionTuning& tuning) {
      args.layer = pool.spec.layers - 1;
      LaunchAttention(device_, args, scratch, tuning);
      device_.CopyOut(y.data(), args.out.views[0].data, 2 * y.size());
      return device_.Sync();
    };
    const auto measure = [&](const AttentionTuning& tuning) {
      return device_.MedianSeconds(
          [&] {
            for (args.layer = 0; args.layer < pool.spec.layers; ++args.layer) {
              LaunchAttention(device_, args, scratch, tuning);
            }
            return absl::OkStatus();
          },
          settings_.tiny() ? 0 : kWarmups, settings_.rounds);
    };
    if (absl::Status status = attend({}); !status.ok()) return status;
    const double error = Error(of, q, y, kv_width, args.scale);
    result["relative_error"] = error;
    if (!(error < Tolerance(format))) {
      result["failed"] = "the result is wrong: not timed";
      PrintLine(result);
      ++failures_;
      return absl::OkStatus();
    }
    const double seen =
        0.5 * (2.0 * of.context - of.queries + 1);  // keys, of a query in the middle
    const double operations = 4.0 * static_cast<double>(rows * width) * seen;
    const auto time = [&](nlohmann::json line, const AttentionTuning& tuning) -> absl::Status {
      const absl::StatusOr<double> seconds = measure(tuning);
      if (!seconds.ok()) return seconds.status();
      const double each = *seconds / pool.spec.layers;
      line["microseconds"] = 1e6 * each;
      line["gb_per_s"] = 1e-9 * bytes / each;
      line["tflops"] = 1e-12 * operations / each;
      line["of_read"] = Ratio(1e-9 * bytes / each, ceilings_.read_gb_per_s);
      line["of_peak"] = Ratio(1e-9 * operations / each, ceilings_.bf16_gflops);
      PrintLine(line);
      return absl::OkStatus();
    };
    if (absl::Status status = time(result, {}); !status.ok() || settings_.sweep == 0) return status;
    result["case"] = "attention_sweep";
    const std::vector<uint16_t> expected = y;
    for (const AttentionTuning& tuning : of.queries == 1 ? kDecodeTunings : kPrefillTunings) {
      nlohmann::json line = result;
      line["part_tiles"] = tuning.part_tiles;
      line["decode_warps"] = tuning.decode_warps;
      line["prefill_warps"] = tuning.prefill_warps;
      if (absl::Status status = attend(tuning); !status.ok()) return status;
      if (y == expected) {
        if (absl::Status status = time(line, tuning); !status.ok()) return status;
      } else {
        line["failed"] = "other bits than by default: not timed";
        PrintLine(line);
        ++failures_;
      }
    }
    return absl::OkStatus();
  }

  int failures() const { return failures_; }

 private:
  void* Take(size_t bytes) {
    auto memory = DeviceMemory::Allocate(device_, bytes);
    if (!memory.ok()) {
      failed_ = memory.status();
      return nullptr;
    }
    memory_.push_back(*std::move(memory));
    return memory_.back().data();
  }
  template <typename T>
  T* Upload(const std::vector<T>& values) {
    auto* to = static_cast<T*>(Take(values.size() * sizeof(T)));
    if (to != nullptr) device_.CopyIn(to, values.data(), values.size() * sizeof(T));
    return to;
  }

  // The last `queries` tokens of sequences that are `context` long.
  BatchView Batch(int32_t sequences, int32_t context, int32_t queries, int32_t blocks,
                  const int32_t* table) {
    std::vector<int32_t> positions, row_sequence, start = {0};
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t t = context - queries; t < context; ++t) {
        positions.push_back(t);
        row_sequence.push_back(s);
      }
      start.push_back(static_cast<int32_t>(positions.size()));
    }
    BatchView batch;
    batch.rows = sequences * queries;
    batch.sequences = sequences;
    batch.max_query = queries;
    batch.positions = Upload(positions);
    batch.row_sequence = Upload(row_sequence);
    batch.query_start = Upload(start);
    batch.context_length = Upload(std::vector<int32_t>(static_cast<size_t>(sequences), context));
    batch.block_table = table;
    batch.max_blocks = blocks;
    return batch;
  }

  // Every sequence and layer has the same keys and values, in blocks of its own.
  void Fill(const KvPool& pool, const Case& of, int32_t blocks, int64_t kv_width) {
    std::vector<float> keys(static_cast<size_t>(of.context * kv_width)), values(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      keys[i] = keys_[static_cast<int64_t>(i)];
      values[i] = values_[static_cast<int64_t>(i)];
    }
    const Floats k{Upload(keys), DType::kF32}, v{Upload(values), DType::kF32};
    if (!failed_.ok()) return;
    for (int32_t s = 0; s < of.sequences; ++s) {
      const BatchView batch =
          Batch(1, of.context, of.context, blocks, table_ + int64_t{s} * blocks);
      for (int32_t layer = 0; layer < pool.spec.layers && failed_.ok(); ++layer) {
        RopeAppendArgs append{};
        append.batch = &batch;
        append.k = k;
        append.v = v;
        append.kv = &pool;
        append.layer = layer;
        LaunchRopeAppend(device_, append);
      }
    }
  }

  // ||y - softmax(q k) v|| / ||softmax(q k) v||, of the first and the last row.
  double Error(const Case& of, const std::vector<uint16_t>& q, const std::vector<uint16_t>& y,
               int64_t kv_width, double scale) const {
    const Model& model = *settings_.model;
    const int64_t dim = model.head_dim, rows = int64_t{of.sequences} * of.queries;
    double difference = 0, size = 0;
    for (const int64_t row : {int64_t{0}, rows - 1}) {
      const int64_t position = of.context - of.queries + row % of.queries;
      for (int64_t head = 0; head < model.heads; ++head) {
        const int64_t at = (row * model.heads + head) * dim;
        const int64_t kv = head * model.kv_heads / model.heads * dim;
        std::vector<double> sum(static_cast<size_t>(dim));
        double total = 0;
        for (int64_t t = 0; t <= position; ++t) {
          double score = 0;
          for (int64_t d = 0; d < dim; ++d) {
            score += static_cast<double>(BF16ToF32(q[static_cast<size_t>(at + d)])) *
                     static_cast<double>(keys_[t * kv_width + kv + d]);
          }
          const double weight = std::exp(score * scale);
          total += weight;
          for (int64_t d = 0; d < dim; ++d) {
            sum[static_cast<size_t>(d)] +=
                weight * static_cast<double>(values_[t * kv_width + kv + d]);
          }
        }
        for (int64_t d = 0; d < dim; ++d) {
          const double exact = sum[static_cast<size_t>(d)] / total;
          const double off = static_cast<double>(BF16ToF32(y[static_cast<size_t>(at + d)])) - exact;
          difference += off * off;
          size += exact * exact;
        }
      }
    }
    return std::sqrt(difference / size);
  }

  Device& device_;
  const Settings& settings_;
  const Normal keys_{1}, values_{2}, queries_{3};
  Ceilings ceilings_;
  std::vector<DeviceMemory> memory_;
  int32_t* table_ = nullptr;
  absl::Status failed_;
  int failures_ = 0;
};

// "16x4096", "1x2048+512".
bool ParseCase(const std::string& text, Case* out) {
  const std::vector<std::string> plus = absl::StrSplit(text, '+');
  const std::vector<std::string> parts = absl::StrSplit(plus[0], 'x');
  out->queries = 1;
  if (plus.size() > 2 || parts.size() != 2 || !absl::SimpleAtoi(parts[0], &out->sequences) ||
      !absl::SimpleAtoi(parts[1], &out->context) ||
      (plus.size() == 2 && !absl::SimpleAtoi(plus[1], &out->queries))) {
    return false;
  }
  return out->sequences >= 1 && out->sequences <= 1024 && out->context >= 1 &&
         out->context <= 1 << 20 && out->queries >= 1 && out->queries <= out->context;
}

int Fail(const std::string& what) {
  std::fprintf(stderr, "bench_cuda_attention: %s\n", what.c_str());
  return 2;
}

int Main(int argc, char** argv) {
  Settings settings;
  const std::string unused = ReadFlags(
      argc, argv,
      {{"--device", TakeInt(&settings.device, 0)},
       {"--model",
        [&](const std::string& value) {
          settings.model = std::find_if(std::begin(kModels), std::end(kModels),
                                        [&](const Model& m) { return m.name == value; });
          return settings.model != std::end(kModels);
        }},
       {"--kv",
        [&](const std::string& value) {
          settings.kv.clear();
          for (const auto& part : absl::StrSplit(value, ','))
            settings.kv.push_back(FindKvFormat(std::string(part)));
          return std::find(settings.kv.begin(), settings.kv.end(), nullptr) == settings.kv.end();
        }},
       {"--rounds", TakeInt(&settings.rounds, 1)},
       {"--sweep", TakeInt(&settings.sweep, 0)},
       {"--cases", [&](const std::string& value) {
          settings.cases.clear();
          bool good = true;
          for (const auto& part : absl::StrSplit(value, ','))
            good = ParseCase(std::string(part), &settings.cases.emplace_back()) && good;
          return good;
        }}});
  if (!unused.empty()) return Fail(absl::StrCat("cannot use ", unused));
  auto device = Device::Open(settings.device);
  if (!device.ok()) return Fail(std::string(device.status().message()));
  Bench bench(**device, settings);
  bench.MeasureCeilings();
  for (const KvFormat* format : settings.kv) {
    for (const Case& of : settings.cases) {
      if (const absl::Status status = bench.Run(*format, of); !status.ok()) {
        return Fail(absl::StrCat(format->name, " ", of.sequences, "x", of.context, ": ",
                                 std::string(status.message())));
      }
    }
  }
  return bench.failures() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
