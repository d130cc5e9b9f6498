// SPDX-License-Identifier: Apache-2.0
// Structured logging to stderr, one line an event: "model_loaded name=alice seconds=0.31".
//
// info: something that an operator may want to see has happened. warning: something is wrong that
// the server can live with. error: somebody must act. Prompts and tokens are never logged.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace nibble {

using LogFields = std::initializer_list<std::pair<std::string_view, std::string>>;

// `event` is a word or words_joined_so; values are quoted and escaped where necessary.
void LogInfo(std::string_view event, LogFields fields = {});
void LogWarning(std::string_view event, LogFields fields = {});
void LogError(std::string_view event, LogFields fields = {});

}  // namespace nibble
