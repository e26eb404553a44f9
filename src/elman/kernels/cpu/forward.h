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
  const index H = f.hidden_size, D = f.input_size;
  const index padded = (H + L - 1) / L * L;
  const index panels = share.last_panel - share.first_panel;
  const index row_size = panels * G * L;
  const ForwardPanels<C, const T, const W> packed{f.panels, D, H};

  T* state(index s, index p) const { return f.state + ((s & 1) * plan.batch + p) * padded; }

  // Copies this share's units of a row, or zeros.
  void copy_units(T* to, const T* from) const {
    const index last = smaller(H, share.last_panel * L);
    for (index u = share.first_panel * L; u < last; ++u) to[u] = from ? from[u] : 0;
  }

  void run() const {
    const index rows = share.rows(plan.batch);
    for (index i = 0; i < rows; ++i) begin_row(share.position(i));
    share.wait_if_units_are_split();
    for (index s = 0; s < plan.longest;) {
      const index end = chunk_end(s);
      multiply_input(s, end);
      for (index rows = 0; s < end; ++s) {
        const index active = share.rows(plan.active[s]);
        step(s, active, rows);
        rows += active;
        finish_step(s);
        share.wait_if_units_are_split();
      }
    }
  }

  void begin_row(index p) const {
    const index n = plan.order[p];
    const T* h_0 = f.h_0.data ? f.h_0.at(n) : nullptr;
    if (plan.length[p] == 0) {
      copy_units(f.h_n.at(n), h_0);
    } else {
      copy_units(state(0, p), plan.resets(0, p, f.reverse) ? nullptr : h_0);
    }
    for (index t = plan.length[p]; plan.padded && t < plan.steps; ++t) {
      share.look();
      copy_units(f.output.at(t, n), nullptr);
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
                 [&]<int R, int P>(index row, index panel) {
                   share.look();
                   const T* x[R];
                   for (int r = 0; r < R; ++r) x[r] = scratch.x_rows[row + r];
                   input_gates<C, R, P>(packed, D, x, panel, x_gates_at(row, panel), row_size);
                 });
  }

  T* x_gates_at(index row, index panel) const {
    return scratch.x_gates + row * row_size + (panel - share.first_panel) * G * L;
  }

  // `rows`: of x_gates, before this step's.
  void step(index s, index active, index rows) const {
    for_tiles<G>(active, share.first_panel, share.last_panel,
                 [&]<int R, int P>(index row, index panel) {
                   share.look();
                   const T* h[R];
                   for (int r = 0; r < R; ++r) h[r] = state(s, share.position(row + r));
                   run_cell<C, R, P>(packed, H, x_gates_at(rows + row, panel), row_size, h, panel,
                                     [&](int r, index unit, Vector<T> before, Vector<T> after,
                                         const Vector<T>(&kept)[C::kept]) {
                                       emit(s, share.position(row + r), unit, before, after, kept);
                                     });
                 });
  }

  ELMAN_INLINE void emit(index s, index p, index unit, Vector<T> before, Vector<T> after,
                         const Vector<T> (&kept)[C::kept]) const {
    const index count = H - unit, kept_row = plan.first[s] + p;
    store<T>(state(s + 1, p) + unit, after);
    store_units(f.output.at(plan.time(s, p, f.reverse), plan.order[p]) + unit, after, count);
    if (f.gates) {
      for (int i = 0; i < C::kept; ++i)
        store_units(f.gates + (kept_row * C::kept + i) * H + unit, kept[i], count);
    }
    if (f.states) store_units(f.states + kept_row * H + unit, before, count);
  }

  // Hands out the final states of the rows that end here, and starts the episodes that begin at the
  // next step.
  void finish_step(index s) const {
    const index active = share.rows(plan.active[s]), remain = share.rows(plan.active[s + 1]);
    for (index i = remain; i < active; ++i) {
      const index p = share.position(i);
      copy_units(f.h_n.at(plan.order[p]), state(s + 1, p));
    }
    if (!plan.reset) return;
    for (index i = 0; i < remain; ++i) {
      const index p = share.position(i);
      if (plan.resets(s + 1, p, f.reverse)) copy_units(state(s + 1, p), nullptr);
    }
  }
};

template <class C, class T, class W>
void forward(const Forward<T>& f, const ForwardScratch<T>& scratch, const Share& share) {
  ForwardLoop<C, T, W>{f, scratch, share}.run();
}

// The gates that forward() would have kept, of rows whose states are known: all at once.
template <class C, class T, class W>
void recompute(const void* panels, index D, index H, index rows, const T* const* x, const T* states,
               T* gates) {
  constexpr int G = C::gates;
  const ForwardPanels<C, const T, const W> packed(panels, D, H);
  for_tiles<G>(rows, 0, (H + kLanes<T> - 1) / kLanes<T>, [&]<int R, int P>(index row, index panel) {
    const T *x_rows[R], *h[R];
    for (int r = 0; r < R; ++r) {
      x_rows[r] = x[row + r];
      h[r] = states + (row + r) * H;
    }
    alignas(kVectorBytes) T x_gates[R * P * G * kLanes<T>];
    constexpr index row_size = P * G * kLanes<T>;
    input_gates<C, R, P>(packed, D, x_rows, panel, x_gates, row_size);
    run_cell<C, R, P>(
        packed, H, x_gates, row_size, h, panel,
        [&](int r, index unit, Vector<T>, Vector<T>, const Vector<T>(&kept)[C::kept]) {
          T* to = gates + (row + r) * C::kept * H + unit;
          for (int i = 0; i < C::kept; ++i) store_units(to + i * H, kept[i], H - unit);
        });
  });
}

}  // namespace elman::ELMAN_ISA
