// SPDX-License-Identifier: Apache-2.0
#include "services/common/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>

namespace nibble {
namespace {

using ::testing::HasSubstr;

Settings Valid() {
  Settings settings;
  settings.data_dir = std::string("data");
  return settings;
}

TEST(SettingsTest, DefaultsAreValid) { EXPECT_TRUE(ValidateSettings(Valid()).ok()); }

TEST(SettingsTest, EveryFlagIsThereOnceWithItsHelp) {
  std::set<std::string_view> flags;
  for (const SettingRow& row : SettingRows()) {
    EXPECT_TRUE(flags.insert(row.flag).second) << row.flag;
    EXPECT_TRUE(row.flag.starts_with("--"));
    EXPECT_FALSE(row.help.empty()) << row.flag;
    EXPECT_FALSE(row.group.empty()) << row.flag;
  }
}

TEST(SettingsTest, WhatIsWrongIsNamed) {
  const struct {
    std::function<void(Settings&)> change;
    const char* words;
  } cases[] = {
      {[](Settings& s) { s.data_dir = std::string(""); }, "--data-dir"},
      {[](Settings& s) { s.max_choices = 0; }, "--max-n is 0; it must be 1..256"},
      {[](Settings& s) { s.grace_seconds = -1; }, "--grace"},
      {[](Settings& s) { s.roles = {"cook"}; }, "\"cook\""},
      {[](Settings& s) { s.roles = {}; }, "--roles"},
      {[](Settings& s) { s.device = std::string("tpu"); }, "--device"},
      {[](Settings& s) { s.worker_device = std::string("cuda"); }, "--worker-device"},
      {[](Settings& s) { s.load = {"=path"}; }, "--load"},
      {[](Settings& s) { s.load = {"name"}; }, "--load"},
      {[](Settings& s) { s.token_budget = s.max_running; }, "--token-budget"},
      {[](Settings& s) { s.max_waiting = 8; }, "--max-waiting"},
      {[](Settings& s) { s.tls_cert = std::string("c"); }, "--tls-key"},
      {[](Settings& s) { s.tls_client_ca = std::string("c"); }, "--tls-client-ca"},
  };
  for (const auto& c : cases) {
    Settings settings = Valid();
    c.change(settings);
    const absl::Status status = ValidateSettings(settings);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.words;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.words));
  }
}

TEST(SettingsTest, AnOpenAddressNeedsTlsAndTokensOrInsecure) {
  Settings settings = Valid();
  settings.generation_address = std::string("0.0.0.0:7462");
  EXPECT_THAT(std::string(ValidateSettings(settings).message()), HasSubstr("--insecure"));
  settings.tls_cert = std::string("cert.pem");
  settings.tls_key = std::string("key.pem");
  EXPECT_FALSE(ValidateSettings(settings).ok()) << "TLS alone lets anybody in";
  settings.tokens_file = std::string("tokens");
  EXPECT_TRUE(ValidateSettings(settings).ok());
  settings = Valid();
  settings.address = std::string("0.0.0.0:7460");
  settings.insecure = true;
  EXPECT_TRUE(ValidateSettings(settings).ok());
}

TEST(IsLoopbackTest, KnowsWhatOthersCanReach) {
  for (const char* near : {"127.0.0.1:80", "127.9.9.9:1", "localhost:0", "[::1]:80", "unix:/s"}) {
    EXPECT_TRUE(IsLoopback(near)) << near;
  }
  for (const char* far :
       {"0.0.0.0:80", "[::]:80", "10.0.0.1:80", "example.com:80", "127.example.com:80", ":80"}) {
    EXPECT_FALSE(IsLoopback(far)) << far;
  }
}

}  // namespace
}  // namespace nibble
