// The equations of cells.py once more, for vectors of hidden units.
//
// A cell computes h' from the vectors of its gates:
//   x[G]       W_ih x + b_ih of each gate (with b_hh added to the gates that only ever see the sum)
//   u[G]       W_hh h, and what finish() adds
//   own        what it reads of the state before: h, or c where it has one, which forward()
//              replaces by c'
// and keeps for backward what it would cost to compute again. d_gates are the gradients of the
// gates before their nonlinearity: the first G reach x and W_ih, the last G reach h and W_hh, in
// the orders `input_gate` and `hidden_gate` of the weights' blocks of rows.
//
// backward() takes d, the gradient of h', and of c' where there is a c; `own` before and after the
// step; and what was kept. It returns the gradient that reaches `own` past the gates.
//
// Where `late` is not 0, so many gates, the last ones of the weights and the first of d_gates, wait
// for the others: their rows of W_hh meet gated(), and not h. It takes x, and u of the other gates,
// and turns x into what forward() takes, whose u is that of the late gates. It is kept, at
// `kept_gated`, and first of all the gate that made it, whose gradient, the one behind the late
// ones, backward() leaves to backward_gated(): that takes the gradient of gated(), h and the gate,
// and returns what reaches h.
#pragma once

#include "simd.h"

namespace elman::ELMAN_ISA {

struct Tanh {
  static constexpr const char* rnn = "rnn_tanh";
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
  static constexpr const char* rnn = "rnn_relu";
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
  static constexpr const char *name = Activation::rnn, *kind = "RNN";
  static constexpr int gates = 1, late = 0, kept = 0, d_gates = 1;
  static constexpr bool has_c = false;
  static constexpr int input_gate[gates] = {0}, hidden_gate[gates] = {0};
  static constexpr bool sums_biases[gates] = {true};

  template <class T>
  static ELMAN_INLINE void finish(const Vector<T>* x, Vector<T>, Vector<T>* u) {
    u[0] += x[0];
  }

  template <class T>
  static ELMAN_INLINE Vector<T> forward(const Vector<T>*, const Vector<T>* u, Vector<T>&,
                                        Vector<T>*) {
    return Activation::template apply<T>(u[0]);
  }

  template <class T>
  static ELMAN_INLINE Vector<T> backward(Vector<T> d, Vector<T>, Vector<T>, Vector<T> after,
                                         const Vector<T>*, Vector<T>* d_gate) {
    d_gate[0] = Activation::template backward<T>(d, after);
    return Vector<T>{};
  }
};

// r = s(W_ir x + b_ir + W_hr h + b_hr)
// z = s(W_iz x + b_iz + W_hz h + b_hz)
// n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
// h' = (1 - z) * n + z * h
struct Gru {
  static constexpr const char *name = "gru", *kind = "GRU";
  static constexpr int gates = 3, late = 0, kept = 4, d_gates = 4;
  static constexpr bool has_c = false;
  static constexpr int input_gate[gates] = {2, 0, 1}, hidden_gate[gates] = {0, 1, 2};
  static constexpr bool sums_biases[gates] = {true, true, false};

  template <class T>
  static ELMAN_INLINE void finish(const Vector<T>* x, Vector<T> b_hn, Vector<T>* u) {
    u[0] += x[0];
    u[1] += x[1];
    u[2] += b_hn;
  }

