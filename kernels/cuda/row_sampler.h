// SPDX-License-Identifier: Apache-2.0
// Draws the token of one row by the blocks that share it; sample.cu says how.
#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/cuda/sample_memory.h"
#include "kernels/sampling.h"

namespace nibble {

// The smallest shift that makes [first, last] fit `bins` bins.
NIBBLE_DEVICE int SampleShift(uint64_t first, uint64_t last, uint64_t bins) {
  int shift = 0;
  while (((last - first) >> shift) >= bins) ++shift;
  return shift;
}

class RowSampler {
 public:
  NIBBLE_DEVICE RowSampler(const SampleParams& p, int64_t row, int part)
      : shared_(*reinterpret_cast<SampleShared*>(simt::Shared())),
        exchange_(static_cast<SampleExchange*>(p.launch.scratch) + (p.parts > 1 ? row : 0)),
        parts_(p.parts),
        part_(part),
        cache_(p.cached ? reinterpret_cast<float*>(&shared_ + 1) : nullptr),
        begin_(static_cast<uint32_t>(part * p.part)),
        vocabulary_(static_cast<uint32_t>(p.launch.vocabulary)) {
    const int64_t left = p.launch.vocabulary - part * p.part;
    count_ = static_cast<uint32_t>(left < 0 ? 0 : left < p.part ? left : p.part);
    logits_ = p.launch.logits + row * p.launch.vocabulary + begin_;
    aligned_ = vocabulary_ % 4 == 0;
  }

  // Of this block's part.
  NIBBLE_DEVICE void Edit(const PackedSamplingRow& packed, const int32_t* words,
                          const int32_t* tokens) {
    const SamplingRow& p = packed.row;
    const int32_t unlisted = p.unlisted >= 0 ? tokens[p.unlisted] : -1;
    if (simt::Thread() == 0) shared_.listed = 0;
    const int32_t* list = words + packed.lists;
    const auto each = [&](int32_t count, auto&& edit) {
      for (int32_t i = simt::Thread(); i < count; i += simt::Threads()) {
        const uint32_t at = static_cast<uint32_t>(list[i]) - begin_;
        if (at < count_) edit(i, logits_[at]);
      }
      simt::SyncThreads();
    };
    each(p.num_bias,
         [&](int32_t i, float& logit) { logit += std::bit_cast<float>(list[p.num_bias + i]); });
    list += 2 * int64_t{p.num_bias};
    each(p.num_banned, [](int32_t, float& logit) { logit = -INFINITY; });
    list += p.num_banned;
    const auto penalize = [&p](float& logit, int32_t count) {
      logit = Penalize(logit, count, p.repetition_penalty, p.presence_penalty, p.frequency_penalty);
    };
    each(p.num_seen, [&](int32_t i, float& logit) {
      const bool more = list[i] == unlisted;
      if (more) shared_.listed = 1;
      penalize(logit, list[p.num_seen + i] + (more ? 1 : 0));
    });
    if (unlisted < 0) return;
    if (simt::Thread() == 0 && shared_.listed == 0) {
      const uint32_t at = static_cast<uint32_t>(unlisted) - begin_;
      if (at < count_) penalize(logits_[at], 1);
    }
    simt::SyncThreads();
  }

  // The first of the largest logits; false if one is NaN or +inf, or all are -inf.
  NIBBLE_DEVICE bool FindLargest() {
    float largest = -INFINITY;
    uint32_t first = 0;  // ids ascend
    uint64_t possible = 0;
    ForEach([&](float logit, uint32_t id) {
      if (cache_ != nullptr) cache_[id - begin_] = logit;
      if (!(logit < INFINITY)) possible |= kBad;
      if (logit > -INFINITY) ++possible;
      if (logit > largest) {
        largest = logit;
        first = id;
      }
    });
    uint64_t best = largest > -INFINITY ? SampleOrder(largest, first) : ~uint64_t{0};
    const auto least = [](uint64_t a, uint64_t b) { return a < b ? a : b; };
    // Sums of counts below 2^32; a bad one is seen above that.
    const auto sum = [](uint64_t a, uint64_t b) { return a + b; };
    best = BlockReduce(best, shared_.scratch, least);
    possible = BlockReduce(possible, shared_.scratch, sum);
    if (cache_ != nullptr) {
      logits_ = cache_;
      aligned_ = true;
    }
    if (parts_ > 1) {
      if (simt::Thread() == 0) {
        exchange_->best[part_] = best;
        exchange_->possible[part_] = possible;
      }
      SyncRow();
      best = Fold(exchange_->best, ~uint64_t{0}, least);
      possible = Fold(exchange_->possible, 0, sum);
    }
    best_ = best;
    largest_ = LogitOfOrder(best);
    possible_ = possible % kBad;
    return possible < kBad && possible_ > 0;
  }

