// SPDX-License-Identifier: Apache-2.0
// The words of kernels/cuda/simt.h against what they are defined to mean.
#include "tests/support/cuda/instructions.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <random>

#include "kernels/dtype.h"
#include "tests/kernels/cuda/on_device.h"
#include "tests/support/near.h"

namespace nibble::testing {
namespace {

constexpr int kLanes = 32;

// in[i] and out[i] are word i of each lane.
using Words = std::vector<std::array<uint32_t, kLanes>>;

Words Execute(Instruction instruction, const Words& in) {
  std::vector<uint32_t> packed(kLanes * kInstructionIn);
  for (size_t i = 0; i < in.size(); ++i) {
    for (size_t lane = 0; lane < kLanes; ++lane) packed[lane * kInstructionIn + i] = in[i][lane];
  }
  const OnDevice<uint32_t> from(packed);
  const auto to = OnDevice<uint32_t>::Poisoned(kLanes * kInstructionOut);
  LaunchInstruction(TestDevice(), instruction, from.data(), to.data());
  const std::vector<uint32_t> read = to.Read();
  Words out(kInstructionOut);
  for (size_t i = 0; i < out.size(); ++i) {
    for (size_t lane = 0; lane < kLanes; ++lane) out[i][lane] = read[lane * kInstructionOut + i];
  }
  return out;
}

std::array<uint32_t, kLanes> Lanes(const std::function<uint32_t(int)>& of) {
  std::array<uint32_t, kLanes> words;
  for (int lane = 0; lane < kLanes; ++lane) words[static_cast<size_t>(lane)] = of(lane);
  return words;
}
std::array<uint32_t, kLanes> Floats(const std::function<float(int)>& of) {
  return Lanes([&](int lane) { return std::bit_cast<uint32_t>(of(lane)); });
}

TEST(CudaInstruction, ShufflesAndBallots) {
  const auto value = Lanes([](int lane) { return 0x9e3779b9u * static_cast<uint32_t>(lane + 1); });
  const auto at = [&](int lane) { return value[static_cast<size_t>(lane)]; };
  for (const int mask : {1, 2, 5, 16, 31}) {
    const auto masks = Lanes([&](int) { return static_cast<uint32_t>(mask); });
    EXPECT_EQ(Execute(Instruction::kShuffleXor, {value, masks})[0],
              Lanes([&](int lane) { return at(lane ^ mask); }));
  }
  const auto from = [](int lane) { return (lane * 7 + 3) % kLanes; };
  EXPECT_EQ(Execute(Instruction::kShuffle,
                    {value, Lanes([&](int lane) { return static_cast<uint32_t>(from(lane)); })})[0],
            Lanes([&](int lane) { return at(from(lane)); }));
  EXPECT_EQ(Execute(Instruction::kBallot, {Lanes([](int lane) { return lane % 3 == 0; })})[0],
            Lanes([](int) { return 0x49249249u; }));
  EXPECT_EQ(Execute(Instruction::kLowestBit, {Lanes([](int lane) { return ~0u << lane; })})[0],
            Lanes([](int lane) { return static_cast<uint32_t>(lane); }));
}

// Element e of row r of matrix m is 64 m + 8 r + e.
TEST(CudaInstruction, MatrixLoads) {
  Words rows;
  for (int word = 0; word < 4; ++word) {
    rows.push_back(Lanes([&](int lane) {
      const auto low = static_cast<uint32_t>(8 * lane + 2 * word);
      return low | (low + 1) << 16;
    }));
  }
  const Words plain = Execute(Instruction::kLoadMatrix4, rows);
  const Words transposed = Execute(Instruction::kLoadMatrix4Transposed, rows);
  for (int m = 0; m < 4; ++m) {
    EXPECT_EQ(plain[static_cast<size_t>(m)], Lanes([&](int lane) {
                const auto low = static_cast<uint32_t>(64 * m + 8 * (lane / 4) + 2 * (lane % 4));
                return low | (low + 1) << 16;
              }));
    EXPECT_EQ(transposed[static_cast<size_t>(m)], Lanes([&](int lane) {
                const auto low = static_cast<uint32_t>(64 * m + 16 * (lane % 4) + lane / 4);
                return low | (low + 8) << 16;
              }));
  }
}

// Small whole numbers, whose products and sums are exact in every type.
int A(int row, int k) { return (row * 7 + k * 3) % 11 - 5; }
int B(int k, int column) { return (k * 5 + column * 2) % 9 - 4; }
int D(int row, int column) { return row * 8 + column - 60; }

// Lane by lane what simt.h says of the fragments; `per_word` elements in a word.
Words Fragments(int per_word, const std::function<uint32_t(int)>& element,
                const std::function<uint32_t(int)>& sum) {
  const int bits = 32 / per_word, half = 4 * per_word;
  Words in;
  for (int r = 0; r < 4; ++r) {
    in.push_back(Lanes([&](int lane) {
      uint32_t word = 0;
      for (int e = 0; e < per_word; ++e) {
        const int k = per_word * (lane % 4) + half * (r / 2) + e;
        word |= element(A(lane / 4 + 8 * (r % 2), k)) << (bits * e);
      }
      return word;
    }));
  }
  for (int r = 0; r < 2; ++r) {
    in.push_back(Lanes([&](int lane) {
      uint32_t word = 0;
      for (int e = 0; e < per_word; ++e) {
        word |= element(B(per_word * (lane % 4) + half * r + e, lane / 4)) << (bits * e);
      }
      return word;
    }));
  }
  for (int e = 0; e < 4; ++e) {
    in.push_back(
        Lanes([&](int lane) { return sum(D(lane / 4 + 8 * (e / 2), 2 * (lane % 4) + e % 2)); }));
  }
  return in;
}

int Product(int row, int column, int depth) {
  int sum = D(row, column);
  for (int k = 0; k < depth; ++k) sum += A(row, k) * B(k, column);
  return sum;
}

TEST(CudaInstruction, MatrixProducts) {
  const auto f32 = [](int x) { return std::bit_cast<uint32_t>(static_cast<float>(x)); };
  const auto whole = [](int x) { return static_cast<uint32_t>(x); };
  const auto bf16 = [](int x) { return uint32_t{F32ToBF16(static_cast<float>(x))}; };
  const auto f16 = [](int x) { return uint32_t{F32ToF16(static_cast<float>(x))}; };
  const auto s8 = [](int x) { return static_cast<uint32_t>(x) & 0xffu; };
  struct Kind {
    Instruction instruction;
    Words in;
    int depth;
    std::function<uint32_t(int)> sum;
  };
  for (const Kind& kind : {Kind{Instruction::kMmaBF16, Fragments(2, bf16, f32), 16, f32},
                           Kind{Instruction::kMmaF16, Fragments(2, f16, f32), 16, f32},
                           Kind{Instruction::kMmaS8, Fragments(4, s8, whole), 32, whole}}) {
    const Words out = Execute(kind.instruction, kind.in);
    for (int e = 0; e < 4; ++e) {
      EXPECT_EQ(
          out[static_cast<size_t>(e)], Lanes([&](int lane) {
            return kind.sum(Product(lane / 4 + 8 * (e / 2), 2 * (lane % 4) + e % 2, kind.depth));
          }))
          << kind.depth << " deep, element " << e;
    }
  }
}

// Numbers in [1, 2) of either sign: every product and sum of them is exact in f32, so that rounding
// it is rounding once.
TEST(CudaInstruction, PairsRoundOnce) {
  struct Type {
    uint16_t (*round)(float);
    float (*value)(uint16_t);
    int mantissa;
    Instruction add, sub, mul, fma;
  };
  for (const Type& type :
       {Type{F32ToBF16, BF16ToF32, 7, Instruction::kAddBF16x2, Instruction::kSubBF16x2,
             Instruction::kMulBF16x2, Instruction::kFmaBF16x2},
        Type{F32ToF16, F16ToF32, 10, Instruction::kAddF16x2, Instruction::kSubF16x2,
             Instruction::kMulF16x2, Instruction::kFmaF16x2}}) {
    std::mt19937 random(7);
    const auto pairs = [&] {
      return Lanes([&](int) {
        const auto one = [&] {
          const float size = 1.0f + std::ldexp(static_cast<float>(random() >> (32 - type.mantissa)),
                                               -type.mantissa);
          return uint32_t{type.round(random() % 2 == 0 ? size : -size)};
        };
        const uint32_t low = one();
        return low | one() << 16;
      });
    };
    const auto a = pairs(), b = pairs(), c = pairs();
    const auto expect = [&](Instruction instruction,
                            const std::function<float(float, float, float)>& of) {
      EXPECT_EQ(Execute(instruction, {a, b, c})[0], Lanes([&](int lane) {
                  const auto i = static_cast<size_t>(lane);
                  uint32_t word = 0;
                  for (int half = 0; half < 2; ++half) {
                    const auto value = [&](uint32_t w) {
                      return type.value(static_cast<uint16_t>(w >> (16 * half)));
                    };
                    const float exact = of(value(a[i]), value(b[i]), value(c[i]));
                    word |= uint32_t{type.round(exact)} << (16 * half);
                  }
                  return word;
                }))
          << static_cast<int>(instruction);
    };
    expect(type.add, [](float x, float y, float) { return x + y; });
    expect(type.sub, [](float x, float y, float) { return x - y; });
    expect(type.mul, [](float x, float y, float) { return x * y; });
    expect(type.fma, [](float x, float y, float z) { return x * y + z; });
  }
}

TEST(CudaInstruction, PairsArePackedToNearestTiesToEven) {
  // Between neighbours, at their middle, subnormal, beyond the range, not finite.
  const float values[] = {0.0f,        -0.0f,    1.0f + 0x1p-8f, 1.0f + 0x3p-8f, 1.0f + 0x1p-11f,
                          1.0f / 3.0f, 65519.0f, 65520.0f,       0x1p-25f,       0x3p-25f,
                          -7e-8f,      3.39e38f, INFINITY,       -INFINITY,      1e-40f,
                          -123.456f};
  const auto low = Floats([&](int lane) { return values[lane % 16]; });
  const auto high = Floats([&](int lane) { return values[(lane + 5) % 16]; });
  const auto f32 = [](uint32_t word) { return std::bit_cast<float>(word); };
  EXPECT_EQ(Execute(Instruction::kPackBF16x2, {low, high})[0], Lanes([&](int lane) {
              const auto i = static_cast<size_t>(lane);
              return uint32_t{F32ToBF16(f32(low[i]))} | uint32_t{F32ToBF16(f32(high[i]))} << 16;
            }));
  EXPECT_EQ(Execute(Instruction::kPackF16x2, {low, high})[0], Lanes([&](int lane) {
              const auto i = static_cast<size_t>(lane);
              return uint32_t{F32ToF16(f32(low[i]))} | uint32_t{F32ToF16(f32(high[i]))} << 16;
            }));
}

TEST(CudaInstruction, BitsAreMaskedAndSet) {
  const auto a = Lanes([](int lane) { return 0x9e3779b9u * static_cast<uint32_t>(lane + 1); });
  const auto mask = Lanes([](int lane) { return 0x000f000fu << (lane % 13); });
  const auto bits = Lanes([](int) { return 0x43004300u; });
  EXPECT_EQ(Execute(Instruction::kMaskOr, {a, mask, bits})[0], Lanes([&](int lane) {
              const auto i = static_cast<size_t>(lane);
              return (a[i] & mask[i]) | bits[i];
            }));
}

TEST(CudaInstruction, BytesArePicked) {
  const auto low = Lanes([](int lane) { return 0x33221100u + static_cast<uint32_t>(lane); });
  const auto high = Lanes([](int) { return 0x77665544u; });
  const auto selector = Lanes([](int lane) {
    return static_cast<uint32_t>(lane % 8 | (lane / 8) << 4 | (7 - lane % 8) << 8 | 5 << 12);
  });
  EXPECT_EQ(Execute(Instruction::kPickBytes, {low, high, selector})[0], Lanes([&](int lane) {
              const auto i = static_cast<size_t>(lane);
              const uint64_t bytes = uint64_t{high[i]} << 32 | low[i];
              uint32_t word = 0;
              for (int n = 0; n < 4; ++n) {
                const uint32_t pick = selector[i] >> (4 * n) & 7;
                word |= static_cast<uint32_t>(bytes >> (8 * pick) & 0xff) << (8 * n);
              }
              return word;
            }));
}

TEST(CudaInstruction, ApproximateFunctions) {
  const auto f32 = [](uint32_t word) { return std::bit_cast<float>(word); };
  const auto expect = [&](Instruction instruction, const std::function<float(int)>& x,
                          const std::function<double(double)>& of, double relative,
                          double absolute) {
    const auto in = Floats(x);
    const auto out = Execute(instruction, {in})[0];
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const double expected = of(static_cast<double>(f32(in[lane])));
      EXPECT_TRUE(Near(f32(out[lane]), expected, relative * std::abs(expected) + absolute))
          << static_cast<int>(instruction) << " of " << f32(in[lane]);
    }
  };
  expect(
      Instruction::kExp2, [](int lane) { return -60.0f + 3.7f * static_cast<float>(lane); },
      [](double x) { return std::exp2(x); }, 4e-7, 0);
  expect(
      Instruction::kLog2,
      [](int lane) { return std::ldexp(1.0f + 0.03f * static_cast<float>(lane), lane - 16); },
      [](double x) { return std::log2(x); }, 4e-7, 4e-7);
  expect(
      Instruction::kTanh, [](int lane) { return 0.4f * static_cast<float>(lane - 16); },
      [](double x) { return std::tanh(x); }, 1e-3, 0);
  expect(
      Instruction::kReciprocal, [](int lane) { return 0.01f + 1.7f * static_cast<float>(lane); },
      [](double x) { return 1 / x; }, 4e-7, 0);
  // Softmax needs these to be exact.
  const auto edges = Execute(
      Instruction::kExp2, {Floats([](int lane) { return lane % 2 == 0 ? -INFINITY : 0.0f; })})[0];
  EXPECT_EQ(edges, Floats([](int lane) { return lane % 2 == 0 ? 0.0f : 1.0f; }));
  const auto nan = Execute(Instruction::kExp2, {Floats([](int) { return NAN; })})[0];
  for (const uint32_t word : nan) EXPECT_TRUE(std::isnan(f32(word)));
}

TEST(CudaInstruction, AsynchronousCopiesMoveBytesOrZeros) {
  Words in;
  for (uint32_t i = 0; i < 4; ++i) {
    in.push_back(Lanes([&](int lane) { return 100 * i + static_cast<uint32_t>(lane); }));
  }
  in.push_back(Lanes([](int lane) { return lane % 3 != 0; }));
  for (const Instruction instruction :
       {Instruction::kCopyAsync16, Instruction::kCopyAsync16Stream, Instruction::kCopyAsync4}) {
    const Words out = Execute(instruction, in);
    for (uint32_t i = 0; i < 4; ++i) {
      EXPECT_EQ(out[i], Lanes([&](int lane) {
                  if (instruction == Instruction::kCopyAsync4 && i > 0) return ~0u;
                  return lane % 3 != 0 ? in[i][static_cast<size_t>(lane)] : 0u;
                }))
          << static_cast<int>(instruction) << " word " << i;
    }
  }
}

TEST(CudaInstruction, BlocksSeeWhatWasReleasedToThem) {
  constexpr int kBlocks = 8;
  const OnDevice<int32_t> turn(std::vector<int32_t>{0});
  std::vector<uint32_t> numbers(64);
  for (uint32_t i = 0; i < 64; ++i) numbers[i] = i;
  const OnDevice<uint32_t> data(numbers), arrived(std::vector<uint32_t>{0});
  LaunchBaton(TestDevice(), kBlocks, turn.data(), data.data(), arrived.data());
  EXPECT_EQ(turn.Read()[0], kBlocks);
  EXPECT_EQ(arrived.Read()[0], 64u * kBlocks);
  constexpr uint32_t kSum = (kBlocks * (kBlocks - 1) / 2 << 16) + kBlocks;
  for (uint32_t i = 0; i < 64; ++i) numbers[i] += kSum;
  EXPECT_EQ(data.Read(), numbers);
}

}  // namespace
}  // namespace nibble::testing
