// What differs from one operating system or processor to another.
#pragma once

#include <cstddef>

namespace elman {

// `size` bytes at a multiple of `alignment`, a power of two that divides the size; null where there
// is no memory.
void* allocate_aligned(std::size_t alignment, std::size_t size);
void free_aligned(void* data);
// Large pages for it, where the system has them.
void prefer_huge_pages(void* data, std::size_t size);
// Is there memory? A tensor whose storage was freed lies at its offset from 0.
bool is_mapped(const void* data);

// What the processor has, and the system keeps the registers of, on x86-64.
struct InstructionSets {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, DQ and VL
};
InstructionSets instruction_sets();

// Does this thread's number say that the process began with it? False where none says so.
bool is_main_thread();
// Calls what is given in the child of every fork from now on; returns 0.
int after_fork(void (*call)());
// What the process has under this name, from whichever library, or null.
void* find_symbol(const char* name);

}  // namespace elman
