// SPDX-License-Identifier: Apache-2.0
// Times the CUDA backend's products beside the device's ceilings and the library's bf16 product, in
// one run on one device. Every case is checked against the reference product before it is timed.
// One JSON object per line, flushed, so that a run that is cut off keeps what it has.
//
//   bench_cuda [--device 0] [--model 8b|70b|tiny] [--scheme bf16,int4-g128,...] [--rows 1,16,...]
//              [--rounds 100] [--sweep 0|1]
//
// Weights are copied until they are far larger than the cache and taken in turn, launches are
// replayed as a graph. `of_read` is bytes of weights over time over the copy ceiling; `of_peak` is
// operations over time over the ceiling of the product's type; `of_bf16` is the time of the
// library's bf16 product of the same shape, over this one's.
//
// With --sweep 1, weight-only products are followed by each variant of their dispatch table
// (linear_packed.h), whatever tokens the table takes it for: `chosen` is the one that the table
// takes for one launch of so many tokens, `best` the fastest of the sweep.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/cuda/bench_common.h"
#include "kernels/cuda/ceilings.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_exact.h"
#include "kernels/cuda/row_ops.h"

namespace nibble {
namespace {

struct Shape {
  const char* name;
  int64_t out, in;
};
struct Model {
  const char* name;
  std::vector<Shape> shapes;
};
// Gate and up, and q, k and v, are one product each.
const Model kModels[] = {
    {"8b",
     {{"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}}},
    {"70b",
     {{"qkv", 10240, 8192}, {"o", 8192, 8192}, {"gate_up", 57344, 8192}, {"down", 8192, 28672}}},
    {"tiny", {{"square", 256, 256}}},
};

// Rows of a product that are checked: spread over all of them, the first and the last too.
constexpr int64_t kCheckedRows = 8;
int64_t CheckedRow(int64_t i, int64_t rows) {
  return rows <= kCheckedRows ? i : i * (rows - 1) / (kCheckedRows - 1);
}

struct Settings {
  int device = 0;
  std::string model = "8b";
  std::vector<std::string> schemes = {"bf16", "int8", "int4-g128", "int4-g128-asym", "w8a8", "fp8"};
  std::vector<int64_t> rows = {1, 4, 16, 64, 256, 2048};
  int rounds = 100;
  int sweep = 0;
  bool tiny() const { return model == "tiny"; }
};

// A stored weight of random codes in host memory.
struct HostWeight {
  WeightView view;
  std::vector<uint32_t> parts[3];
};
HostWeight RandomWeight(const Scheme& scheme, int64_t rows, int64_t cols) {
  HostWeight weight;
  std::mt19937 random(1);
  for (const StoredTensor& tensor : StoredTensors(scheme, rows, cols, 0)) {
    if (tensor.part == Part::kShape) continue;
    auto& words = weight.parts[static_cast<size_t>(tensor.part)];
    words.resize(static_cast<size_t>(tensor.bytes() + 3) / 4);
    if (tensor.part == Part::kScales) {
      const uint32_t scale = F32ToBF16(0.01f);
      std::fill(words.begin(), words.end(), scale | scale << 16);
    } else if (!scheme.quantized()) {
      for (uint32_t& word : words) {
        const auto uniform = [&random] { return static_cast<float>(random()) * 0x1p-32f - 0.5f; };
        word = F32ToBF16(0.1f * uniform()) | static_cast<uint32_t>(F32ToBF16(0.1f * uniform()))
                                                 << 16;
      }
    } else {
      for (uint32_t& word : words) word = static_cast<uint32_t>(random());
      if (scheme.code == DType::kF8E4M3) {  // no NaN
        for (uint32_t& word : words) word &= 0xf7f7f7f7u;
      }
    }
  }
  weight.view = {
      &scheme, rows, cols, weight.parts[0].data(), weight.parts[1].data(), weight.parts[2].data()};
  return weight;
}

// Activations and room for outputs of the largest case, in every format.
struct Operands {
  std::vector<DeviceMemory> memory;
  ActView bf16_view, int8_view, e4m3_view;
  float* decoded = nullptr;  // (kCheckedRows, in) of the format that is checked
  void* out = nullptr;
  float* exact = nullptr;

  const ActView& view(DType type) const {
    return type == DType::kI8 ? int8_view : type == DType::kF8E4M3 ? e4m3_view : bf16_view;
  }
};
absl::StatusOr<Operands> MakeOperands(Device& device, int64_t rows, const Shape& shape) {
  Operands operands;
  absl::Status failed;
  const auto take = [&](int64_t bytes) -> void* {
    auto memory = DeviceMemory::Allocate(device, static_cast<size_t>(bytes));
    if (!memory.ok()) {
      failed = memory.status();
      return nullptr;
    }
    operands.memory.push_back(*std::move(memory));
    return operands.memory.back().data();
  };
  const int64_t elements = rows * shape.in;
  operands.bf16_view = {{DType::kBF16, 0}, shape.in, take(2 * elements), nullptr, nullptr};
  operands.int8_view = {{DType::kI8, kWholeRow},
                        shape.in,
                        take(elements),
                        static_cast<float*>(take(4 * rows)),
                        static_cast<int32_t*>(take(4 * rows))};
  operands.e4m3_view = {{DType::kF8E4M3, kWholeRow},
                        shape.in,
                        take(elements),
                        static_cast<float*>(take(4 * rows)),
                        nullptr};
  operands.decoded = static_cast<float*>(take(4 * kCheckedRows * shape.in));
  operands.out = take(2 * rows * shape.out);
  operands.exact = static_cast<float*>(take(4 * kCheckedRows * shape.out));
  auto* ones = static_cast<float*>(take(4 * shape.in));
  auto* x = static_cast<float*>(take(4 * elements));
  if (!failed.ok()) return failed;
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(elements));
  for (float& value : values) value = normal(random);
  device.CopyIn(x, values.data(), values.size() * sizeof(float));
  const std::vector<float> one(static_cast<size_t>(shape.in), 1.0f);
  device.CopyIn(ones, one.data(), one.size() * sizeof(float));
  RmsNormArgs norm{};
  norm.x = x;
  norm.weight = ones;
  norm.eps = 1e-6f;
  norm.dim = shape.in;
  norm.num_rows = rows;
  norm.out.count = 3;
  norm.out.views = {operands.bf16_view, operands.int8_view, operands.e4m3_view};
  LaunchRmsNorm(device, norm);
  return operands;
}

// What the checked rows of `rows` of activations stand for, in `decoded`.
absl::Status Decode(Device& device, const ActView& view, int64_t rows, float* decoded) {
  const int64_t checked = std::min(rows, kCheckedRows);
  const size_t row_bytes = static_cast<size_t>(view.cols) * BytesOf(view.format.dtype);
  std::vector<uint8_t> data(static_cast<size_t>(checked) * row_bytes);
  std::vector<float> scales(static_cast<size_t>(checked), 1.0f);
  std::vector<float> values(static_cast<size_t>(checked * view.cols));
  for (int64_t i = 0; i < checked; ++i) {
    const int64_t row = CheckedRow(i, rows);
    device.CopyOut(data.data() + static_cast<size_t>(i) * row_bytes,
                   static_cast<const uint8_t*>(view.data) + static_cast<size_t>(row) * row_bytes,
                   row_bytes);
    if (view.scales != nullptr) {
      device.CopyOut(&scales[static_cast<size_t>(i)], view.scales + row, sizeof(float));
    }
  }
  if (absl::Status status = device.Sync(); !status.ok()) return status;
  for (size_t i = 0; i < values.size(); ++i) {
    const float scale = scales[i / static_cast<size_t>(view.cols)];
    switch (view.format.dtype) {
      case DType::kI8:
        values[i] = scale * static_cast<float>(static_cast<int8_t>(data[i]));
        break;
      case DType::kF8E4M3:
        values[i] = scale * E4M3ToF32(data[i]);
        break;
      default:
        values[i] = BF16ToF32(static_cast<uint16_t>(data[2 * i] | data[2 * i + 1] << 8));
    }
  }
  device.CopyIn(decoded, values.data(), values.size() * sizeof(float));
  return absl::OkStatus();
}

class Bench {
 public:
  Bench(Device& device, const Settings& settings)
      : device_(device), settings_(settings), workspace_(LinearWorkspace::Make(device).value()) {}

  void MeasureCeilings() {
    if (!settings_.tiny()) {
      ceilings_ = MeasureCudaCeilings(device_);
      e4m3_gflops_ = MeasureE4M3Ceiling(device_);
    }
    PrintLine({{"case", "ceilings"},
               {"device", device_.info().name},
               {"copy_gb_per_s", ceilings_.read_gb_per_s},
               {"bf16_tflops", 1e-3 * ceilings_.bf16_gflops},
               {"int8_tops", 1e-3 * ceilings_.int8_gops},
               {"e4m3_tflops", 1e-3 * e4m3_gflops_},
               {"e4m3_scale_modes", device_.E4M3ScaleModes()},
               {"launch_us", LaunchMicroseconds(false)},
               {"dependent_launch_us", LaunchMicroseconds(true)}});
  }

  absl::Status Run(const Scheme& scheme, const Shape& shape) {
    const HostWeight host = RandomWeight(scheme, shape.out, shape.in);
    std::vector<std::unique_ptr<CudaLinear>> linears;
    size_t bytes = 0;
    do {
      auto linear =
          PrepareCudaLinear(device_, *workspace_, LinearGroup{{host.view}, {}}, Mode::kFast);
      if (!linear.ok()) return linear.status();
      bytes += (*linear)->resident_bytes();
      linears.push_back(*std::move(linear));
    } while (bytes < kDistinctBytes && linears.size() < kMaxCopies && !settings_.tiny());
    std::vector<DeviceMemory> stored;
    auto reference = UploadWeight(device_, host.view, &stored);
    if (!reference.ok()) return reference.status();
    const int64_t most = *std::max_element(settings_.rows.begin(), settings_.rows.end());
    auto operands = MakeOperands(device_, most, shape);
    if (!operands.ok()) return operands.status();
    for (const int64_t rows : settings_.rows) {
      nlohmann::json result = {{"case", "linear"},        {"scheme", std::string(scheme.name)},
                               {"shape", shape.name},     {"rows", rows},
                               {"out", shape.out},        {"in", shape.in},
                               {"copies", linears.size()}};
      const auto multiply = [&](const CudaLinear& linear) {
        LinearArgs args{};
        args.linear = &linear;
        args.in.count = 1;
        args.in.views[0] = operands->view(linear.formats[0].dtype);
        args.rows = rows;
        args.out[0] = Floats{operands->out, DType::kBF16};
        return RunCudaLinear(device_, *workspace_, args);
      };
      const auto seconds =
          CheckAndTime(multiply, linears, *reference, *operands, rows, shape, &result);
      if (!seconds.ok()) return seconds.status();
      if (*seconds == 0) continue;
      const double each = *seconds;
      const double weight_bytes = static_cast<double>(bytes) / static_cast<double>(linears.size());
      const double operations = 2.0 * static_cast<double>(rows * shape.out * shape.in);
      const DType type = linears[0]->formats[0].dtype;
      const double peak = 1e9 * (type == DType::kI8       ? ceilings_.int8_gops
                                 : type == DType::kF8E4M3 ? e4m3_gflops_
                                                          : ceilings_.bf16_gflops);
      result["microseconds"] = 1e6 * each;
      result["gb_per_s"] = 1e-9 * weight_bytes / each;
      result["tflops"] = 1e-12 * operations / each;
      result["of_read"] = Ratio(1e-9 * weight_bytes / each, ceilings_.read_gb_per_s);
      result["of_peak"] = Ratio(operations / each, peak);
      const std::string key = absl::StrCat(shape.name, " ", rows);
      if (scheme.name == "bf16") bf16_[key] = each;
      result["of_bf16"] = bf16_.count(key) > 0 ? Ratio(bf16_[key], each) : nullptr;
      PrintLine(result);
      if (settings_.sweep == 0) continue;
      if (absl::Status status =
              Sweep(scheme, shape, rows, weight_bytes, linears, *reference, *operands);
          !status.ok()) {
        return status;
      }
    }
    return absl::OkStatus();
  }

  int failures() const { return failures_; }

 private:
  // Seconds of one product, when all are multiplied in turn; 0, printed and counted, if it is
  // wrong.
  template <typename Multiply>
  absl::StatusOr<double> CheckAndTime(Multiply&& multiply,
                                      const std::vector<std::unique_ptr<CudaLinear>>& linears,
                                      const DeviceWeight& reference, const Operands& operands,
                                      int64_t rows, const Shape& shape, nlohmann::json* result) {
    const auto error = Error(multiply, *linears[0], reference, operands, rows, shape);
    if (!error.ok()) return error.status();
    (*result)["relative_error"] = *error;
    if (!(*error < 1e-2)) {
      (*result)["failed"] = "the result is wrong: not timed";
      PrintLine(*result);
      ++failures_;
      return 0;
    }
    auto seconds = device_.MedianSeconds(
        [&] {
          for (const auto& linear : linears) {
            if (absl::Status status = multiply(*linear); !status.ok()) return status;
          }
          return absl::OkStatus();
        },
        settings_.tiny() ? 0 : kWarmups, settings_.rounds);
    if (!seconds.ok()) return seconds.status();
    return *seconds / static_cast<double>(linears.size());
  }

  // Every variant of the table of packed weights that takes the weight; nothing for other weights.
  absl::Status Sweep(const Scheme& scheme, const Shape& shape, int64_t rows, double weight_bytes,
                     const std::vector<std::unique_ptr<CudaLinear>>& linears,
                     const DeviceWeight& reference, const Operands& operands) {
    const LinearKind kind = linears[0]->parts[0].kind;
    if (kind != LinearKind::kPacked4 && kind != LinearKind::kPacked8) return absl::OkStatus();
    const PackedFormat& format = linears[0]->parts[0].packed.layout.format;
    const auto variants =
        kind == LinearKind::kPacked4 ? LinearW4A16Variants() : LinearW8A16Variants();
    const PackedLinearVariant& chosen = ChoosePackedLinear(
        variants, format, device_.info(), std::min<int64_t>(rows, kMaxLinearTokens));
    std::vector<nlohmann::json> results;
    for (const PackedLinearVariant& variant : variants) {
      if (!TakesPackedLinear(variant, format, device_.info())) continue;
      const auto multiply = [&](const CudaLinear& linear) {
        PackedLinearArgs args;
        args.weight = linear.parts[0].packed;
        args.x = static_cast<const uint16_t*>(operands.bf16_view.data);
        args.rows = rows;
        args.cols = shape.in;
        args.segments[0] = {0, shape.out, nullptr, Floats{operands.out, DType::kBF16}};
        args.scratch = workspace_->packed();
        LaunchPackedLinear(device_, args, {&variant, 1});
        return absl::OkStatus();
      };
      nlohmann::json result = {{"case", "sweep"},
                               {"scheme", std::string(scheme.name)},
                               {"shape", shape.name},
                               {"rows", rows},
                               {"tokens", variant.tokens},
                               {"stages", variant.stages},
                               {"chosen", &variant == &chosen}};
      const auto seconds =
          CheckAndTime(multiply, linears, reference, operands, rows, shape, &result);
      if (!seconds.ok()) return seconds.status();
      if (*seconds == 0) continue;
      result["microseconds"] = 1e6 * *seconds;
      result["of_read"] = Ratio(1e-9 * weight_bytes / *seconds, ceilings_.read_gb_per_s);
      results.push_back(result);
    }
    const auto time = [](const nlohmann::json& result) {
      return result["microseconds"].get<double>();
    };
    const auto best = std::min_element(
        results.begin(), results.end(),
        [&](const nlohmann::json& a, const nlohmann::json& b) { return time(a) < time(b); });
    for (auto result = results.begin(); result != results.end(); ++result) {
      (*result)["best"] = result == best;
      PrintLine(*result);
    }
    return absl::OkStatus();
  }

  // From one small kernel of a replayed graph to the next, plain or by programmatic dependent
  // launch; null if the device does not take that.
  nlohmann::json LaunchMicroseconds(bool dependent) {
    constexpr int kLaunches = 200, kCols = 32;
    auto y = DeviceMemory::Allocate(device_, kCols * sizeof(float));
    auto bias = DeviceMemory::Allocate(device_, kCols * sizeof(float));
    if (!y.ok() || !bias.ok()) return nullptr;
    const bool usual = std::exchange(device_.stream().programmatic, dependent);
    const auto seconds = device_.MedianSeconds(
        [&] {
          for (int i = 0; i < kLaunches; ++i) {
            LaunchAddBias(device_, {{y->data(), DType::kF32}, bias->as<float>(), 1, kCols});
          }
          return absl::OkStatus();
        },
        settings_.tiny() ? 0 : kWarmups, settings_.rounds);
    device_.stream().programmatic = usual;
    return seconds.ok() ? nlohmann::json(1e6 * *seconds / kLaunches) : nlohmann::json(nullptr);
  }

  // ||y - reference|| / ||reference|| over the checked rows.
  template <typename Multiply>
  absl::StatusOr<double> Error(Multiply&& multiply, const CudaLinear& linear,
                               const DeviceWeight& reference, const Operands& operands,
                               int64_t rows, const Shape& shape) {
    const int64_t checked = std::min(rows, kCheckedRows);
    const auto count = static_cast<size_t>(checked * shape.out);
    const auto width = static_cast<size_t>(shape.out);
    const auto checked_row = [&](int64_t i) {
      return static_cast<uint16_t*>(operands.out) +
             static_cast<size_t>(CheckedRow(i, rows)) * width;
    };
    std::vector<uint16_t> y(count, 0xffff);
    for (int64_t i = 0; i < checked; ++i) device_.CopyIn(checked_row(i), y.data(), 2 * width);
    if (absl::Status status = multiply(linear); !status.ok()) return status;
    if (absl::Status status =
            Decode(device_, operands.view(linear.formats[0].dtype), rows, operands.decoded);
        !status.ok()) {
      return status;
    }
    const ActView decoded{{DType::kF32, 0}, shape.in, operands.decoded, nullptr, nullptr};
    LaunchLinearExact(device_,
                      {reference, nullptr, decoded, checked, Floats{operands.exact, DType::kF32}});
    std::vector<float> exact(count);
    for (int64_t i = 0; i < checked; ++i) {
      device_.CopyOut(y.data() + static_cast<size_t>(i) * width, checked_row(i), 2 * width);
    }
    device_.CopyOut(exact.data(), operands.exact, 4 * count);
    if (absl::Status status = device_.Sync(); !status.ok()) return status;
    double difference = 0, size = 0;
    for (size_t i = 0; i < count; ++i) {
      const double d = static_cast<double>(BF16ToF32(y[i])) - static_cast<double>(exact[i]);
      difference += d * d;
      size += static_cast<double>(exact[i]) * static_cast<double>(exact[i]);
    }
    return std::sqrt(difference / size);
  }

  Device& device_;
  const Settings& settings_;
  std::unique_ptr<LinearWorkspace> workspace_;
  Ceilings ceilings_;
  double e4m3_gflops_ = 0;
  std::map<std::string, double> bf16_;  // seconds by shape and rows
  int failures_ = 0;
};

int Fail(const std::string& what) {
  std::fprintf(stderr, "bench_cuda: %s\n", what.c_str());
  return 2;
}

int Main(int argc, char** argv) {
  Settings settings;
  const std::string unused = ReadFlags(argc, argv,
                                       {{"--device", TakeInt(&settings.device, 0)},
                                        {"--model",
                                         [&](const std::string& value) {
                                           settings.model = value;
                                           return true;
                                         }},
                                        {"--scheme",
                                         [&](const std::string& value) {
                                           settings.schemes = absl::StrSplit(value, ',');
                                           return true;
                                         }},
                                        {"--rounds", TakeInt(&settings.rounds, 1)},
                                        {"--sweep", TakeInt(&settings.sweep, 0)},
                                        {"--rows", TakeRows(&settings.rows)}});
  if (!unused.empty()) return Fail(absl::StrCat("cannot use ", unused));
  const Model* model = std::find_if(std::begin(kModels), std::end(kModels),
                                    [&](const Model& m) { return m.name == settings.model; });
  if (model == std::end(kModels)) return Fail("--model must be 8b, 70b or tiny");
  auto device = Device::Open(settings.device);
  if (!device.ok()) return Fail(std::string(device.status().message()));
  Bench bench(**device, settings);
  bench.MeasureCeilings();
  for (const Shape& shape : model->shapes) {
    for (const std::string& name : settings.schemes) {
      const Scheme* scheme = FindScheme(name);
      if (scheme == nullptr) return Fail(absl::StrCat("no scheme is named ", name));
      if (const absl::Status status = bench.Run(*scheme, shape); !status.ok()) {
        return Fail(absl::StrCat(name, " ", shape.name, ": ", std::string(status.message())));
      }
    }
  }
  return bench.failures() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
