// The weights of one direction as the kernels read them, and the products of a tile with them.
#pragma once

#include "cells.h"
#include "gemm.h"

namespace elman::ELMAN_ISA {

ELMAN_INLINE index smaller(index a, index b) { return a < b ? a : b; }

// Gates whose rows of W_hh meet h.
template <class C>
inline constexpr int kPrompt = C::gates - C::late;

// Gates whose products come last in a step.
template <class C>
inline constexpr int kLast = C::late > 0 ? C::late : C::gates;

// Panels that n units take.
template <class T>
ELMAN_INLINE index panels_of(index n) {
  return (n + kLanes<T> - 1) / kLanes<T>;
}

// From one panel to the next, where each of its columns has so many weights.
template <class T, class W>
ELMAN_INLINE index panel_size(index weights) {
  return weights > 0 ? weights * kLanes<T> + kCacheLine / static_cast<index>(sizeof(W)) : 0;
}

// Where the parts of the packed forward weights begin, to be written (T, W) or read (const T, const
// W). Each has one panel for every `lanes` hidden units.
template <class C, class T, class W>
struct ForwardPanels {
  index input_panel, hidden_panel, late_panel, projection_panel;  // from one to the next
  W* w_ih;                                                        // (panels, D, G, lanes)
  W *w_hh, *w_late;  // (panels, P, G - late or late, lanes)
  T* x_bias;         // (panels, G, lanes)
  T* h_bias;         // (panels, lanes), of the last gate
  W* w_hr;           // (panels of P, H, lanes)

  template <class Memory>
  ForwardPanels(Memory* packed, const Sizes& s) {
    const index panels = panels_of<T>(s.H);
    input_panel = panel_size<T, W>(s.D * C::gates);
    hidden_panel = panel_size<T, W>(s.P * kPrompt<C>);
    late_panel = panel_size<T, W>(s.P * C::late);
    projection_panel = panel_size<T, W>(s.H);
    w_ih = static_cast<W*>(packed);
    w_hh = w_ih + panels * input_panel;
    w_late = w_hh + panels * hidden_panel;
    x_bias = static_cast<T*>(static_cast<Memory*>(w_late + panels * late_panel));
    h_bias = x_bias + panels * C::gates * kLanes<T>;
    w_hr = static_cast<W*>(static_cast<Memory*>(h_bias + panels * kLanes<T>));
  }
};

// (G * H, K) -> (panels of hidden units, K, G, lanes), zeros where H ends inside one. Square by
// square, and what is read and written next is fetched, since its pieces lie too far apart for the
// processor to foresee them.
template <int G, class T, class W>
void pack_units(const W* w, index K, index H, W* to, index panel) {
  constexpr index L = kLanes<T>, row_size = G * L;
  for (index unit = 0; unit < H; unit += L) {
    const index height = smaller(L, H - unit);
    for (int g = 0; g < G; ++g) {
      const W* const rows = w + (g * H + unit) * K;
      const W* next = g + 1 < G ? rows + H * K : w + (unit + L < H ? unit + L : 0) * K;
      W* row = to + unit / L * panel + g * L;
      for (index from = 0; from < K; from += L, next += L * L) {
        const index width = smaller(L, K - from);
        Vector<T> square[L];
#pragma GCC unroll 16
        for (index i = 0; i < L; ++i) {
          square[i] = i < height ? load_raw(rows + i * K + from, width) : Vector<T>{};
          __builtin_prefetch(next + i * L);
        }
        transpose<T>(square);
#pragma GCC unroll 16
        for (index i = 0; i < L; ++i, row += row_size) {
          if (i < width) store_raw(row, square[i]);
          if (g == 0) __builtin_prefetch(row + 2 * L * row_size, 1, 2);
        }
      }
    }
  }
}

// What is added to W_ih x of each gate, and to W_hh h of the last gate, of a vector of units.
template <class C, class T, class W>
struct Biases {
  Vector<T> x[C::gates] = {}, h = {};

