// SPDX-License-Identifier: Apache-2.0
#include "services/common/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>

#include "kernels/check.h"
#include "services/common/metrics_collectable.h"

namespace nibble {
namespace {

// Label values joined by a character that no value holds.
std::string Join(MetricLabels values) {
  std::string key;
  for (std::string_view value : values) {
    key.append(value);
    key.push_back('\x1f');
  }
  return key;
}

size_t LabelCount(const MetricRow& row) {
  size_t count = 0;
  while (count < row.labels.size() && !row.labels[count].empty()) ++count;
  return count;
}

const MetricRow& Row(Metric id) { return MetricCatalogue()[static_cast<size_t>(id)]; }

std::vector<prometheus::ClientMetric::Label> MakeLabels(const MetricRow& row, MetricLabels values) {
  NIBBLE_CHECK(values.size() == LabelCount(row));
  std::vector<prometheus::ClientMetric::Label> labels;
  size_t i = 0;
  for (std::string_view value : values) {
    labels.push_back({std::string(row.labels[i++]), std::string(value)});
  }
  return labels;
}

struct Series {
  std::vector<prometheus::ClientMetric::Label> labels;
  double value = 0;           // counter, gauge
  HistogramSnapshot buckets;  // histogram
};

prometheus::ClientMetric ToClientMetric(const MetricRow& row, const Series& series) {
  prometheus::ClientMetric metric;
  metric.label = series.labels;
  switch (row.kind) {
    case MetricKind::kCounter:
      metric.counter.value = series.value;
      break;
    case MetricKind::kGauge:
      metric.gauge.value = series.value;
      break;
    case MetricKind::kHistogram: {
      uint64_t cumulative = 0;
      for (size_t i = 0; i <= row.buckets.size(); ++i) {
        if (i < series.buckets.counts.size()) cumulative += series.buckets.counts[i];
        const double bound =
            i < row.buckets.size() ? row.buckets[i] : std::numeric_limits<double>::infinity();
        metric.histogram.bucket.push_back({cumulative, bound});
      }
      metric.histogram.sample_count = cumulative;
      metric.histogram.sample_sum = series.buckets.sum;
      break;
    }
  }
  return metric;
}

prometheus::MetricType ToType(MetricKind kind) {
  switch (kind) {
    case MetricKind::kCounter:
      return prometheus::MetricType::Counter;
    case MetricKind::kGauge:
      return prometheus::MetricType::Gauge;
    case MetricKind::kHistogram:
      return prometheus::MetricType::Histogram;
  }
  return prometheus::MetricType::Untyped;
}

class FamilySink : public MetricSink {
 public:
  explicit FamilySink(std::vector<prometheus::MetricFamily>& families) : families_(families) {}
  void Emit(Metric id, MetricLabels values, double value) override {
    Append(id, Series{MakeLabels(Row(id), values), value, {}});
  }
  void Emit(Metric id, MetricLabels values, const HistogramSnapshot& value) override {
    Append(id, Series{MakeLabels(Row(id), values), 0, value});
  }

 private:
  void Append(Metric id, const Series& series) {
    families_[static_cast<size_t>(id)].metric.push_back(ToClientMetric(Row(id), series));
  }
  std::vector<prometheus::MetricFamily>& families_;
};

}  // namespace

class Metrics::Impl : public prometheus::Collectable {
 public:
  // Calls `change` on the series, made if it is new.
  template <typename F>
  void Update(Metric id, MetricLabels values, F change) {
    const MetricRow& row = Row(id);
    std::string key = Join(values);
    std::lock_guard lock(mutex_);
    auto [it, is_new] = series_[static_cast<size_t>(id)].try_emplace(std::move(key));
    if (is_new) {
      it->second.labels = MakeLabels(row, values);
      if (row.kind == MetricKind::kHistogram) {
        it->second.buckets.counts.resize(row.buckets.size() + 1);
      }
    }
    change(it->second);
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    const std::span<const MetricRow> rows = MetricCatalogue();
    std::vector<prometheus::MetricFamily> families(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      families[i].name = rows[i].name;
      families[i].help = rows[i].help;
      families[i].type = ToType(rows[i].kind);
    }
    {
      std::lock_guard lock(mutex_);
      for (size_t i = 0; i < rows.size(); ++i) {
        for (const auto& [key, series] : series_[i]) {
          families[i].metric.push_back(ToClientMetric(rows[i], series));
        }
      }
    }
    {
      std::lock_guard lock(collectors_mutex_);
      FamilySink sink(families);
      for (const auto& [key, collect] : collectors_) collect(sink);
    }
    std::erase_if(families, [](const auto& family) { return family.metric.empty(); });
    return families;
  }

  uint64_t Register(std::function<void(MetricSink&)> collect) {
    std::lock_guard lock(collectors_mutex_);
    collectors_.emplace(++last_collector_, std::move(collect));
    return last_collector_;
  }
  void Unregister(uint64_t key) {
    std::lock_guard lock(collectors_mutex_);
    collectors_.erase(key);
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::map<std::string, Series>> series_{MetricCatalogue().size()};
  mutable std::mutex collectors_mutex_;
  std::map<uint64_t, std::function<void(MetricSink&)>> collectors_;
  uint64_t last_collector_ = 0;
};

Metrics::Metrics() : impl_(std::make_shared<Impl>()) {}
Metrics::~Metrics() = default;

void Metrics::Add(Metric id, MetricLabels label_values, double amount) {
  NIBBLE_CHECK(Row(id).kind == MetricKind::kCounter && amount >= 0);
  impl_->Update(id, label_values, [&](Series& series) { series.value += amount; });
}

void Metrics::Set(Metric id, MetricLabels label_values, double value) {
  NIBBLE_CHECK(Row(id).kind == MetricKind::kGauge);
  impl_->Update(id, label_values, [&](Series& series) { series.value = value; });
}

void Metrics::Observe(Metric id, MetricLabels label_values, double value) {
  const MetricRow& row = Row(id);
  NIBBLE_CHECK(row.kind == MetricKind::kHistogram);
  const auto bucket = static_cast<size_t>(
      std::lower_bound(row.buckets.begin(), row.buckets.end(), value) - row.buckets.begin());
  impl_->Update(id, label_values, [&](Series& series) {
    ++series.buckets.counts[bucket];
    series.buckets.sum += value;
  });
}

void Metrics::Touch(Metric id, MetricLabels label_values) {
  impl_->Update(id, label_values, [](Series&) {});
}

std::shared_ptr<void> Metrics::AddCollector(std::function<void(MetricSink&)> collect) {
  const uint64_t key = impl_->Register(std::move(collect));
  return std::shared_ptr<void>(nullptr, [impl = impl_, key](void*) { impl->Unregister(key); });
}

std::string Metrics::Text() const {
  return prometheus::TextSerializer().Serialize(impl_->Collect());
}

std::shared_ptr<prometheus::Collectable> MetricsCollectable(const Metrics& metrics) {
  return metrics.impl_;
}

}  // namespace nibble