  NIBBLE_DEVICE uint64_t Draw(const SamplingRow& p) {
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
    return Select(target < total ? target : total - 1, true).order;
  }

  // `count` top ones, and that of the token with this order.
  NIBBLE_DEVICE void LogProbabilities(int32_t count, uint64_t token, SampleResult& result) {
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
    if (!writes()) return;
    for (int32_t i = simt::Thread(); i < count; i += simt::Threads()) {
      const uint64_t order = shared_.candidates[i];
      result.top_ids[static_cast<size_t>(i)] = static_cast<int32_t>(IdOfOrder(order));
      result.top_logprobs[static_cast<size_t>(i)] = logprob(LogitOfOrder(order));
    }
    if (simt::Thread() == 0) {
      result.num_top = count;
      result.logprob = logprob(LogitOfOrder(token));
    }
  }

  NIBBLE_DEVICE uint64_t best() const { return best_; }
  // Whether this block writes the row's result.
  NIBBLE_DEVICE bool writes() const { return part_ == 0; }

  // The last of the row's blocks leaves the exchange as it was.
  NIBBLE_DEVICE void Leave() {
    if (parts_ == 1) return;
    simt::SyncThreads();
    if (simt::Thread() == 0) {
      simt::FenceDevice();
      shared_.held = simt::AtomicAdd(&exchange_->done, 1) == parts_ - 1 ? 1u : 0u;
      simt::FenceDevice();
    }
    simt::SyncThreads();
    if (shared_.held == 0) return;
    auto* words = reinterpret_cast<uint32_t*>(exchange_);
    for (size_t i = static_cast<size_t>(simt::Thread()); i < sizeof(SampleExchange) / 4;
         i += static_cast<size_t>(simt::Threads())) {
      words[i] = 0;
    }
  }

 private:
  static constexpr uint64_t kBad = uint64_t{1} << 32;

  template <typename Visit>
  NIBBLE_DEVICE void ForEach(Visit visit) const {
    const auto threads = static_cast<uint32_t>(simt::Threads());
    const auto thread = static_cast<uint32_t>(simt::Thread());
    const uint32_t vectors = aligned_ ? count_ / 4 : 0;
    const auto* part = reinterpret_cast<const simt::Vec16*>(logits_);
    constexpr uint32_t kDeep = 4;  // loads under way in a thread
    for (uint32_t begin = thread; begin < vectors; begin += kDeep * threads) {
      simt::Vec16 loads[kDeep];
      NIBBLE_UNROLL
      for (uint32_t d = 0; d < kDeep; ++d) {
        const uint32_t v = begin + d * threads;
        loads[d] = part[v < vectors ? v : begin];
      }
      NIBBLE_UNROLL
      for (uint32_t d = 0; d < kDeep; ++d) {
        const uint32_t v = begin + d * threads;
        if (v >= vectors) break;
        NIBBLE_UNROLL
        for (uint32_t e = 0; e < 4; ++e) {
          visit(std::bit_cast<float>(loads[d].word[e]), begin_ + 4 * v + e);
        }
      }
    }
    for (uint32_t i = 4 * vectors + thread; i < count_; i += threads) visit(logits_[i], begin_ + i);
  }

  // Waits for the row's blocks; they see what each wrote before.
  NIBBLE_DEVICE void SyncRow() {
    simt::SyncThreads();
    if (simt::Thread() == 0) {
      ++barriers_;
      simt::FenceDevice();
      simt::AtomicAdd(&exchange_->arrived, 1);
      while (simt::LoadAcquire(&exchange_->arrived) < barriers_ * parts_) simt::Pause();
    }
    simt::SyncThreads();
  }

