// SPDX-License-Identifier: Apache-2.0
// Times the CUDA backend's operations on rows: norm, gated activation, Hadamard transform, rotation
// with append to the cache, and sampling, beside the copy ceiling of the same run. Each is checked
// against its definition in double precision, on the first and the last row, before it is timed.
// One JSON object per line, flushed.
//
//   bench_cuda_row_ops [--device 0] [--model 8b|70b|tiny] [--rows 1,16,...] [--rounds 100]
//
// Launches are replayed as a graph, so that a time is what the operation adds to a step. For few
// rows that is the latency of a kernel, and `of_read`, bytes in and out over time over the copy
// ceiling, says little; the operands of one launch after another are the same and stay in the
// cache.
#include <algorithm>
#include <cmath>
#include <functional>
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
#include "kernels/cuda/hadamard.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/sample.h"
#include "kernels/hadamard.h"

namespace nibble {
namespace {

struct Model {
  const char* name;
  int64_t hidden, intermediate, vocabulary;
  int32_t heads, kv_heads, head_dim;
};
constexpr Model kModels[] = {{"8b", 4096, 14336, 128256, 32, 8, 128},
                             {"70b", 8192, 28672, 128256, 64, 8, 128},
                             {"tiny", 256, 768, 1000, 4, 2, 64}};
constexpr int kLaunches = 50;          // in a replay
constexpr int64_t kMostSampled = 256;  // rows: more logits than that no step has

struct Settings {
  int device = 0;
  const Model* model = &kModels[0];
  std::vector<int64_t> rows = {1, 16, 64, 2048};
  int rounds = 100;
  bool tiny() const { return model->name == std::string("tiny"); }
};

class Bench {
 public:
  Bench(Device& device, const Settings& settings, int64_t rows)
      : device_(device), settings_(settings), model_(*settings.model), rows_(rows) {}

  absl::Status Run(double copy_gb_per_s) {
    ceiling_ = copy_gb_per_s;
    for (const ActFormat& format : {ActFormat{DType::kBF16, 0}, ActFormat{DType::kI8, kWholeRow}}) {
      RmsNorm(format);
      GatedActivation(format);
    }
    Hadamard(model_.hidden);
    Hadamard(model_.intermediate);
    for (const KvFormat& format : kKvFormats) RopeAppend(format);
    if (rows_ <= kMostSampled) {
      SamplingRow params;
      params.temperature = 0.0f;
      Sample("sample greedy", params);
      params.temperature = 0.8f;
      Sample("sample drawn", params);
      params.top_k = 50;
      params.top_p = 0.95f;
      params.min_p = 0.01f;
      Sample("sample", params);
    }
    return failed_;
  }
  int failures() const { return failures_; }

 private:
  // ---- Memory
  void* Take(int64_t bytes) {
    auto memory = DeviceMemory::Allocate(device_, static_cast<size_t>(bytes));
    if (!memory.ok()) {
      if (failed_.ok()) failed_ = memory.status();
      return nullptr;
    }
    memory_.push_back(*std::move(memory));
    return memory_.back().data();
  }
  template <typename T>
  T* Upload(const std::vector<T>& values) {
    auto* to = static_cast<T*>(Take(static_cast<int64_t>(values.size() * sizeof(T))));
    if (to != nullptr) device_.CopyIn(to, values.data(), values.size() * sizeof(T));
    return to;
  }
  template <typename T>
  std::vector<T> Read(const void* from, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    device_.CopyOut(values.data(), from, values.size() * sizeof(T));
    if (absl::Status status = device_.Sync(); failed_.ok()) failed_ = status;
    return values;
  }
  std::vector<float> Normal(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = normal(random_);
    return values;
  }
  ActView Output(const ActFormat& format, int64_t cols) {
    const int64_t groups = rows_ * format.GroupsPerRow(cols);
    return {format, cols, Take(rows_ * cols * static_cast<int64_t>(BytesOf(format.dtype))),
            groups > 0 ? static_cast<float*>(Take(4 * groups)) : nullptr,
            groups > 0 ? static_cast<int32_t*>(Take(4 * groups)) : nullptr};
  }

  // ---- One case

