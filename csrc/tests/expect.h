// Counting what held and what did not.
#pragma once
#include <cstdio>
#include <string>

inline int passed = 0, failed = 0;

inline void expect(bool condition, const std::string& what) {
  condition ? ++passed : ++failed;
  if (!condition) std::printf("FAILED: %s\n", what.c_str());
}

// The exit status.
inline int summary() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0 || passed == 0;
}
