// SPDX-License-Identifier: Apache-2.0
// Times products of the CPU backend beside the machine's ceilings, each measured in alternation
// with the ceiling it is compared with. The result is checked against the definition in double
// precision before anything is timed. Products of f32 activations are compared with the ceiling of
// bf16: in the tiers below avx512-bf16 that is the rate of single-precision multiply-adds.
//
//   bench_linear [--scheme int4-g128] [--rows 1,16,512] [--out 4096] [--in 4096] [--threads 0]
//                [--tier avx512-bf16] [--mode fast|exact] [--seconds 1]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "kernels/backend.h"
#include "kernels/codec.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

struct Settings {
  std::string scheme = "int4-g128";
  std::vector<int64_t> rows = {1, 2, 4, 8, 16, 32, 128, 512};
  int64_t out = 4096;
  int64_t in = 4096;
  CpuOptions cpu;
  Mode mode = Mode::kFast;
  double seconds = 1;
};

// A weight of random codes; enough of them that no cache holds all.
struct Weight {
  WeightView view;
  std::vector<uint32_t> codes, scales, zeros;
};

Weight RandomWeight(const Scheme& scheme, int64_t rows, int64_t cols, std::mt19937& random) {
  Weight weight;
  for (const StoredTensor& tensor : StoredTensors(scheme, rows, cols, 0)) {
    const auto words = static_cast<size_t>(tensor.bytes() + 3) / 4;
    if (tensor.part == Part::kCodes) weight.codes.resize(words);
    if (tensor.part == Part::kScales) weight.scales.resize(words);
    if (tensor.part == Part::kZeros) weight.zeros.resize(words);
  }
  for (uint32_t& word : weight.codes) word = static_cast<uint32_t>(random());
  for (uint32_t& word : weight.zeros) word = static_cast<uint32_t>(random());
  const uint32_t scale = F32ToBF16(0.01f);
  for (uint32_t& word : weight.scales) word = scale | (scale << 16);
  if (!scheme.quantized()) {
    std::normal_distribution<float> normal(0.0f, 0.02f);
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float w = normal(random);
      const uint16_t half = scheme.code == DType::kF16 ? F32ToF16(w) : F32ToBF16(w);
      if (scheme.code == DType::kF32) {
        std::memcpy(weight.codes.data() + i, &w, 4);
      } else {
        std::memcpy(reinterpret_cast<uint16_t*>(weight.codes.data()) + i, &half, 2);
      }
    }
  }
  weight.view = WeightView{
      &scheme, rows, cols, weight.codes.data(), weight.scales.data(), weight.zeros.data()};
  return weight;
}

