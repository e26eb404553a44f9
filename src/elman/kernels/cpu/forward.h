// The loop over time of one direction of one layer.
#pragma once

#include "panels.h"

namespace elman::ELMAN_ISA {

template <class C, class T, class W>
struct ForwardLoop {
  static constexpr index L = kLanes<T>;
  static constexpr int G = C::gates;

  const Forward<T>& f;
  const ForwardScratch<T>& scratch;
  const Share& share;
  const Plan& plan = *f.plan;
  const Sizes& sizes = f.sizes;
  const index D = sizes.D, H = sizes.H, P = sizes.P;
  const index S = P + (C::has_c ? H : 0);
  const bool projected = C::has_c && sizes.projected();
  const index padded = panels_of<T>(H) * L, padded_h = panels_of<T>(P) * L;
  const index row_size = (share.last_panel - share.first_panel) * G * L;
  const ForwardPanels<C, const T, const W> packed{f.panels, sizes};
  // This share's panels of h: those of its units, unless a projection makes it.
  const index first_h = projected ? share.part_of_units(panels_of<T>(P), 0) : share.first_panel;
  const index last_h = projected ? share.part_of_units(panels_of<T>(P), 1) : share.last_panel;

  T* h(index s, index p) const { return f.h + ((s & 1) * plan.batch + p) * padded_h; }
  T* c(index p) const { return f.c + p * padded; }
  T* hidden(index p) const { return f.hidden + p * padded; }
  // The state that the cell itself reads.
  const T* own(index s, index p) const { return C::has_c ? c(p) : h(s, p); }
  // What is kept: the state before the first step, and after each.
  T* first_state(index p) const { return f.states + p * S; }
  T* state_after(index s, index p) const { return f.states + (plan.batch + plan.first[s] + p) * S; }

  T* output(index s, index p) const {
    return f.output.at(plan.time(s, p, f.reverse), plan.order[p]);
  }

  // Copies this share's part of a state, whose c lies apart, or zeros.
  void copy_state(T* h_to, T* c_to, const T* h_from, const T* c_from) const {
    copy_units(h_to, h_from, first_h, last_h, P);
    if (C::has_c) copy_units(c_to, c_from, share.first_panel, share.last_panel, H);
  }
  static void copy_units(T* to, const T* from, index first_panel, index last_panel, index units) {
    const index last = smaller(units, last_panel * L);
    for (index u = first_panel * L; u < last; ++u) to[u] = from ? from[u] : 0;
  }
  void copy_row(T* to, const T* from) const {
    copy_state(to, to + P, from, from ? from + P : nullptr);
  }
  void clear(index s, index p) const { copy_state(h(s, p), c(p), nullptr, nullptr); }

  void run() const {
    const index rows = share.rows(plan.batch);
    for (index i = 0; i < rows; ++i) begin_row(share.position(i));
    share.wait_if_units_are_split();
    for (index s = 0; s < plan.longest;) {
      const index end = chunk_end(s);
      multiply_input(s, end);
      for (index rows = 0; s < end; ++s) {
        const index active = share.rows(plan.active[s]);
        if constexpr (C::late > 0) {
          gate(s, active, rows);
          share.wait_if_units_are_split();
        }
        step(s, active, rows);
        if (projected) {
          share.wait_if_units_are_split();
          project(s, active);
        }
        rows += active;
        finish_step(s);
        share.wait_if_units_are_split();
      }
    }
  }

  void begin_row(index p) const {
    const index n = plan.order[p];
    const T* h_0 = f.h_0.data ? f.h_0.at(n) : nullptr;
    if (f.states) copy_row(first_state(p), h_0);
    if (plan.length[p] == 0) {
      copy_row(f.h_n.at(n), h_0);
    } else if (plan.resets(0, p, f.reverse)) {
      clear(0, p);
    } else {
      copy_state(h(0, p), c(p), h_0, h_0 ? h_0 + P : nullptr);
    }
    for (index t = plan.length[p]; plan.padded && t < plan.steps; ++t) {
      share.look();
      T* const to = f.output.at(t, n);
      copy_units(to, nullptr, first_h, last_h, P);
      if (f.whole) copy_units(to + P, nullptr, share.first_panel, share.last_panel, H);
    }
  }

