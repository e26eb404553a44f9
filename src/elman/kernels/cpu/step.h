// One time step of a few rows. To pack the weights for it would cost more than the product, so
// they are read as they lie and turned in registers, and summed in the same order.
#pragma once

#include "panels.h"

namespace elman::ELMAN_ISA {

// The rows of weights (G * H, K) of the P panels of units that begin at `unit`. They are whole, or
// it is one panel that ends early and reads its last row for those it lacks.
template <class T, int P, int G, bool Whole>
struct UnitRows {
  static constexpr index L = kLanes<T>;

  const T* w;
  index K, H, unit;

  // Of gate v % G of panel v / G, where the panels begin at u.
  ELMAN_INLINE const T* first(int v, index u) const { return w + (v % G * H + u + v / G * L) * K; }
  ELMAN_INLINE index offset(int i) const { return (Whole ? i : smaller(i, H - 1 - unit)) * K; }

  // Gates whose sums have registers, beside the columns and a number of x; of a row or two all,
  // since so few wait for one another's sums.
  template <int R>
  static constexpr int kTogether = R > 2 ? (kAccumulators * 4 / 3 - kTurned<T> - 1) / R : P * G;

  // acc[r][v] = sum over k < K of x[r][k] * column k, for v >= V.
  template <int R, int V = 0>
  ELMAN_APART void multiply(Vector<T> (&acc)[R][P * G], const T* const (&x)[R]) const {
    constexpr int N = kTogether<R> < P * G - V ? kTogether<R> : P * G - V;
    Vector<T> some[R][N];
    sum_chains<T>(some, K, [&](auto& part, index from, index to) __attribute__((always_inline)) {
      chain<V>(part, x, from, to);
    });
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < N; ++v) acc[r][V + v] = some[r][v];
    }
    if constexpr (V + N < P * G) multiply<R, V + N>(acc, x);
  }

  // Square by square. As much of the panels that come next is fetched, as one piece of memory: the
  // processor cannot foresee so many rows. It takes long over addresses that are nobody's.
  template <int V, int R, int Count>
  ELMAN_INLINE void chain(Vector<T> (&acc)[R][Count], const T* const (&x)[R], index k,
                          index to) const {
    constexpr index N = kTurned<T>;
    for (; k + L <= to; k += L) {
#pragma GCC unroll 16
      for (int v = 0; v < Count; ++v) {
        if constexpr (Whole) {
          const T* const next = first(V + v, smaller(unit + P * L, H - P * L)) + k * L;
#pragma GCC unroll 16
          for (index i = 0; i < L * L; i += 64 / sizeof(T)) __builtin_prefetch(next + i);
        }
        const T* rows = first(V + v, unit) + k;
        // Else rows and numbers of x that serve again are kept, more than there are registers.
        asm volatile("" : "+r"(rows) : : "memory");
#pragma GCC unroll 16
        for (index i = 0; i < L; i += N) turn(acc, x, v, rows + i, k + i, N);
      }
    }
    for (; k < to; k += N) {
#pragma GCC unroll 16
      for (int v = 0; v < Count; ++v)
        turn(acc, x, v, first(V + v, unit) + k, k, smaller(N, to - k));
    }
  }

  template <int R, int Count>
  ELMAN_INLINE void turn(Vector<T> (&acc)[R][Count], const T* const (&x)[R], int v, const T* rows,
                         index k, index count) const {
    Vector<T> column[kTurned<T>];
    load_columns<T>(column, [&](int i) { return rows + offset(i); }, count);
#pragma GCC unroll 16
    for (int i = 0; i < kTurned<T>; ++i) {
      if (i >= count) break;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][v] = fma(broadcast(x[r][k + i]), column[i], acc[r][v]);
    }
  }
};

template <class C, class T>
struct StepLoop {
  static constexpr index L = kLanes<T>;
  static constexpr int G = C::gates;

  const Weights& weights;
  const Sizes& sizes;
  const T* const* x;
  const T* const* before;
  T* const* after;
  T* gates;
  const index H = sizes.H;

  template <int R>
  void run(index row, index rows) const {
    constexpr int panels = G == 1 && R <= 2 ? 2 : 1;  // sums enough that none waits for itself
    for_units<R, panels>(
        row, rows, [&]<int P, bool Whole>(index row, index unit) { tile<R, P, Whole>(row, unit); });
    if constexpr (C::late > 0) {
      for_units<R, 2>(row, rows, [&]<int P, bool Whole>(index row, index unit) {
        late_tile<R, P, Whole>(row, unit);
      });
    }
  }

