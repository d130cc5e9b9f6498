// SPDX-License-Identifier: Apache-2.0
// Draws a token per row of logits: the semantics of SamplingRow (kernels/ops.h).
//
// The draw walks the tokens in descending order until their mass exceeds a target. Nothing is
// sorted for that: a histogram over orders (sample.h) tells in which bin the target lies; a bin
// with too many tokens is divided again, one with few is gathered, sorted and walked. Masses are
// integers, so atomic additions in any order give the same bits. top_k and top_p are the same
// search for another target.
//
// Tiling: a block per row, so that rows are independent; a row is read 3 times for a plain draw and
// once or twice more for each of top_k, top_p, min_p and top log-probabilities. Limit: the loads of
// one multiprocessor while there are fewer rows than multiprocessors; the second-level cache holds
// the rows.
#include <cfloat>
#include <cstring>

#include "kernels/check.h"
#include "kernels/cuda/block.h"
#include "kernels/cuda/sample.h"
#include "kernels/sampling.h"

namespace nibble {
namespace {

constexpr int kBins = 1024;
constexpr int kCandidates = 2048;
// The first histogram divides what lies within so many temperatures of the largest logit: few
// tokens with nearly all mass. The rest shares its last bin.
constexpr float kWindow = 8.0f;

struct Histogram {
  uint32_t count[kBins];
  uint32_t low[kBins];  // of the mass
  uint32_t high[kBins];
};

// Orders from `first` in bins of 2^shift; the last bin reaches to `last`.
struct Level {
  Histogram* histogram;
  uint64_t first;
  uint64_t last;
  int shift;
};

struct Found {
  uint64_t first, last;   // of the bin
  uint64_t count;         // in the bin
  uint64_t count_before;  // in the bins before it
  uint64_t mass_before;
};

struct Selected {
  uint64_t order;  // of the token
  uint64_t mass;   // of the tokens before it and its own
};

struct SharedState {
  uint64_t scratch[kBlockScratch];
  uint64_t candidates[kCandidates];
  Histogram window;
  Histogram finer;
  Found found;
  Selected selected;
  uint32_t held;
};

// The smallest shift that makes [first, last] fit `bins` bins.
NIBBLE_DEVICE int ShiftFor(uint64_t first, uint64_t last, uint64_t bins) {
  int shift = 0;
  while (((last - first) >> shift) >= bins) ++shift;
  return shift;
}

class RowSampler {
 public:
  NIBBLE_DEVICE RowSampler(const SampleLaunch& p, int64_t row)
      : shared_(*reinterpret_cast<SharedState*>(simt::Shared())),
        logits_(p.logits + row * p.vocabulary),
        vocabulary_(static_cast<uint32_t>(p.vocabulary)) {}

  NIBBLE_DEVICE void Edit(const PackedSamplingRow& packed, const int32_t* words) {
    const SamplingRow& p = packed.row;
    const int32_t* list = words + packed.lists;
    for (int32_t i = simt::Thread(); i < p.num_bias; i += simt::Threads()) {
      logits_[list[i]] += std::bit_cast<float>(list[p.num_bias + i]);
    }
    list += 2 * int64_t{p.num_bias};
    simt::SyncThreads();
    for (int32_t i = simt::Thread(); i < p.num_banned; i += simt::Threads()) {
      logits_[list[i]] = -INFINITY;
    }
    list += p.num_banned;
    simt::SyncThreads();
    for (int32_t i = simt::Thread(); i < p.num_seen; i += simt::Threads()) {
      float& logit = logits_[list[i]];
      logit = Penalize(logit, list[p.num_seen + i], p.repetition_penalty, p.presence_penalty,
                       p.frequency_penalty);
    }
    simt::SyncThreads();
  }

