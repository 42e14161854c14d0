// Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), and what the gates
// draw from it: noise is a pure function of (seed, graph, pair), so any layout, device or thread count sees
// the same gates.
#pragma once
#include <stdint.h>

#include "macros.h"

namespace l0sign {

template <class Word>
struct Philox4 {
  Word x[4];
};

// `Ops::Word` is uint32_t or a vector of them; `Ops::multiply(constant, word, high, low)` is the full 64-bit
// product.
template <class Ops>
L0SIGN_HD Philox4<typename Ops::Word> philox4x32(Philox4<typename Ops::Word> c, uint32_t key0,
                                                 uint32_t key1) {
  using Word = typename Ops::Word;
  for (int round = 0; round < 10; ++round) {
    Word high0, low0, high1, low1;
    Ops::multiply(0xD2511F53u, c.x[0], high0, low0);
    Ops::multiply(0xCD9E8D57u, c.x[2], high1, low1);
    c.x[0] = high1 ^ c.x[1] ^ key0;
    c.x[1] = low1;
    c.x[2] = high0 ^ c.x[3] ^ key1;
    c.x[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

struct ScalarPhilox {
  using Word = uint32_t;
  L0SIGN_HD void multiply(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
    const uint64_t product = static_cast<uint64_t>(a) * b;
    high = static_cast<uint32_t>(product >> 32);
    low = static_cast<uint32_t>(product);
  }
};

// Uniform in (0, 1) from 23 bits: k + 1/2 needs 24 bits, so both U and 1 - U are exact in float32 and never 0
// or 1.
L0SIGN_HD float uniform_from_word(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * (1.0f / 8388608.0f);
}

// The words of pairs 4 (pair / 4) to 4 (pair / 4) + 3: `pair` is a canonical index in the graph, `graph` the
// graph's index in the batch.
L0SIGN_HD Philox4<uint32_t> gate_words(int64_t seed, int64_t graph, int64_t pair) {
  const uint64_t block = static_cast<uint64_t>(pair) >> 2;
  const Philox4<uint32_t> counter = {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                      static_cast<uint32_t>(graph), static_cast<uint32_t>(graph >> 32)}};
  return philox4x32<ScalarPhilox>(counter, static_cast<uint32_t>(seed),
                                  static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
}

// U of one pair.
L0SIGN_HD float gate_uniform(int64_t seed, int64_t graph, int64_t pair) {
  const Philox4<uint32_t> words = gate_words(seed, graph, pair);
  // Not words.x[pair & 3]: a register has no address.
  const uint32_t low = pair & 1 ? words.x[1] : words.x[0], high = pair & 1 ? words.x[3] : words.x[2];
  return uniform_from_word(pair & 2 ? high : low);
}

}  // namespace l0sign