  // Rows 0 and rows - 1 of what `view` holds.
  std::vector<double> Ends(const ActView& view) {
    std::vector<double> ends;
    const int64_t count = rows_ * view.cols;
    const auto keep = [&](const auto& values, auto&& value) {
      for (const int64_t row : {int64_t{0}, rows_ - 1}) {
        for (int64_t i = 0; i < view.cols; ++i) {
          ends.push_back(value(row, values[static_cast<size_t>(row * view.cols + i)]));
        }
      }
    };
    if (view.format.dtype == DType::kI8) {
      const auto scales = Read<float>(view.scales, rows_);
      keep(Read<int8_t>(view.data, count), [&](int64_t row, int8_t code) {
        return static_cast<double>(code) * static_cast<double>(scales[static_cast<size_t>(row)]);
      });
    } else {
      keep(Read<uint16_t>(view.data, count),
           [](int64_t, uint16_t x) { return static_cast<double>(BF16ToF32(x)); });
    }
    return ends;
  }

  // Launches, compares the ends of `out` with `expected(row)`, and times.
  void Measure(const std::string& name, int64_t bytes, const ActView& out,
               const std::function<std::vector<double>(int64_t)>& expected,
               const std::function<void()>& launch) {
    if (!failed_.ok()) return;
    launch();
    const std::vector<double> ends = Ends(out);
    double difference = 0, size = 0, largest = 0;
    for (int end = 0; end < 2; ++end) {
      const std::vector<double> exact = expected(end == 0 ? 0 : rows_ - 1);
      for (size_t i = 0; i < exact.size(); ++i) {
        const double off = ends[static_cast<size_t>(end) * exact.size() + i] - exact[i];
        difference += off * off;
        size += exact[i] * exact[i];
        largest = std::max(largest, std::abs(exact[i]));
      }
    }
    // A number is off by 2^-8 of itself in bf16, by half a step in int8.
    const double step = largest / 127;
    const double most = out.format.dtype == DType::kI8
                            ? 0.5 * step * std::sqrt(static_cast<double>(ends.size()) / size)
                            : 0x1p-8;
    const double error = std::sqrt(difference / size);
    Time(name, bytes, error, error < most, launch);
  }

  void Time(const std::string& name, int64_t bytes, double error, bool right,
            const std::function<void()>& launch) {
    if (!failed_.ok()) return;
    nlohmann::json result = {
        {"case", "row op"}, {"op", name}, {"rows", rows_}, {"relative_error", error}};
    if (right) {
      const auto seconds = device_.MedianSeconds(
          [&] {
            for (int i = 0; i < (settings_.tiny() ? 1 : kLaunches); ++i) launch();
            return absl::OkStatus();
          },
          settings_.tiny() ? 0 : kWarmups, settings_.rounds);
      if (!seconds.ok()) {
        failed_ = seconds.status();
        return;
      }
      const double each = *seconds / (settings_.tiny() ? 1 : kLaunches);
      result["microseconds"] = 1e6 * each;
      result["gb_per_s"] = 1e-9 * static_cast<double>(bytes) / each;
      result["of_read"] = Ratio(1e-9 * static_cast<double>(bytes) / each, ceiling_);
    } else {
      result["failed"] = "the result is wrong: not timed";
      ++failures_;
    }
    PrintLine(result);
    memory_.clear();
  }

  static int64_t OutBytes(const ActFormat& format, int64_t rows, int64_t cols) {
    return rows * cols * static_cast<int64_t>(BytesOf(format.dtype)) +
           8 * rows * format.GroupsPerRow(cols);
  }
  static std::string Named(const char* op, const ActFormat& format) {
    return absl::StrCat(op, format.dtype == DType::kI8 ? " to int8" : " to bf16");
  }

  // ---- The operations

  void RmsNorm(const ActFormat& format) {
    const int64_t dim = model_.hidden;
    const std::vector<float> x = Normal(rows_ * dim), weight = Normal(dim);
    RmsNormArgs args{};
    args.x = Upload(x);
    args.weight = Upload(weight);
    args.eps = 1e-5f;
    args.dim = dim;
    args.num_rows = rows_;
    args.out.count = 1;
    args.out.views[0] = Output(format, dim);
    Measure(
        Named("norm", format), 4 * rows_ * dim + OutBytes(format, rows_, dim), args.out.views[0],
        [&](int64_t row) {
          std::vector<double> y(x.begin() + row * dim, x.begin() + (row + 1) * dim);
          double squares = 0;
          for (const double v : y) squares += v * v;
          const double factor = 1 / std::sqrt(squares / static_cast<double>(dim) + 1e-5);
          for (size_t i = 0; i < y.size(); ++i) y[i] *= factor * static_cast<double>(weight[i]);
          return y;
        },
        [&] { LaunchRmsNorm(device_, args); });
  }

