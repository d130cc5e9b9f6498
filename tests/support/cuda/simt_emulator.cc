// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/simt_emulator.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/simt_hopper.h"
#include "tests/support/cuda/emulator_state.h"

namespace nibble {
namespace emulator {

Run* g_run = nullptr;

void Fail(const std::string& what) { throw std::logic_error("emulator: " + what); }

Fibre& Self() {
  if (g_run == nullptr || g_run->current == nullptr) Fail("called outside a kernel");
  return *g_run->current;
}

void Wait(Fibre& lane, const uint32_t& round, uint32_t seen) {
  lane.round = &round;
  lane.seen = seen;
  lane.fiber->Yield();
}

void MakeCopy(const PendingCopy& copy) {
  if (copy.global != nullptr) {
    std::memcpy(copy.shared, copy.global, copy.bytes);
  } else {
    std::memset(copy.shared, 0, copy.bytes);
  }
}

void CheckShared(const void* address, size_t bytes, size_t alignment, const char* what) {
  const Block& block = *Self().block;
  const auto* at = static_cast<const uint8_t*>(address);
  if (at < block.shared || at + bytes > block.shared + g_run->shape.shared_bytes) {
    Fail(std::string(what) + " outside the block's shared memory");
  }
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    Fail(std::string(what) + " is not aligned to " + std::to_string(alignment));
  }
}

}  // namespace emulator

namespace {

using namespace emulator;
using testing::Emulator;
using testing::Fiber;
using testing::Schedule;

constexpr size_t kStackBytes = size_t{64} << 10;
constexpr int kMaxPauses = 10'000'000;

// Collects `in` of every lane; the last one runs compute(warp), which fills warp.out.
template <typename Compute>
std::array<uint32_t, kMaxWords> Exchange(const char* operation, const uint32_t* in, int words,
                                         const void* pointer, Compute&& compute) {
  Fibre& lane = Self();
  Warp& warp = lane.warp();
  const size_t i = lane.index();
  if (warp.live != kLanes) Fail(std::string(operation) + " after lanes have ended");
  if (warp.arrived == 0) warp.operation = operation;
  if (std::strcmp(warp.operation, operation) != 0) {
    Fail(std::string(operation) + " in one lane, " + warp.operation + " in another");
  }
  for (int w = 0; w < words; ++w) warp.in[i][static_cast<size_t>(w)] = in[w];
  warp.pointers[i] = pointer;
  if (++warp.arrived == kLanes) {
    compute(warp);
    warp.arrived = 0;
    ++warp.round;
  } else {
    Wait(lane, warp.round, warp.round);
  }
  return warp.out[i];
}

void Finish(Fibre& lane, std::vector<PendingCopy>& group) {
  for (const PendingCopy& copy : group) {
    const auto place =
        static_cast<size_t>(static_cast<uint8_t*>(copy.shared) - lane.block->shared) / 16;
    lane.block->unfenced[place] = 1;
    lane.unfenced.push_back(place);
    MakeCopy(copy);
  }
  group.clear();
}

void RunLane(Fibre& lane, const std::function<void()>& thread) {
  thread();
  for (auto& group : lane.groups) Finish(lane, group);
  Finish(lane, lane.open);
  CheckEnded(lane);
  Warp& warp = lane.warp();
  if (warp.arrived != 0) Fail(std::string("a lane ended while others wait in ") + warp.operation);
  --warp.live;
  const auto leave = [](auto& group) {
    --group.live;
    if (group.arrived > 0 && group.arrived == group.live) {
      group.arrived = 0;
      ++group.round;
    }
  };
  leave(*lane.block);
  leave(*lane.block->cluster);
}

// Element `e` (0 or 1) of a register that holds two.
uint16_t Half(uint32_t word, int e) { return static_cast<uint16_t>(word >> (16 * e)); }
int8_t Byte(uint32_t word, int e) { return static_cast<int8_t>(word >> (8 * e)); }

template <typename ToFloat>
void MultiplyFragments(Warp& warp, ToFloat&& to_float) {
  float a[16][16], b[16][8];
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const auto& in = warp.in[lane];
    const size_t g = lane / 4, t = lane % 4;
    for (size_t e = 0; e < 2; ++e) {
      for (size_t r = 0; r < 4; ++r) {
        a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + e] = to_float(Half(in[r], static_cast<int>(e)));
      }
      for (size_t r = 0; r < 2; ++r) {
        b[2 * t + 8 * r + e][g] = to_float(Half(in[4 + r], static_cast<int>(e)));
      }
    }
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const size_t g = lane / 4, t = lane % 4;
    for (size_t e = 0; e < 4; ++e) {
      double sum = 0;
      for (size_t k = 0; k < 16; ++k) {
        sum += static_cast<double>(a[g + 8 * (e / 2)][k]) * b[k][2 * t + e % 2];
      }
      warp.out[lane][e] = std::bit_cast<uint32_t>(static_cast<float>(sum));
    }
  }
}

