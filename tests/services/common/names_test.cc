// SPDX-License-Identifier: Apache-2.0
#include "services/common/names.h"

#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

TEST(CheckIdentifierTest, TakesWhatCannotBeMistakenForAPath) {
  for (const char* good : {"a", "7b", "Llama-3.1_8B", "x..y"}) {
    EXPECT_TRUE(CheckIdentifier("name", good).ok()) << good;
  }
  EXPECT_TRUE(CheckIdentifier("name", std::string(64, 'a')).ok());
  for (const std::string& bad :
       {std::string(), std::string("."), std::string(".."), std::string("-a"), std::string("_a"),
        std::string("a/b"), std::string("a b"), std::string("a\0b", 3), std::string("\xc3\xa9"),
        std::string(65, 'a')}) {
    const absl::Status status = CheckIdentifier("name", bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(std::string(status.message()).find("name"), std::string::npos);
  }
}

TEST(ParseNameTest, TakesTheCollectionOffAndAcceptsBareIdentifiersWhereAllowed) {
  EXPECT_EQ(*ParseName("model", "servedModels/x", "servedModels"), "x");
  EXPECT_EQ(*ParseName("model", "x", "servedModels", true), "x");
  EXPECT_FALSE(ParseName("model", "x", "servedModels").ok());
  EXPECT_FALSE(ParseName("model", "models/x", "servedModels", true).ok());
  EXPECT_FALSE(ParseName("model", "servedModels/", "servedModels", true).ok());
  EXPECT_FALSE(ParseName("model", "servedModels/a/b", "servedModels", true).ok());
}

}  // namespace
}  // namespace nibble
