// The canonical order of the unordered pairs of one graph: i <= j, row-major.
#pragma once
#include <stdint.h>

#include "macros.h"

namespace l0sign {

// Pairs of a graph of n nodes, self-pairs included.
L0SIGN_HD int64_t pair_count(int64_t n) { return n * (n + 1) / 2; }

// Index of the first pair (i, i) of row i.
L0SIGN_HD int64_t pair_row(int64_t i, int64_t n) { return i * n - i * (i - 1) / 2; }

// Index of the pair (i, j), i <= j.
L0SIGN_HD int64_t pair_index(int64_t i, int64_t j, int64_t n) { return pair_row(i, n) + (j - i); }

}  // namespace l0sign