void MultiplyBytes(Warp& warp) {
  int32_t a[16][32], b[32][8];
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const auto& in = warp.in[lane];
    const size_t g = lane / 4, t = lane % 4;
    for (size_t e = 0; e < 4; ++e) {
      for (size_t r = 0; r < 4; ++r) {
        a[g + 8 * (r % 2)][4 * t + 16 * (r / 2) + e] = Byte(in[r], static_cast<int>(e));
      }
      for (size_t r = 0; r < 2; ++r) {
        b[4 * t + 16 * r + e][g] = Byte(in[4 + r], static_cast<int>(e));
      }
    }
  }
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const size_t g = lane / 4, t = lane % 4;
    for (size_t e = 0; e < 4; ++e) {
      int32_t sum = 0;
      for (size_t k = 0; k < 32; ++k) sum += a[g + 8 * (e / 2)][k] * b[k][2 * t + e % 2];
      warp.out[lane][e] = static_cast<uint32_t>(sum);
    }
  }
}

void LoadMatrices(uint32_t (&r)[4], const void* row, bool transposed) {
  CheckShared(row, 16, 16, "a matrix row");
  const auto out = Exchange(
      transposed ? "LoadMatrix4Transposed" : "LoadMatrix4", nullptr, 0, row,
      [transposed](Warp& warp) {
        for (size_t lane = 0; lane < kLanes; ++lane) {
          for (size_t j = 0; j < 4; ++j) {
            uint32_t word = 0;
            for (size_t e = 0; e < 2; ++e) {
              const size_t line = transposed ? 2 * (lane % 4) + e : lane / 4;
              const size_t column = transposed ? lane / 4 : 2 * (lane % 4) + e;
              uint16_t value;
              std::memcpy(&value,
                          static_cast<const uint8_t*>(warp.pointers[8 * j + line]) + 2 * column, 2);
              word |= static_cast<uint32_t>(value) << (16 * e);
            }
            warp.out[lane][j] = word;
          }
        }
      });
  std::copy_n(out.begin(), 4, r);
}

template <typename ToFloat>
void Mma(const char* name, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         ToFloat&& to_float) {
  const uint32_t in[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto out =
      Exchange(name, in, 6, nullptr, [&](Warp& warp) { MultiplyFragments(warp, to_float); });
  for (size_t i = 0; i < 4; ++i) d[i] += std::bit_cast<float>(out[i]);
}

template <typename Operation>
uint32_t OnPairs(uint32_t a, uint32_t b, uint32_t c, bool bf16, Operation&& operation) {
  uint32_t result = 0;
  for (int e = 0; e < 2; ++e) {
    // Products and sums of two such numbers are exact in double: one rounding to f32 and one to 16
    // bits could still differ from a single one, so f32 is skipped where it matters.
    const auto load = [&](uint32_t word) {
      return static_cast<double>(bf16 ? BF16ToF32(Half(word, e)) : F16ToF32(Half(word, e)));
    };
    const double exact = operation(load(a), load(b), load(c));
    // Round to odd in f32 first: the second rounding then sees whether anything was cut off.
    float rounded = static_cast<float>(exact);
    if (std::isfinite(rounded) && static_cast<double>(rounded) != exact) {
      uint32_t bits = std::bit_cast<uint32_t>(rounded);
      if (std::abs(static_cast<double>(rounded)) > std::abs(exact)) --bits;
      rounded = std::bit_cast<float>(bits | 1u);
    }
    const uint16_t half = bf16 ? F32ToBF16(rounded) : F32ToF16(rounded);
    result |= static_cast<uint32_t>(half) << (16 * e);
  }
  return result;
}

}  // namespace