  // Of a value of each of the row's blocks; every thread gets it.
  template <typename Combine>
  NIBBLE_DEVICE uint64_t Fold(const uint64_t* values, uint64_t none, Combine combine) const {
    static_assert(kMostSampleParts <= simt::kWarp);
    uint64_t value = simt::Lane() < parts_ ? values[simt::Lane()] : none;
    for (int mask = simt::kWarp / 2; mask > 0; mask /= 2) {
      value = combine(value, simt::ShuffleXor(value, mask));
    }
    return value;
  }

  NIBBLE_DEVICE uint64_t Mass(float logit) const {
    return SampleMass(SampleWeight(logit, largest_, temperature_));
  }

  // Fills the first histogram and total_.
  NIBBLE_DEVICE void SetTemperature(float temperature) {
    temperature_ = temperature;
    const float edge = largest_ - kSampleWindow * temperature;
    window_.histogram = &shared_.window;
    window_.first = best_;
    window_.last = SampleOrder(-FLT_MAX, vocabulary_ - 1);
    window_.shift = SampleShift(best_, SampleOrder(edge > -FLT_MAX ? edge : -FLT_MAX, vocabulary_),
                                kSampleBins - 1);
    Fill(window_);
    uint64_t total = 0;
    for (int bin = simt::Thread(); bin < kSampleBins; bin += simt::Threads()) {
      total += MassOf(shared_.window, bin);
    }
    total_ = BlockSum(total, shared_.scratch);
  }

  static NIBBLE_DEVICE void Add(SampleHistogram& h, int bin, uint32_t count, uint32_t low,
                                uint32_t high) {
    simt::AtomicAdd(&h.count[bin], count);
    const uint32_t carry = simt::AtomicAdd(&h.low[bin], low) > ~low ? 1 : 0;
    if (high + carry > 0) simt::AtomicAdd(&h.high[bin], high + carry);
  }

  // The level's histogram, of the whole row.
  NIBBLE_DEVICE void Fill(const SampleLevel& level) {
    SampleHistogram& h = *level.histogram;
    for (int bin = simt::Thread(); bin < kSampleBins; bin += simt::Threads()) {
      h.count[bin] = h.low[bin] = h.high[bin] = 0;
    }
    simt::SyncThreads();
    // Most tokens lie in the last bin, which is summed in registers first.
    uint64_t rest = 0;
    int32_t rest_count = 0;
    ForEach([&](float logit, uint32_t id) {
      if (!(logit > -INFINITY)) return;
      const uint64_t order = SampleOrder(logit, id);
      if (order < level.first || order > level.last) return;
      const uint64_t mass = Mass(logit);
      const uint64_t bin = (order - level.first) >> level.shift;
      if (bin >= kSampleBins - 1) {
        ++rest_count;
        rest += mass;
        return;
      }
      Add(h, static_cast<int>(bin), 1, static_cast<uint32_t>(mass),
          static_cast<uint32_t>(mass >> 32));
    });
    for (int mask = simt::kWarp / 2; mask > 0; mask /= 2) rest += simt::ShuffleXor(rest, mask);
    rest_count = simt::WarpSum(rest_count);
    if (simt::Lane() == 0 && rest_count > 0) {
      Add(h, kSampleBins - 1, static_cast<uint32_t>(rest_count), static_cast<uint32_t>(rest),
          static_cast<uint32_t>(rest >> 32));
    }
    simt::SyncThreads();
    if (parts_ == 1) return;
    SampleHistogram& all = exchange_->histogram[fills_ % 3];
    for (int bin = simt::Thread(); bin < kSampleBins; bin += simt::Threads()) {
      if (h.count[bin] > 0) Add(all, bin, h.count[bin], h.low[bin], h.high[bin]);
    }
    SyncRow();
    SampleHistogram& before = exchange_->histogram[(fills_ + 2) % 3];
    for (int bin = simt::Thread(); bin < kSampleBins; bin += simt::Threads()) {
      h.count[bin] = all.count[bin];
      h.low[bin] = all.low[bin];
      h.high[bin] = all.high[bin];
      if (bin % parts_ == part_) before.count[bin] = before.low[bin] = before.high[bin] = 0;
    }
    ++fills_;
    simt::SyncThreads();
  }

  NIBBLE_DEVICE static uint64_t MassOf(const SampleHistogram& h, int bin) {
    return uint64_t{h.high[bin]} << 32 | h.low[bin];
  }

