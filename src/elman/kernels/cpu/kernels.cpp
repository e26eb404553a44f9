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
          sizeof(W),
          pack_forward<C, T, W>,
          pack_backward<C, T, W>,
          forward<C, T, W>,
          recompute<C, T, W>,
          backward<C, T>};
}

}  // namespace

extern const Kernels kernels;
constinit const Kernels kernels = {
    ELMAN_STRING(ELMAN_ISA),
    {kernel_of<Rnn<Tanh>, float, float>(), kernel_of<Rnn<Relu>, float, float>(),
     kernel_of<Gru, float, float>()},
    {kernel_of<Rnn<Tanh>, double, double>(), kernel_of<Rnn<Relu>, double, double>(),
     kernel_of<Gru, double, double>()},
    {kernel_of<Rnn<Tanh>, float, bfloat16>(), kernel_of<Rnn<Relu>, float, bfloat16>(),
     kernel_of<Gru, float, bfloat16>()},
    {kernel_of<Rnn<Tanh>, float, float16>(), kernel_of<Rnn<Relu>, float, float16>(),
     kernel_of<Gru, float, float16>()},
};

}  // namespace elman::ELMAN_ISA
