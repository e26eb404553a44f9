#include "system.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>

#if defined(_WIN32)
#include <malloc.h>
#else
#include <dlfcn.h>
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace elman {

#if defined(_WIN32)
void* allocate_aligned(std::size_t alignment, std::size_t size) {
  return _aligned_malloc(size, alignment);
}
void free_aligned(void* data) { _aligned_free(data); }
int after_fork(void (*)()) { return 0; }
void* find_symbol(const char*) { return nullptr; }
#else
void* allocate_aligned(std::size_t alignment, std::size_t size) {
  return std::aligned_alloc(alignment, size);
}
void free_aligned(void* data) { std::free(data); }
int after_fork(void (*call)()) { return pthread_atfork(nullptr, nullptr, call); }
void* find_symbol(const char* name) { return dlsym(RTLD_DEFAULT, name); }
#endif

// Asked of the processor itself: what compilers offer for it needs a library that not all bring.
InstructionSets instruction_sets() {
  InstructionSets found;
#if defined(__x86_64__)
  const auto has = [](unsigned word, std::initializer_list<int> bits) {
    return std::all_of(bits.begin(), bits.end(), [&](int bit) { return word >> bit & 1; });
  };
  unsigned eax, ebx, ecx, edx, kept, high;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !has(ecx, {12, 27, 29})) return found;
  asm("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return found;
  found.avx2 = has(kept, {1, 2}) && has(ebx, {5});
  found.avx512 = found.avx2 && has(kept, {5, 6, 7}) && has(ebx, {16, 17, 30, 31});
#endif
  return found;
}

#if defined(__linux__)
void prefer_huge_pages(void* data, std::size_t size) { madvise(data, size, MADV_HUGEPAGE); }

bool is_mapped(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  if (address >> 40) return true;  // where memory lies, mostly
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  unsigned char is_resident;
  return mincore(reinterpret_cast<void*>(address / page * page), 1, &is_resident) == 0;
}

bool is_main_thread() { return syscall(SYS_gettid) == getpid(); }
#else
void prefer_huge_pages(void*, std::size_t) {}
bool is_mapped(const void* data) { return data != nullptr; }
bool is_main_thread() { return false; }
#endif

}  // namespace elman
