// Compiled once for each instruction set, with ELMAN_ISA naming it.
#include "backward.h"
#include "forward.h"
#include "step.h"

#define ELMAN_STRING_(x) #x
#define ELMAN_STRING(x) ELMAN_STRING_(x)

namespace elman::ELMAN_ISA {
namespace {

// None in half precision, whose weights nobody has read as they lie.
template <class C, class T, class W>
constexpr Step<T>* step_of() {
  if constexpr (sizeof(T) == sizeof(W)) return step<C, T>;
  return nullptr;
}

// Of cell C, computing in T, with weights of type W.
template <class C, class T, class W>
constexpr Kernel<T> kernel_of() {
  return {C::name,
          C::kind,
          kLanes<T>,
          C::gates,
          C::late,
          C::kept,
          C::d_gates,
          C::has_c,
          sizeof(W),
          pack_forward<C, T, W>,
          pack_backward<C, T, W>,
          forward<C, T, W>,
          recompute<C, T, W>,
          step_of<C, T, W>(),
          backward<C, T>};
}

template <class T, class W, class List>
struct Table;
template <class T, class W, class... C>
struct Table<T, W, CellList<C...>> {
  static constexpr int size = sizeof...(C);
  static constexpr Kernel<T> kernels[size] = {kernel_of<C, T, W>()...};
};

}  // namespace

extern const Kernels kernels;
constinit const Kernels kernels = {ELMAN_STRING(ELMAN_ISA),
                                   Table<float, float, Cells>::size,
                                   Table<float, float, Cells>::kernels,
                                   Table<double, double, Cells>::kernels,
#if defined(ELMAN_NO_HALF)  // half the time to compile, for packages that have no such weights
                                   nullptr,
                                   nullptr};
#else
                                   Table<float, bfloat16, Cells>::kernels,
                                   Table<float, float16, Cells>::kernels};
#endif

}  // namespace elman::ELMAN_ISA