  void GatedActivation(const ActFormat& format) {
    const int64_t dim = model_.intermediate;
    const std::vector<float> gate = Normal(rows_ * dim), up = Normal(rows_ * dim);
    GatedActivationArgs args{};
    args.gate = {Upload(gate), DType::kF32};
    args.up = {Upload(up), DType::kF32};
    args.rows = rows_;
    args.dim = dim;
    args.activation = GateActivation::kSilu;
    args.out.count = 1;
    args.out.views[0] = Output(format, dim);
    Measure(
        Named("gated activation", format), 8 * rows_ * dim + OutBytes(format, rows_, dim),
        args.out.views[0],
        [&](int64_t row) {
          std::vector<double> y;
          for (int64_t i = row * dim; i < (row + 1) * dim; ++i) {
            const auto g = static_cast<double>(gate[static_cast<size_t>(i)]);
            y.push_back(g / (1 + std::exp(-g)) * static_cast<double>(up[static_cast<size_t>(i)]));
          }
          return y;
        },
        [&] { LaunchGatedActivation(device_, args); });
  }

  void Hadamard(int64_t dim) {
    const std::vector<float> x = Normal(rows_ * dim);
    const ActFormat format{DType::kBF16, 0};
    const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    HadamardArgs args{};
    args.x = {Upload(x), DType::kF32};
    args.rows = rows_;
    args.dim = dim;
    args.scale = scale;
    args.out.count = 1;
    args.out.views[0] = Output(format, dim);
    Measure(
        absl::StrCat("hadamard ", dim), 4 * rows_ * dim + OutBytes(format, rows_, dim),
        args.out.views[0],
        [&](int64_t row) {
          std::vector<float> y(x.begin() + row * dim, x.begin() + (row + 1) * dim);
          HadamardRow(y.data(), dim, scale);
          return std::vector<double>(y.begin(), y.end());
        },
        [&] { LaunchHadamard(device_, args); });
  }

