# SPDX-License-Identifier: Apache-2.0
# nibble_warnings(target): our own code compiles clean under all of these; generated code does not use it.
function(nibble_warnings target)
  target_compile_options(${target} PRIVATE
    $<$<NOT:$<COMPILE_LANGUAGE:CUDA>>:-Wall;-Wextra;-Wshadow;-Werror>
    "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler=-Wall,-Wextra,-Wshadow -Werror=all-warnings>")
endfunction()

# nibble_library(name SOURCES...): a static library under the house's warnings.
function(nibble_library name)
  add_library(${name} STATIC ${ARGN})
  nibble_warnings(${name})
endfunction()

# nibble_test(name [TIMEOUT seconds] SOURCES... [LIBS...]): one GoogleTest binary; each of its cases is a ctest test. Those
# with a long timeout begin before others, so that no core is idle at the end.
function(nibble_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  nibble_warnings(${name})
  # Compiling a test takes longer than running it.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} nibble_source_dir GTest::gmock GTest::gtest_main Threads::Threads)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  include(GoogleTest)
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT ${ARG_TIMEOUT} COST ${ARG_TIMEOUT})
endfunction()
