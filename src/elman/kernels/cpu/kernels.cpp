// Compiled once for each instruction set, with ELMAN_ISA naming it.
#include "backward.h"
#include "forward.h"

#define ELMAN_STRING_(x) #x
#define ELMAN_STRING(x) ELMAN_STRING_(x)

namespace elman::ELMAN_ISA {
namespace {

// Of cell C, computing in T, with weights of type W.
template <class C, class T, class W>
constexpr Kernel<T> kernel_of() {
  return {kLanes<T>,
          C::gates,
          C::kept,
          C::d_gates,
          C::has_c,
          sizeof(W),
          pack_forward<C, T, W>,
          pack_backward<C, T, W>,
          forward<C, T, W>,
          recompute<C, T, W>,
          backward<C, T>};
}

}  // namespace

// In the order of enum Cell.
#define ELMAN_CELLS(T, W)                                                              \
  {kernel_of<Rnn<Tanh>, T, W>(), kernel_of<Rnn<Relu>, T, W>(), kernel_of<Gru, T, W>(), \
   kernel_of<Lstm, T, W>()}

extern const Kernels kernels;
constinit const Kernels kernels = {
    ELMAN_STRING(ELMAN_ISA),      ELMAN_CELLS(float, float),   ELMAN_CELLS(double, double),
    ELMAN_CELLS(float, bfloat16), ELMAN_CELLS(float, float16),
};

}  // namespace elman::ELMAN_ISA
