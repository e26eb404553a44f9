// The one micro-kernel: a tile of R rows times V vectors of columns, summed in registers.
//
// Every sum is taken in one order that depends on nothing but its number of terms: chains of fused
// multiply-adds over blocks of kChain terms in ascending k, each from zero, added in order; what
// the sum is added to comes last. Short chains round less. Neither the tile, nor the batch, nor the
// threads, nor the width of the vector takes part, and that is what makes results independent of
// them.
//
// Weights are packed into panels. A panel holds `lanes` columns: for each k, one vector for each of
// its G gates.
#pragma once

#include "simd.h"

namespace elman::ELMAN_ISA {

// What a product's second factor is given by: where it lies, or itself.
template <class T, class W>
ELMAN_INLINE Vector<T> vector_at(const W* from) {
  return load<T>(from);
}
template <class T>
ELMAN_INLINE Vector<T> vector_at(Vector<T> itself) {
  return itself;
}

// acc[r][v] += a(r, v, k) * b(v, k) over k = from .. to-1.
template <class T, int R, int V, class A, class B>
ELMAN_INLINE void chain(Vector<T> (&acc)[R][V], index from, index to, A a, B b) {
#pragma GCC unroll 2
  for (index k = from; k < to; ++k) {
    if constexpr (R < V) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        const Vector<T> column = vector_at<T>(b(v, k));
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) acc[r][v] = fma(broadcast(*a(r, v, k)), column, acc[r][v]);
      }
    } else {
      Vector<T> column[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) column[v] = vector_at<T>(b(v, k));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) acc[r][v] = fma(broadcast(*a(r, v, k)), column[v], acc[r][v]);
      }
    }
  }
}

template <class T, int R, int V>
ELMAN_INLINE void copy(Vector<T> (&to)[R][V], const Vector<T> (&from)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) to[r][v] = from[r][v];
  }
}

// Sums that wait in memory while a chain has the registers: left to itself, the compiler spills the
// chain instead.
template <class T, int R, int V>
struct Totals {
  Vector<T> sums[R][V];

  ELMAN_INLINE explicit Totals(const Vector<T> (&first)[R][V]) {
    copy<T>(sums, first);
    asm("" : "+m"(sums));
  }

  ELMAN_INLINE void add(const Vector<T> (&part)[R][V]) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sums[r][v] += part[r][v];
    }
    asm("" : "+m"(sums));
  }

  ELMAN_INLINE void get(Vector<T> (&all)[R][V]) const { copy<T>(all, sums); }
};

inline constexpr index kChain = 64;

// acc[r][v] = sum over k < terms, where add(part, from, to) chains the terms from .. to-1 to
// `part`. Sums grow in arrays of its own: what a caller's reference names lies in memory, and every
// term would be stored there.
template <class T, int R, int V, class Add>
ELMAN_INLINE void sum_chains(Vector<T> (&acc)[R][V], index terms, Add add) {
  Vector<T> first[R][V] = {};
  add(first, 0, terms < kChain ? terms : kChain);
  if (terms <= kChain) return copy<T>(acc, first);
  Totals<T, R, V> totals(first);
  for (index k = kChain; k < terms; k += kChain) {
    Vector<T> part[R][V] = {};
    add(part, k, terms - k < kChain ? terms : k + kChain);
    totals.add(part);
  }
  totals.get(acc);
}

template <class T, int R, int V, class A, class B>
ELMAN_INLINE void sum(Vector<T> (&acc)[R][V], index terms, A a, B b) {
  sum_chains<T>(acc, terms, [&](auto& part, index from, index to) __attribute__((always_inline)) {
    chain<T>(part, from, to, a, b);
  });
}

// acc[r][p * G + g] = rows[r][k] * panel p, gate g, over k < terms: gates that share their input.
// A function of its own, as those below, that all cells call: compiled into each of their tiles it
// would be most of the engine.
template <class T, int R, int P, int G, class W>
ELMAN_APART void multiply(Vector<T> (&acc)[R][P * G], const T* const (&rows)[R], const W* panel,
                          index panel_size, index terms) {
  constexpr index lanes = kLanes<T>;
  sum<T>(
      acc, terms, [&](int r, int, index k) { return rows[r] + k; },
      [&](int v, index k) { return panel + (v / G) * panel_size + (k * G + v % G) * lanes; });
}