  // The first of the largest logits; false if one is NaN or +inf, or all are -inf.
  NIBBLE_DEVICE bool FindLargest() {
    uint64_t best = ~uint64_t{0};
    uint64_t possible = 0, bad = 0;
    ForEach([&](float logit, uint32_t id) {
      if (!(logit < INFINITY)) bad = 1;
      if (!(logit > -INFINITY)) return;
      ++possible;
      const uint64_t order = SampleOrder(logit, id);
      best = order < best ? order : best;
    });
    best_ =
        BlockReduce(best, shared_.scratch, [](uint64_t a, uint64_t b) { return a < b ? a : b; });
    largest_ = LogitOfOrder(best_);
    possible_ = BlockSum(possible, shared_.scratch);
    return BlockSum(bad, shared_.scratch) == 0 && possible_ > 0;
  }

  NIBBLE_DEVICE uint32_t Draw(const SamplingRow& p) {
    SetTemperature(p.temperature);
    uint64_t total = total_;
    if (p.top_k > 0 && static_cast<uint64_t>(p.top_k) < possible_) {
      total = Select(static_cast<uint64_t>(p.top_k) - 1, false).mass;
    }
    if (p.top_p < 1.0f) {
      // The shortest run whose mass reaches top_p of what top_k left, at least one token.
      const double wanted = std::ceil(static_cast<double>(p.top_p) * static_cast<double>(total));
      const uint64_t least = wanted < 1.0 ? 1 : static_cast<uint64_t>(wanted);
      total = Select((least < total ? least : total) - 1, true).mass;
    }
    if (p.min_p > 0.0f) {
      const uint64_t mass = MassFrom(p.min_p);
      total = mass < total ? mass : total;
    }
    const auto target = static_cast<uint64_t>(UniformAt(p.seed, p.choice, p.position, 0) *
                                              static_cast<double>(total));
    return IdOfOrder(Select(target < total ? target : total - 1, true).order);
  }

  // `count` top ones.
  NIBBLE_DEVICE void LogProbabilities(int32_t count, uint32_t token, SampleResult& result) {
    if (temperature_ != 1.0f) SetTemperature(1.0f);
    const double normalizer =
        static_cast<double>(largest_) +
        std::log(static_cast<double>(total_) / static_cast<double>(kSampleOne));
    const auto logprob = [normalizer](float logit) {
      return static_cast<float>(static_cast<double>(logit) - normalizer);
    };
    count = count < kMaxLogprobs ? count : kMaxLogprobs;
    if (static_cast<uint64_t>(count) > possible_) count = static_cast<int32_t>(possible_);
    if (count > 0) {
      const uint64_t last = Select(static_cast<uint64_t>(count) - 1, false).order;
      GatherSorted(best_, last);
    }
    for (int32_t i = simt::Thread(); i < count; i += simt::Threads()) {
      const uint64_t order = shared_.candidates[i];
      result.top_ids[static_cast<size_t>(i)] = static_cast<int32_t>(IdOfOrder(order));
      result.top_logprobs[static_cast<size_t>(i)] = logprob(LogitOfOrder(order));
    }
    if (simt::Thread() == 0) {
      result.num_top = count;
      result.logprob = logprob(logits_[token]);
    }
  }

  NIBBLE_DEVICE uint32_t best() const { return IdOfOrder(best_); }

 private:
  template <typename Visit>
  NIBBLE_DEVICE void ForEach(Visit visit) const {
    const auto threads = static_cast<uint32_t>(simt::Threads());
    const auto thread = static_cast<uint32_t>(simt::Thread());
    const uint32_t vectors = vocabulary_ % 4 == 0 ? vocabulary_ / 4 : 0;
    const auto* row = reinterpret_cast<const simt::Vec16*>(logits_);
    constexpr uint32_t kDeep = 4;  // loads under way in a thread
    for (uint32_t begin = thread; begin < vectors; begin += kDeep * threads) {
      simt::Vec16 loads[kDeep];
      NIBBLE_UNROLL
      for (uint32_t d = 0; d < kDeep; ++d) {
        const uint32_t v = begin + d * threads;
        loads[d] = row[v < vectors ? v : begin];
      }
      NIBBLE_UNROLL
      for (uint32_t d = 0; d < kDeep; ++d) {
        const uint32_t v = begin + d * threads;
        if (v >= vectors) break;
        NIBBLE_UNROLL
        for (uint32_t e = 0; e < 4; ++e) visit(std::bit_cast<float>(loads[d].word[e]), 4 * v + e);
      }
    }
    for (uint32_t i = 4 * vectors + thread; i < vocabulary_; i += threads) visit(logits_[i], i);
  }

