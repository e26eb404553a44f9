#include "memory.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <mutex>
#include <vector>

#include "system.h"

namespace elman {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLarge = std::size_t{1} << 16;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kMostKept = 0;  // it could not tell freed memory from memory in use
#else
constexpr std::size_t kMostKept = std::size_t{128} << 20;
#endif
constexpr std::size_t kMostPieces = 64;

std::atomic<bool> poisoned{false};

std::size_t round_up(std::size_t size, std::size_t to) { return (size + to - 1) / to * to; }

// Of large pieces few sizes, so that one serves many calls: four between a power of two and the
// next.
std::size_t size_of_piece(std::size_t bytes) {
  return round_up(bytes, bytes < kLarge ? kLine : std::bit_floor(bytes) / 4);
}

void* allocate(std::size_t size) {
  if (size < 2 * kHugePage) return allocate_aligned(kLine, size);
  void* const data = allocate_aligned(kHugePage, round_up(size, kHugePage));
  if (data) prefer_huge_pages(data, size);
  return data;
}

// Pieces that are free. Whoever finds another thread here goes on without it: nobody waits, not
// even in the child of a fork that happened while one was here.
class Shelf {
 public:
  Shelf() { pieces_.reserve(kMostPieces + 1); }

  // The piece that fits best, of the most recent of its size, and its size; or null.
  void* take(std::size_t& size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    auto best = pieces_.end();
    for (auto p = pieces_.begin(); p != pieces_.end(); ++p) {
      const bool fits = p->size >= size && p->size <= 2 * size;
      if (fits && (best == pieces_.end() || p->size <= best->size)) best = p;
    }
    if (best == pieces_.end()) return nullptr;
    void* const data = best->data;
    size = best->size;
    kept_ -= size;
    pieces_.erase(best);
    return data;
  }

  void put(void* data, std::size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || size > kMostKept) return free_aligned(data);
    pieces_.push_back({data, size});
    kept_ += size;
    while (kept_ > kMostKept || pieces_.size() > kMostPieces) drop_the_oldest();
  }

  void clear() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    while (lock && !pieces_.empty()) drop_the_oldest();
  }

 private:
  struct Piece {
    void* data;
    std::size_t size;
  };

  void drop_the_oldest() {
    free_aligned(pieces_.front().data);
    kept_ -= pieces_.front().size;
    pieces_.erase(pieces_.begin());
  }

  std::mutex mutex_;
  std::vector<Piece> pieces_;
  std::size_t kept_ = 0;
};

// Never destroyed: arrays may live until the process ends.
Shelf& shelf() {
  static Shelf& shelf = *new Shelf;
  return shelf;
}

template <class T>
void fill_with_nan(T* data, index size) {
  if (poisoned) std::fill_n(data, size, std::numeric_limits<T>::quiet_NaN());
}

}  // namespace

Memory::Memory(std::size_t bytes) : size_(size_of_piece(bytes + 1)) {
  if (size_ >= kLarge) data_ = shelf().take(size_);
  if (!data_) data_ = allocate(size_);
  if (!data_) {
    shelf().clear();
    data_ = allocate(size_);
  }
  if (!data_) throw std::bad_alloc();
}

Memory::~Memory() {
  if (data_ && size_ >= kLarge) {
    shelf().put(data_, size_);
  } else {
    free_aligned(data_);
  }
}

void poison_buffers(bool on) { poisoned = on; }
void poison(float* data, index size) { fill_with_nan(data, size); }
void poison(double* data, index size) { fill_with_nan(data, size); }

}  // namespace elman