// acc[r][p] = sum over gates g of rows[r][g * terms + k] * panel p, gate g: one sum a gate, added
// in their order. The gates' sums do not wait for one another, so where a tile is too small to fill
// the pipeline they run side by side.
template <class T, int R, int P, int G>
ELMAN_APART void multiply_gates(Vector<T> (&acc)[R][P], const T* const (&rows)[R], const T* panel,
                                index panel_size, index terms) {
  constexpr index lanes = kLanes<T>;
  if constexpr (R * P * G <= 12) {
    Vector<T> part[R][G * P];  // a gate's sums side by side, for its rows are read but once
    sum<T>(
        part, terms, [&](int r, int v, index k) { return rows[r] + (v / P) * terms + k; },
        [&](int v, index k) { return panel + (v % P) * panel_size + (k * G + v / P) * lanes; });
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < G * P; ++v)
        acc[r][v % P] = v < P ? part[r][v] : acc[r][v % P] + part[r][v];
    }
  } else {
    Vector<T> part[R][P] = {};
    Totals<T, R, P> totals(part);
    for (int g = 0; g < G; ++g) {
      sum<T>(
          part, terms, [&](int r, int, index k) { return rows[r] + g * terms + k; },
          [&](int v, index k) { return panel + v * panel_size + (k * G + g) * lanes; });
      totals.add(part);
    }
    totals.get(acc);
  }
}

// The same with weights (gates * terms, columns) that are not packed but lie as they are, their
// gates taken in the given order. Of each row as much as comes next is fetched: the processor
// foresees no pieces that lie so far apart.
template <class T, int R, int P>
ELMAN_APART void multiply_gates_unpacked(Vector<T> (&acc)[R][P], const T* const (&rows)[R],
                                         const T* w, index columns, index column, int gates,
                                         const int* gate, index terms) {
  constexpr index lanes = kLanes<T>;
  Vector<T> part[R][P] = {};
  Totals<T, R, P> totals(part);
  for (int g = 0; g < gates; ++g) {
    const T* const from = w + gate[g] * terms * columns + column;
    sum<T>(
        part, terms, [&](int r, int, index k) { return rows[r] + g * terms + k; },
        [&](int v, index k) {
          const index count = columns - column - v * lanes;
          const T* const piece = from + k * columns + v * lanes;
          if (v * kVectorBytes % kCacheLine == 0) __builtin_prefetch(piece + P * lanes);
          return load_part(piece, count < lanes ? count : lanes);
        });
    totals.add(part);
  }
  totals.get(acc);
}

// acc[r][p] += sum over k < terms of a[k * a_step + r] * panel p: the outer products of a weight
// gradient.
template <class T, int R, int P>
ELMAN_INLINE void multiply_outer(Vector<T> (&acc)[R][P], const T* a, index a_step, const T* panel,
                                 index panel_size, index terms) {
  constexpr index lanes = kLanes<T>;
  chain<T>(
      acc, 0, terms, [&](int r, int, index k) { return a + k * a_step + r; },
      [&](int v, index k) { return panel + v * panel_size + k * lanes; });
}

// Rows of the tallest tile of panels of V vectors: a row has 3 vectors, or V if that is more, for
// which there are just the registers.
template <int V>
inline constexpr int kTallest = kAccumulators / (V > 3 ? V : 3);
static_assert(kTallest<1> <= kTileUnits);

// Panels of V vectors that a tile of R rows takes at once. 12 sums hide the latency of one.
template <int R, int V>
inline constexpr int kPanels = R >= 4 ? (V > 3 ? 1 : 3 / V) : 12 / R / V;

template <int R, int P, class F>
ELMAN_INLINE void for_panels(index row, index rows, index panel, index last_panel, F&& f) {
  for (; panel + P <= last_panel; panel += P) {
    for (index i = row; i < rows; i += R) f.template operator()<R, P>(i, panel);
  }
  if constexpr (P > 1)
    for_panels<R, P == 3 ? 2 : P == 4 ? 3 : P / 2>(row, rows, panel, last_panel, f);
}

template <int R, int V, class F>
ELMAN_INLINE void for_rows(index row, index rows, index panel, index last_panel, F&& f) {
  static_assert(kPanels<R, V> > 0);
  const index full = row + (rows - row) / R * R;
  if (full > row) for_panels<R, kPanels<R, V>>(row, full, panel, last_panel, f);
  if constexpr (R > 1) for_rows<R / 2, V>(full, rows, panel, last_panel, f);
}

// Calls f<R, P>(row, panel) for tiles that cover rows x panels, V vectors a panel; panels outside,
// rows inside, so that a panel is read from memory once for all the rows.
template <int V, class F>
ELMAN_INLINE void for_tiles(index rows, index panel, index last_panel, F&& f) {
  for_rows<kTallest<V>, V>(0, rows, panel, last_panel, f);
}

// The same of fewer kinds of tiles, where what is left over of many rows is little.
template <int V, class F>
ELMAN_INLINE void for_many_rows(index rows, index panel, index last_panel, F&& f) {
  constexpr int R = kTallest<V>;
  const index full = rows / R * R;
  for_panels<R, kPanels<R, V>>(0, full, panel, last_panel, f);
  for_panels<1, 1>(full, rows, panel, last_panel, f);
}

}  // namespace elman::ELMAN_ISA
