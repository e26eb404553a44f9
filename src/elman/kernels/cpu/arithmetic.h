// The processor's modes of arithmetic.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace elman {

// While one lives, its thread, and threads that it starts, round to nearest and keep subnormal
// numbers, as IEEE 754 has it. A caller may have chosen otherwise (torch.set_flush_denormal), which
// the pool's threads would not know of: the answer would depend on their number.
class StandardArithmetic {
 public:
  StandardArithmetic() : before_(mode()) {
    if (before_ != kStandard) set_mode(kStandard);
  }
  ~StandardArithmetic() {
    if (before_ != kStandard) set_mode(before_);
  }
  StandardArithmetic(const StandardArithmetic&) = delete;
  StandardArithmetic& operator=(const StandardArithmetic&) = delete;

 private:
#if defined(__SSE2__)
  static constexpr unsigned kStandard = 0x1f80;  // all exceptions masked, none of them raised
  static unsigned mode() { return _mm_getcsr() & ~0x3fu; }
  static void set_mode(unsigned mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  static constexpr std::uint64_t kStandard = 0;
  static std::uint64_t mode() {
    std::uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set_mode(std::uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  static constexpr int kStandard = 0;
  static int mode() { return kStandard; }
  static void set_mode(int) {}
#endif

  const decltype(mode()) before_;
};

}  // namespace elman
