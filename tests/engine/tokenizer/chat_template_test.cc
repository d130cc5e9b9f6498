// SPDX-License-Identifier: Apache-2.0
#include "engine/tokenizer/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/engine/tokenizer/test_files.h"

namespace nibble {
namespace {

using nlohmann::ordered_json;
using testing::DataPath;
using ::testing::HasSubstr;

absl::StatusOr<std::string> Render(const std::string& source,
                                   const ordered_json& variables = ordered_json::object(),
                                   std::optional<int64_t> now = std::nullopt) {
  absl::StatusOr<ChatTemplate> parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) return parsed.status();
  return parsed->RenderVariables(variables, now);
}

std::string ErrorOf(const std::string& source,
                    const ordered_json& variables = ordered_json::object()) {
  const absl::StatusOr<std::string> rendered = Render(source, variables);
  return rendered.ok() ? "rendered: " + *rendered : std::string(rendered.status().message());
}

// What Jinja itself makes of the same templates (make_template_golden.py).
class TemplateGoldenTest : public ::testing::Test {
 protected:
  static void Expect(const std::string& source, const ordered_json& variables,
                     const ordered_json& wanted, int64_t now) {
    const absl::StatusOr<std::string> rendered = Render(source, variables, now);
    if (wanted.is_null()) {
      EXPECT_FALSE(rendered.ok()) << source << "\nrendered " << *rendered;
    } else {
      ASSERT_TRUE(rendered.ok()) << source << "\n" << rendered.status();
      EXPECT_EQ(*rendered, wanted.get<std::string>()) << source;
    }
  }