  NIBBLE_DEVICE uint64_t Mass(float logit) const {
    return SampleMass(SampleWeight(logit, largest_, temperature_));
  }

  // Fills the first histogram and total_.
  NIBBLE_DEVICE void SetTemperature(float temperature) {
    temperature_ = temperature;
    const float edge = largest_ - kWindow * temperature;
    window_.histogram = &shared_.window;
    window_.first = best_;
    window_.last = SampleOrder(-FLT_MAX, vocabulary_ - 1);
    window_.shift =
        ShiftFor(best_, SampleOrder(edge > -FLT_MAX ? edge : -FLT_MAX, vocabulary_), kBins - 1);
    total_ = Fill(window_);
  }

  // The mass of the level.
  NIBBLE_DEVICE uint64_t Fill(const Level& level) {
    Histogram& h = *level.histogram;
    for (int bin = simt::Thread(); bin < kBins; bin += simt::Threads()) {
      h.count[bin] = h.low[bin] = h.high[bin] = 0;
    }
    simt::SyncThreads();
    // Most tokens lie in the last bin, which is summed without atomic operations.
    uint64_t rest = 0, rest_count = 0, all = 0;
    ForEach([&](float logit, uint32_t id) {
      if (!(logit > -INFINITY)) return;
      const uint64_t order = SampleOrder(logit, id);
      if (order < level.first || order > level.last) return;
      const uint64_t mass = Mass(logit);
      all += mass;
      const uint64_t bin = (order - level.first) >> level.shift;
      if (bin >= kBins - 1) {
        ++rest_count;
        rest += mass;
        return;
      }
      simt::AtomicAdd(&h.count[bin], 1u);
      const auto low = static_cast<uint32_t>(mass);
      const uint32_t carry = simt::AtomicAdd(&h.low[bin], low) > ~low ? 1 : 0;
      simt::AtomicAdd(&h.high[bin], static_cast<uint32_t>(mass >> 32) + carry);
    });
    rest = BlockSum(rest, shared_.scratch);
    rest_count = BlockSum(rest_count, shared_.scratch);
    if (simt::Thread() == 0) {
      h.count[kBins - 1] = static_cast<uint32_t>(rest_count);
      h.low[kBins - 1] = static_cast<uint32_t>(rest);
      h.high[kBins - 1] = static_cast<uint32_t>(rest >> 32);
    }
    return BlockSum(all, shared_.scratch);  // a barrier behind the histogram
  }

  NIBBLE_DEVICE static uint64_t MassOf(const Histogram& h, int bin) {
    return uint64_t{h.high[bin]} << 32 | h.low[bin];
  }

  // The bin in which the running mass, or the running count, first exceeds `target`.
  NIBBLE_DEVICE Found Find(const Level& level, uint64_t target, bool by_mass) {
    const Histogram& h = *level.histogram;
    const int each = kBins / simt::Threads();
    const int begin = simt::Thread() * each;
    uint64_t mass = 0, count = 0;
    for (int bin = begin; bin < begin + each; ++bin) {
      count += h.count[bin];
      mass += MassOf(h, bin);
    }
    mass = BlockScan(mass, shared_.scratch).before;
    count = BlockScan(count, shared_.scratch).before;
    for (int bin = begin; bin < begin + each; ++bin) {
      const uint64_t before = by_mass ? mass : count;
      const uint64_t own = by_mass ? MassOf(h, bin) : h.count[bin];
      if (target >= before && target - before < own) {
        const uint64_t first = level.first + (static_cast<uint64_t>(bin) << level.shift);
        const uint64_t end = first + (uint64_t{1} << level.shift) - 1;
        shared_.found = {first, bin == kBins - 1 || end > level.last ? level.last : end,
                         h.count[bin], count, mass};
      }
      count += h.count[bin];
      mass += MassOf(h, bin);
    }
    simt::SyncThreads();
    const Found found = shared_.found;
    simt::SyncThreads();
    return found;
  }