testing::EmulatorOptions& testing::Emulator() {
  static EmulatorOptions options;
  return options;
}

testing::LaunchList*& testing::RecordedLaunches() {
  static LaunchList* list = nullptr;
  return list;
}

void EmulateLaunch(const LaunchShape& shape, const std::function<void()>& thread) {
  if (testing::LaunchList* list = testing::RecordedLaunches(); list != nullptr) {
    list->push_back([shape, thread] { EmulateLaunch(shape, thread); });
    return;
  }
  if (g_run != nullptr) Fail("a launch inside a kernel");
  if (shape.threads < kLanes || shape.threads > 1024 || shape.threads % kLanes != 0) {
    Fail("blocks of " + std::to_string(shape.threads) + " threads");
  }
  if (shape.shared_bytes > (size_t{227} << 10)) Fail("more shared memory than a block can have");
  if (shape.grid_x < 1 || shape.grid_y < 1 || shape.grid_z < 1 || shape.grid_y > 65535 ||
      shape.grid_z > 65535) {
    Fail("an empty or too large grid");
  }
  const auto cluster_size = static_cast<size_t>(shape.cluster_x);
  if (shape.cluster_x < 1 || shape.cluster_x > 8 || shape.grid_x % shape.cluster_x != 0) {
    Fail("a grid that is not of whole clusters of up to 8 blocks");
  }
  Run run{shape, nullptr};
  struct Restore {
    ~Restore() { g_run = nullptr; }
  } restore;
  g_run = &run;

  const int64_t blocks = int64_t{shape.grid_x} * shape.grid_y * shape.grid_z;
  const auto threads = static_cast<size_t>(shape.threads);
  const auto allowed = static_cast<size_t>(std::max(1, Emulator().resident_blocks));
  const size_t resident = std::min(static_cast<size_t>(blocks),
                                   std::max(allowed / cluster_size, size_t{1}) * cluster_size);
  std::vector<Block> slots(resident);
  std::vector<Cluster> clusters(resident / cluster_size);
  std::vector<Fibre> lanes(resident * threads);
  std::exception_ptr failure;
  int64_t next_block = 0;
  const auto start = [&](size_t slot) {
    Block& block = slots[slot];
    const int64_t index = next_block++;
    block.x = static_cast<int>(index % shape.grid_x);
    block.y = static_cast<int>(index / shape.grid_x % shape.grid_y);
    block.z = static_cast<int>(index / shape.grid_x / shape.grid_y);
    block.arrived = 0;
    block.live = shape.threads;
    block.memory.assign(shape.shared_bytes + 128, kPoison);
    block.shared = reinterpret_cast<uint8_t*>(
        (reinterpret_cast<uintptr_t>(block.memory.data()) + 127) / 128 * 128);
    block.warps.assign(threads / kLanes, Warp{});
    for (Warp& warp : block.warps) warp.live = kLanes;
    block.cluster = &clusters[slot / cluster_size];
    block.cluster->blocks.push_back(&block);
    block.barriers.clear();
    block.warpgroups.assign(threads / simt::kWarpgroup, Warpgroup{});
    block.unfenced.assign(shape.shared_bytes / 16 + 1, 0);
    for (size_t t = 0; t < threads; ++t) {
      Fibre& lane = lanes[slot * threads + t];
      lane.block = &block;
      lane.thread = static_cast<int>(t);
      lane.round = nullptr;
      lane.pauses = 0;
      lane.groups.clear();
      lane.open.clear();
      lane.unfenced.clear();
      lane.products = 0;
      lane.wgmma_fence = false;
      if (lane.fiber == nullptr) lane.fiber = std::make_unique<Fiber>(kStackBytes);
      lane.fiber->Start([&lane, &thread, &failure] {
        try {
          RunLane(lane, thread);
        } catch (...) {
          if (failure == nullptr) failure = std::current_exception();
        }
      });
    }
  };
  // Blocks of a cluster begin together and make room together.
  const auto start_cluster = [&](size_t index) {
    clusters[index] = Cluster{{}, 0, shape.threads * shape.cluster_x, 0};
    for (size_t slot = index * cluster_size; slot < (index + 1) * cluster_size; ++slot) start(slot);
  };
  for (size_t index = 0; index < clusters.size(); ++index) start_cluster(index);

  const auto place = [](size_t n, size_t count) {
    return Emulator().schedule == Schedule::kAscending ? n : count - 1 - n;
  };
  const auto done = [](const Fibre& lane) { return lane.fiber->done(); };
  while (!std::all_of(lanes.begin(), lanes.end(), done)) {
    bool moved = false;
    for (size_t w = 0; w < lanes.size() / kLanes; ++w) {
      const size_t first = place(w, lanes.size() / kLanes) * kLanes;
      bool again = true;
      while (again) {  // the warp goes on while it waits for no other
        again = false;
        for (size_t n = 0; n < kLanes; ++n) {
          const size_t i = first + place(n, kLanes);
          Fibre& lane = lanes[i];
          if (done(lane) || (lane.round != nullptr && *lane.round == lane.seen)) continue;
          lane.round = nullptr;
          moved = true;
          run.current = &lane;
          const int pauses = lane.pauses;
          lane.fiber->Resume();
          run.current = nullptr;
          // Fibres that are under way are dropped; what they hold on their stacks is plain data.
          if (failure != nullptr) std::rethrow_exception(failure);
          again |= lane.pauses == pauses;
          if (lane.block->cluster->live == 0 && next_block < blocks) {
            start_cluster(i / threads / cluster_size);
          }
        }
      }
    }
    if (!moved) Fail("a barrier or a warp-wide operation that some threads never reach");
  }
}

