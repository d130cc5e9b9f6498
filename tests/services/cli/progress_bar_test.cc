// SPDX-License-Identifier: Apache-2.0
#include "services/cli/progress_bar.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "kernels/check.h"

namespace nibble {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;

// What is written to stderr while it is a file.
std::string Plain(const std::function<void()>& body) {
  ::testing::internal::CaptureStderr();
  body();
  return ::testing::internal::GetCapturedStderr();
}

// What is written to stderr while it is a terminal of that many columns.
std::string OnTerminal(unsigned short columns, const std::function<void()>& body) {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
  NIBBLE_CHECK(master >= 0 && ::grantpt(master) == 0 && ::unlockpt(master) == 0);
  const int terminal = ::open(::ptsname(master), O_RDWR | O_NOCTTY);
  NIBBLE_CHECK(terminal >= 0);
  winsize size = {};
  size.ws_col = columns;
  NIBBLE_CHECK(::ioctl(terminal, TIOCSWINSZ, &size) == 0);
  const int before = ::dup(STDERR_FILENO);
  ::dup2(terminal, STDERR_FILENO);
  body();
  ::dup2(before, STDERR_FILENO);
  ::close(before);
  // A mark, so that reading knows where to stop.
  NIBBLE_CHECK(::write(terminal, "\x04", 1) == 1);
  std::string text;
  char byte = 0;
  while (::read(master, &byte, 1) == 1 && byte != '\x04') text += byte;
  ::close(terminal);
  ::close(master);
  return text;
}

TEST(ProgressBarTest, InAFileThereIsALineForEachPhaseAndTenth) {
  const std::string text = Plain([] {
    ProgressBar bar(/*quiet=*/false);
    bar.Show("quantize", 0.01, {}, "block 1/8");
    bar.Show("quantize", 0.02, {}, "block 1/8");
    bar.Show("quantize", 0.10, 65.0, "");
    bar.Show("evaluate", 0.11, {}, "");
  });
  EXPECT_EQ(text,
            "quantize:   1 %, block 1/8\n"
            "quantize:  10 %, 1m 05s left\n"
            "evaluate:  11 %\n");
}

TEST(ProgressBarTest, QuietIsQuiet) {
  const auto show = [] {
    ProgressBar bar(/*quiet=*/true);
    bar.Show("quantize", 0.5, 1.0, "note");
  };
  EXPECT_EQ(Plain(show), "");
  EXPECT_EQ(OnTerminal(80, show), "");
}

TEST(ProgressBarTest, OnATerminalItIsRedrawnInPlaceAndRemovedAtTheEnd) {
  const std::string text = OnTerminal(80, [] {
    ProgressBar bar(/*quiet=*/false);
    bar.Show("quantize", 0.5, 7.0, "block 4/8");
  });
  EXPECT_THAT(text, HasSubstr("\r\033[Kquantize   [############............]  50 %, 7s left"));
  EXPECT_THAT(text, HasSubstr("block 4/8"));
  EXPECT_THAT(text, EndsWith("\r\033[K"));
  EXPECT_EQ(text.find('\n'), std::string::npos);
}

TEST(ProgressBarTest, ALineNeverWraps) {
  const std::string text = OnTerminal(20, [] {
    ProgressBar bar(/*quiet=*/false);
    bar.Show("quantize", 1, 7.0, "a long note about a block");
  });
  EXPECT_EQ(text, "\r\033[Kquantize   [#######\r\033[K") << "19 columns of 20";
}

TEST(ProgressBarTest, FractionsOutOfRangeAreCut) {
  EXPECT_EQ(Plain([] { ProgressBar(false).Show("a", 7, {}, ""); }), "a: 100 %\n");
  EXPECT_EQ(Plain([] { ProgressBar(false).Show("a", -1, {}, ""); }), "a:   0 %\n");
}

TEST(FormatTest, BytesAndSecondsReadWell) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1'500'000), "1.5 MB");
  EXPECT_EQ(FormatBytes(int64_t{5'000'000'000'000'000}), "5000.0 TB");
  EXPECT_EQ(FormatSeconds(-3), "0s");
  EXPECT_EQ(FormatSeconds(7.4), "7s");
  EXPECT_EQ(FormatSeconds(185), "3m 05s");
  EXPECT_EQ(FormatSeconds(3720), "1h 02m");
}

}  // namespace
}  // namespace nibble