  template <int R, int P, class F>
  ELMAN_INLINE void for_units(index row, index rows, F&& f) const {
    const index whole = H / L;
    for_panels<R, P>(row, rows, 0, whole, [&]<int, int Panels>(index row, index panel) {
      f.template operator()<Panels, true>(row, panel * L);
    });
    for (; whole * L < H && row < rows; row += R) f.template operator()<1, false>(row, whole * L);
  }

  template <int R, int P, bool Whole>
  void tile(index row, index unit) const {
    constexpr int U = kPrompt<C>;
    const T *input[R], *h[R];
    for (int r = 0; r < R; ++r) {
      input[r] = x[row + r];
      h[r] = before[row + r];
    }
    Vector<T> x_gates[R][P * G], u[R][P * U];
    UnitRows<T, P, G, Whole>{w_ih(), sizes.D, H, unit}.multiply(x_gates, input);
    UnitRows<T, P, U, Whole>{w_hh(), H, H, unit}.multiply(u, h);
    for (int p = 0; p < P; ++p) {
      const Biases<C, T, T> biases(weights, H, unit + p * L);
      for (int r = 0; r < R; ++r) {
        Vector<T>* const x = x_gates[r] + p * G;
        for (int g = 0; g < G; ++g) x[g] += biases.x[g];
        if constexpr (C::late > 0) {
          keep_gated(row + r, unit + p * L, x, u[r] + p * U);
        } else {
          finish(row + r, unit + p * L, x, biases.h, u[r] + p * G);
        }
      }
    }
  }

  // What late gates meet, and where they are kept what forward() takes of x.
  ELMAN_INLINE void keep_gated(index row, index unit, Vector<T>* x, const Vector<T>* u) const {
    const index count = H - unit;
    const Vector<T> gated = C::template gated<T>(x, u, load_units(before[row] + unit, count));
    T* const to = kept(row) + unit;
    for (int g = 0; g < G; ++g) store_units(to + g * H, x[g], count);
    store_units(to + C::kept_gated * H, gated, count);
  }

  template <int R, int P, bool Whole>
  void late_tile(index row, index unit) const {
    constexpr int U = C::late;
    const T* gated[R];
    for (int r = 0; r < R; ++r) gated[r] = kept(row + r) + C::kept_gated * H;
    Vector<T> u[R][P * U];
    UnitRows<T, P, U, Whole>{w_hh() + kPrompt<C> * H * H, H, H, unit}.multiply(u, gated);
    for (int p = 0; p < P; ++p) {
      const Biases<C, T, T> biases(weights, H, unit + p * L);
      for (int r = 0; r < R; ++r) {
        const T* const from = kept(row + r) + unit + p * L;
        Vector<T> x[G];
        for (int g = 0; g < G; ++g) x[g] = load_units(from + g * H, H - unit - p * L);
        finish(row + r, unit + p * L, x, biases.h, u[r] + p * U);
      }
    }
  }

  ELMAN_INLINE void finish(index row, index unit, const Vector<T>* x, Vector<T> bias,
                           Vector<T>* u) const {
    const index count = H - unit;
    const index own = unit + (C::has_c ? H : 0);
    C::template finish<T>(x, bias, u);
    Vector<T> state = load_units(before[row] + own, count);
    Kept<C, T> keep;
    store_units(after[row] + unit, C::template forward<T>(x, u, state, keep.values), count);
    if (C::has_c) store_units(after[row] + own, state, count);
    if (!gates) return;
    for (int i = 0; i < C::kept; ++i) store_units(kept(row) + i * H + unit, keep.values[i], count);
  }

  const T* w_ih() const { return static_cast<const T*>(weights.w_ih); }
  const T* w_hh() const { return static_cast<const T*>(weights.w_hh); }
  T* kept(index row) const { return gates + row * C::kept * H; }
};

template <class C, class T>
void step(const Weights& w, const Sizes& s, index rows, const T* const* x, const T* const* before,
          T* const* after, T* gates) {
  const StepLoop<C, T> loop{w, s, x, before, after, gates};
  const index fours = rows / 4 * 4, pairs = rows / 2 * 2;
  loop.template run<4>(0, fours);
  loop.template run<2>(fours, pairs);
  loop.template run<1>(pairs, rows);
}

}  // namespace elman::ELMAN_ISA
