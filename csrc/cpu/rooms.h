// Memory for what a forward leaves for its backward. Autograd's context of the forward has a room as long as
// it lives; operators know it by its number, which compiled graphs cannot have. A tensor would be allocated
// and freed in every step, and the C library give the pages back to the system each time.
#pragma once
#include <stdint.h>

namespace l0sign {
namespace cpu {

class Room {
 public:
  static constexpr int64_t kBytes = 30 << 20;  // at most: memory shall not grow with the number of pairs

  Room();  // throws std::bad_alloc
  ~Room();
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  int64_t number() const { return number_; }  // not 0, and never given again

  // Its memory, 64-byte aligned. Throws std::runtime_error where no room has this number.
  static void* memory(int64_t number);

 private:
  int64_t number_;
};

}  // namespace cpu
}  // namespace l0sign
