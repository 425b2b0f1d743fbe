# Run by ctest: registers one entry a GoogleTest suite of ${program}, named ${name}/Suite. One
# listing instead of one process a test, since loading torch takes longer than most tests.
if(NOT EXISTS ${program})
  add_test(${name}_NOT_BUILT ${program})
  return()
endif()
execute_process(COMMAND ${program} --gtest_list_tests OUTPUT_VARIABLE listing RESULT_VARIABLE failed)
string(REGEX MATCHALL "(^|\n)[A-Za-z0-9_/]+\\.[^\n]*" suites "${listing}")
if(failed OR NOT suites)
  add_test(${name}_LISTS_NO_TESTS ${CMAKE_COMMAND} -E false)
  return()
endif()
foreach(suite ${suites})
  string(REGEX REPLACE "^\n?([A-Za-z0-9_/]+)\\..*" "\\1" suite "${suite}")
  add_test(${name}/${suite} ${program} --gtest_brief=1 --gtest_filter=${suite}.*)
  # No SKIP_REGULAR_EXPRESSION: it would hide a failure beside a skip. `make test` lists the skips.
  set_tests_properties(${name}/${suite} PROPERTIES TIMEOUT 900 LABELS ${label})
endforeach()