  // The token with which the mass, or the count, of a walk down the tokens first exceeds `target`,
  // which must be less than that of all.
  NIBBLE_DEVICE Selected Select(uint64_t target, bool by_mass) {
    Level level = window_;
    uint64_t mass_before = 0;
    Found bin;
    while (true) {
      bin = Find(level, target, by_mass);
      target -= by_mass ? bin.mass_before : bin.count_before;
      mass_before += bin.mass_before;
      if (bin.count <= kCandidates) break;
      level = {&shared_.finer, bin.first, bin.last, ShiftFor(bin.first, bin.last, kBins)};
      Fill(level);
    }
    const int held = GatherSorted(bin.first, bin.last);
    const int each = (held + simt::Threads() - 1) / simt::Threads();
    const int begin = simt::Thread() * each;
    const int end = begin + each < held ? begin + each : held;
    uint64_t mass = 0;
    for (int i = begin; i < end; ++i) mass += Mass(LogitOfOrder(shared_.candidates[i]));
    mass = BlockScan(mass, shared_.scratch).before;
    for (int i = begin; i < end; ++i) {
      const uint64_t own = Mass(LogitOfOrder(shared_.candidates[i]));
      const bool here =
          by_mass ? target >= mass && target - mass < own : target == static_cast<uint64_t>(i);
      mass += own;
      if (here) shared_.selected = {shared_.candidates[i], mass_before + mass};
    }
    simt::SyncThreads();
    const Selected selected = shared_.selected;
    simt::SyncThreads();
    return selected;
  }

  // The orders within [first, last], at most kCandidates, ascending in shared memory; how many.
  NIBBLE_DEVICE int GatherSorted(uint64_t first, uint64_t last) {
    if (simt::Thread() == 0) shared_.held = 0;
    simt::SyncThreads();
    ForEach([&](float logit, uint32_t id) {
      const uint64_t order = SampleOrder(logit, id);
      if (order < first || order > last) return;
      shared_.candidates[simt::AtomicAdd(&shared_.held, 1u)] = order;
    });
    simt::SyncThreads();
    const auto held = static_cast<int>(shared_.held);
    int size = 1;
    while (size < held) size *= 2;
    for (int i = held + simt::Thread(); i < size; i += simt::Threads()) {
      shared_.candidates[i] = ~uint64_t{0};
    }
    simt::SyncThreads();
    // Bitonic (Batcher 1968): which token came first into its place does not show in the result.
    for (int run = 2; run <= size; run *= 2) {
      for (int step = run / 2; step > 0; step /= 2) {
        for (int i = simt::Thread(); i < size / 2; i += simt::Threads()) {
          const int a = 2 * i - (i & (step - 1));
          const uint64_t low = shared_.candidates[a], high = shared_.candidates[a + step];
          if ((low > high) == ((a & run) == 0)) {
            shared_.candidates[a] = high;
            shared_.candidates[a + step] = low;
          }
        }
        simt::SyncThreads();
      }
    }
    return held;
  }

  // The mass of the tokens whose weight is at least `least` of the largest, which is 1.
  NIBBLE_DEVICE uint64_t MassFrom(float least) {
    uint64_t mass = 0;
    ForEach([&](float logit, uint32_t) {
      const float weight = SampleWeight(logit, largest_, temperature_);
      if (weight >= least) mass += SampleMass(weight);
    });
    mass = BlockSum(mass, shared_.scratch);
    return mass > 0 ? mass : SampleMass(1.0f);
  }

