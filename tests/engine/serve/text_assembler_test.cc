// SPDX-License-Identifier: Apache-2.0
#include "engine/serve/text_assembler.h"

#include <gtest/gtest.h>

#include "tests/support/fake_text.h"

namespace nibble {
namespace {

using nibble::testing::FakeText;

// Feeds `text` in pieces of one token each; "|" separates what could be shown after each token.
std::string Shown(const std::vector<std::string>& pieces, std::vector<std::string> stop,
                  bool include_stop = false, bool match = true) {
  FakeText fake;
  TextAssembler assembler(fake.Decoder(), std::move(stop), include_stop);
  std::string shown;
  for (const std::string& piece : pieces) {
    const bool met = assembler.Append(fake.Token(piece), match, &shown);
    shown += "|";
    if (met) return shown + "stop=" + assembler.stop_string();
  }
  assembler.Finish(&shown);
  return shown;
}

TEST(TextAssembler, ShowsTextAtOnceWithoutStopStrings) {
  EXPECT_EQ(Shown({"a", "bc", "d"}, {}), "a|bc|d|");
}

TEST(TextAssembler, EndsAtAStopStringAndDropsWhatFollows) {
  EXPECT_EQ(Shown({"one ", "two STOP three"}, {"STOP"}), "one |two |stop=STOP");
  EXPECT_EQ(Shown({"one ", "two STOP three"}, {"STOP"}, true), "one |two STOP|stop=STOP");
}

TEST(TextAssembler, HoldsBackWhatMayBecomeAStopString) {
  EXPECT_EQ(Shown({"x S", "TO", "P y"}, {"STOP"}), "x |||stop=STOP");
  EXPECT_EQ(Shown({"x S", "TO", "R y"}, {"STOP"}), "x ||STOR y|");
}

TEST(TextAssembler, ShowsWhatWasHeldBackAtTheEnd) { EXPECT_EQ(Shown({"x ST"}, {"STOP"}), "x |ST"); }

TEST(TextAssembler, FindsAStopStringThatBeginsInsideAFailedOne) {
  EXPECT_EQ(Shown({"aa", "a", "b"}, {"aab"}), "|a||stop=aab");
}

TEST(TextAssembler, TheFirstToBeginWinsAndOfThoseTheLongest) {
  EXPECT_EQ(Shown({"x bc ab"}, {"ab", "bc"}), "x |stop=bc");
  EXPECT_EQ(Shown({"abc"}, {"ab", "abc", "c"}), "|stop=abc");
}

TEST(TextAssembler, MatchesBytesOfLongerCharacters) {
  EXPECT_EQ(Shown({"caf", "é!", "è"}, {"é?", "è"}), "caf|é!||stop=è");
}

TEST(TextAssembler, DoesNotMatchWhileMatchingIsOff) {
  EXPECT_EQ(Shown({"STOP", "S"}, {"STOP"}, false, false), "STOP|S|");
}

TEST(TextAssembler, WithoutADecoderThereIsNoText) {
  TextAssembler assembler(nullptr, {}, false);
  std::string text;
  EXPECT_FALSE(assembler.Append(5, true, &text));
  assembler.Finish(&text);
  EXPECT_EQ(text, "");
}

}  // namespace
}  // namespace nibble
