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
// With --sweep 1, a product is followed by every way to multiply the weight (linear.h) and, if it
// is weight-only, by each variant of that dispatch table (linear_packed.h), whatever tokens the
// tables take them for: `chosen` is what they take for so many, `best` the fastest of the sweep.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/cuda/bench_common.h"
#include "kernels/cuda/bench_operands.h"
#include "kernels/cuda/ceilings.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_exact.h"

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

struct Settings {
  int device = 0;
  std::string model = "8b";
  std::vector<std::string> schemes = {"bf16", "int8", "int4-g128", "int4-g128-asym", "w8a8", "fp8"};
  std::vector<int64_t> rows = {1, 4, 16, 64, 256, 2048};
  int rounds = 100;
  int sweep = 0;
  bool tiny() const { return model == "tiny"; }
};

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
    auto operands = MakeOperands(device_, most, shape.out, shape.in);
    if (!operands.ok()) return operands.status();
    for (const int64_t rows : settings_.rows) {
      nlohmann::json result = {{"case", "linear"},        {"scheme", std::string(scheme.name)},
                               {"shape", shape.name},     {"rows", rows},
                               {"out", shape.out},        {"in", shape.in},
                               {"copies", linears.size()}};
      const auto multiply = [&](const CudaLinear& linear) {
        return RunCudaLinear(device_, *workspace_, ArgsOf(linear, *operands, rows));
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
      const auto candidates = Candidates(shape, rows, linears, *operands);
      if (!candidates.ok()) return candidates.status();
      for (const auto& [sweep, members] : *candidates) {
        if (absl::Status status = Sweep(sweep, members, scheme, shape, rows, weight_bytes, linears,
                                        *reference, *operands);
            !status.ok()) {
          return status;
        }
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

  static LinearArgs ArgsOf(const CudaLinear& linear, const Operands& operands, int64_t rows) {
    LinearArgs args{};
    args.linear = &linear;
    args.in.count = 1;
    args.in.views[0] = operands.view(linear.formats[0].dtype);
    args.rows = rows;
    args.out[0] = Floats{operands.out, DType::kBF16};
    return args;
  }

  // One of a sweep: what tells it from the others, and itself.
  struct Candidate {
    nlohmann::json name;
    std::function<absl::Status(const CudaLinear&)> multiply;
  };
  // By the `case` that they are printed as.
  absl::StatusOr<std::map<std::string, std::vector<Candidate>>> Candidates(
      const Shape& shape, int64_t rows, const std::vector<std::unique_ptr<CudaLinear>>& linears,
      const Operands& operands) {
    std::map<std::string, std::vector<Candidate>> found;
    for (size_t w = 0; w < std::size(kLinearWayNames); ++w) {
      const auto by = [=, this, &operands](const CudaLinear& linear, bool* chosen) {
        return RunCudaLinearBy(static_cast<LinearWay>(w), device_, *workspace_,
                               ArgsOf(linear, operands, rows), chosen);
      };
      bool chosen = false;
      const absl::Status status = by(*linears[0], &chosen);
      if (absl::IsUnimplemented(status)) continue;
      if (!status.ok()) return status;
      found["ways"].push_back(
          {{{"way", kLinearWayNames[w]}, {"chosen", chosen}}, [by](const CudaLinear& linear) {
             bool unused = false;
             return by(linear, &unused);
           }});
    }
    const LinearKind kind = linears[0]->parts[0].kind;
    if (kind != LinearKind::kPacked4 && kind != LinearKind::kPacked8) return found;
    const PackedFormat& format = linears[0]->parts[0].packed.layout.format;
    const auto variants =
        kind == LinearKind::kPacked4 ? LinearW4A16Variants() : LinearW8A16Variants();
    const PackedLinearVariant& chosen = ChoosePackedLinear(
        variants, format, device_.info(), std::min<int64_t>(rows, kMaxLinearTokens));
    for (const PackedLinearVariant& variant : variants) {
      if (!TakesPackedLinear(variant, format, device_.info())) continue;
      const auto multiply = [=, this, &operands, &variant](const CudaLinear& linear) {
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
      found["sweep"].push_back({{{"tokens", variant.tokens},
                                 {"stages", variant.stages},
                                 {"chosen", &variant == &chosen}},
                                multiply});
    }
    return found;
  }

  absl::Status Sweep(const std::string& sweep, const std::vector<Candidate>& candidates,
                     const Scheme& scheme, const Shape& shape, int64_t rows, double weight_bytes,
                     const std::vector<std::unique_ptr<CudaLinear>>& linears,
                     const DeviceWeight& reference, const Operands& operands) {
    std::vector<nlohmann::json> results;
    for (const Candidate& candidate : candidates) {
      nlohmann::json result = {{"case", sweep},
                               {"scheme", std::string(scheme.name)},
                               {"shape", shape.name},
                               {"rows", rows}};
      result.update(candidate.name);
      const auto seconds =
          CheckAndTime(candidate.multiply, linears, reference, operands, rows, shape, &result);
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
