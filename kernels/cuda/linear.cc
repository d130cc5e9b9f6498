// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/linear.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/linear_e4m3.h"
#include "kernels/cuda/linear_exact.h"
#include "kernels/cuda/linear_rows.h"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/pack_weight.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/scale_sums.h"

namespace nibble {
namespace {

constexpr int64_t kAnyRows = std::numeric_limits<int64_t>::max();
// Up to kFewTokens bytes of the weights count, above it multiplications. Up to kFewestTokens
// blocks of 32 features read more bytes of weights than of tokens.
constexpr int64_t kFewTokens = 64;
constexpr int64_t kFewestTokens = 32;
// Weights are dequantized in slices of output features of at most this size, whole output tiles:
// the library takes it that every matrix is aligned to 256 bytes.
constexpr size_t kSliceBytes = size_t{128} << 20;
constexpr int64_t kSliceStep = kPackedTile;
// Codes of e4m3 that the library does not multiply are widened for so many tokens and output
// features at a time.
constexpr int64_t kWidenedTokens = 2048;
constexpr int64_t kWidenedFeatures = 8192;

// ---- How it is multiplied

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

// Sums of a slice of tokens and output features at a time, which the second-level cache holds until
// they are scaled; the next slice's overwrite them there.
struct SumSlice {
  int64_t tokens, features;
};
constexpr int64_t kSumFeatures = 256;  // at least, and in steps of
constexpr int64_t kSumTokens = 2048;   // at most
size_t SumBytes(const DeviceInfo& device) {
  return std::max(device.cache_bytes / 2, size_t{1} << 18);
}
SumSlice SumSliceOf(size_t bytes, int64_t rows) {
  const auto sums = static_cast<int64_t>(bytes / sizeof(int32_t));
  const int64_t tokens = std::min({rows, kSumTokens, sums / kSumFeatures});
  return {tokens, sums / tokens / kSumFeatures * kSumFeatures};
}

absl::Status MultiplyInt8(const LinearCall& call, int i) {
  const DeviceWeight& weight = call.weight(i);
  const float* scales = call.part.scales[static_cast<size_t>(i)];
  const SumSlice slice = SumSliceOf(SumBytes(call.device.info()), call.args.rows);
  Matmul matmul;
  matmul.in = DType::kI8;
  matmul.out = DType::kI32;
  matmul.k = matmul.lda = matmul.ldb = weight.cols;
  matmul.d = call.workspace.sums();
  for (int64_t row = 0; row < call.args.rows; row += slice.tokens) {
    matmul.m = std::min(slice.tokens, call.args.rows - row);
    matmul.a = static_cast<const int8_t*>(call.in.data) + row * weight.cols;
    Floats out = call.out(i);
    out.data = static_cast<uint8_t*>(out.data) +
               row * weight.rows * static_cast<int64_t>(BytesOf(out.dtype));
    for (int64_t first = 0; first < weight.rows; first += slice.features) {
      matmul.n = matmul.ldd = std::min(slice.features, weight.rows - first);
      matmul.b = static_cast<const int8_t*>(weight.codes) + first * weight.cols;
      if (absl::Status status = call.device.Multiply(matmul); !status.ok()) return status;
      LaunchScaleSums(call.device,
                      {call.workspace.sums(), DType::kI32, call.in.scales + row, scales + first,
                       call.bias(i) != nullptr ? call.bias(i) + first : nullptr, matmul.m, matmul.n,
                       out, first, weight.rows});
    }
  }
  return absl::OkStatus();
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
  const DeviceWeight& weight = call.weight(i);
  const auto* codes = static_cast<const uint8_t*>(weight.codes);
  const float* scales = call.part.scales[static_cast<size_t>(i)];
  const int64_t slice = std::min(SliceFeatures(call, i), kWidenedFeatures);
  Matmul matmul;
  matmul.k = matmul.lda = matmul.ldb = weight.cols;
  matmul.a = call.workspace.tokens();
  matmul.b = call.workspace.dequantized();
  matmul.d = call.workspace.sums();
  matmul.out = DType::kF32;
  for (int64_t row = 0; row < call.args.rows; row += kWidenedTokens) {
    matmul.m = std::min(kWidenedTokens, call.args.rows - row);
    LaunchWidenE4M3(call.device, static_cast<const uint8_t*>(call.in.data) + row * weight.cols,
                    matmul.m * weight.cols, call.workspace.tokens());
    Floats out = call.out(i);
    out.data = static_cast<uint8_t*>(out.data) +
               row * weight.rows * static_cast<int64_t>(BytesOf(out.dtype));
    for (int64_t first = 0; first < weight.rows; first += slice) {
      matmul.n = matmul.ldd = std::min(slice, weight.rows - first);
      LaunchWidenE4M3(call.device, codes + first * weight.cols, matmul.n * weight.cols,
                      call.workspace.dequantized());
      if (absl::Status status = call.device.Multiply(matmul); !status.ok()) return status;
      LaunchScaleSums(call.device,
                      {call.workspace.sums(), DType::kF32, call.in.scales + row, scales + first,
                       call.bias(i) != nullptr ? call.bias(i) + first : nullptr, matmul.m, matmul.n,
                       out, first, weight.rows});
    }
  }
  return absl::OkStatus();
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
  absl::Status (*run)(const LinearCall& call);
  bool (*takes)(const LinearCall& call) = nullptr;  // any call
};
// clang-format off
constexpr LinearRow kLinearTable[] = {
    {LinearKind::kExact,   kAnyRows,         RunExact},
    {LinearKind::kDense,   kAnyRows,         RunDense},
    {LinearKind::kStored,  8,                RunExact},
    {LinearKind::kStored,  kAnyRows,         RunDequantized},
    {LinearKind::kPacked4, kMaxLinearTokens, RunW4A16},
    {LinearKind::kPacked4, kAnyRows,         RunUnpacked},
    {LinearKind::kPacked8, kMaxLinearTokens, RunW8A16},
    {LinearKind::kPacked8, kAnyRows,         RunUnpacked},
    {LinearKind::kInt8,    kFewestTokens,    RunInt8},
    {LinearKind::kInt8,    kAnyRows,         RunInt8Wgmma, TakesInt8Wgmma},
    {LinearKind::kInt8,    kFewTokens,       RunInt8},
    {LinearKind::kInt8,    kAnyRows,         RunInt8Library},
    {LinearKind::kInt8Outliers, kAnyRows,    RunInt8},
    {LinearKind::kE4M3,    kMaxE4M3Tokens,   RunE4M3},
    {LinearKind::kE4M3,    kAnyRows,         RunE4M3Library},
};
// CudaOptions::batch_invariant. Each of these computes a row from its own token alone, and those of
// one kind to the same bits.
constexpr LinearRow kInvariantTable[] = {
    {LinearKind::kExact,   kAnyRows,         RunExact},
    {LinearKind::kDense,   kAnyRows,         RunDenseRows},
    {LinearKind::kStored,  kAnyRows,         RunDequantizedRows},
    {LinearKind::kPacked4, kAnyRows,         RunW4A16},
    {LinearKind::kPacked8, kAnyRows,         RunW8A16},
    {LinearKind::kInt8,    kFewestTokens,    RunInt8},  // sums are exact: the same bits
    {LinearKind::kInt8,    kAnyRows,         RunInt8Wgmma, TakesInt8Wgmma},
    {LinearKind::kInt8,    kFewTokens,       RunInt8},
    {LinearKind::kInt8,    kAnyRows,         RunInt8Library},
    {LinearKind::kInt8Outliers, kAnyRows,    RunInt8},
    {LinearKind::kE4M3,    kAnyRows,         RunE4M3},
};
// clang-format on

// ---- How it is kept

// Outliers are still those of the view.
ActFormat InputFormat(const WeightView& view, Mode mode) {
  const Scheme& scheme = *view.scheme;
  if (view.outliers > 0) {
    return {DType::kI8, kWholeRow, {static_cast<int32_t>(view.outliers), view.outlier_features}};
  }
  if (scheme.activation == Activation::kInt8PerToken) return {DType::kI8, kWholeRow};
  if (scheme.activation == Activation::kE4M3PerToken) return {DType::kF8E4M3, kWholeRow};
  return {mode == Mode::kExact ? DType::kF32 : DType::kBF16, 0};
}

bool IsPacked(LinearKind kind) {
  return kind == LinearKind::kPacked4 || kind == LinearKind::kPacked8;
}
// Products of dequantized weights.
bool WantsSlices(LinearKind kind) {
  return kind == LinearKind::kStored || kind == LinearKind::kE4M3 || IsPacked(kind);
}

// Whether neighbours are multiplied in one launch.
bool SharesPart(const WeightView& a, const WeightView& b, Mode mode) {
  const LinearKind kind = LinearKindOf(*a.scheme, mode);
  if (kind != LinearKindOf(*b.scheme, mode)) return false;
  if (kind == LinearKind::kInt8Outliers) {
    return SameInput(InputFormat(a, mode), InputFormat(b, mode));
  }
  return kind == LinearKind::kInt8 || kind == LinearKind::kE4M3 ||
         (IsPacked(kind) && PackedFormatOf(*a.scheme) == PackedFormatOf(*b.scheme));
}

// The stored form is on the device only while it is repacked.
template <typename Pack>
absl::StatusOr<DeviceWeight> Repack(Device& device, const WeightView& view, Pack&& pack) {
  std::vector<DeviceMemory> stored;
  absl::StatusOr<DeviceWeight> weight = UploadWeight(device, view, &stored);
  if (!weight.ok()) return weight.status();
  pack(*weight);
  if (absl::Status status = device.Sync(); !status.ok()) return status;
  weight->codes = weight->scales = weight->zeros = weight->nested = nullptr;
  return weight;
}

absl::Status PackPart(Device& device, std::span<const WeightView> views, LinearPart* part) {
  PackedLayout layout;
  layout.format = PackedFormatOf(*views[0].scheme);
  layout.k_tiles = PackedTiles(views[0].cols);
  for (const WeightView& view : views) layout.n_tiles += PackedTiles(view.rows);
  absl::StatusOr<DeviceMemory> packed =
      DeviceMemory::Allocate(device, static_cast<size_t>(layout.Bytes()));
  if (!packed.ok()) return packed.status();
  part->packed = PackedWeight{layout, packed->as<uint8_t>()};
  int tile = 0;
  for (size_t i = 0; i < views.size(); ++i) {
    absl::StatusOr<DeviceWeight> weight = Repack(device, views[i], [&](const DeviceWeight& stored) {
      LaunchPackWeight(device, stored, part->packed, tile);
    });
    if (!weight.ok()) return weight.status();
    part->weights[i] = *weight;
    tile += PackedTiles(views[i].rows);
  }
  part->memory.push_back(*std::move(packed));
  return absl::OkStatus();
}

absl::Status UploadPart(Device& device, std::span<const WeightView> views, LinearPart* part) {
  for (size_t i = 0; i < views.size(); ++i) {
    absl::StatusOr<DeviceWeight> weight = UploadWeight(device, views[i], &part->memory);
    if (!weight.ok()) return weight.status();
    part->weights[i] = *weight;
  }
  return absl::OkStatus();
}

// As stored, and the scales.
absl::Status KeepRowsPart(Device& device, std::span<const WeightView> views, LinearPart* part) {
  if (absl::Status status = UploadPart(device, views, part); !status.ok()) return status;
  for (size_t i = 0; i < views.size(); ++i) {
    const auto rows = static_cast<size_t>(views[i].rows);
    absl::StatusOr<DeviceMemory> scales = DeviceMemory::Allocate(device, rows * sizeof(float));
    if (!scales.ok()) return scales.status();
    LaunchRowScales(device, part->weights[i], scales->as<float>());
    part->scales[i] = scales->as<float>();
    part->memory.push_back(*std::move(scales));
  }
  return absl::OkStatus();
}

absl::Status KeepInt8Part(Device& device, LinearWorkspace& workspace,
                          std::span<const WeightView> views, LinearPart* part) {
  if (views[0].cols > kMaxInt8LinearCols) {
    return absl::UnimplementedError(absl::StrCat(std::string(views[0].scheme->name),
                                                 " on CUDA takes up to ", kMaxInt8LinearCols,
                                                 " input features; a weight has ", views[0].cols));
  }
  if (part->kind == LinearKind::kInt8 && !TakesLinearWgmma(device.info(), views[0].cols)) {
    if (absl::Status status = workspace.ReserveSums(device, SumBytes(device.info()));
        !status.ok()) {
      return status;
    }
  }
  return KeepRowsPart(device, views, part);
}

absl::Status KeepE4M3Part(Device& device, LinearWorkspace& workspace,
                          std::span<const WeightView> views, LinearPart* part) {
  for (const WeightView& view : views) {
    const int64_t features = std::min(view.rows, kWidenedFeatures);
    if (absl::Status status = workspace.ReserveTokens(
            device, static_cast<size_t>(kWidenedTokens * view.cols) * sizeof(uint16_t));
        !status.ok()) {
      return status;
    }
    if (absl::Status status = workspace.ReserveSums(
            device, static_cast<size_t>(kWidenedTokens * features) * sizeof(float));
        !status.ok()) {
      return status;
    }
  }
  return KeepRowsPart(device, views, part);
}

// The weights as the part's kind keeps them.
absl::Status KeepPart(Device& device, LinearWorkspace& workspace, std::span<const WeightView> views,
                      LinearPart* part) {
  switch (part->kind) {
    case LinearKind::kExact:
    case LinearKind::kDense:
    case LinearKind::kStored:
      return UploadPart(device, views, part);
    case LinearKind::kPacked4:
    case LinearKind::kPacked8:
      if (absl::Status status = PackPart(device, views, part); !status.ok()) return status;
      return workspace.ReserveTiles(device, part->packed.layout.n_tiles);
    case LinearKind::kInt8:
    case LinearKind::kInt8Outliers:
      return KeepInt8Part(device, workspace, views, part);
    case LinearKind::kE4M3:
      return KeepE4M3Part(device, workspace, views, part);
  }
  return absl::OkStatus();
}

absl::Status Reserve(Device& device, size_t bytes, DeviceMemory* memory) {
  if (bytes <= memory->bytes()) return absl::OkStatus();
  *memory = DeviceMemory();
  absl::StatusOr<DeviceMemory> allocated = DeviceMemory::Allocate(device, bytes);
  if (!allocated.ok()) return allocated.status();
  *memory = *std::move(allocated);
  return absl::OkStatus();
}

}  // namespace

LinearKind LinearKindOf(const Scheme& scheme, Mode mode) {
  if (scheme.outliers) return LinearKind::kInt8Outliers;
  if (scheme.activation == Activation::kInt8PerToken) return LinearKind::kInt8;
  if (scheme.activation == Activation::kE4M3PerToken) return LinearKind::kE4M3;
  if (mode == Mode::kExact) return LinearKind::kExact;
  if (HasPackedFormat(scheme)) {
    return scheme.bits() == 4 ? LinearKind::kPacked4 : LinearKind::kPacked8;
  }
  return scheme.code == DType::kBF16 ? LinearKind::kDense : LinearKind::kStored;
}

size_t CudaLinear::resident_bytes() const {
  size_t bytes = 0;
  for (const LinearPart& part : parts) {
    for (const DeviceMemory& memory : part.memory) bytes += memory.bytes();
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<LinearWorkspace>> LinearWorkspace::Make(Device& device,
                                                                       const CudaOptions& options) {
  auto workspace = std::make_unique<LinearWorkspace>();
  workspace->options_ = options;
  absl::StatusOr<DeviceMemory> parts = DeviceMemory::Allocate(
      device, static_cast<size_t>(LinearPartFloats(device.info().multiprocessors)) * sizeof(float));
  if (!parts.ok()) return parts.status();
  workspace->parts_ = *std::move(parts);
  return workspace;
}

LinearScratch LinearWorkspace::packed() const {
  return {parts_.as<float>(), arrived_.as<int32_t>()};
}

absl::Status LinearWorkspace::ReserveDequantized(Device& device, size_t bytes) {
  return Reserve(device, bytes, &dequantized_);
}
absl::Status LinearWorkspace::ReserveTiles(Device& device, int64_t output_tiles) {
  return Reserve(device, static_cast<size_t>(output_tiles * kMaxLinearPasses) * sizeof(int32_t),
                 &arrived_);
}
absl::Status LinearWorkspace::ReserveTokens(Device& device, size_t bytes) {
  return Reserve(device, bytes, &tokens_);
}
absl::Status LinearWorkspace::ReserveSums(Device& device, size_t bytes) {
  return Reserve(device, bytes, &sums_);
}

absl::StatusOr<DeviceWeight> UploadWeight(Device& device, const WeightView& view,
                                          std::vector<DeviceMemory>* memory) {
  WeightView copy = view;
  for (const StoredTensor& tensor : StoredTensors(view)) {
    const void* host = view.Get(tensor.part);
    const auto bytes = static_cast<size_t>(tensor.bytes());
    if (host == nullptr || bytes == 0) continue;
    absl::StatusOr<DeviceMemory> allocated = DeviceMemory::Allocate(device, bytes);
    if (!allocated.ok()) return allocated.status();
    device.CopyIn(allocated->data(), host, bytes);
    copy.Set(tensor.part, allocated->data());
    memory->push_back(*std::move(allocated));
  }
  DeviceWeight weight;
  weight.scheme = *view.scheme;
  weight.rows = view.rows;
  weight.cols = view.cols;
  weight.codes = copy.codes;
  weight.scales = copy.scales;
  weight.zeros = copy.zeros;
  weight.nested = copy.nested;
  weight.outliers = copy.outliers;
  weight.outlier_weights = copy.outlier_weights;
  weight.outlier_features = copy.outlier_features;
  return weight;
}

absl::StatusOr<std::unique_ptr<CudaLinear>> PrepareCudaLinear(Device& device,
                                                              LinearWorkspace& workspace,
                                                              const LinearGroup& group, Mode mode) {
  NIBBLE_CHECK(!group.weights.empty() && group.weights.size() <= kMaxGroupWeights);
  auto linear = std::make_unique<CudaLinear>();
  std::vector<ActFormat> wanted;  // CudaLinear::formats with the lists of the views
  for (size_t i = 0; i < group.weights.size();) {
    const WeightView& first = group.weights[i];
    size_t end = i + 1;
    while (end < group.weights.size() && SharesPart(first, group.weights[end], mode)) ++end;
    const std::span<const WeightView> views(group.weights.data() + i, end - i);
    LinearPart part;
    part.first = static_cast<int>(i);
    part.count = static_cast<int>(views.size());
    part.kind = LinearKindOf(*first.scheme, mode);
    if (absl::Status status = KeepPart(device, workspace, views, &part); !status.ok()) {
      return status;
    }
    ActFormat format = InputFormat(first, mode);
    const auto found =
        std::find_if(wanted.begin(), wanted.end(),
                     [&format](const ActFormat& other) { return SameInput(other, format); });
    part.format = static_cast<int>(found - wanted.begin());
    if (found == wanted.end()) {
      wanted.push_back(format);
      format.outliers.features = part.weights[0].outlier_features;
      linear->formats.push_back(format);
    }
    for (size_t w = 0; w < views.size(); ++w) {
      const float* bias = i + w < group.biases.size() ? group.biases[i + w] : nullptr;
      if (bias == nullptr) continue;
      const size_t bytes = static_cast<size_t>(views[w].rows) * sizeof(float);
      absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(device, bytes);
      if (!memory.ok()) return memory.status();
      device.CopyIn(memory->data(), bias, bytes);
      part.biases[w] = memory->as<float>();
      part.memory.push_back(*std::move(memory));
    }
    if (WantsSlices(part.kind)) {
      for (const WeightView& view : views) {
        const size_t row = static_cast<size_t>(view.cols) * sizeof(uint16_t);
        const size_t whole = row * static_cast<size_t>(view.rows);
        if (absl::Status status = workspace.ReserveDequantized(
                device, std::min(whole, std::max(row * kSliceStep, kSliceBytes)));
            !status.ok()) {
          return status;
        }
      }
    }
    linear->parts.push_back(std::move(part));
    i = end;
  }
  if (absl::Status status = device.Sync(); !status.ok()) return status;
  return linear;
}

EmbeddingTable TableOf(const LinearPart& part) {
  NIBBLE_CHECK(part.count == 1);
  const DeviceWeight& weight = part.weights[0];
  switch (part.kind) {
    case LinearKind::kPacked4:
    case LinearKind::kPacked8:
      return PackedTable{part.packed, weight.cols};
    case LinearKind::kExact:
    case LinearKind::kDense:
    case LinearKind::kStored:
    case LinearKind::kInt8:
    case LinearKind::kInt8Outliers:
    case LinearKind::kE4M3:
      break;
  }
  return StoredTable{weight};
}

absl::Status RunCudaLinear(Device& device, LinearWorkspace& workspace, const LinearArgs& args) {
  const auto& linear = *static_cast<const CudaLinear*>(args.linear);
  NIBBLE_CHECK(args.in.count == static_cast<int>(linear.formats.size()));
  if (args.rows == 0) return absl::OkStatus();
  for (const LinearPart& part : linear.parts) {
    const LinearCall call{device, workspace, part, args.in.views[static_cast<size_t>(part.format)],
                          args};
    const LinearRow* row = workspace.batch_invariant() ? kInvariantTable : kLinearTable;
    while (row->kind != part.kind || args.rows > row->max_rows ||
           (row->takes != nullptr && !row->takes(call))) {
      ++row;
    }
    if (absl::Status status = row->run(call); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace nibble