  // The bin in which the running mass, or the running count, first exceeds `target`.
  NIBBLE_DEVICE FoundBin Find(const SampleLevel& level, uint64_t target, bool by_mass) {
    const SampleHistogram& h = *level.histogram;
    const int each = kSampleBins / simt::Threads();
    const int begin = simt::Thread() * each;
    uint64_t mass = 0, count = 0;
    for (int bin = begin; bin < begin + each; ++bin) {
      count += h.count[bin];
      mass += MassOf(h, bin);
    }
    mass = BlockScan(mass, shared_.scratch).before;
    if (!by_mass) count = BlockScan(count, shared_.scratch).before;
    for (int bin = begin; bin < begin + each; ++bin) {
      const uint64_t before = by_mass ? mass : count;
      const uint64_t own = by_mass ? MassOf(h, bin) : h.count[bin];
      if (target >= before && target - before < own) {
        const uint64_t first = level.first + (static_cast<uint64_t>(bin) << level.shift);
        const uint64_t end = first + (uint64_t{1} << level.shift) - 1;
        shared_.found = {first, bin == kSampleBins - 1 || end > level.last ? level.last : end,
                         h.count[bin], before, mass};
      }
      count += h.count[bin];
      mass += MassOf(h, bin);
    }
    simt::SyncThreads();
    const FoundBin found = shared_.found;
    simt::SyncThreads();
    return found;
  }

  // The token with which the mass, or the count, of a walk down the tokens first exceeds `target`,
  // which must be less than that of all.
  NIBBLE_DEVICE SelectedToken Select(uint64_t target, bool by_mass) {
    SampleLevel level = window_;
    uint64_t mass_before = 0;
    FoundBin bin;
    while (true) {
      bin = Find(level, target, by_mass);
      target -= bin.before;
      mass_before += bin.mass_before;
      if (bin.count <= kSampleCandidates) break;
      level = {&shared_.finer, bin.first, bin.last, SampleShift(bin.first, bin.last, kSampleBins)};
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
    const SelectedToken selected = shared_.selected;
    simt::SyncThreads();
    return selected;
  }

  // The orders within [first, last], at most kSampleCandidates, ascending in shared memory; how
  // many.
  NIBBLE_DEVICE int GatherSorted(uint64_t first, uint64_t last) {
    const bool alone = parts_ == 1;
    const int turn = gathers_ % 3;
    if (alone && simt::Thread() == 0) shared_.held = 0;
    simt::SyncThreads();
    uint32_t* count = alone ? &shared_.held : &exchange_->held[turn];
    uint64_t* to = alone ? shared_.candidates : exchange_->candidates[turn];
    ForEach([&](float logit, uint32_t id) {
      const uint64_t order = SampleOrder(logit, id);
      if (order < first || order > last) return;
      to[simt::AtomicAdd(count, 1u)] = order;
    });
    simt::SyncThreads();
    if (!alone) SyncRow();
    const auto held = static_cast<int>(*count);
    if (!alone) {
      for (int i = simt::Thread(); i < held; i += simt::Threads()) shared_.candidates[i] = to[i];
      if (part_ == 0 && simt::Thread() == 0) exchange_->held[(turn + 2) % 3] = 0;
      ++gathers_;
    }
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
    if (parts_ > 1) {
      if (simt::Thread() == 0) exchange_->mass[part_] = mass;
      SyncRow();
      mass = Fold(exchange_->mass, 0, [](uint64_t a, uint64_t b) { return a + b; });
    }
    return mass > 0 ? mass : SampleMass(1.0f);
  }

  SampleShared& shared_;
  SampleExchange* exchange_;
  int parts_, part_;
  int barriers_ = 0, fills_ = 0, gathers_ = 0;  // so far
  float* cache_;                                // of this block's part, or nullptr
  float* logits_;                               // of this block's part
  uint32_t begin_, count_;                      // first token of the part, and how many
  uint32_t vocabulary_;
  bool aligned_;  // logits_, to 16 bytes
  uint64_t best_ = 0;
  float largest_ = 0;
  uint64_t possible_ = 0;     // logits above -inf
  float temperature_ = 0.0f;  // of window_ and total_
  SampleLevel window_{};
  uint64_t total_ = 0;
};

}  // namespace nibble