  // Tokens of as many sequences, at position 100 of each.
  void RopeAppend(const KvFormat& format) {
    constexpr int32_t kPosition = 100, kBlocks = kPosition / kKvBlockTokens + 1;
    const int64_t dim = model_.head_dim, width = model_.heads * dim;
    const int64_t kv_width = model_.kv_heads * dim;
    KvPool pool{{&format, 1, model_.kv_heads, model_.head_dim}, 0, nullptr};
    pool.num_blocks = static_cast<int32_t>(rows_) * kBlocks;
    pool.data = Take(pool.spec.BytesPerBlock() * pool.num_blocks);
    std::vector<int32_t> sequence, table, start = {0};
    for (int32_t s = 0; s < rows_; ++s) {
      sequence.push_back(s);
      start.push_back(s + 1);
      for (int32_t b = 0; b < kBlocks; ++b) table.push_back(s * kBlocks + b);
    }
    BatchView batch;
    batch.rows = batch.sequences = static_cast<int32_t>(rows_);
    batch.max_query = 1;
    batch.positions = Upload(std::vector<int32_t>(sequence.size(), kPosition));
    batch.row_sequence = Upload(sequence);
    batch.query_start = Upload(start);
    batch.context_length = Upload(std::vector<int32_t>(sequence.size(), kPosition + 1));
    batch.block_table = Upload(table);
    batch.max_blocks = kBlocks;
    std::vector<float> cosines, sines;
    for (int64_t t = 0; t <= kPosition; ++t) {
      for (int64_t i = 0; i < dim / 2; ++i) {
        const double angle = static_cast<double>(t) *
                             std::pow(5e5, -2 * static_cast<double>(i) / static_cast<double>(dim));
        cosines.push_back(static_cast<float>(std::cos(angle)));
        sines.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    std::vector<uint16_t> q(static_cast<size_t>(rows_ * width)), kv(q);
    const auto numbers = Normal(rows_ * width);
    for (size_t i = 0; i < q.size(); ++i) q[i] = F32ToBF16(numbers[i]);
    kv.assign(q.begin(), q.begin() + rows_ * kv_width);
    RopeAppendArgs args{};
    args.batch = &batch;
    args.q = {Upload(q), DType::kBF16};
    args.k = {Upload(kv), DType::kBF16};
    args.v = {Upload(kv), DType::kBF16};
    args.heads = model_.heads;
    args.rotary_dim = model_.head_dim;
    args.cos_table = Upload(cosines);
    args.sin_table = Upload(sines);
    args.kv = &pool;
    const int64_t bytes =
        rows_ * (4 * width + 6 * kv_width) + rows_ * pool.spec.BytesPerBlock() / kKvBlockTokens;
    const ActView rotated{{DType::kBF16, 0}, width, args.q.data, nullptr, nullptr};
    Measure(
        absl::StrCat("rope and append to ", format.name), bytes, rotated,
        [&](int64_t row) {
          std::vector<double> y(static_cast<size_t>(width));
          for (int64_t i = 0; i < width; ++i) {
            const int64_t d = i % dim, half = dim / 2, base = row * width + i - d;
            const auto at = [&](int64_t k) {
              return static_cast<double>(BF16ToF32(q[static_cast<size_t>(base + k)]));
            };
            const auto table_at = static_cast<size_t>(kPosition * half + d % half);
            const auto c = static_cast<double>(cosines[table_at]);
            const auto s = static_cast<double>(sines[table_at]);
            y[static_cast<size_t>(i)] =
                d < half ? at(d) * c - at(d + half) * s : at(d) * c + at(d - half) * s;
          }
          return y;
        },
        [&] { LaunchRopeAppend(device_, args); });
  }

  // Checked by the greedy choice of the same kernel.
  void Sample(const std::string& name, const SamplingRow& timed) {
    const std::vector<float> logits = Normal(rows_ * model_.vocabulary);
    std::vector<SamplingRow> params(static_cast<size_t>(rows_));
    SampleLaunch args{};
    args.logits = Upload(logits);
    args.rows = rows_;
    args.vocabulary = model_.vocabulary;
    auto* results =
        static_cast<SampleResult*>(Take(rows_ * static_cast<int64_t>(sizeof(SampleResult))));
    args.results = results;
    args.scratch = Take(static_cast<int64_t>(SampleScratchBytes(device_.info(), rows_)));
    const auto pack = [&] {
      std::vector<uint64_t> packed((PackedSamplingBytes(params) + 7) / 8);
      PackSampling(params, packed.data());
      args.packed = Upload(packed);
    };
    for (SamplingRow& row : params) row.temperature = 0;
    pack();
    if (!failed_.ok()) return;
    LaunchSample(device_, args);
    const auto greedy = Read<SampleResult>(results, rows_);
    bool right = failed_.ok();
    for (int64_t row = 0; row < rows_ && right; ++row) {
      const auto begin = logits.begin() + row * model_.vocabulary;
      const auto largest = std::max_element(begin, begin + model_.vocabulary) - begin;
      right = greedy[static_cast<size_t>(row)].token == largest;
    }
    for (size_t row = 0; row < params.size(); ++row) {
      params[row] = timed;
      params[row].seed = row;
    }
    pack();
    Time(name, 4 * rows_ * model_.vocabulary, right ? 0 : 1, right,
         [&] { LaunchSample(device_, args); });
  }

  Device& device_;
  const Settings& settings_;
  const Model& model_;
  const int64_t rows_;
  double ceiling_ = 0;
  std::mt19937 random_{1};
  std::vector<DeviceMemory> memory_;
  absl::Status failed_;
  int failures_ = 0;
};

int Fail(const std::string& what) {
  std::fprintf(stderr, "bench_cuda_row_ops: %s\n", what.c_str());
  return 2;
}

int Main(int argc, char** argv) {
  Settings settings;
  const std::string unused =
      ReadFlags(argc, argv,
                {{"--device", TakeInt(&settings.device, 0)},
                 {"--model",
                  [&](const std::string& value) {
                    settings.model = std::find_if(std::begin(kModels), std::end(kModels),
                                                  [&](const Model& m) { return m.name == value; });
                    return settings.model != std::end(kModels);
                  }},
                 {"--rounds", TakeInt(&settings.rounds, 1)},
                 {"--rows", TakeRows(&settings.rows)}});
  if (!unused.empty()) return Fail(absl::StrCat("cannot use ", unused));
  auto device = Device::Open(settings.device);
  if (!device.ok()) return Fail(std::string(device.status().message()));
  Ceilings ceilings;
  if (!settings.tiny()) ceilings = MeasureCudaCeilings(**device);
  PrintLine({{"case", "ceilings"},
             {"device", (*device)->info().name},
             {"copy_gb_per_s", ceilings.read_gb_per_s}});
  int failures = 0;
  for (const int64_t rows : settings.rows) {
    Bench bench(**device, settings, rows);
    if (const absl::Status status = bench.Run(ceilings.read_gb_per_s); !status.ok()) {
      return Fail(absl::StrCat(rows, " rows: ", std::string(status.message())));
    }
    failures += bench.failures();
  }
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
