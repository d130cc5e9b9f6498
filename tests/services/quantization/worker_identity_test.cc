// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/worker_identity.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace nibble {
namespace {

TEST(WorkerIdentityTest, AProcessIsRecognisedByItsStartNotOnlyItsNumber) {
  const std::string me = WorkerIdentity("w0", getpid());
  EXPECT_TRUE(WorkerLives(me));
  EXPECT_FALSE(WorkerLives(me + "1")) << "same number, started at another time";
  EXPECT_FALSE(WorkerLives(absl::StrCat("w0@some-other-boot", me.substr(me.find(':')))));
  EXPECT_FALSE(WorkerLives(""));
  EXPECT_FALSE(WorkerLives("w0@a:b:c"));
}

TEST(WorkerIdentityTest, ADeadProcessDoesNotLive) {
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  const std::string identity = WorkerIdentity("w", child);
  EXPECT_TRUE(WorkerLives(identity));
  kill(child, SIGKILL);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  EXPECT_FALSE(WorkerLives(identity)) << "a zombie";
  waitpid(child, nullptr, 0);
  EXPECT_FALSE(WorkerLives(identity));
}

}  // namespace
}  // namespace nibble