  ELMAN_INLINE Biases(const Weights& w, index H, index unit) {
    if (!w.b_ih) return;
    const W* const b_ih = static_cast<const W*>(w.b_ih);
    const W* const b_hh = static_cast<const W*>(w.b_hh);
    const index count = smaller(kLanes<T>, H - unit);
    for (int g = 0; g < C::gates; ++g) {
      x[g] = load_part(b_ih + g * H + unit, count);
      h = load_part(b_hh + g * H + unit, count);
      if (C::sums_biases[g]) x[g] += h;
    }
  }
};

template <class C, class T, class W>
void pack_forward(const Weights& w, const Sizes& s, void* packed) {
  constexpr index L = kLanes<T>;
  const index H = s.H;
  const ForwardPanels<C, T, W> to(packed, s);
  pack_units<C::gates, T>(static_cast<const W*>(w.w_ih), s.D, H, to.w_ih, to.input_panel);
  const W* const w_hh = static_cast<const W*>(w.w_hh);
  pack_units<kPrompt<C>, T>(w_hh, s.P, H, to.w_hh, to.hidden_panel);
  if constexpr (C::late > 0)
    pack_units<C::late, T>(w_hh + kPrompt<C> * H * s.P, s.P, H, to.w_late, to.late_panel);
  if (s.projected())
    pack_units<1, T>(static_cast<const W*>(w.w_hr), H, s.P, to.w_hr, to.projection_panel);
  for (index unit = 0; unit < H; unit += L) {
    const Biases<C, T, W> biases(w, H, unit);
    for (int g = 0; g < C::gates; ++g) store<T>(to.x_bias + unit * C::gates + g * L, biases.x[g]);
    store<T>(to.h_bias + unit, biases.h);
  }
}

// (.., K), of its blocks of H rows the given gates' -> (panels of K's columns, H, G, lanes).
// Several panels together, so that longer pieces of a row are read.
template <int G, class T, class W>
void pack_columns(const W* w, index K, index H, const int* gate, T* to, index panel) {
  constexpr index L = kLanes<T>, together = 4;
  for (index column = 0; column < K; column += together * L, to += together * panel) {
    T* row = to;
    for (index unit = 0; unit < H; ++unit) {
      for (int g = 0; g < G; ++g, row += L) {
        const W* const from = w + (gate[g] * H + unit) * K + column;
        for (index p = 0; p < together && column + p * L < K; ++p) {
          store<T>(row + p * panel, load_part(from + p * L, smaller(L, K - column - p * L)));
        }
      }
    }
  }
}

// Where the parts of the packed backward weights begin: panels of the columns of each matrix.
template <class C, class T>
struct BackwardPanels {
  index hidden_panel, late_panel, input_panel, projection_panel;  // from one to the next
  T *w_hh = nullptr, *w_late = nullptr;  // (panels of P, H, G - late or late, lanes)
  T* w_ih = nullptr;                     // (panels of D, H, G, lanes)
  T* w_hr = nullptr;                     // (panels of H, P, lanes)

  BackwardPanels(T* packed, const Sizes& s) {
    if (!packed) return;
    hidden_panel = panel_size<T, T>(s.H * kPrompt<C>);
    late_panel = panel_size<T, T>(s.H * C::late);
    input_panel = panel_size<T, T>(s.H * C::gates);
    projection_panel = panel_size<T, T>(s.P);
    w_hh = packed;
    w_late = w_hh + panels_of<T>(s.P) * hidden_panel;
    w_ih = w_late + panels_of<T>(s.P) * late_panel;
    w_hr = w_ih + panels_of<T>(s.D) * input_panel;
  }
};

template <class C, class T, class W>
void pack_backward(const Weights& w, const Sizes& s, T* packed) {
  const BackwardPanels<C, T> to(packed, s);
  const W* const w_hh = static_cast<const W*>(w.w_hh);
  pack_columns<kPrompt<C>>(w_hh, s.P, s.H, C::hidden_gate + C::late, to.w_hh, to.hidden_panel);
  if constexpr (C::late > 0)
    pack_columns<C::late>(w_hh, s.P, s.H, C::hidden_gate, to.w_late, to.late_panel);
  pack_columns<C::gates>(static_cast<const W*>(w.w_ih), s.D, s.H, C::input_gate, to.w_ih,
                         to.input_panel);
  constexpr int only[] = {0};
  if (s.projected())
    pack_columns<1>(static_cast<const W*>(w.w_hr), s.H, s.P, only, to.w_hr, to.projection_panel);
}

// The packed weights of x, and the biases that go with them.
template <class T, class W>
struct InputWeights {
  const W* panels;
  const T* bias;
  index panel, D;  // the size of a panel; the inputs

