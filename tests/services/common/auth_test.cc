// SPDX-License-Identifier: Apache-2.0
#include "services/common/auth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

// printf %s test | sha256sum
constexpr char kTest[] = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
// printf %s other | sha256sum
constexpr char kOther[] = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";

std::string Line(const char* sha, const char* rest) { return std::string(sha) + " " + rest + "\n"; }

TEST(ParseTokensTest, ReadsNamesTenantsAndRoles) {
  const auto entries = ParseTokens("# comment\n\n" + Line(kTest, "alice lab generate,quantize") +
                                   Line(kOther, "\troot\tops\tadmin\r"));
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 2u);
  const Caller& alice = (*entries)[0].caller;
  EXPECT_EQ(alice.name, "alice");
  EXPECT_EQ(alice.tenant, "lab");
  EXPECT_TRUE(alice.Has(Role::kGenerate));
  EXPECT_TRUE(alice.Has(Role::kQuantize));
  EXPECT_FALSE(alice.Has(Role::kAdmin));
  EXPECT_TRUE((*entries)[1].caller.Has(Role::kGenerate)) << "admin implies the others";
}

TEST(ParseTokensTest, NamesTheLineThatIsWrong) {
  const struct {
    std::string text;
    const char* word;
  } cases[] = {
      {"# ok\nabc alice lab generate\n", "line 2"},
      {Line(kTest, "alice lab"), "3 words"},
      {Line(kTest, "alice lab generate extra"), "5 words"},
      {Line(kTest, "alice lab cook"), "\"cook\""},
      {Line(kTest, "alice lab generate,"), "\"\""},
      {std::string(64, 'x') + " alice lab generate\n", "hexadecimal"},
  };
  for (const auto& c : cases) {
    const auto entries = ParseTokens(c.text);
    EXPECT_EQ(entries.status().code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(entries.status().message()), HasSubstr(c.word));
  }
}

TEST(AuthorizerTest, WithoutAFileEverybodyMayDoEverything) {
  const auto authorizer = Authorizer::Make("");
  ASSERT_TRUE(authorizer.ok());
  const auto caller = (*authorizer)->Check("", Role::kAdmin);
  ASSERT_TRUE(caller.ok());
  EXPECT_EQ(caller->tenant, "local");
}

class AuthorizerFileTest : public ::testing::Test {
 protected:
  AuthorizerFileTest() { WriteFile(path_, Line(kTest, "alice lab generate")); }
  TempDir directory_;
  const std::string path_ = directory_.File("tokens");
};

TEST_F(AuthorizerFileTest, KnowsTokensAndRoles) {
  const auto authorizer = Authorizer::Make(path_);
  ASSERT_TRUE(authorizer.ok()) << authorizer.status();
  const auto check = [&](const char* value, Role role) {
    return (*authorizer)->Check(value, role).status().code();
  };
  EXPECT_EQ(check("Bearer test", Role::kGenerate), absl::StatusCode::kOk);
  EXPECT_EQ(check("bearer test", Role::kGenerate), absl::StatusCode::kOk);
  EXPECT_EQ(check("Bearer test", Role::kAdmin), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(check("Bearer tes", Role::kGenerate), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(check("Bearer test ", Role::kGenerate), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(check("test", Role::kGenerate), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(check("", Role::kGenerate), absl::StatusCode::kUnauthenticated);
  // The hash is no token.
  EXPECT_EQ(check((std::string("Bearer ") + kTest).c_str(), Role::kGenerate),
            absl::StatusCode::kUnauthenticated);
}

TEST_F(AuthorizerFileTest, AChangedFileCountsAndABrokenOneDoesNot) {
  const auto authorizer = Authorizer::Make(path_);
  ASSERT_TRUE(authorizer.ok());
  WriteFile(path_, Line(kOther, "bob lab generate") + "# longer\n");
  (*authorizer)->Refresh();
  EXPECT_FALSE((*authorizer)->Check("Bearer test", Role::kGenerate).ok());
  EXPECT_TRUE((*authorizer)->Check("Bearer other", Role::kGenerate).ok());
  WriteFile(path_, "nonsense\n");
  (*authorizer)->Refresh();
  EXPECT_TRUE((*authorizer)->Check("Bearer other", Role::kGenerate).ok());
}

TEST(AuthorizerErrorTest, AFileThatCannotBeReadStopsTheStart) {
  EXPECT_EQ(Authorizer::Make("/nowhere/tokens").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace nibble