  template <class T>
  static ELMAN_INLINE Vector<T> forward(const Vector<T>* x, const Vector<T>* u, Vector<T>& h,
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
  static ELMAN_INLINE Vector<T> backward(Vector<T> d, Vector<T>, Vector<T> h, Vector<T>,
                                         const Vector<T>* kept, Vector<T>* d_gate) {
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

// r = s(W_ir x + b_ir + W_hr h + b_hr)
// z = s(W_iz x + b_iz + W_hz h + b_hz)
// n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)
// h' = (1 - z) * n + z * h
struct GruResetBefore {
  static constexpr const char *name = "gru_reset_before", *kind = "GRU";
  static constexpr int gates = 3, late = 1, kept = 4, kept_gated = 3, d_gates = 3;
  static constexpr bool has_c = false;
  static constexpr int input_gate[gates] = {2, 0, 1}, hidden_gate[gates] = {2, 0, 1};
  static constexpr bool sums_biases[gates] = {true, true, true};

  template <class T>
  static ELMAN_INLINE Vector<T> gated(Vector<T>* x, const Vector<T>* u, Vector<T> h) {
    x[0] = sigmoid<T>(u[0] + x[0]);
    x[1] = sigmoid<T>(u[1] + x[1]);
    return x[0] * h;
  }

  template <class T>
  static ELMAN_INLINE void finish(const Vector<T>* x, Vector<T>, Vector<T>* u) {
    u[0] += x[2];
  }

  template <class T>
  static ELMAN_INLINE Vector<T> forward(const Vector<T>* x, const Vector<T>* u, Vector<T>& h,
                                        Vector<T>* keep) {
    const Vector<T> r = x[0], z = x[1], n = tanh<T>(u[0]);
    keep[0] = r;
    keep[1] = z;
    keep[2] = n;
    keep[3] = r * h;
    return fma(z, h - n, n);
  }

  template <class T>
  static ELMAN_INLINE Vector<T> backward(Vector<T> d, Vector<T>, Vector<T> h, Vector<T>,
                                         const Vector<T>* kept, Vector<T>* d_gate) {
    const Vector<T> z = kept[1], n = kept[2];
    const Vector<T> one = broadcast(static_cast<T>(1));
    d_gate[0] = d * (one - z) * fma(-n, n, one);
    d_gate[1] = Vector<T>{};
    d_gate[2] = d * (h - n) * z * (one - z);
    return d * z;
  }

  template <class T>
  static ELMAN_INLINE Vector<T> backward_gated(Vector<T> d, Vector<T> h, Vector<T> r,
                                               Vector<T>& d_r) {
    const Vector<T> one = broadcast(static_cast<T>(1));
    d_r = d * h * r * (one - r);
    return d * r;
  }
};

// i = s(W_ii x + b_ii + W_hi h + b_hi)
// f = s(W_if x + b_if + W_hf h + b_hf)
// g = tanh(W_ig x + b_ig + W_hg h + b_hg)
// o = s(W_io x + b_io + W_ho h + b_ho)
// c' = f * c + i * g
// h' = o * tanh(c'), before a projection
struct Lstm {
  static constexpr const char *name = "lstm", *kind = "LSTM";
  static constexpr int gates = 4, late = 0, kept = 4, d_gates = 4;
  static constexpr bool has_c = true;
  static constexpr int input_gate[gates] = {0, 1, 2, 3}, hidden_gate[gates] = {0, 1, 2, 3};
  static constexpr bool sums_biases[gates] = {true, true, true, true};

  template <class T>
  static ELMAN_INLINE void finish(const Vector<T>* x, Vector<T>, Vector<T>* u) {
    for (int g = 0; g < gates; ++g) u[g] += x[g];
  }

  template <class T>
  static ELMAN_INLINE Vector<T> forward(const Vector<T>*, const Vector<T>* u, Vector<T>& c,
                                        Vector<T>* keep) {
    keep[0] = sigmoid<T>(u[0]);
    keep[1] = sigmoid<T>(u[1]);
    keep[2] = tanh<T>(u[2]);
    keep[3] = sigmoid<T>(u[3]);
    c = fma(keep[1], c, keep[0] * keep[2]);
    return output<T>(c, keep);
  }

  // h' from c' and what was kept.
  template <class T>
  static ELMAN_INLINE Vector<T> output(Vector<T> c, const Vector<T>* kept) {
    return kept[3] * tanh<T>(c);
  }

  template <class T>
  static ELMAN_INLINE Vector<T> backward(Vector<T> d, Vector<T> d_c, Vector<T> before,
                                         Vector<T> after, const Vector<T>* kept,
                                         Vector<T>* d_gate) {
    const Vector<T> i = kept[0], f = kept[1], g = kept[2], o = kept[3];
    const Vector<T> one = broadcast(static_cast<T>(1)), t = tanh<T>(after);
    d_c = fma(d * o, fma(-t, t, one), d_c);
    d_gate[0] = d_c * g * i * (one - i);
    d_gate[1] = d_c * before * f * (one - f);
    d_gate[2] = d_c * i * fma(-g, g, one);
    d_gate[3] = d * t * o * (one - o);
    return d_c * f;
  }
};

// All there are.
template <class... C>
struct CellList {};
using Cells = CellList<Rnn<Tanh>, Rnn<Relu>, Gru, GruResetBefore, Lstm>;

}  // namespace elman::ELMAN_ISA