  template <class Panels>
  InputWeights(const Panels& packed, index D)
      : panels(packed.w_ih), bias(packed.x_bias), panel(packed.input_panel), D(D) {}
};

// W_ih x + b of a tile of R rows and P panels. The vectors of row r begin at to + r * row_size.
template <int G, int R, int P, class T, class W>
ELMAN_INLINE void input_gates(const InputWeights<T, W>& w, const T* const (&x)[R], index panel,
                              T* to, index row_size) {
  constexpr index L = kLanes<T>;
  Vector<T> acc[R][P * G];
  multiply<T, R, P, G>(acc, x, w.panels + panel * w.panel, w.panel, w.D);
#pragma GCC unroll 16
  for (int v = 0; v < P * G; ++v) {
    const Vector<T> bias = load<T>(w.bias + (panel * G + v) * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store<T>(to + r * row_size + v * L, acc[r][v] + bias);
  }
}

// The same of so many rows and of panels first .. last-1, for every cell of G gates. The first
// panel's vectors of row r begin at to + r * row_size.
template <int G, class T, class W>
void multiply_inputs(const Share& share, const InputWeights<T, W>& w, index rows,
                     const T* const* x_rows, index first, index last, T* to, index row_size) {
  for_tiles<G>(rows, first, last, [&]<int R, int P>(index row, index panel) {
    share.look();
    const T* x[R];
    for (int r = 0; r < R; ++r) x[r] = x_rows[row + r];
    T* const gates = to + row * row_size + (panel - first) * G * kLanes<T>;
    input_gates<G, R, P>(w, x, panel, gates, row_size);
  });
}

// What a cell keeps for backward, of one vector of units.
template <class C, class T>
struct Kept {
  Vector<T> values[C::kept ? C::kept : 1];
};

// The products of a tile with the weights of the gates that meet h, or those of the late gates,
// which meet gated().
template <class C, int R, int P, class T, class W>
ELMAN_INLINE void multiply_prompt(Vector<T> (&u)[R][P * kPrompt<C>],
                                  const ForwardPanels<C, const T, const W>& packed, const Sizes& s,
                                  const T* const (&h)[R], index panel) {
  const index size = packed.hidden_panel;
  multiply<T, R, P, kPrompt<C>>(u, h, packed.w_hh + panel * size, size, s.P);
}
template <class C, int R, int P, class T, class W>
ELMAN_INLINE void multiply_late(Vector<T> (&u)[R][P * C::late],
                                const ForwardPanels<C, const T, const W>& packed, const Sizes& s,
                                const T* const (&gated)[R], index panel) {
  const index size = packed.late_panel;
  multiply<T, R, P, C::late>(u, gated, packed.w_late + panel * size, size, s.P);
}

// Some panels of one row.
struct Span {
  index panel;
  int panels;
};

// The cell, from what its last gates' products came to: calls emit(unit, h', own', kept) for each
// vector of units. x_gate(p, g) gives what it takes of x.
template <class C, class T, class X, class Emit>
ELMAN_INLINE void run_cell(const Span& span, const T* h_bias, index H, const T* own,
                           const Vector<T>* products, X&& x_gate, Emit&& emit) {
  for (int p = 0; p < span.panels; ++p, products += kLast<C>) {
    Vector<T> x[C::gates], u[kLast<C>];
    for (int g = 0; g < C::gates; ++g) x[g] = x_gate(p, g);
    for (int g = 0; g < kLast<C>; ++g) u[g] = products[g];
    const index unit = (span.panel + p) * kLanes<T>;
    C::template finish<T>(x, load<T>(h_bias + unit), u);
    Vector<T> state = load_units(own + unit, H - unit);
    Kept<C, T> kept;
    const Vector<T> after = C::template forward<T>(x, u, state, kept.values);
    emit(unit, after, state, kept);
  }
}

// Before the late gates: calls emit(unit, what the cell takes of x, gated) for each vector of
// units. The vectors of x begin at x_gates.
template <class C, class T, class Emit>
ELMAN_INLINE void run_gated(const Span& span, index H, const T* h, const T* x_gates,
                            const Vector<T>* products, Emit&& emit) {
  constexpr int G = C::gates;
  constexpr index L = kLanes<T>;
  for (int p = 0; p < span.panels; ++p, products += kPrompt<C>) {
    Vector<T> x[G];
    for (int g = 0; g < G; ++g) x[g] = load<T>(x_gates + (p * G + g) * L);
    const index unit = (span.panel + p) * L;
    const Vector<T> gated = C::template gated<T>(x, products, load_units(h + unit, H - unit));
    emit(unit, x, gated);
  }
}

}  // namespace elman::ELMAN_ISA
