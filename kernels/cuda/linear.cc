// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/linear.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>

#include "kernels/check.h"
#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/linear_e4m3.h"
#include "kernels/cuda/linear_exact.h"
#include "kernels/cuda/linear_rows.h"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/scale_sums.h"

namespace nibble {
namespace {

constexpr int64_t kAnyRows = std::numeric_limits<int64_t>::max();
// Up to kFewTokens bytes of the weights count, above it multiplications. Up to kFewestTokens
// blocks of 32 features read more bytes of weights than of tokens.
constexpr int64_t kFewTokens = 64;
constexpr int64_t kFewestTokens = 32;

struct LinearCall {
  Device& device;
  LinearWorkspace& workspace;
  const LinearPart& part;
  const ActView& in;
  const LinearArgs& args;

  const Floats& out(int i) const { return args.out[static_cast<size_t>(part.first + i)]; }
  const DeviceWeight& weight(int i) const { return part.weights[static_cast<size_t>(i)]; }
  const float* bias(int i) const { return part.biases[static_cast<size_t>(i)]; }
};

absl::Status RunExact(const LinearCall& call) {
  for (int i = 0; i < call.part.count; ++i) {
    LaunchLinearExact(call.device,
                      {call.weight(i), call.bias(i), call.in, call.args.rows, call.out(i)});
  }
  return absl::OkStatus();
}

// y (rows, features) = x * w^T for features [first, first + count) of weight i, from bf16 weights.
absl::Status MultiplyDense(const LinearCall& call, int i, const void* weights, int64_t first,
                           int64_t count) {
  const Floats& out = call.out(i);
  Matmul matmul;
  matmul.m = call.args.rows;
  matmul.n = count;
  matmul.k = call.weight(i).cols;
  matmul.a = call.in.data;
  matmul.b = weights;
  matmul.d = static_cast<uint8_t*>(out.data) + static_cast<size_t>(first) * BytesOf(out.dtype);
  matmul.lda = matmul.ldb = matmul.k;
  matmul.ldd = call.weight(i).rows;
  matmul.out = out.dtype;
  return call.device.Multiply(matmul);
}

void AddBias(const LinearCall& call, int i) {
  if (call.bias(i) == nullptr) return;
  LaunchAddBias(call.device, {call.out(i), call.bias(i), call.args.rows, call.weight(i).rows});
}

// Output features in a slice of dequantized weights.
int64_t SliceFeatures(const LinearCall& call, int i) {
  const auto room = static_cast<int64_t>(call.workspace.dequantized_bytes());
  return std::max(kSliceStep, room / (2 * call.weight(i).cols) / kSliceStep * kSliceStep);
}

// The same without the library: a row's bits depend on its token and the weight only.
absl::Status MultiplyRows(const LinearCall& call, int i, const void* weights, int64_t first,
                          int64_t count) {
  Floats out = call.out(i);
  out.data = static_cast<uint8_t*>(out.data) + static_cast<size_t>(first) * BytesOf(out.dtype);
  LinearRowsArgs args;
  args.count = 1;
  args.weights[0] = {weights, nullptr, nullptr, count, out, call.weight(i).rows};
  args.x = call.in.data;
  args.rows = call.args.rows;
  args.cols = call.weight(i).cols;
  args.fresh_weights = weights != call.weight(i).codes;  // dequantized by the launch before
  // The choice is the same for every number of tokens.
  if (TakesLinearWgmma(call.device.info(), args.cols * static_cast<int64_t>(sizeof(uint16_t)))) {
    LaunchWgmmaBF16(call.device, args, call.device.info().multiprocessors);
  } else {
    LaunchLinearBF16(call.device, args);
  }
  return absl::OkStatus();
}

// By slices of output features, whose weights come from dequantize(i, first, count, to) and are
// multiplied by multiply(call, i, weights, first, count).
template <typename Dequantize, typename Multiply>
absl::Status MultiplySlices(const LinearCall& call, Dequantize&& dequantize, Multiply&& multiply) {
  const Floats to{call.workspace.dequantized(), DType::kBF16};
  for (int i = 0; i < call.part.count; ++i) {
    const DeviceWeight& weight = call.weight(i);
    const int64_t slice = SliceFeatures(call, i);
    for (int64_t first = 0; first < weight.rows; first += slice) {
      const int64_t count = std::min(slice, weight.rows - first);
      dequantize(i, first, count, to);
      if (absl::Status status = multiply(call, i, to.data, first, count); !status.ok()) {
        return status;
      }
    }
    AddBias(call, i);
  }
  return absl::OkStatus();
}

template <typename Multiply>
absl::Status Dense(const LinearCall& call, Multiply&& multiply) {
  for (int i = 0; i < call.part.count; ++i) {
    const DeviceWeight& weight = call.weight(i);
    if (absl::Status status = multiply(call, i, weight.codes, 0, weight.rows); !status.ok()) {
      return status;
    }
    AddBias(call, i);
  }
  return absl::OkStatus();
}
absl::Status RunDense(const LinearCall& call) { return Dense(call, MultiplyDense); }
absl::Status RunDenseRows(const LinearCall& call) { return Dense(call, MultiplyRows); }

template <typename Multiply>
absl::Status Dequantized(const LinearCall& call, Multiply&& multiply) {
  const auto dequantize = [&](int i, int64_t first, int64_t count, const Floats& to) {
    LaunchDequantize(call.device, call.weight(i), first, count, to);
  };
  return MultiplySlices(call, dequantize, multiply);
}
absl::Status RunDequantized(const LinearCall& call) { return Dequantized(call, MultiplyDense); }
absl::Status RunDequantizedRows(const LinearCall& call) { return Dequantized(call, MultiplyRows); }

absl::Status RunUnpacked(const LinearCall& call) {
  const auto dequantize = [&](int i, int64_t first, int64_t count, const Floats& to) {
    int tile = static_cast<int>(first / kPackedTile);
    for (int before = 0; before < i; ++before) tile += PackedTiles(call.weight(before).rows);
    LaunchDequantizePacked(call.device, {call.part.packed, tile, count, call.weight(i).cols, to});
  };
  return MultiplySlices(call, dequantize, MultiplyDense);
}

PackedLinearArgs PackedArgs(const LinearCall& call) {
  PackedLinearArgs args;
  args.weight = call.part.packed;
  args.x = static_cast<const uint16_t*>(call.in.data);
  args.rows = call.args.rows;
  args.cols = call.weight(0).cols;
  args.num_segments = call.part.count;
  int tile = 0;
  for (int i = 0; i < call.part.count; ++i) {
    args.segments[static_cast<size_t>(i)] = {tile, call.weight(i).rows, call.bias(i), call.out(i)};
    tile += PackedTiles(call.weight(i).rows);
  }
  args.scratch = call.workspace.packed();
  return args;
}

absl::Status RunW4A16(const LinearCall& call) {
  LaunchLinearW4A16(call.device, PackedArgs(call));
  return absl::OkStatus();
}
absl::Status RunW8A16(const LinearCall& call) {
  LaunchLinearW8A16(call.device, PackedArgs(call));
  return absl::OkStatus();
}

LinearRowsArgs RowsArgs(const LinearCall& call) {
  LinearRowsArgs args;
  NIBBLE_CHECK(call.part.count <= kMaxGroupWeights);
  args.count = call.part.count;
  args.x = call.in.data;
  args.scales = call.in.scales;
  args.rows = call.args.rows;
  args.cols = call.in.cols;
  args.outliers = static_cast<const uint16_t*>(call.in.outliers);
  args.outlier_count = call.in.format.outliers.count;
  for (int i = 0; i < call.part.count; ++i) {
    const auto w = static_cast<size_t>(i);
    args.weights[w] = {call.weight(i).codes,          call.part.scales[w], call.bias(i),
                       call.weight(i).rows,           call.out(i),         call.weight(i).rows,
                       call.weight(i).outlier_weights};
  }
  return args;
}

absl::Status RunInt8(const LinearCall& call) {
  LaunchLinearInt8(call.device, RowsArgs(call));
  return absl::OkStatus();
}
bool TakesInt8Wgmma(const LinearCall& call) {
  return TakesLinearWgmma(call.device.info(), call.in.cols);
}
absl::Status RunInt8Wgmma(const LinearCall& call) {
  LaunchWgmmaInt8(call.device, RowsArgs(call), call.device.info().multiprocessors);
  return absl::OkStatus();
}

struct SumSlice {
  int64_t tokens, features;
};

// The product with weight i by sums of four bytes, a slice of tokens and output features at a time,
// which are then scaled. tokens(row, count) and features(first, count) say where the library finds
// the operands of a slice.
template <typename Tokens, typename Features>
absl::Status MultiplySums(const LinearCall& call, int i, DType operands, DType sums,
                          const SumSlice& slice, Tokens&& tokens, Features&& features) {
  const DeviceWeight& weight = call.weight(i);
  const float* scales = call.part.scales[static_cast<size_t>(i)];
  const float* bias = call.bias(i);
  Matmul matmul;
  matmul.in = operands;
  matmul.out = sums;
  matmul.k = matmul.lda = matmul.ldb = weight.cols;
  matmul.d = call.workspace.sums();
  for (int64_t row = 0; row < call.args.rows; row += slice.tokens) {
    matmul.m = std::min(slice.tokens, call.args.rows - row);
    matmul.a = tokens(row, matmul.m);
    Floats out = call.out(i);
    out.data = static_cast<uint8_t*>(out.data) +
               row * weight.rows * static_cast<int64_t>(BytesOf(out.dtype));
    for (int64_t first = 0; first < weight.rows; first += slice.features) {
      matmul.n = matmul.ldd = std::min(slice.features, weight.rows - first);
      matmul.b = features(first, matmul.n);
      if (absl::Status status = call.device.Multiply(matmul); !status.ok()) return status;
      LaunchScaleSums(call.device, {matmul.d, sums, call.in.scales + row, scales + first,
                                    bias != nullptr ? bias + first : nullptr, matmul.m, matmul.n,
                                    out, first, weight.rows});
    }
  }
  return absl::OkStatus();
}

// Of int8: what the second-level cache holds until it is scaled; the next slice overwrites it
// there.
SumSlice SumSliceOf(size_t bytes, int64_t rows) {
  constexpr int64_t kFeatures = 256;  // at least, and in steps of
  constexpr int64_t kTokens = 2048;   // at most
  const auto sums = static_cast<int64_t>(bytes / sizeof(int32_t));
  const int64_t tokens = std::min({rows, kTokens, sums / kFeatures});
  return {tokens, sums / tokens / kFeatures * kFeatures};
}

absl::Status MultiplyInt8(const LinearCall& call, int i) {
  const int64_t cols = call.weight(i).cols;
  const auto* codes = static_cast<const int8_t*>(call.weight(i).codes);
  const auto* in = static_cast<const int8_t*>(call.in.data);
  return MultiplySums(
      call, i, DType::kI8, DType::kI32, SumSliceOf(SumBytes(call.device.info()), call.args.rows),
      [&](int64_t row, int64_t) { return in + row * cols; },
      [&](int64_t first, int64_t) { return codes + first * cols; });
}

// Sums are exact and scaled in the same way: the bits of RunInt8, which takes what the library does
// not.
absl::Status RunInt8Library(const LinearCall& call) {
  for (int i = 0; i < call.part.count; ++i) {
    const absl::Status status = MultiplyInt8(call, i);
    if (absl::IsUnimplemented(status)) return RunInt8(call);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status RunE4M3(const LinearCall& call) {
  LaunchLinearE4M3(call.device, RowsArgs(call));
  return absl::OkStatus();
}

// Weight i of codes that are exact in bf16.
absl::Status MultiplyWidened(const LinearCall& call, int i) {
  const int64_t cols = call.weight(i).cols;
  const auto widened = [&](const void* codes, int64_t first, int64_t count, uint16_t* to) {
    LaunchWidenE4M3(call.device, static_cast<const uint8_t*>(codes) + first * cols, count * cols,
                    to);
    return to;
  };
  return MultiplySums(
      call, i, DType::kBF16, DType::kF32,
      {kWidenedTokens, std::min(SliceFeatures(call, i), kWidenedFeatures)},
      [&](int64_t row, int64_t count) {
        return widened(call.in.data, row, count, call.workspace.tokens());
      },
      [&](int64_t first, int64_t count) {
        return widened(call.weight(i).codes, first, count, call.workspace.dequantized());
      });
}

absl::Status RunE4M3Library(const LinearCall& call) {
  for (int i = 0; i < call.part.count; ++i) {
    const DeviceWeight& weight = call.weight(i);
    const Floats& out = call.out(i);
    Matmul matmul;
    matmul.m = call.args.rows;
    matmul.n = matmul.ldd = weight.rows;
    matmul.k = matmul.lda = matmul.ldb = weight.cols;
    matmul.a = call.in.data;
    matmul.b = weight.codes;
    matmul.d = out.data;
    matmul.in = DType::kF8E4M3;
    matmul.out = out.dtype;
    matmul.a_scales = call.in.scales;
    matmul.b_scales = call.part.scales[static_cast<size_t>(i)];
    absl::Status status = call.device.Multiply(matmul);
    if (status.ok()) {
      AddBias(call, i);
    } else if (absl::IsUnimplemented(status)) {
      status = MultiplyWidened(call, i);
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// The first row of the part's kind that has room for the tokens, and takes the call, multiplies it.
struct LinearRow {
  LinearKind kind;
  int64_t max_rows;
  LinearWay way;
  absl::Status (*run)(const LinearCall& call);
  bool (*takes)(const LinearCall& call) = nullptr;  // any call
};
// clang-format off
constexpr LinearRow kLinearTable[] = {
    {LinearKind::kExact,   kAnyRows,         LinearWay::kScalar,     RunExact},
    {LinearKind::kDense,   kAnyRows,         LinearWay::kLibrary,    RunDense},
    {LinearKind::kStored,  8,                LinearWay::kScalar,     RunExact},
    {LinearKind::kStored,  kAnyRows,         LinearWay::kLibrary,    RunDequantized},
    {LinearKind::kPacked4, kMaxLinearTokens, LinearWay::kWarps,      RunW4A16},
    {LinearKind::kPacked4, kAnyRows,         LinearWay::kLibrary,    RunUnpacked},
    {LinearKind::kPacked8, kMaxLinearTokens, LinearWay::kWarps,      RunW8A16},
    {LinearKind::kPacked8, kAnyRows,         LinearWay::kLibrary,    RunUnpacked},
    {LinearKind::kInt8,    kFewestTokens,    LinearWay::kWarps,      RunInt8},
    {LinearKind::kInt8,    kAnyRows,         LinearWay::kWarpgroups, RunInt8Wgmma, TakesInt8Wgmma},
    {LinearKind::kInt8,    kFewTokens,       LinearWay::kWarps,      RunInt8},
    {LinearKind::kInt8,    kAnyRows,         LinearWay::kLibrary,    RunInt8Library},
    {LinearKind::kInt8Outliers, kAnyRows,    LinearWay::kWarps,      RunInt8},
    {LinearKind::kE4M3,    kMaxE4M3Tokens,   LinearWay::kWarps,      RunE4M3},
    {LinearKind::kE4M3,    kAnyRows,         LinearWay::kLibrary,    RunE4M3Library},
};
// CudaOptions::batch_invariant. Each of these computes a row from its own token alone, and those of
// one kind to the same bits.
constexpr LinearRow kInvariantTable[] = {
    {LinearKind::kExact,   kAnyRows,         LinearWay::kScalar,     RunExact},
    {LinearKind::kDense,   kAnyRows,         LinearWay::kWarps,      RunDenseRows},
    {LinearKind::kStored,  kAnyRows,         LinearWay::kWarps,      RunDequantizedRows},
    {LinearKind::kPacked4, kAnyRows,         LinearWay::kWarps,      RunW4A16},
    {LinearKind::kPacked8, kAnyRows,         LinearWay::kWarps,      RunW8A16},
    {LinearKind::kInt8,    kFewestTokens,    LinearWay::kWarps,      RunInt8},  // sums are exact: the same bits
    {LinearKind::kInt8,    kAnyRows,         LinearWay::kWarpgroups, RunInt8Wgmma, TakesInt8Wgmma},
    {LinearKind::kInt8,    kFewTokens,       LinearWay::kWarps,      RunInt8},
    {LinearKind::kInt8,    kAnyRows,         LinearWay::kLibrary,    RunInt8Library},
    {LinearKind::kInt8Outliers, kAnyRows,    LinearWay::kWarps,      RunInt8},
    {LinearKind::kE4M3,    kAnyRows,         LinearWay::kWarps,      RunE4M3},
};
// clang-format on

// The row that multiplies the call, or, with `way`, the first of that way for any number of tokens;
// nullptr if there is none.
const LinearRow* FindRow(const LinearCall& call, std::optional<LinearWay> way) {
  const std::span<const LinearRow> table =
      call.workspace.batch_invariant() ? std::span<const LinearRow>(kInvariantTable) : kLinearTable;
  const auto found = std::find_if(table.begin(), table.end(), [&](const LinearRow& row) {
    return row.kind == call.part.kind && (row.takes == nullptr || row.takes(call)) &&
           (way.has_value() ? row.way == *way : call.args.rows <= row.max_rows);
  });
  return found != table.end() ? &*found : nullptr;
}

// Calls run(call) for each part.
template <typename Run>
absl::Status ForParts(Device& device, LinearWorkspace& workspace, const LinearArgs& args,
                      Run&& run) {
  const auto& linear = *static_cast<const CudaLinear*>(args.linear);
  NIBBLE_CHECK(args.in.count == static_cast<int>(linear.formats.size()));
  if (args.rows == 0) return absl::OkStatus();
  for (const LinearPart& part : linear.parts) {
    const ActView& in = args.in.views[static_cast<size_t>(part.format)];
    if (absl::Status status = run(LinearCall{device, workspace, part, in, args}); !status.ok()) {
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunCudaLinear(Device& device, LinearWorkspace& workspace, const LinearArgs& args) {
  return ForParts(device, workspace, args, [](const LinearCall& call) {
    const LinearRow* row = FindRow(call, std::nullopt);
    NIBBLE_CHECK(row != nullptr);
    return row->run(call);
  });
}

absl::Status RunCudaLinearBy(LinearWay way, Device& device, LinearWorkspace& workspace,
                             const LinearArgs& args, bool* chosen) {
  *chosen = true;
  return ForParts(device, workspace, args, [way, chosen](const LinearCall& call) {
    const LinearRow* row = FindRow(call, way);
    if (row == nullptr) return absl::UnimplementedError("the weight is not multiplied that way");
    *chosen = *chosen && FindRow(call, std::nullopt)->way == way;
    return row->run(call);
  });
}

}  // namespace nibble
