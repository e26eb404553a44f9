// Compiled once for each instruction set, with ELMAN_ISA naming it.
#include "scan.h"

#define ELMAN_STRING_(x) #x
#define ELMAN_STRING(x) ELMAN_STRING_(x)

namespace elman::ELMAN_ISA {

extern const Kernels kernels;
constinit const Kernels kernels = {
    ELMAN_STRING(ELMAN_ISA),
    {kernel_of<Rnn<Tanh>, float>(), kernel_of<Rnn<Relu>, float>(), kernel_of<Gru, float>()},
    {kernel_of<Rnn<Tanh>, double>(), kernel_of<Rnn<Relu>, double>(), kernel_of<Gru, double>()},
};

}  // namespace elman::ELMAN_ISA