  const ordered_json golden_ = ordered_json::parse(ReadFile(DataPath("templates.golden.json")));
  const int64_t now_ = golden_.at("now").get<int64_t>();
};

TEST_F(TemplateGoldenTest, ConversationsRenderAsInJinja) {
  int failures_wanted = 0;
  for (const auto& c : golden_.at("cases")) {
    const std::string source = ReadFile(DataPath("templates/" + c.at("file").get<std::string>()));
    Expect(source, c.at("variables"), c.at("output"), now_);
    failures_wanted += c.at("output").is_null() ? 1 : 0;
  }
  EXPECT_GT(failures_wanted, 5);  // conversations that the template refuses
}

TEST_F(TemplateGoldenTest, SnippetsRenderAsInJinja) {
  for (const auto& c : golden_.at("snippets")) {
    Expect(c.at("template").get<std::string>(), golden_.at("variables"), c.at("output"), now_);
  }
}

TEST(ChatTemplateTest, RendersMessagesWithTheModelsTokens) {
  auto parsed = ChatTemplate::Parse(
      "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}"
      "{% endfor %}{% if add_generation_prompt %}?{% endif %}{{ mood }}{{ tools is none }}");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ChatInput input;
  input.messages = {{{"role", "user"}, {"content", "hi"}}};
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  input.extra = {{"mood", "calm"}};
  EXPECT_EQ(*parsed->Render(input), "<s>user:hi</s>?calmTrue");
  input.add_generation_prompt = false;
  EXPECT_EQ(*parsed->Render(input), "<s>user:hi</s>calmTrue");
}

TEST(ChatTemplateTest, ErrorsNameTheLineAndTheConstruct) {
  EXPECT_THAT(ErrorOf("a\nb\n{% include 'x' %}"), HasSubstr("line 3: statement 'include'"));
  EXPECT_THAT(ErrorOf("\n{{ 1|groupby('x') }}"), HasSubstr("line 2: filter 'groupby'"));
  EXPECT_THAT(ErrorOf("{{ 1 is odder }}"), HasSubstr("line 1: test 'odder'"));
  EXPECT_THAT(ErrorOf("\n\n{{ 'a'.encode() }}"), HasSubstr("line 3: string method 'encode'"));
  EXPECT_THAT(ErrorOf("{% if x %}\n{{ y }}"), HasSubstr("endif"));
  EXPECT_THAT(ErrorOf("{{ x.y }}"), HasSubstr("'x' is undefined"));
  EXPECT_THAT(ErrorOf("{{ raise_exception('roles must alternate') }}"),
              HasSubstr("roles must alternate"));
  EXPECT_THAT(ErrorOf("{{ f(*args) }}"), HasSubstr("* and ** arguments"));
  EXPECT_THAT(ErrorOf("{{ '%s' % 1 }}"), HasSubstr("'%' is not supported between str and int"));
}

TEST(ChatTemplateTest, TheTimeIsPassedIn) {
  EXPECT_EQ(*Render("{{ strftime_now('%d %b %Y') }}", ordered_json::object(), 0), "01 Jan 1970");
  EXPECT_THAT(ErrorOf("{{ strftime_now('%d') }}"), HasSubstr("no time"));
}

TEST(ChatTemplateTest, EndlessWorkIsCutShort) {
  for (const char* source : {
           "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
           "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
           "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}"
           "{% endfor %}",
           "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}"
           "{% endfor %}",
           "{{ 'x' * 999999999999 }}",
           "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
           "{% set ns = namespace(l=[]) %}{% for i in range(999) %}{% set ns.l = [ns.l] %}"
           "{% endfor %}",
           "{% set ns = namespace(l=[]) %}{% for i in range(90) %}{% set ns.l = [ns.l, ns.l] %}"
           "{% endfor %}{{ ns.l }}",
           "{% set ns = namespace(l=[]) %}{% for i in range(30) %}{% set ns.l = [ns.l, ns.l] %}"
           "{% endfor %}{{ ns.l == ns.l }}",
           "{% set s = 'x' * 9999999 %}{% for i in range(99999) %}{{ s.find('y') }}{% endfor %}",
           "{{ range(999999999) }}",
           "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
           "{% set s = ('a\\n' * 100000) | indent(1000) %}{{ s }}{{ s }}",
       }) {
    const absl::StatusOr<std::string> rendered = Render(source);
    EXPECT_FALSE(rendered.ok()) << source;
  }
}

TEST(ChatTemplateTest, ANamespaceOfManyMembersCountsTowardsTheWork) {
  ordered_json many = ordered_json::object();
  for (int i = 0; i < 6000; ++i) many["name" + std::to_string(i)] = i;
  EXPECT_EQ(Render("{% set ns = namespace(x) %}{{ ns.a }}", {{"x", many}}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(ChatTemplateTest, DeepNestingIsRefused) {
  for (const auto& [open, close] : {std::pair("(", ")"), {"[", "]"}, {"not ", ""}, {"-", ""}}) {
    std::string source = "{{ ";
    for (int i = 0; i < 50000; ++i) source += open;
    source += "1";
    for (int i = 0; i < 50000; ++i) source += close;
    EXPECT_THAT(ErrorOf(source + " }}"), HasSubstr("nested")) << open;
  }
  std::string chain = "{{ 1";
  for (int i = 0; i < 50000; ++i) chain += "+1";
  EXPECT_THAT(ErrorOf(chain + " }}"), HasSubstr("nested"));
  std::string blocks;
  for (int i = 0; i < 5000; ++i) blocks += "{% if 1 %}";
  EXPECT_THAT(ErrorOf(blocks), HasSubstr("nested"));
  EXPECT_THAT(ErrorOf(std::string(300 << 10, 'x')), HasSubstr("at most"));

  ordered_json deep = 1;
  for (int i = 0; i < 200; ++i) deep = ordered_json::array({deep});
  EXPECT_THAT(ErrorOf("{{ x }}", {{"x", deep}}), HasSubstr("'x': nested deeper"));
}

TEST(ChatTemplateTest, IllFormedTextIsRepaired) {
  EXPECT_EQ(*Render("{{ x }}", {{"x", "a\xFF"}}), "a\uFFFD");
  EXPECT_EQ(*Render("b\xC3{{ 1 }}"),
            "b\uFFFD"
            "1");
}

}  // namespace
}  // namespace nibble
