# SPDX-License-Identifier: Apache-2.0
if(NIBBLE_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(NIBBLE_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
elseif(NOT NIBBLE_SANITIZE STREQUAL "")
  message(FATAL_ERROR "NIBBLE_SANITIZE is '${NIBBLE_SANITIZE}'; it must be empty, 'address' or 'thread'")
endif()

# Instrumented code confuses the flow analysis behind these warnings of GCC 12 (false positives inside the standard
# library); the release build keeps them.
if(NOT NIBBLE_SANITIZE STREQUAL "" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options(-Wno-array-bounds -Wno-maybe-uninitialized -Wno-restrict -Wno-stringop-overflow)
endif()