double Seconds(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

int Run(const Settings& settings) {
  const Scheme* scheme = FindScheme(settings.scheme);
  auto made = MakeCpuBackend(settings.cpu);
  if (scheme == nullptr || !made.ok()) {
    std::fprintf(stderr, "unknown scheme '%s' or %s\n", settings.scheme.c_str(),
                 std::string(made.status().message()).c_str());
    return 2;
  }
  Backend& backend = **made;
  std::mt19937 random(1);
  const Weight weight = RandomWeight(*scheme, settings.out, settings.in, random);

  std::vector<std::unique_ptr<PreparedLinear>> linears;
  size_t resident = 0;
  do {
    auto linear = backend.Prepare({{weight.view}, {}}, settings.mode);
    if (!linear.ok()) {
      std::fprintf(stderr, "%s\n", std::string(linear.status().message()).c_str());
      return 2;
    }
    resident += (*linear)->resident_bytes();
    linears.push_back(*std::move(linear));
  } while (resident < size_t{256} << 20);
  const double bytes = static_cast<double>(linears[0]->resident_bytes());
  const double macs = static_cast<double>(settings.out) * static_cast<double>(settings.in);

  const int64_t most = *std::max_element(settings.rows.begin(), settings.rows.end());
  const ActFormat format = linears[0]->input_formats()[0];
  std::vector<std::unique_ptr<Buffer>> buffers;
  const auto take = [&](int64_t size) {
    buffers.push_back(backend.Allocate(static_cast<size_t>(size)).value());
    return buffers.back()->data();
  };
  auto* x = static_cast<float*>(take(most * settings.in * 4));
  auto* ones = static_cast<float*>(take(settings.in * 4));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < most * settings.in; ++i) x[i] = normal(random);
  std::fill_n(ones, settings.in, 1.0f);
  ActSet in;
  in.count = 1;
  ActView& view = in.views[0];
  view.format = format;
  view.cols = settings.in;
  view.data = take(most * settings.in * static_cast<int64_t>(BytesOf(format.dtype)));
  view.scales = static_cast<float*>(take(most * format.GroupsPerRow(settings.in) * 4));
  view.sums = static_cast<int32_t*>(take(most * format.GroupsPerRow(settings.in) * 4));
  RmsNormArgs norm{};
  norm.x = x;
  norm.weight = ones;
  norm.dim = settings.in;
  norm.num_rows = most;
  norm.out = in;
  backend.RmsNorm(norm);
  auto* y = static_cast<float*>(take(most * settings.out * 4));

  const auto multiply = [&](size_t linear, int64_t rows) {
    LinearArgs args{};
    args.linear = linears[linear].get();
    args.in = in;
    args.rows = rows;
    args.out[0].data = y;
    backend.Linear(args);
  };
  multiply(0, most);
  for (int probe = 0; probe < 500; ++probe) {
    const auto m = static_cast<int64_t>(random() % static_cast<uint64_t>(most));
    const auto n = static_cast<int64_t>(random() % static_cast<uint64_t>(settings.out));
    double sum = 0;
    double magnitude = 0;
    const int64_t groups = format.GroupsPerRow(settings.in);
    for (int64_t k = 0; k < settings.in; ++k) {
      const int64_t at = m * settings.in + k;
      double a = 0;
      if (format.dtype == DType::kF32) {
        a = static_cast<const float*>(view.data)[at];
      } else if (format.dtype == DType::kBF16) {
        a = BF16ToF32(static_cast<const uint16_t*>(view.data)[at]);
      } else {
        a = static_cast<const int8_t*>(view.data)[at] *
            double{view.scales[m * groups + (format.group < 0 ? 0 : k / format.group)]};
      }
      const double product = a * double{ReadWeight(weight.view, n, k)};
      sum += product;
      magnitude += std::abs(product);
    }
    if (!(std::abs(sum - double{y[m * settings.out + n]}) <= 1e-5 * magnitude)) {
      std::fprintf(stderr, "wrong: row %lld, output %lld is %g, not %g\n",
                   static_cast<long long>(m), static_cast<long long>(n),
                   static_cast<double>(y[m * settings.out + n]), sum);
      return 1;
    }
  }

  std::printf("%s, %s %s, %lld x %lld, checked\n", backend.Description().c_str(),
              settings.scheme.c_str(), settings.mode == Mode::kFast ? "fast" : "exact",
              static_cast<long long>(settings.out), static_cast<long long>(settings.in));
  std::printf("%6s %10s %10s %12s %10s %10s\n", "rows", "us", "GMAC/s", "of peak", "GB/s",
              "of read");
  for (const int64_t rows : settings.rows) {
    // Median over rounds of the ratio to the ceilings measured in the same round.
    std::vector<double> seconds, of_peak, of_read;
    size_t next = 0;
    const Clock::time_point start = Clock::now();
    do {
      const Ceilings ceilings = backend.MeasureCeilings();
      // Like the ceilings, the best of short passes; the weights take turns.
      double per_call = 1e9;
      const Clock::time_point begin = Clock::now();
      do {
        const Clock::time_point pass = Clock::now();
        int calls = 0;
        do {
          multiply(next++ % linears.size(), rows);
          ++calls;
        } while (Seconds(pass) < 2e-3);
        per_call = std::min(per_call, Seconds(pass) / calls);
      } while (Seconds(begin) < 0.2);
      const double peak =
          (format.dtype == DType::kI8 ? ceilings.int8_gops : ceilings.bf16_gflops) / 2;
      seconds.push_back(per_call);
      of_peak.push_back(macs * static_cast<double>(rows) / per_call / 1e9 / peak);
      of_read.push_back(bytes / per_call / 1e9 / ceilings.read_gb_per_s);
    } while (Seconds(start) < settings.seconds);
    const auto median = [](std::vector<double> values) {
      std::sort(values.begin(), values.end());
      return values[values.size() / 2];
    };
    const double s = median(seconds);
    std::printf("%6lld %10.1f %10.1f %11.0f%% %10.1f %9.0f%%\n", static_cast<long long>(rows),
                s * 1e6, macs * static_cast<double>(rows) / s / 1e9, 100 * median(of_peak),
                bytes / s / 1e9, 100 * median(of_read));
  }
  return 0;
}

// False if an argument is not understood.
bool Parse(int argc, char** argv, Settings& settings) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const std::string value = argv[i + 1];
    bool ok = true;
    if (name == "--scheme") {
      settings.scheme = value;
    } else if (name == "--rows") {
      settings.rows.clear();
      for (const std::string& item : std::vector<std::string>(absl::StrSplit(value, ','))) {
        int64_t rows = 0;
        ok = ok && absl::SimpleAtoi(item, &rows) && rows >= 1 && rows <= 4096;
        settings.rows.push_back(rows);
      }
    } else if (name == "--out") {
      ok = absl::SimpleAtoi(value, &settings.out) && settings.out >= 1;
    } else if (name == "--in") {
      ok = absl::SimpleAtoi(value, &settings.in) && settings.in >= 1;
    } else if (name == "--threads") {
      ok = absl::SimpleAtoi(value, &settings.cpu.threads);
    } else if (name == "--tier") {
      settings.cpu.tier = value;
    } else if (name == "--mode") {
      ok = value == "fast" || value == "exact";
      settings.mode = value == "exact" ? Mode::kExact : Mode::kFast;
    } else if (name == "--seconds") {
      ok = absl::SimpleAtod(value, &settings.seconds);
    } else {
      ok = false;
    }
    if (!ok) return false;
  }
  return argc % 2 == 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  nibble::Settings settings;
  if (!nibble::Parse(argc, argv, settings)) {
    std::fprintf(stderr,
                 "usage: bench_linear [--scheme S] [--rows M,M,...] [--out N] [--in K] "
                 "[--threads T] [--tier T] [--mode fast|exact] [--seconds S]\n");
    return 2;
  }
  return nibble::Run(settings);
}