namespace simt {

int Thread() { return Self().thread; }
int Threads() { return g_run->shape.threads; }
int BlockX() { return Self().block->x; }
int BlockY() { return Self().block->y; }
int BlockZ() { return Self().block->z; }
int GridX() { return g_run->shape.grid_x; }
int GridY() { return g_run->shape.grid_y; }
uint8_t* Shared() { return Self().block->shared; }

void SyncThreads() {
  Fibre& lane = Self();
  Block& block = *lane.block;
  if (++block.arrived == block.live) {
    block.arrived = 0;
    ++block.round;
  } else {
    Wait(lane, block.round, block.round);
  }
}
void SyncWarp() {
  Exchange("SyncWarp", nullptr, 0, nullptr, [](Warp&) {});
}
uint32_t ShuffleXorBits(uint32_t value, int mask) {
  if (mask < 0 || mask >= kLanes) Fail("a shuffle mask outside 0..31");
  const auto out = Exchange("ShuffleXor", &value, 1, nullptr, [](Warp& warp) {
    for (size_t i = 0; i < kLanes; ++i) warp.out[i][0] = warp.in[i][0];
  });
  const Fibre& lane = Self();
  return mask == 0 ? out[0] : lane.warp().out[lane.index() ^ static_cast<size_t>(mask)][0];
}
uint32_t ShuffleBits(uint32_t value, int from_lane) {
  if (from_lane < 0 || from_lane >= kLanes) Fail("a shuffle from a lane outside 0..31");
  Exchange("Shuffle", &value, 1, nullptr, [](Warp& warp) {
    for (size_t i = 0; i < kLanes; ++i) warp.out[i][0] = warp.in[i][0];
  });
  return Self().warp().out[static_cast<size_t>(from_lane)][0];
}
uint32_t Ballot(bool predicate) {
  const uint32_t in = predicate ? 1 : 0;
  return Exchange("Ballot", &in, 1, nullptr, [](Warp& warp) {
    uint32_t mask = 0;
    for (size_t i = 0; i < kLanes; ++i) mask |= warp.in[i][0] << i;
    for (size_t i = 0; i < kLanes; ++i) warp.out[i][0] = mask;
  })[0];
}

int LowestBit(uint32_t bits) { return std::countr_zero(bits); }

int32_t LoadAcquire(const int32_t* address) { return *address; }
void StoreRelease(int32_t* address, int32_t value) { *address = value; }
int32_t AtomicAdd(int32_t* address, int32_t value) {
  const int32_t old = *address;
  *address += value;
  return old;
}
uint32_t AtomicAdd(uint32_t* address, uint32_t value) {
  const uint32_t old = *address;
  *address += value;
  return old;
}
void FenceDevice() {}
void Pause() {
  Fibre& lane = Self();
  if (++lane.pauses > kMaxPauses) Fail("a thread waits for another block for ever");
  lane.round = nullptr;
  lane.fiber->Yield();
}

namespace {
void StartCopy(void* shared, const void* global, bool valid, size_t bytes) {
  CheckShared(shared, bytes, bytes, "the target of an asynchronous copy");
  if (valid && reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    Fail("the source of an asynchronous copy is not aligned to " + std::to_string(bytes));
  }
  std::memset(shared, kPoison, bytes);
  Self().open.push_back({shared, valid ? global : nullptr, bytes});
}
}  // namespace

void CopyAsync16(void* shared, const void* global, bool valid) {
  StartCopy(shared, global, valid, 16);
}
void CopyAsync4(void* shared, const void* global, bool valid) {
  StartCopy(shared, global, valid, 4);
}
void CopyAsync16Stream(void* shared, const void* global, bool valid) {
  CopyAsync16(shared, global, valid);
}
void CommitCopies() {
  Fibre& lane = Self();
  lane.groups.push_back(std::move(lane.open));
  lane.open.clear();
}
void WaitCopiesUpTo(int pending) {
  Fibre& lane = Self();
  while (lane.groups.size() > static_cast<size_t>(pending)) {
    Finish(lane, lane.groups.front());
    lane.groups.erase(lane.groups.begin());
  }
}

void LoadMatrix4(uint32_t (&r)[4], const void* row) { LoadMatrices(r, row, false); }
void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row) { LoadMatrices(r, row, true); }
void MmaBF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Mma("MmaBF16", d, a, b, [](uint16_t half) { return BF16ToF32(half); });
}
void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Mma("MmaF16", d, a, b, [](uint16_t half) { return F16ToF32(half); });
}
void MmaS8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const uint32_t in[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto out = Exchange("MmaS8", in, 6, nullptr, MultiplyBytes);
  for (size_t i = 0; i < 4; ++i) d[i] += static_cast<int32_t>(out[i]);
}

