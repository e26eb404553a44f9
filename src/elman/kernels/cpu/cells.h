// The equations of cells.py once more, for vectors of hidden units.
//
// A cell computes h' from the vectors of its gates:
//   x[G]       W_ih x + b_ih of each gate (with b_hh added to the gates that only ever see the sum)
//   u[G]       W_hh h, and what finish() adds
// and keeps for backward what it would cost to compute again. d_gates are the gradients of the
// gates before their nonlinearity: the first G reach x and W_ih, the last G reach h and W_hh, in
// the orders `input_gate` and `hidden_gate` of the weights' blocks of rows.
#pragma once

#include "simd.h"

namespace elman::ELMAN_ISA {

struct Tanh {
  template <class T>
  static ELMAN_INLINE Vector<T> apply(Vector<T> a) {
    return tanh<T>(a);
  }
  template <class T>
  static ELMAN_INLINE Vector<T> backward(Vector<T> d, Vector<T> h) {
    return d * fma(-h, h, broadcast(static_cast<T>(1)));
  }
};

struct Relu {
  template <class T>
  static ELMAN_INLINE Vector<T> apply(Vector<T> a) {
    return a < 0 ? Vector<T>{} : a;  // NaN stays NaN
  }
  template <class T>
  static ELMAN_INLINE Vector<T> backward(Vector<T> d, Vector<T> h) {
    return h <= 0 ? Vector<T>{} : d;
  }
};

// h' = act(W_ih x + b_ih + W_hh h + b_hh)
template <class Activation>
struct Rnn {
  static constexpr int gates = 1, kept = 1, d_gates = 1;
  static constexpr int input_gate[gates] = {0}, hidden_gate[gates] = {0};
  static constexpr bool sums_biases[gates] = {true};

  template <class T>
  static ELMAN_INLINE void finish(const Vector<T>* x, Vector<T>, Vector<T>* u) {
    u[0] += x[0];
  }

  template <class T>
  static ELMAN_INLINE Vector<T> forward(const Vector<T>*, const Vector<T>* u, Vector<T>,
                                        Vector<T>* keep) {
    return keep[0] = Activation::template apply<T>(u[0]);
  }

  // Returns the gradient that reaches h past the gates.
  template <class T>
  static ELMAN_INLINE Vector<T> backward(Vector<T> d, Vector<T>, const Vector<T>* kept,
                                         Vector<T>* d_gate) {
    d_gate[0] = Activation::template backward<T>(d, kept[0]);
    return Vector<T>{};
  }
};

// r = s(W_ir x + b_ir + W_hr h + b_hr)
// z = s(W_iz x + b_iz + W_hz h + b_hz)
// n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
// h' = (1 - z) * n + z * h
struct Gru {
  static constexpr int gates = 3, kept = 4, d_gates = 4;
  static constexpr int input_gate[gates] = {2, 0, 1}, hidden_gate[gates] = {0, 1, 2};
  static constexpr bool sums_biases[gates] = {true, true, false};

  template <class T>
  static ELMAN_INLINE void finish(const Vector<T>* x, Vector<T> b_hn, Vector<T>* u) {
    u[0] += x[0];
    u[1] += x[1];
    u[2] += b_hn;
  }

  template <class T>
  static ELMAN_INLINE Vector<T> forward(const Vector<T>* x, const Vector<T>* u, Vector<T> h,
                                        Vector<T>* keep) {
    const Vector<T> r = sigmoid<T>(u[0]);
    const Vector<T> z = sigmoid<T>(u[1]);
    const Vector<T> n = tanh<T>(fma(r, u[2], x[2]));
    keep[0] = r;
    keep[1] = z;
    keep[2] = n;
    keep[3] = u[2];
    return fma(z, h - n, n);
  }

  template <class T>
  static ELMAN_INLINE Vector<T> backward(Vector<T> d, Vector<T> h, const Vector<T>* kept,
                                         Vector<T>* d_gate) {
    const Vector<T> r = kept[0], z = kept[1], n = kept[2], u_n = kept[3];
    const Vector<T> one = broadcast(static_cast<T>(1));
    const Vector<T> d_n = d * (one - z) * fma(-n, n, one);
    d_gate[0] = d_n;
    d_gate[1] = d_n * u_n * r * (one - r);
    d_gate[2] = d * (h - n) * z * (one - z);
    d_gate[3] = d_n * r;
    return d * z;
  }
};

}  // namespace elman::ELMAN_ISA
