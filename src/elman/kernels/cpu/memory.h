// Memory for scratch and for large results.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#include "engine.h"

namespace elman {

// On a cache line's boundary, not initialised. Large pieces are not given back to the system at
// once but kept for a later call, up to 128 MiB of them: fresh pages cost more than many a layer.
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t bytes);  // throws std::bad_alloc
  Memory(Memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(other.size_) {}
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Memory();
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// From now on new buffers are filled with NaN, so that a test sees what is read before it is
// written.
void poison_buffers(bool on);
void poison(float* data, index size);
void poison(double* data, index size);

// Memory for so many values.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(index size) : memory_(bytes(size)) {
    if constexpr (std::is_floating_point_v<T>) poison(get(), size);
  }
  T* get() const { return static_cast<T*>(memory_.get()); }

 private:
  static std::size_t bytes(index size) {
    if (size < 0 || size > std::numeric_limits<index>::max() / 16) throw std::bad_alloc();
    return static_cast<std::size_t>(size) * sizeof(T);
  }

  Memory memory_;
};

}  // namespace elman
