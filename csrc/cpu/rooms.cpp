#include "rooms.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace l0sign {
namespace cpu {
namespace {

constexpr size_t kPage = 2 << 20;
constexpr size_t kIdle = 2;  // rooms that nobody has, held for the next forward

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

struct Rooms {
  std::mutex mutex;
  std::map<int64_t, Memory> taken;
  std::vector<Memory> idle;
  int64_t last = 0;
};

// Never destroyed: contexts may outlive static objects.
Rooms& rooms() {
  static Rooms& all = []() -> Rooms& {
    Rooms& made = *new Rooms;
    made.idle.reserve(kIdle);
    return made;
  }();
  return all;
}

}  // namespace

Room::Room() {
  Rooms& all = rooms();
  const std::lock_guard<std::mutex> lock(all.mutex);
  Memory memory;
  if (!all.idle.empty()) {
    memory = std::move(all.idle.back());
    all.idle.pop_back();
  } else {
    memory.reset(std::aligned_alloc(kPage, kBytes));
    if (!memory) throw std::bad_alloc();
#ifdef __linux__
    // Not the first of them: a few graphs take a few small pages.
    madvise(static_cast<char*>(memory.get()) + kPage, kBytes - kPage, MADV_HUGEPAGE);
#endif
  }
  number_ = ++all.last;
  all.taken[number_] = std::move(memory);
}

Room::~Room() {
  Rooms& all = rooms();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.taken.find(number_);
  if (all.idle.size() < kIdle) all.idle.push_back(std::move(found->second));
  all.taken.erase(found);
}

void* Room::memory(int64_t number) {
  Rooms& all = rooms();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.taken.find(number);
  if (found == all.taken.end())
    throw std::runtime_error("room: expected the number of a room, got " + std::to_string(number));
  return found->second.get();
}

}  // namespace cpu
}  // namespace l0sign
