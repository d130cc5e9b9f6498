// SPDX-License-Identifier: Apache-2.0
#include "services/cli/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "services/cli/exit_codes.h"
#include "tests/support/temp_dir.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ClientTest, AServerThatIsNotThereIsNamedWithWhatToDo) {
  ClientOptions options;
  options.server = "127.0.0.1:1";
  const auto client = Client::Make(options);
  ASSERT_TRUE(client.ok()) << client.status();
  const absl::Status status =
      (*client)->Explain(grpc::Status(grpc::StatusCode::UNAVAILABLE, "refused"));
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("127.0.0.1:1"), HasSubstr("nibble serve"), HasSubstr("--server")));
  EXPECT_EQ(ExitCodeFor(status), kExitUnavailable);
}

TEST(ClientTest, OtherErrorsAreTheServersWords) {
  const auto client = Client::Make({"127.0.0.1:1", "", ""});
  ASSERT_TRUE(client.ok()) << client.status();
  const absl::Status status =
      (*client)->Explain(grpc::Status(grpc::StatusCode::NOT_FOUND, "there is no jobs/x"));
  EXPECT_EQ(status, absl::NotFoundError("there is no jobs/x"));
}

TEST(ClientTest, AFileThatCannotBeReadIsNamedWithItsFlag) {
  const TempDir directory;
  const std::string absent = directory.File("absent");
  const absl::Status token = Client::Make({"127.0.0.1:1", absent, ""}).status();
  EXPECT_THAT(std::string(token.message()), AllOf(HasSubstr("--token-file"), HasSubstr(absent)));
  EXPECT_EQ(ExitCodeFor(token), kExitNotFound);
  const absl::Status roots = Client::Make({"127.0.0.1:1", "", absent}).status();
  EXPECT_THAT(std::string(roots.message()), AllOf(HasSubstr("--tls-ca"), HasSubstr(absent)));
}

TEST(ClientTest, AFailingVerbSaysItsNameAndTheMessage) {
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(Fail("jobs show", absl::NotFoundError("there is no jobs/x")), kExitNotFound);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "nibble jobs show: there is no jobs/x\n");
}

}  // namespace
}  // namespace nibble