uint32_t AddBF16x2(uint32_t a, uint32_t b) {
  return OnPairs(a, b, 0, true, [](double x, double y, double) { return x + y; });
}
uint32_t SubBF16x2(uint32_t a, uint32_t b) {
  return OnPairs(a, b, 0, true, [](double x, double y, double) { return x - y; });
}
uint32_t MulBF16x2(uint32_t a, uint32_t b) {
  return OnPairs(a, b, 0, true, [](double x, double y, double) { return x * y; });
}
uint32_t FmaBF16x2(uint32_t a, uint32_t b, uint32_t c) {
  return OnPairs(a, b, c, true, [](double x, double y, double z) { return x * y + z; });
}
uint32_t AddF16x2(uint32_t a, uint32_t b) {
  return OnPairs(a, b, 0, false, [](double x, double y, double) { return x + y; });
}
uint32_t SubF16x2(uint32_t a, uint32_t b) {
  return OnPairs(a, b, 0, false, [](double x, double y, double) { return x - y; });
}
uint32_t MulF16x2(uint32_t a, uint32_t b) {
  return OnPairs(a, b, 0, false, [](double x, double y, double) { return x * y; });
}
uint32_t FmaF16x2(uint32_t a, uint32_t b, uint32_t c) {
  return OnPairs(a, b, c, false, [](double x, double y, double z) { return x * y + z; });
}
uint32_t PackBF16x2(float low, float high) {
  return F32ToBF16(low) | static_cast<uint32_t>(F32ToBF16(high)) << 16;
}
uint32_t PackF16x2(float low, float high) {
  return F32ToF16(low) | static_cast<uint32_t>(F32ToF16(high)) << 16;
}
int Afresh(int value) { return value; }
uint32_t MaskOr(uint32_t a, uint32_t mask, uint32_t bits) { return (a & mask) | bits; }
uint32_t PickBytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = (uint64_t{high} << 32) | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = (selector >> (4 * i)) & 15u;
    if (nibble > 7) Fail("a byte selector above 7");
    result |= static_cast<uint32_t>((bytes >> (8 * nibble)) & 0xffu) << (8 * i);
  }
  return result;
}

float Exp2(float x) { return std::exp2(x); }
float Log2(float x) { return std::log2(x); }
float Tanh(float x) { return std::tanh(x); }
float Reciprocal(float x) { return 1.0f / x; }
void WaitForPreviousKernel() {}
void StartNextKernel() {}

}  // namespace simt
}  // namespace nibble
