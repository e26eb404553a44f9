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
        if constexpr (C::has_c) {
          if (projected) {
            share.wait_if_units_are_split();
            project(s, active);
          }
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
    const InputWeights<T, W> weights(packed, D);
    multiply_inputs<G>(share, weights, rows, scratch.x_rows, share.first_panel, share.last_panel,
                       scratch.x_gates, row_size);
  }

  T* x_gates_at(index row, index panel) const {
    return scratch.x_gates + row * row_size + (panel - share.first_panel) * G * L;
  }

  // What the late gates meet. `rows`: of x_gates, before this step's.
  void gate(index s, index active, index rows) const {
    for_tiles<kPrompt<C>>(active, share.first_panel, share.last_panel,
                          [&]<int R, int V>(index row, index panel) {
                            share.look();
                            const T* before[R];
                            for (int r = 0; r < R; ++r) before[r] = h(s, share.position(row + r));
                            Vector<T> u[R][V * kPrompt<C>];
                            multiply_prompt<C, R, V>(u, packed, sizes, before, panel);
                            gate_tile(s, row, R, x_gates_at(rows + row, panel), {panel, V}, u[0]);
                          });
  }

  ELMAN_APART void gate_tile(index s, index row, int height, T* x_gates, const Span& span,
                             const Vector<T>* products) const {
    for (int r = 0; r < height; ++r, x_gates += row_size, products += span.panels * kPrompt<C>) {
      const index p = share.position(row + r);
      run_gated<C, T>(span, H, h(s, p), x_gates, products,
                      [&](index unit, const Vector<T>* x, Vector<T> gated) {
                        T* const to = x_gates + (unit - span.panel * L) * G;
                        for (int g = 0; g < G; ++g) store<T>(to + g * L, x[g]);
                        store<T>(hidden(p) + unit, gated);
                      });
    }
  }

  void step(index s, index active, index rows) const {
    for_tiles<kLast<C>>(active, share.first_panel, share.last_panel,
                        [&]<int R, int V>(index row, index panel) {
                          share.look();
                          const T* met[R];
                          for (int r = 0; r < R; ++r) {
                            const index p = share.position(row + r);
                            met[r] = C::late > 0 ? hidden(p) : h(s, p);
                          }
                          Vector<T> u[R][V * kLast<C>];
                          if constexpr (C::late > 0) {
                            multiply_late<C, R, V>(u, packed, sizes, met, panel);
                          } else {
                            multiply_prompt<C, R, V>(u, packed, sizes, met, panel);
                          }
                          step_tile(s, row, R, x_gates_at(rows + row, panel), {panel, V}, u[0]);
                        });
  }

  // What a step of one row reads and writes; null what it does not.
  struct Row {
    const T* own;
    T *h, *c, *hidden, *output, *state, *gates;
  };

  ELMAN_INLINE Row row_at(index s, index p) const {
    return {own(s, p),
            h(s + 1, p),
            C::has_c ? c(p) : nullptr,
            projected ? hidden(p) : nullptr,
            output(s, p),
            f.states ? state_after(s, p) : nullptr,
            f.gates ? f.gates + (plan.first[s] + p) * C::kept * H : nullptr};
  }

  ELMAN_APART void step_tile(index s, index row, int height, const T* x_gates, const Span& span,
                             const Vector<T>* products) const {
    for (int r = 0; r < height; ++r, x_gates += row_size, products += span.panels * kLast<C>) {
      const Row at = row_at(s, share.position(row + r));
      run_cell<C, T>(
          span, packed.h_bias, H, at.own, products,
          [&](int p, int g) { return load<T>(x_gates + (p * G + g) * L); },
          [&](index unit, Vector<T> after, Vector<T> own_after, const Kept<C, T>& kept) {
            emit(at, unit, after, own_after, kept);
          });
    }
  }

  ELMAN_INLINE void emit(const Row& at, index unit, Vector<T> after, Vector<T> own_after,
                         const Kept<C, T>& kept) const {
    const index count = H - unit;
    if (projected) {
      store<T>(at.hidden + unit, after);
    } else {
      emit_h(at, unit, after);
    }
    if (C::has_c) {
      store<T>(at.c + unit, own_after);
      if (f.whole) store_units(at.output + P + unit, own_after, count);
      if (at.state) store_units(at.state + P + unit, own_after, count);
    }
    if (at.gates) {
      for (int i = 0; i < C::kept; ++i) {
        store_units(at.gates + i * H + unit, kept.values[i], count);
      }
    }
  }

  ELMAN_INLINE void emit_h(const Row& at, index unit, Vector<T> after) const {
    const index count = P - unit;
    store<T>(at.h + unit, after);
    store_units(at.output + unit, after, count);
    if (at.state) store_units(at.state + unit, after, count);
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
        const Row at = row_at(s, share.position(row + r));
        for (int v = 0; v < V; ++v) emit_h(at, (panel + v) * L, acc[r][v]);
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
  const InputWeights<T, W> weights(packed, s.D);
  const auto kept_of = [&](index row) { return gates + row * C::kept * s.H; };
  const auto store_kept = [&](index row, index unit, const Vector<T>* values, int count) {
    T* const to = kept_of(row) + unit;
    for (int i = 0; i < count; ++i) store_units(to + i * s.H, values[i], s.H - unit);
  };
  const auto store_cell = [&](index row) {
    return [&, row](index unit, Vector<T>, Vector<T>, const Kept<C, T>& kept) {
      store_kept(row, unit, kept.values, C::kept);
    };
  };
  for_many_rows<G>(rows, 0, panels_of<T>(s.H), [&]<int R, int V>(index row, index panel) {
    const T *x_rows[R], *h[R];
    for (int r = 0; r < R; ++r) {
      x_rows[r] = x[row + r];
      h[r] = before[row + r];
    }
    constexpr index row_size = V * G * L;
    alignas(kVectorBytes) T x_gates[R * row_size];
    input_gates<G, R, V>(weights, x_rows, panel, x_gates, row_size);
    Vector<T> u[R][V * kPrompt<C>];
    multiply_prompt<C, R, V>(u, packed, s, h, panel);
    for (int r = 0; r < R; ++r) {
      const T* const x_row = x_gates + r * row_size;
      if constexpr (C::late > 0) {
        run_gated<C, T>({panel, V}, s.H, h[r], x_row, u[r],
                        [&](index unit, const Vector<T>* x, Vector<T> gated) {
                          store_kept(row + r, unit, x, G);
                          store_units(kept_of(row + r) + C::kept_gated * s.H + unit, gated,
                                      s.H - unit);
                        });
      } else {
        run_cell<C, T>(
            {panel, V}, packed.h_bias, s.H, h[r] + (C::has_c ? s.P : 0), u[r],
            [&](int p, int g) { return load<T>(x_row + (p * G + g) * L); }, store_cell(row + r));
      }
    }
  });
  if constexpr (C::late > 0) {  // what forward() takes of x stands where it keeps its gates
    for_many_rows<C::late>(rows, 0, panels_of<T>(s.H), [&]<int R, int V>(index row, index panel) {
      const T* gated[R];
      for (int r = 0; r < R; ++r) gated[r] = kept_of(row + r) + C::kept_gated * s.H;
      Vector<T> u[R][V * C::late];
      multiply_late<C, R, V>(u, packed, s, gated, panel);
      for (int r = 0; r < R; ++r) {
        const auto x_gate = [&](int p, int g) {
          const index unit = (panel + p) * L;
          return load_units(kept_of(row + r) + g * s.H + unit, s.H - unit);
        };
        run_cell<C, T>({panel, V}, packed.h_bias, s.H, before[row + r], u[r], x_gate,
                       store_cell(row + r));
      }
    });
  }
}

}  // namespace elman::ELMAN_ISA
