// The weights of one direction as the kernels read them, and the products of a tile with them.
#pragma once

#include "cells.h"
#include "gemm.h"

namespace elman::ELMAN_ISA {

ELMAN_INLINE index smaller(index a, index b) { return a < b ? a : b; }

// Where the parts of the packed forward weights begin, to be written (T, W) or read (const T, const
// W). Each has one panel for every `lanes` hidden units.
template <class C, class T, class W>
struct ForwardPanels {
  index input_panel, hidden_panel;  // sizes of a panel
  W *w_ih, *w_hh;                   // (panels, D or H, G, lanes)
  T* x_bias;                        // (panels, G, lanes)
  T* h_bias;                        // (panels, lanes), of the last gate

  template <class Memory>
  ForwardPanels(Memory* packed, index D, index H) {
    const index panels = (H + kLanes<T> - 1) / kLanes<T>;
    input_panel = D * C::gates * kLanes<T>;
    hidden_panel = H * C::gates * kLanes<T>;
    w_ih = static_cast<W*>(packed);
    w_hh = w_ih + panels * input_panel;
    x_bias = static_cast<T*>(static_cast<Memory*>(w_hh + panels * hidden_panel));
    h_bias = x_bias + panels * C::gates * kLanes<T>;
  }
};

// (G * H, K) -> (panels of hidden units, K, G, lanes), zeros where H ends inside a panel. Square by
// square, and what is read and written next is fetched, since its pieces lie too far apart for the
// processor to foresee them.
template <class C, class T, class W>
void pack_units(const W* w, index K, index H, W* to) {
  constexpr index L = kLanes<T>, row_size = C::gates * L;
  for (index unit = 0; unit < H; unit += L) {
    const index height = smaller(L, H - unit);
    for (int g = 0; g < C::gates; ++g) {
      const W* const rows = w + (g * H + unit) * K;
      const W* next = g + 1 < C::gates ? rows + H * K : w + (unit + L < H ? unit + L : 0) * K;
      W* row = to + unit * K * C::gates + g * L;
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

template <class C, class T, class W>
void pack_forward(const Weights& w, index D, index H, void* packed) {
  constexpr index L = kLanes<T>;
  const ForwardPanels<C, T, W> to(packed, D, H);
  pack_units<C, T>(static_cast<const W*>(w.w_ih), D, H, to.w_ih);
  pack_units<C, T>(static_cast<const W*>(w.w_hh), H, H, to.w_hh);
  const W* b_ih = static_cast<const W*>(w.b_ih);
  const W* b_hh = static_cast<const W*>(w.b_hh);
  for (index unit = 0; unit < H; unit += L) {
    const index count = smaller(L, H - unit);
    Vector<T> h_bias = {};
    for (int g = 0; g < C::gates; ++g) {
      Vector<T> x_bias = {};
      if (b_ih) {
        x_bias = load_part(b_ih + g * H + unit, count);
        h_bias = load_part(b_hh + g * H + unit, count);
        if (C::sums_biases[g]) x_bias += h_bias;
      }
      store<T>(to.x_bias + unit * C::gates + g * L, x_bias);
    }
    store<T>(to.h_bias + unit, h_bias);
  }
}

// (G * H, K), its gates taken in the given order -> (panels of K's columns, H, G, lanes). Several
// panels together, so that longer pieces of a row are read.
template <class C, class T, class W>
void pack_columns(const W* w, index K, index H, const int (&gate)[C::gates], T* to) {
  constexpr index L = kLanes<T>, together = 4;
  const index panel = H * C::gates * L;
  for (index column = 0; column < K; column += together * L, to += together * panel) {
    T* row = to;
    for (index unit = 0; unit < H; ++unit) {
      for (int g = 0; g < C::gates; ++g, row += L) {
        const W* const from = w + (gate[g] * H + unit) * K + column;
        for (index p = 0; p < together && column + p * L < K; ++p) {
          store<T>(row + p * panel, load_part(from + p * L, smaller(L, K - column - p * L)));
        }
      }
    }
  }
}

template <class C, class T, class W>
void pack_backward(const Weights& w, index D, index H, T* packed) {
  pack_columns<C>(static_cast<const W*>(w.w_hh), H, H, C::hidden_gate, packed);
  const index hidden = C::gates * H * ((H + kLanes<T> - 1) / kLanes<T> * kLanes<T>);
  pack_columns<C>(static_cast<const W*>(w.w_ih), D, H, C::input_gate, packed + hidden);
}

// W_ih x + b of a tile of R rows and P panels. The vectors of row r begin at to + r * row_size.
template <class C, int R, int P, class T, class W>
ELMAN_INLINE void input_gates(const ForwardPanels<C, const T, const W>& packed, index D,
                              const T* const (&x)[R], index panel, T* to, index row_size) {
  constexpr int G = C::gates;
  constexpr index L = kLanes<T>;
  Vector<T> acc[R][P * G];
  multiply<T, R, P, G>(acc, x, packed.w_ih + panel * packed.input_panel, packed.input_panel, D);
#pragma GCC unroll 16
  for (int v = 0; v < P * G; ++v) {
    const Vector<T> bias = load<T>(packed.x_bias + (panel * G + v) * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store<T>(to + r * row_size + v * L, acc[r][v] + bias);
  }
}

// The cell on a tile, after input_gates(): calls emit(r, unit, h, h', kept) for each vector of
// units.
template <class C, int R, int P, class T, class W, class Emit>
ELMAN_INLINE void run_cell(const ForwardPanels<C, const T, const W>& packed, index H,
                           const T* x_gates, index row_size, const T* const (&h)[R], index panel,
                           Emit&& emit) {
  constexpr int G = C::gates;
  constexpr index L = kLanes<T>;
  Vector<T> acc[R][P * G];
  multiply<T, R, P, G>(acc, h, packed.w_hh + panel * packed.hidden_panel, packed.hidden_panel, H);
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      Vector<T> x_gate[G], kept[C::kept];
      for (int g = 0; g < G; ++g) x_gate[g] = load<T>(x_gates + r * row_size + (p * G + g) * L);
      const index unit = (panel + p) * L;
      C::template finish<T>(x_gate, load<T>(packed.h_bias + unit), acc[r] + p * G);
      const Vector<T> before = load_units(h[r] + unit, H - unit);
      const Vector<T> after = C::template forward<T>(x_gate, acc[r] + p * G, before, kept);
      emit(r, unit, before, after, kept);
    }
  }
}

}  // namespace elman::ELMAN_ISA
