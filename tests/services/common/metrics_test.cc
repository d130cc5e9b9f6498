// SPDX-License-Identifier: Apache-2.0
#include "services/common/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <thread>

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricCatalogueTest, NamesFollowTheConventions) {
  std::set<std::string_view> names;
  for (const MetricRow& row : MetricCatalogue()) {
    SCOPED_TRACE(std::string(row.name));
    EXPECT_TRUE(names.insert(row.name).second);
    EXPECT_FALSE(row.help.empty());
    EXPECT_EQ(row.help.back(), '.');
    // Base units: nothing is counted in milliseconds or megabytes.
    for (const char* unit : {"_ms", "_milli", "_kb", "_mb", "_minutes", "_hours"}) {
      EXPECT_THAT(std::string(row.name), Not(HasSubstr(unit)));
    }
    for (size_t i = 1; i < row.buckets.size(); ++i) EXPECT_LT(row.buckets[i - 1], row.buckets[i]);
  }
}

TEST(MetricCatalogueTest, LatenciesBeginAtHalfAMillisecond) {
  for (const MetricRow& row : MetricCatalogue()) {
    if (row.id == Metric::kInterTokenLatency || row.id == Metric::kTimeToFirstToken ||
        row.id == Metric::kQueueTime || row.id == Metric::kStepSeconds) {
      EXPECT_EQ(row.buckets.front(), 0.0005) << row.name;
    }
  }
}

TEST(MetricsTest, CountersAddUpPerSeries) {
  Metrics metrics;
  metrics.Add(Metric::kRequestsFinished, {"m", "0", "stop"});
  metrics.Add(Metric::kRequestsFinished, {"m", "0", "stop"}, 2);
  metrics.Add(Metric::kRequestsFinished, {"m", "0", "length"}, 0);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("# TYPE nibble_requests_finished_total counter"));
  EXPECT_THAT(
      text,
      HasSubstr(R"(nibble_requests_finished_total{model_name="m",engine="0",outcome="stop"} 3)"));
  EXPECT_THAT(
      text,
      HasSubstr(R"(nibble_requests_finished_total{model_name="m",engine="0",outcome="length"} 0)"));
}

TEST(MetricsTest, ABucketHoldsWhatIsAtMostItsBound) {
  Metrics metrics;
  for (double seconds : {0.0005, 0.0006, 0.02, 1e9}) {
    metrics.Observe(Metric::kQueueTime, {"m", "0"}, seconds);
  }
  const std::string text = metrics.Text();
  const auto line = [](const char* bound, int count) {
    return std::string(R"(nibble_queue_time_seconds_bucket{model_name="m",engine="0",le=")") +
           bound + "\"} " + std::to_string(count);
  };
  EXPECT_THAT(text, HasSubstr(line("0.0005", 1)));
  EXPECT_THAT(text, HasSubstr(line("0.001", 2)));
  EXPECT_THAT(text, HasSubstr(line("0.02", 3)));
  EXPECT_THAT(text, HasSubstr(line("+Inf", 4)));
  EXPECT_THAT(text, HasSubstr(R"(nibble_queue_time_seconds_count{model_name="m",engine="0"} 4)"));
}

TEST(MetricsTest, ATouchedHistogramIsThereWithoutValues) {
  Metrics metrics;
  EXPECT_EQ(metrics.Text(), "");
  metrics.Touch(Metric::kStoreCommitSeconds, {});
  EXPECT_THAT(metrics.Text(), HasSubstr("nibble_store_commit_seconds_count 0"));
}

TEST(MetricsTest, CollectorsShareFamiliesAndLeaveWithTheirHandle) {
  Metrics metrics;
  metrics.Set(Metric::kRequestsRunning, {"recorded", "0"}, 1);
  const auto one = metrics.AddCollector([](MetricSink& sink) {
    sink.Emit(Metric::kRequestsRunning, {"one", "0"}, 7);
  });
  auto other = metrics.AddCollector([](MetricSink& sink) {
    HistogramSnapshot snapshot{{1, 2}, 0.5};
    sink.Emit(Metric::kStepSeconds, {"other", "0"}, snapshot);
  });
  std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr(R"(nibble_requests_running{model_name="one",engine="0"} 7)"));
  EXPECT_THAT(text, HasSubstr(R"(nibble_requests_running{model_name="recorded",engine="0"} 1)"));
  EXPECT_THAT(
      text, HasSubstr(R"(nibble_step_seconds_bucket{model_name="other",engine="0",le="0.001"} 3)"));
  // One family, one head.
  const std::string head = "# TYPE nibble_requests_running gauge";
  EXPECT_EQ(text.find(head), text.rfind(head));
  other.reset();
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("other")));
}

TEST(MetricsTest, LabelsAreEscaped) {
  Metrics metrics;
  metrics.Set(Metric::kRequestsRunning, {"a\"b\\c\nd", "0"}, 1);
  EXPECT_THAT(metrics.Text(), HasSubstr(R"(model_name="a\"b\\c\nd")"));
}

TEST(MetricsTest, CountsFromManyThreadsAreNotLost) {
  Metrics metrics;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) metrics.Add(Metric::kUploadedBytes, {}, 2);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(metrics.Text(), HasSubstr("nibble_uploaded_bytes_total 8000"));
}

}  // namespace
}  // namespace nibble