  // As many steps as the scratch has room for.
  index chunk_end(index s) const {
    for (index rows = 0; s < plan.longest; ++s) {
      rows += share.rows(plan.active[s]);
      if (rows > scratch.chunk_rows) break;
    }
    return s;
  }

  // W_ih x + b for this share's rows and units, over steps from .. to-1.
  void multiply_input(index from, index to) const {
    index rows = 0;
    for (index s = from; s < to; ++s) {
      const index active = share.rows(plan.active[s]);
      for (index i = 0; i < active; ++i) {
        const index p = share.position(i);
        scratch.x_rows[rows++] = f.x.at(plan.time(s, p, f.reverse), plan.order[p]);
      }
    }
    for_tiles<G>(rows, share.first_panel, share.last_panel,
                 [&]<int R, int V>(index row, index panel) {
                   share.look();
                   const T* x[R];
                   for (int r = 0; r < R; ++r) x[r] = scratch.x_rows[row + r];
                   input_gates<C, R, V>(packed, D, x, panel, x_gates_at(row, panel), row_size);
                 });
  }

  T* x_gates_at(index row, index panel) const {
    return scratch.x_gates + row * row_size + (panel - share.first_panel) * G * L;
  }

  // What the late gates meet. `rows`: of x_gates, before this step's.
  void gate(index s, index active, index rows) const {
    for_tiles<kPrompt<C>>(
        active, share.first_panel, share.last_panel, [&]<int R, int V>(index row, index panel) {
          share.look();
          const T* before[R];
          for (int r = 0; r < R; ++r) before[r] = h(s, share.position(row + r));
          T* const x_gates = x_gates_at(rows + row, panel);
          run_gated<C, R, V>(packed, sizes, x_gates, row_size, before, panel,
                             [&](int r, index unit, const Vector<T>* x, Vector<T> gated) {
                               T* const to = x_gates + r * row_size + (unit - panel * L) * G;
                               for (int g = 0; g < G; ++g) store<T>(to + g * L, x[g]);
                               store<T>(hidden(share.position(row + r)) + unit, gated);
                             });
        });
  }

  void step(index s, index active, index rows) const {
    for_tiles<C::late ? C::late : G>(
        active, share.first_panel, share.last_panel, [&]<int R, int V>(index row, index panel) {
          share.look();
          const T *met[R], *read[R];
          for (int r = 0; r < R; ++r) {
            const index p = share.position(row + r);
            met[r] = C::late > 0 ? hidden(p) : h(s, p);
            read[r] = own(s, p);
          }
          const T* const x_gates = x_gates_at(rows + row, panel);
          const auto x_gate = [&](int r, int p, int g) __attribute__((always_inline)) {
            return load<T>(x_gates + r * row_size + (p * G + g) * L);
          };
          run_cell<C, R, V>(
              packed, sizes, x_gate, met, read, panel,
              [&](int r, index unit, Vector<T> after, Vector<T> own_after, const Kept<C, T>& kept) {
                emit(s, share.position(row + r), unit, after, own_after, kept);
              });
        });
  }

  ELMAN_INLINE void emit(index s, index p, index unit, Vector<T> after, Vector<T> own_after,
                         const Kept<C, T>& kept) const {
    const index count = H - unit;
    if (projected) {
      store<T>(hidden(p) + unit, after);
    } else {
      emit_h(s, p, unit, after);
    }
    if (C::has_c) {
      store<T>(c(p) + unit, own_after);
      if (f.whole) store_units(output(s, p) + P + unit, own_after, count);
      if (f.states) store_units(state_after(s, p) + P + unit, own_after, count);
    }
    if (f.gates) {
      T* const to = f.gates + (plan.first[s] + p) * C::kept * H + unit;
      for (int i = 0; i < C::kept; ++i) store_units(to + i * H, kept.values[i], count);
    }
  }

  ELMAN_INLINE void emit_h(index s, index p, index unit, Vector<T> after) const {
    const index count = P - unit;
    store<T>(h(s + 1, p) + unit, after);
    store_units(output(s, p) + unit, after, count);
    if (f.states) store_units(state_after(s, p) + unit, after, count);
  }

