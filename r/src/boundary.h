// Between R, which leaves a function by longjmp, and C++, which does by exceptions.
//
// A function that R calls holds no C++ object that needs its destructor while it calls R: it takes
// from R what it needs, and has R make room for results. Then it hands the work to guarded(), which
// calls R by nothing but watch().
#pragma once

#include <csetjmp>
#include <cstdio>
#include <exception>
#include <new>

#define R_NO_REMAP
#include <R.h>
#include <Rinternals.h>

#include "engine/arithmetic.h"

namespace elman {

// What R was about to jump to when it was called in the middle of the work.
inline SEXP& where_r_goes_on() {
  static SEXP token = nullptr;
  return token;
}

struct Interrupted {};

// Throws where R has been interrupted.
inline void watch() {
  std::jmp_buf here;
  if (setjmp(here) != 0) throw Interrupted();
  R_UnwindProtect(
      [](void*) {
        R_CheckUserInterrupt();
        return R_NilValue;
      },
      nullptr,
      [](void* to, Rboolean jumps) {
        if (jumps) std::longjmp(*static_cast<std::jmp_buf*>(to), 1);
      },
      &here, where_r_goes_on());
}

// What work() throws is R's error, of the layer of this name.
template <class Work>
void guarded(const char* name, const Work& work) {
  char message[512];
  bool is_interrupted = false;
  try {
    const StandardArithmetic standard;
    work();
    return;
  } catch (const Interrupted&) {
    is_interrupted = true;
  } catch (const std::bad_alloc&) {
    std::snprintf(message, sizeof message, "%s: not enough memory", name);
  } catch (const std::exception& e) {
    std::snprintf(message, sizeof message, "%s: %s", name, e.what());
  }
  if (is_interrupted) R_ContinueUnwind(where_r_goes_on());
  Rf_errorcall(R_NilValue, "%s", message);
}

}  // namespace elman
