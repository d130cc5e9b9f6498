// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/product_choices.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/support/temp_dir.h"

namespace nibble::testing {
namespace {

constexpr char kMachine[] = "a GPU, 132 multiprocessors; driver 13000; cuBLASLt 130200";

ProductTable SomeChoices() {
  ProductTable table;
  for (int64_t i = 0; i < 5; ++i) {
    const ProductKey key{.bucket = TokenBucket(1 + 30 * i),
                         .n = 4096,
                         .k = 128 << i,
                         .lda = 128 << i,
                         .ldb = 128 << i,
                         .ldd = 4096,
                         .in = 1,
                         .out = i % 2};
    table[key] = {1, ~uint64_t{0}, 0, static_cast<uint64_t>(i), 5, 6, 7, uint64_t{1} << 63};
  }
  return table;
}

TEST(TokenBucketTest, ExactToSixteenThenPowersOfTwoAndTheMiddlesBetween) {
  for (int64_t m = 1; m <= 16; ++m) EXPECT_EQ(TokenBucket(m), m);
  const int64_t edges[] = {16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048};
  for (size_t i = 1; i < std::size(edges); ++i) {
    EXPECT_EQ(TokenBucket(edges[i - 1] + 1), edges[i]);
    EXPECT_EQ(TokenBucket(edges[i]), edges[i]);
  }
  for (int64_t m = 1; m < 5000; ++m) {
    EXPECT_GE(TokenBucket(m), m);
    EXPECT_LE(TokenBucket(m), m + (m + 1) / 2);
    EXPECT_LE(TokenBucket(m), TokenBucket(m + 1));
  }
}

TEST(FastestCandidateTest, TheFirstUnlessAnotherIsClearlyFaster) {
  EXPECT_EQ(FastestCandidate(std::vector<double>{1.0, 0.99, 0.985}), 0);
  EXPECT_EQ(FastestCandidate(std::vector<double>{1.0, 0.9, 0.89, 1.2}), 1);
  EXPECT_EQ(FastestCandidate(std::vector<double>{NAN, 3.0, NAN, 2.0}), 3);
  EXPECT_EQ(FastestCandidate(std::vector<double>{NAN, NAN}), -1);
  EXPECT_EQ(FastestCandidate({}), -1);
}

TEST(ProductsPerSampleTest, ManyOfSmallOnesOneOfLargeOnes) {
  EXPECT_EQ(ProductsPerSample(1, 128, 128, 2), 16);
  EXPECT_EQ(ProductsPerSample(2048, 28672, 4096, 2), 1);
  EXPECT_EQ(ProductsPerSample(1, 6144, 4096, 2), 3);  // 50 MB at 2 TB/s: 25 us each
}

TEST(ProductFileTest, TextAndBack) {
  for (const ProductTable& table : {ProductTable{}, SomeChoices()}) {
    const auto parsed = ParseProducts(kMachine, FormatProducts(kMachine, table));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, table);
  }
}

TEST(ProductFileTest, WhatWasCutOffOrChangedIsRefused) {
  const std::string text = FormatProducts(kMachine, SomeChoices());
  for (size_t length = 0; length < text.size(); ++length) {
    EXPECT_FALSE(ParseProducts(kMachine, text.substr(0, length)).ok()) << length;
  }
  for (size_t at = 0; at < text.size(); ++at) {
    std::string changed = text;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    EXPECT_FALSE(ParseProducts(kMachine, changed).ok()) << at;
  }
  EXPECT_FALSE(ParseProducts(kMachine, text + text).ok());
}

TEST(ProductFileTest, AnotherMachineIsNamed) {
  const auto parsed = ParseProducts("another", FormatProducts(kMachine, SomeChoices()));
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(parsed.status().message().find(kMachine), std::string::npos);
}

TEST(ProductChoicesTest, OutliveTheProcessThatMadeThem) {
  const TempDir temp;
  const std::string directory = temp.path() + "/not/there/yet";
  {
    ProductChoices choices(directory, kMachine);
    EXPECT_EQ(choices.note(), "");
    for (const auto& [key, algorithm] : SomeChoices()) {
      EXPECT_EQ(choices.Find(key), nullptr);
      ASSERT_TRUE(choices.Add(key, algorithm).ok());
    }
  }
  const ProductChoices again(directory, kMachine);
  EXPECT_EQ(again.note(), "");
  for (const auto& [key, algorithm] : SomeChoices()) {
    ASSERT_NE(again.Find(key), nullptr);
    EXPECT_EQ(*again.Find(key), algorithm);
  }
  // Nothing but the file is left, and another machine has a file of its own.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory), {}), 1);
  const ProductChoices other(directory, "another");
  EXPECT_EQ(other.Find(SomeChoices().begin()->first), nullptr);
  EXPECT_EQ(other.note(), "");
  EXPECT_NE(other.path(), again.path());
}

TEST(ProductChoicesTest, ProcessesThatShareAFileKeepEachOthersAndAgree) {
  const TempDir temp;
  ProductChoices one(temp.path(), kMachine), other(temp.path(), kMachine);
  const ProductTable table = SomeChoices();
  ASSERT_GE(table.size(), 2u);
  const auto& [first, algorithm] = *table.begin();
  const auto& [second, second_algorithm] = *table.rbegin();
  ASSERT_TRUE(one.Add(first, algorithm).ok());
  ASSERT_TRUE(other.Add(second, second_algorithm).ok());
  EXPECT_EQ(*other.Find(first), algorithm);
  // Both timed the same product; the one in the file stays.
  ASSERT_TRUE(one.Add(second, algorithm).ok());
  EXPECT_EQ(*one.Find(second), second_algorithm);
  const ProductChoices again(temp.path(), kMachine);
  EXPECT_EQ(*again.Find(first), algorithm);
  EXPECT_EQ(*again.Find(second), second_algorithm);
}

TEST(ProductChoicesTest, AFileThatIsNoneIsIgnoredWithALineAndReplaced) {
  const TempDir temp;
  const std::string path = ProductChoices(temp.path(), kMachine).path();
  std::ofstream(path) << "something else\n";
  ProductChoices choices(temp.path(), kMachine);
  EXPECT_NE(choices.note().find(path + " is ignored: "), std::string::npos) << choices.note();
  EXPECT_EQ(choices.note().find('\n'), std::string::npos);
  const auto [key, algorithm] = *SomeChoices().begin();
  EXPECT_EQ(choices.Find(key), nullptr);
  ASSERT_TRUE(choices.Add(key, algorithm).ok());
  EXPECT_EQ(ProductChoices(temp.path(), kMachine).note(), "");
}

TEST(ProductChoicesTest, WhereNothingCanBeWrittenChoicesLastForTheProcess) {
  const TempDir temp;
  std::ofstream(temp.path() + "/file") << "a file is no directory";
  ProductChoices choices(temp.path() + "/file/below", kMachine);
  const auto [key, algorithm] = *SomeChoices().begin();
  EXPECT_FALSE(choices.Add(key, algorithm).ok());
  ASSERT_NE(choices.Find(key), nullptr);
  ProductChoices nowhere("", kMachine);
  EXPECT_TRUE(nowhere.Add(key, algorithm).ok());
  EXPECT_EQ(nowhere.path(), "");
}

TEST(UserCacheDirectoryTest, AsTheXdgBaseDirectorySpecificationSays) {
  setenv("XDG_CACHE_HOME", "/somewhere/cache", 1);
  EXPECT_EQ(UserCacheDirectory(), "/somewhere/cache/nibble");
  setenv("XDG_CACHE_HOME", "relative paths do not count", 1);
  setenv("HOME", "/home/of/one", 1);
  EXPECT_EQ(UserCacheDirectory(), "/home/of/one/.cache/nibble");
  unsetenv("HOME");
  EXPECT_EQ(UserCacheDirectory(), "");
}

}  // namespace
}  // namespace nibble::testing