  // h' = W_hr hidden, for this share's panels of h.
  void project(index s, index active) const {
    for_tiles<1>(active, first_h, last_h, [&]<int R, int V>(index row, index panel) {
      share.look();
      const T* from[R];
      for (int r = 0; r < R; ++r) from[r] = hidden(share.position(row + r));
      Vector<T> acc[R][V];
      multiply<T, R, V, 1>(acc, from, packed.w_hr + panel * packed.projection_panel,
                           packed.projection_panel, H);
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) emit_h(s, share.position(row + r), (panel + v) * L, acc[r][v]);
      }
    });
  }

  // Hands out the final states of the rows that end here, and starts the episodes that begin at the
  // next step.
  void finish_step(index s) const {
    const index active = share.rows(plan.active[s]), remain = share.rows(plan.active[s + 1]);
    for (index i = remain; i < active; ++i) {
      const index p = share.position(i);
      T* const to = f.h_n.at(plan.order[p]);
      copy_state(to, to + P, h(s + 1, p), c(p));
    }
    if (!plan.reset) return;
    for (index i = 0; i < remain; ++i) {
      const index p = share.position(i);
      if (plan.resets(s + 1, p, f.reverse)) clear(s + 1, p);
    }
  }
};

template <class C, class T, class W>
void forward(const Forward<T>& f, const ForwardScratch<T>& scratch, const Share& share) {
  ForwardLoop<C, T, W>{f, scratch, share}.run();
}

// All rows at once.
template <class C, class T, class W>
void recompute(const void* panels, const Sizes& s, index rows, const T* const* x,
               const T* const* before, T* gates) {
  constexpr int G = C::gates;
  constexpr index L = kLanes<T>;
  const ForwardPanels<C, const T, const W> packed(panels, s);
  const auto kept_of = [&](index row) { return gates + row * C::kept * s.H; };
  const auto store_kept = [&](index row, index unit, const Vector<T>* values, int count) {
    T* const to = kept_of(row) + unit;
    for (int i = 0; i < count; ++i) store_units(to + i * s.H, values[i], s.H - unit);
  };
  for_tiles<G>(rows, 0, panels_of<T>(s.H), [&]<int R, int V>(index row, index panel) {
    const T *x_rows[R], *h[R], *own[R];
    for (int r = 0; r < R; ++r) {
      x_rows[r] = x[row + r];
      h[r] = before[row + r];
      own[r] = h[r] + (C::has_c ? s.P : 0);
    }
    constexpr index row_size = V * G * L;
    alignas(kVectorBytes) T x_gates[R * row_size];
    input_gates<C, R, V>(packed, s.D, x_rows, panel, x_gates, row_size);
    if constexpr (C::late > 0) {
      run_gated<C, R, V>(packed, s, x_gates, row_size, h, panel,
                         [&](int r, index unit, const Vector<T>* x, Vector<T> gated) {
                           store_kept(row + r, unit, x, G);
                           store_units(kept_of(row + r) + C::kept_gated * s.H + unit, gated,
                                       s.H - unit);
                         });
    } else {
      const auto x_gate = [&](int r, int p, int g) __attribute__((always_inline)) {
        return load<T>(x_gates + r * row_size + (p * G + g) * L);
      };
      run_cell<C, R, V>(packed, s, x_gate, h, own, panel,
                        [&](int r, index unit, Vector<T>, Vector<T>, const Kept<C, T>& kept) {
                          store_kept(row + r, unit, kept.values, C::kept);
                        });
    }
  });
  if constexpr (C::late > 0) {  // what forward() takes of x stands where it keeps its gates
    for_tiles<C::late>(rows, 0, panels_of<T>(s.H), [&]<int R, int V>(index row, index panel) {
      const T *gated[R], *own[R];
      for (int r = 0; r < R; ++r) {
        gated[r] = kept_of(row + r) + C::kept_gated * s.H;
        own[r] = before[row + r];
      }
      const auto x_gate = [&](int r, int p, int g) {
        const index unit = (panel + p) * L;
        return load_units(kept_of(row + r) + g * s.H + unit, s.H - unit);
      };
      run_cell<C, R, V>(packed, s, x_gate, gated, own, panel,
                        [&](int r, index unit, Vector<T>, Vector<T>, const Kept<C, T>& kept) {
                          store_kept(row + r, unit, kept.values, C::kept);
                        });
    });
  }
}

}  // namespace elman::ELMAN_ISA