  SharedState& shared_;
  float* logits_;
  uint32_t vocabulary_;
  uint64_t best_ = 0;
  float largest_ = 0;
  uint64_t possible_ = 0;     // logits above -inf
  float temperature_ = 0.0f;  // of window_ and total_
  Level window_{};
  uint64_t total_ = 0;
};

struct SampleKernel {
  using Params = SampleLaunch;
  static constexpr int kThreads = 512;
  static constexpr int kMinBlocks = 1;

  static NIBBLE_DEVICE void Run(const Params& p) {
    const int64_t row = simt::BlockX();
    const auto* rows = static_cast<const PackedSamplingRow*>(p.packed);
    const PackedSamplingRow& packed = rows[row];
    const SamplingRow& params = packed.row;
    SampleResult& result = p.results[row];
    simt::WaitForPreviousKernel();
    for (int i = simt::Thread(); i < kMaxLogprobs; i += simt::Threads()) {
      result.top_ids[static_cast<size_t>(i)] = 0;
      result.top_logprobs[static_cast<size_t>(i)] = 0.0f;
    }
    RowSampler sampler(p, row);
    sampler.Edit(packed, reinterpret_cast<const int32_t*>(rows + p.rows));
    const bool finite = sampler.FindLargest();
    if (simt::Thread() == 0) {
      result.finite = finite;
      result.token = 0;
      result.logprob = 0.0f;
      result.num_top = 0;
    }
    if (!finite) return;
    const uint32_t token = params.temperature > 0.0f ? sampler.Draw(params) : sampler.best();
    if (simt::Thread() == 0) result.token = static_cast<int32_t>(token);
    if (params.logprobs >= 0) sampler.LogProbabilities(params.logprobs, token, result);
    simt::StartNextKernel();
  }
};

bool Penalizes(const SamplingRow& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
         row.frequency_penalty != 0.0f;
}

}  // namespace

size_t PackedSamplingBytes(std::span<const SamplingRow> rows) {
  size_t words = 0;
  for (const SamplingRow& row : rows) {
    words += 2 * static_cast<size_t>(row.num_bias) + static_cast<size_t>(row.num_banned);
    if (Penalizes(row)) words += 2 * static_cast<size_t>(row.num_seen);
  }
  return rows.size() * sizeof(PackedSamplingRow) + words * sizeof(int32_t);
}

void PackSampling(std::span<const SamplingRow> rows, void* to) {
  auto* packed = static_cast<PackedSamplingRow*>(to);
  auto* const words = reinterpret_cast<int32_t*>(packed + rows.size());
  int64_t used = 0;
  const auto append = [&](const void* list, int32_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(int32_t);
    if (list != nullptr) {
      std::memcpy(words + used, list, bytes);
    } else {
      std::memset(words + used, 0, bytes);
    }
    used += count;
  };
  for (const SamplingRow& row : rows) {
    PackedSamplingRow& out = *packed++;
    out.row = row;
    out.row.num_seen = Penalizes(row) ? row.num_seen : 0;
    out.lists = used;
    append(row.bias_ids, row.num_bias);
    append(row.bias, row.num_bias);
    append(row.banned_ids, row.num_banned);
    append(row.seen_ids, out.row.num_seen);
    append(row.output_counts, out.row.num_seen);
    out.row.bias_ids = out.row.banned_ids = out.row.seen_ids = out.row.output_counts = nullptr;
    out.row.bias = nullptr;
  }
}

void LaunchSample(Device& device, const SampleLaunch& args) {
  if (args.rows == 0) return;
  NIBBLE_CHECK(args.vocabulary >= 1 && args.vocabulary <= kMaxSampleVocabulary);
  LaunchShape shape;
  shape.grid_x = static_cast<int>(args.rows);
  shape.threads = args.vocabulary >= 16384 ? 512 : args.vocabulary >= 2048 ? 256 : 64;
  shape.shared_bytes = sizeof(SharedState);
  Launch<SampleKernel>(device.stream(), shape, args);
}

}  // namespace nibble
