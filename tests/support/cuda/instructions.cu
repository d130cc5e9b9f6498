// SPDX-License-Identifier: Apache-2.0
// One warp, or one warp for each of a few blocks; nothing here is fast or needs to be.
#include <bit>

#include "kernels/cuda/launch.h"
#include "tests/support/cuda/instructions.h"

namespace nibble::testing {
namespace {

struct InstructionParams {
  Instruction instruction;
  const uint32_t* in;
  uint32_t* out;
};

struct InstructionKernel {
  using Params = InstructionParams;
  static constexpr int kThreads = simt::kWarp;
  static constexpr int kMinBlocks = 1;
  static constexpr size_t kSharedBytes = 16 * simt::kWarp;

  static NIBBLE_DEVICE float Float(uint32_t word) { return std::bit_cast<float>(word); }
  static NIBBLE_DEVICE uint32_t Word(float value) { return std::bit_cast<uint32_t>(value); }

  template <typename Mma, typename T>
  static NIBBLE_DEVICE void Multiply(Mma&& mma, const uint32_t* in, uint32_t* out, T (&d)[4]) {
    const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
    NIBBLE_UNROLL
    for (int i = 0; i < 4; ++i) d[i] = std::bit_cast<T>(in[6 + i]);
    mma(d, a, b);
    NIBBLE_UNROLL
    for (int i = 0; i < 4; ++i) out[i] = std::bit_cast<uint32_t>(d[i]);
  }

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    const uint32_t* in = p.in + kInstructionIn * simt::Lane();
    uint32_t* out = p.out + kInstructionOut * simt::Lane();
    auto* row = reinterpret_cast<uint32_t*>(simt::Shared() + 16 * simt::Lane());
    float f[4];
    int32_t s[4];
    uint32_t r[4];
    switch (p.instruction) {
      case Instruction::kShuffleXor:
        out[0] = simt::ShuffleXorBits(in[0], static_cast<int>(in[1]));
        break;
      case Instruction::kShuffle:
        out[0] = simt::ShuffleBits(in[0], static_cast<int>(in[1]));
        break;
      case Instruction::kBallot:
        out[0] = simt::Ballot(in[0] != 0);
        break;
      case Instruction::kLowestBit:
        out[0] = static_cast<uint32_t>(simt::LowestBit(in[0]));
        break;
      case Instruction::kLoadMatrix4:
      case Instruction::kLoadMatrix4Transposed:
        for (int i = 0; i < 4; ++i) row[i] = in[i];
        simt::SyncWarp();
        if (p.instruction == Instruction::kLoadMatrix4) {
          simt::LoadMatrix4(r, row);
        } else {
          simt::LoadMatrix4Transposed(r, row);
        }
        for (int i = 0; i < 4; ++i) out[i] = r[i];
        break;
      case Instruction::kMmaBF16:
        Multiply([](auto& d, const auto& a, const auto& b) { simt::MmaBF16(d, a, b); }, in, out, f);
        break;
      case Instruction::kMmaF16:
        Multiply([](auto& d, const auto& a, const auto& b) { simt::MmaF16(d, a, b); }, in, out, f);
        break;
      case Instruction::kMmaS8:
        Multiply([](auto& d, const auto& a, const auto& b) { simt::MmaS8(d, a, b); }, in, out, s);
        break;
      case Instruction::kAddBF16x2:
        out[0] = simt::AddBF16x2(in[0], in[1]);
        break;
      case Instruction::kSubBF16x2:
        out[0] = simt::SubBF16x2(in[0], in[1]);
        break;
      case Instruction::kMulBF16x2:
        out[0] = simt::MulBF16x2(in[0], in[1]);
        break;
      case Instruction::kFmaBF16x2:
        out[0] = simt::FmaBF16x2(in[0], in[1], in[2]);
        break;
      case Instruction::kAddF16x2:
        out[0] = simt::AddF16x2(in[0], in[1]);
        break;
      case Instruction::kSubF16x2:
        out[0] = simt::SubF16x2(in[0], in[1]);
        break;
      case Instruction::kMulF16x2:
        out[0] = simt::MulF16x2(in[0], in[1]);
        break;
      case Instruction::kFmaF16x2:
        out[0] = simt::FmaF16x2(in[0], in[1], in[2]);
        break;
      case Instruction::kPackBF16x2:
        out[0] = simt::PackBF16x2(Float(in[0]), Float(in[1]));
        break;
      case Instruction::kPackF16x2:
        out[0] = simt::PackF16x2(Float(in[0]), Float(in[1]));
        break;
      case Instruction::kMaskOr:
        out[0] = simt::MaskOr(in[0], in[1], in[2]);
        break;
      case Instruction::kPickBytes:
        out[0] = simt::PickBytes(in[0], in[1], in[2]);
        break;
      case Instruction::kExp2:
        out[0] = Word(simt::Exp2(Float(in[0])));
        break;
      case Instruction::kLog2:
        out[0] = Word(simt::Log2(Float(in[0])));
        break;
      case Instruction::kTanh:
        out[0] = Word(simt::Tanh(Float(in[0])));
        break;
      case Instruction::kReciprocal:
        out[0] = Word(simt::Reciprocal(Float(in[0])));
        break;
      case Instruction::kCopyAsync16:
      case Instruction::kCopyAsync16Stream:
      case Instruction::kCopyAsync4:
        for (int i = 0; i < 4; ++i) row[i] = ~0u;
        if (p.instruction == Instruction::kCopyAsync16) {
          simt::CopyAsync16(row, in, in[4] != 0);
        } else if (p.instruction == Instruction::kCopyAsync16Stream) {
          simt::CopyAsync16Stream(row, in, in[4] != 0);
        } else {
          simt::CopyAsync4(row, in, in[4] != 0);
        }
        simt::CommitCopies();
        simt::WaitCopies<0>();
        for (int i = 0; i < 4; ++i) out[i] = row[i];
        break;
    }
    simt::StartNextKernel();
  }
};

struct BatonParams {
  int32_t* turn;
  uint32_t* data;
  uint32_t* arrived;
};

struct BatonKernel {
  using Params = BatonParams;
  static constexpr int kThreads = 64;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    simt::WaitForPreviousKernel();
    simt::AtomicAdd(p.arrived, 1u);
    const int32_t mine = simt::GridX() - 1 - simt::BlockX();
    if (simt::Thread() == 0) {
      while (simt::LoadAcquire(p.turn) != mine) simt::Pause();
    }
    simt::SyncThreads();
    p.data[simt::Thread()] += (static_cast<uint32_t>(simt::BlockX()) << 16) + 1;
    simt::FenceDevice();
    simt::SyncThreads();
    if (simt::Thread() == 0) simt::StoreRelease(p.turn, mine + 1);
    simt::StartNextKernel();
  }
};

}  // namespace

void LaunchInstruction(Device& device, Instruction instruction, const uint32_t* in, uint32_t* out) {
  LaunchShape shape;
  shape.threads = InstructionKernel::kThreads;
  shape.shared_bytes = InstructionKernel::kSharedBytes;
  Launch<InstructionKernel>(device.stream(), shape, {instruction, in, out});
}

void LaunchBaton(Device& device, int blocks, int32_t* turn, uint32_t* data, uint32_t* arrived) {
  LaunchShape shape;
  shape.grid_x = blocks;
  shape.threads = BatonKernel::kThreads;
  Launch<BatonKernel>(device.stream(), shape, {turn, data, arrived});
}

}  // namespace nibble::testing
