// The loop over time, backwards, and the gradients of one direction of one layer.
#pragma once

#include "panels.h"

namespace elman::ELMAN_ISA {

// Some gates' weights as backward reads them: packed, or as they lie.
template <class T>
struct GateWeights {
  const T* panels;  // null: not packed
  index panel;      // the size of a panel
  const T* w;       // (.., columns), of its blocks of rows the gates'
  index columns;
  const int* gates;

  // The gradients of G gates, each of H values a row, through V panels of columns.
  template <int G, int R, int V>
  ELMAN_INLINE void multiply(Vector<T> (&acc)[R][V], const T* const (&rows)[R], index at,
                             index H) const {
    if (panels) {
      multiply_gates<T, R, V, G>(acc, rows, panels + at * panel, panel, H);
    } else {
      multiply_gates_unpacked<T, R, V>(acc, rows, w, columns, at * kLanes<T>, G, gates, H);
    }
  }
};

// d_x of some rows from the gradients of their G gates, for every cell that has as many.
template <int G, class T>
void multiply_inputs_back(const Share& share, const GateWeights<T>& w, index H, index rows,
                          const T* d_gates, index row_size, T* const* d_x) {
  constexpr index L = kLanes<T>;
  for_tiles<1>(rows, 0, panels_of<T>(w.columns), [&]<int R, int V>(index row, index panel) {
    share.look();
    const T* d_rows[R];
    for (int r = 0; r < R; ++r) d_rows[r] = d_gates + (row + r) * row_size;
    Vector<T> acc[R][V];
    w.template multiply<G>(acc, d_rows, panel, H);
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < V; ++v) {
        const index column = (panel + v) * L;
        store_part(d_x[row + r] + column, acc[r][v], smaller(L, w.columns - column));
      }
    }
  });
}

// What a weight gradient is summed from, over `rows` rows.
template <class T>
struct OuterProduct {
  const T* tiles;  // gradients of units, kTallest at a time, row behind row
  index tile_size;
  const T* block;  // what they met, as panels of `block_rows` rows
  index block_rows, rows;
  bool first;  // of the sum, which finds nothing there yet
};

// d_w[unit][column] += sum over rows of the packed d[unit][row] * block[row][column], of the units
// whose tile and weights are given.
template <int R, int P, class T>
ELMAN_INLINE void add_outer_tile(const OuterProduct<T>& of, const T* tile, index columns, T* d_w,
                                 index panel) {
  constexpr index L = kLanes<T>;
  Vector<T> acc[R][P] = {};
  multiply_outer<T, R, P>(acc, tile, kTallest<1>, of.block + panel * of.block_rows * L,
                          of.block_rows * L, of.rows);
  const auto write = [&](index last) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        T* const to = d_w + r * columns + (panel + p) * L;
        const index count = p < P - 1 ? L : last;
        store_part(to, (of.first ? Vector<T>{} : load_part(to, count)) + acc[r][p], count);
      }
    }
  };
  const index last = columns - (panel + P - 1) * L;
  last < L ? write(last) : write(L);
}

// The same for units from .. to-1. The columns go by in groups that stay in the cache.
template <class T>
void add_outer(const Share& share, const OuterProduct<T>& of, index columns, T* d_w, index from,
               index to) {
  constexpr index L = kLanes<T>, kGroup = 24;
  const index panels = panels_of<T>(columns);
  for (index group = 0; group < panels; group += kGroup) {
    const T* tile = of.tiles;
    for (index begin = from; begin < to; begin += kTallest<1>, tile += of.tile_size) {
      for_tiles<1>(smaller(kTallest<1>, to - begin), group, smaller(group + kGroup, panels),
                   [&]<int R, int P>(index unit, index panel) {
                     share.look();
                     T* const to_w = d_w + (begin + unit) * columns;
                     for (int r = 0; r < R; ++r) {
                       for (int p = 0; p < P; ++p)
                         __builtin_prefetch(to_w + r * columns + (panel + p) * L);
                     }
                     add_outer_tile<R, P>(of, tile + unit, columns, to_w, panel);
                   });
    }
  }
}

// The same of few rows, where more time goes into writing than into sums: unit by unit, so that
// memory is written from one end to the other.
template <class T>
void add_outer_of_few(const Share& share, const OuterProduct<T>& of, index columns, T* d_w,
                      index from, index to) {
  for (index i = 0; i < to - from; ++i) {
    share.look();
    const T* const tile = of.tiles + i / kTallest<1> * of.tile_size + i % kTallest<1>;
    T* const to_w = d_w + (from + i) * columns;
    for_panels<1, kPanels<1, 1>>(0, 1, 0, panels_of<T>(columns),
                                 [&]<int, int P>(index, index panel) {
                                   add_outer_tile<1, P>(of, tile, columns, to_w, panel);
                                 });
  }
}

template <class C, class T>
struct BackwardLoop {
  static constexpr index L = kLanes<T>;
  static constexpr int G = C::gates, kGates = C::d_gates;

  const Backward<T>& f;
  const BackwardScratch<T>& scratch;
  const Share& share;
  const Plan& plan = *f.plan;
  const Sizes& sizes = f.sizes;
  const index D = sizes.D, H = sizes.H, P = sizes.P;
  const index S = P + (C::has_c ? H : 0);
  const index own = C::has_c ? P : 0;  // where the state that the cell itself reads begins
  const bool projected = C::has_c && sizes.projected();
  const index padded = panels_of<T>(H) * L;
  const index row_size = f.d_gates_row;
  const BackwardPanels<C, const T> packed{f.panels, sizes};
  const GateWeights<T> w_ih{packed.w_ih, packed.input_panel, f.w_ih, D, C::input_gate};
  const GateWeights<T> w_hh{packed.w_hh, packed.hidden_panel, f.w_hh, P, C::hidden_gate + C::late};
  const GateWeights<T> w_late{packed.w_late, packed.late_panel, f.w_hh, P, C::hidden_gate};
  // This share's panels of h: those of its units, unless a projection makes it.
  const index first_h = projected ? share.part_of_units(panels_of<T>(P), 0) : share.first_panel;
  const index last_h = projected ? share.part_of_units(panels_of<T>(P), 1) : share.last_panel;
  // Does what is kept lie beyond the second cache, and take the product long enough to fetch it?
  const bool far_away = H >= 128 && plan.first[plan.longest] * H * (C::kept + 2) > (index{1} << 21);
  // A cache line past a power of two, or the tiles would fall on one another in the cache.
  const index tile_size = kTallest<1> * f.block_rows + 64 / sizeof(T);

  // Rows of `d_gates` of steps from .. to-1; the buffers take turns from chunk to chunk.
  struct Chunk {
    T* d_gates = nullptr;
    const T* gates = nullptr;
    index from = 0, to = 0, rows = 0;
  };

  T* d_gates(const Chunk& c, index s, index p) const {
    return c.d_gates + (plan.first[s] - plan.first[c.from] + p) * row_size;
  }
  // The gradient of a projected h.
  T* d_h(const Chunk& c, index s, index p) const { return d_gates(c, s, p) + kGates * H; }

  const T* state_after(index s, index p) const {
    return f.states + (plan.batch + plan.first[s] + p) * S;
  }
  const T* state_before(index s, index p) const {
    if (plan.resets(s, p, f.reverse)) return f.zeros;
    return s == 0 ? f.states + p * S : state_after(s - 1, p);
  }

  void run() const {
    const index rows = share.rows(plan.batch);
    for (index i = 0; i < rows; ++i) begin_row(share.position(i));
    if (f.d_w_ih && plan.longest == 0 && share.member == 0) clear_weight_gradients();
    Chunk next;
    for (int turn = 0; turn == 0 || next.from > 0; ++turn) {
      const Chunk chunk = chunk_before(next, f.d_gates[turn & 1]);
      if (C::kept > 0 && !f.gates) recompute_gates(chunk);
      for (index s = chunk.to - 1; s >= chunk.from; --s) {
        const Chunk& after = s + 1 < chunk.to ? chunk : next;
        if constexpr (C::has_c) {
          if (projected) {
            gather_d_h(s, chunk, after);
            share.wait_if_units_are_split();
          }
        }
        step(s, chunk, after);
        share.wait_if_units_are_split();
        if constexpr (C::late > 0) {
          step_gated(s, chunk);
          share.wait_if_units_are_split();
        }
      }
      share.wait();
      if (chunk.rows > 0) finish_chunk(chunk);
      next = chunk;
    }
    finish(next);
    share.wait();
  }

  void begin_row(index p) const {
    const index n = plan.order[p];
    T* carry = f.carry + p * padded;
    for (index u = share.first_panel * L; u < share.last_panel * L; ++u) {
      carry[u] = f.d_h_n.data && u < H ? f.d_h_n.at(n)[own + u] : 0;
    }
    if (!f.d_x.data || !plan.padded || share.first_panel > 0) return;
    for (index t = plan.length[p]; t < plan.steps; ++t) {
      share.look();
      for (index d = 0; d < D; ++d) f.d_x.at(t, n)[d] = 0;
    }
  }

  void clear_weight_gradients() const {
    for (index i = 0; i < G * H * D; ++i) f.d_w_ih[i] = 0;
    for (index i = 0; i < G * H * P; ++i) f.d_w_hh[i] = 0;
    for (index i = 0; f.d_b_ih && i < G * H; ++i) f.d_b_ih[i] = f.d_b_hh[i] = 0;
    for (index i = 0; projected && i < P * H; ++i) f.d_w_hr[i] = 0;
  }

  // The last steps before `next`, as many as the buffer has room for.
  Chunk chunk_before(const Chunk& next, T* buffer) const {
    const index to = next.d_gates ? next.from : plan.longest;
    index from = to;
    while (from > 0 && plan.first[to] - plan.first[from - 1] <= f.chunk_rows) --from;
    const T* gates = f.gates ? f.gates + plan.first[from] * C::kept * H : f.chunk_gates;
    return {buffer, gates, from, to, plan.first[to] - plan.first[from]};
  }

  const T* gates(const Chunk& c, index s, index p) const {
    return c.gates + (plan.first[s] - plan.first[c.from] + p) * C::kept * H;
  }

  // For where forward kept the states alone: this thread's part of the chunk, some rows at a time.
  void recompute_gates(const Chunk& chunk) const {
    constexpr index kRows = 64;
    const index from = chunk.rows * share.member / share.members;
    const index to = chunk.rows * (share.member + 1) / share.members;
    for (index begin = from; begin < to; begin += kRows) {
      share.look();
      const T *x[kRows], *before[kRows];
      const index rows = smaller(kRows, to - begin);
      for_chunk_rows(chunk, begin, begin + rows, [&](index row, index s, index p) {
        x[row - begin] = f.x.at(plan.time(s, p, f.reverse), plan.order[p]);
        before[row - begin] = state_before(s, p);
      });
      f.recompute(f.forward_panels, sizes, rows, x, before, f.chunk_gates + begin * C::kept * H);
    }
    share.wait();
  }

  // The gradient that arrives at h after step s, for one tile: that of step s + 1 through W_hh, and
  // the carry where h is the cell's own state. Rows that take no step s + 1 have d_h_n alone;
  // nothing comes back across a reset.
  template <int R, int V>
  ELMAN_INLINE void arriving(Vector<T> (&acc)[R][V], index s, index row, index panel,
                             bool continues, const Chunk& after) const {
    if (continues) {
      const T* rows[R];
      for (int r = 0; r < R; ++r)
        rows[r] = d_gates(after, s + 1, share.position(row + r)) + H * (kGates - kPrompt<C>);
      w_hh.template multiply<kPrompt<C>>(acc, rows, panel, H);
    }
    add_carried(s, row, R, {panel, V}, continues, acc[0]);
  }

  ELMAN_APART void add_carried(index s, index row, int height, const Span& span, bool continues,
                               Vector<T>* acc) const {
    for (int r = 0; r < height; ++r) {
      const index p = share.position(row + r);
      const bool is_cut = cut(s, p, continues);
      for (int v = 0; v < span.panels; ++v, ++acc) {
        const index unit = (span.panel + v) * L;
        if constexpr (C::has_c) {
          if (!continues) *acc = d_h_n(p, unit);
        } else {
          const Vector<T> carry = load<T>(f.carry + p * padded + unit);
          *acc = continues ? *acc + carry : carry;
        }
        if (is_cut) *acc = Vector<T>{};
      }
    }
  }

  ELMAN_INLINE Vector<T> d_h_n(index p, index unit) const {
    if (!f.d_h_n.data) return Vector<T>{};
    return load_part(f.d_h_n.at(plan.order[p]) + unit, smaller(L, P - unit));
  }

  // Does a reset lie between steps s and s + 1?
  bool cut(index s, index p, bool continues) const {
    return continues && plan.resets(s + 1, p, f.reverse);
  }

  // This direction's part of d_output, or null.
  const T* d_output(index s, index p) const {
    return f.d_output.data ? f.d_output.at(plan.time(s, p, f.reverse), plan.order[p]) : nullptr;
  }

  // Calls f(first row, last row, whether they take step s + 1) for this share's rows at step s.
  template <class F>
  ELMAN_INLINE void for_rows_at(index s, F&& call) const {
    const index active = share.rows(plan.active[s]), continuing = share.rows(plan.active[s + 1]);
    call(0, continuing, true);
    call(continuing, active, false);
  }

  // The gradient of a projected h: all of it has to be there before any unit's can be worked out.
  void gather_d_h(index s, const Chunk& chunk, const Chunk& after) const {
    for_rows_at(s, [&](index from, index to, bool continues) {
      for_tiles<1>(to - from, first_h, last_h, [&]<int R, int V>(index row, index panel) {
        share.look();
        Vector<T> acc[R][V];
        arriving<R, V>(acc, s, from + row, panel, continues, after);
        for (int r = 0; r < R; ++r) {
          const index p = share.position(from + row + r);
          const T* const d = d_output(s, p);
          for (int v = 0; v < V; ++v) {
            const index unit = (panel + v) * L, count = smaller(L, P - unit);
            if (d) acc[r][v] += load_part(d + unit, count);
            store_part(d_h(chunk, s, p) + unit, acc[r][v], count);
          }
        }
      });
    });
  }

  void step(index s, const Chunk& chunk, const Chunk& after) const {
    for_rows_at(s, [&](index from, index to, bool continues) {
      for_tiles<1>(to - from, share.first_panel, share.last_panel,
                   [&]<int R, int V>(index row, index panel) {
                     share.look();
                     row += from;
                     if (far_away) fetch(s, row, R, {panel, V}, continues, chunk);
                     Vector<T> acc[R][V];
                     if (!projected) {
                       arriving<R, V>(acc, s, row, panel, continues, after);
                     } else if constexpr (C::has_c) {
                       const T* d_rows[R];
                       for (int r = 0; r < R; ++r)
                         d_rows[r] = d_h(chunk, s, share.position(row + r));
                       multiply<T, R, V, 1>(acc, d_rows,
                                            packed.w_hr + panel * packed.projection_panel,
                                            packed.projection_panel, P);
                     }
                     step_tile(s, row, R, {panel, V}, continues, chunk, acc[0]);
                   });
    });
  }

  ELMAN_APART void step_tile(index s, index row, int height, const Span& span, bool continues,
                             const Chunk& chunk, const Vector<T>* d) const {
    for (int r = 0; r < height; ++r) {
      const Row at = row_at(s, share.position(row + r), continues, chunk);
      for (int v = 0; v < span.panels; ++v) emit(at, (span.panel + v) * L, *d++);
    }
  }

  // What a step of one row reads and writes, each H values or several times as many.
  struct Row {
    const T *before, *after, *gates, *d_output, *d_own;  // before, after: of the cell's own state
    T *carry, *d_gates;
    bool cut;  // a reset keeps what is carried from here
  };

  ELMAN_INLINE Row row_at(index s, index p, bool continues, const Chunk& chunk) const {
    return {state_before(s, p) + own,
            state_after(s, p) + own,
            gates(chunk, s, p),
            projected ? nullptr : d_output(s, p),
            C::has_c && f.whole && f.d_output.data ? d_output(s, p) + P : nullptr,
            f.carry + p * padded,
            d_gates(chunk, s, p),
            C::has_c && cut(s, p, continues)};
  }

  // Asks for the memory that a tile is going to read and write.
  ELMAN_APART void fetch(index s, index row, int height, const Span& span, bool continues,
                         const Chunk& chunk) const {
    for (int r = 0; r < height; ++r) {
      const Row at = row_at(s, share.position(row + r), continues, chunk);
      for (index unit = span.panel * L; unit < (span.panel + span.panels) * L; unit += L) {
        for (int g = 0; g < C::kept; ++g) __builtin_prefetch(at.gates + g * H + unit);
        for (int g = 0; g < kGates; ++g) __builtin_prefetch(at.d_gates + g * H + unit, 1);
        __builtin_prefetch(at.before + unit);
        if (at.d_output) __builtin_prefetch(at.d_output + unit);
      }
    }
  }

  // The cell itself, for one vector of units.
  ELMAN_INLINE void emit(const Row& at, index unit, Vector<T> d) const {
    const index count = smaller(L, H - unit);
    if (at.d_output) d += load_part(at.d_output + unit, count);
    const Kept<C, T> kept = load_kept(at.gates + unit, count);
    Vector<T> d_own = C::has_c && !at.cut ? load<T>(at.carry + unit) : Vector<T>{};
    if (C::has_c && at.d_own) d_own += load_part(at.d_own + unit, count);
    const Vector<T> before = load_part(at.before + unit, count);
    const Vector<T> after = load_part(at.after + unit, count);
    Vector<T> d_gate[kGates];
    store<T>(at.carry + unit,
             C::template backward<T>(d, d_own, before, after, kept.values, d_gate));
    for (int i = 0; i < kGates; ++i) store_part(at.d_gates + i * H + unit, d_gate[i], count);
  }

  // The way back through what late gates met, after step().
  void step_gated(index s, const Chunk& chunk) const {
    for_tiles<1>(share.rows(plan.active[s]), share.first_panel, share.last_panel,
                 [&]<int R, int V>(index row, index panel) {
                   share.look();
                   const T* d_rows[R];
                   for (int r = 0; r < R; ++r)
                     d_rows[r] = d_gates(chunk, s, share.position(row + r));
                   Vector<T> acc[R][V];
                   w_late.template multiply<C::late>(acc, d_rows, panel, H);
                   step_gated_tile(s, row, R, {panel, V}, chunk, acc[0]);
                 });
  }

  ELMAN_APART void step_gated_tile(index s, index row, int height, const Span& span,
                                   const Chunk& chunk, const Vector<T>* d) const {
    for (int r = 0; r < height; ++r) {
      const Row at = row_at(s, share.position(row + r), false, chunk);
      for (int v = 0; v < span.panels; ++v) emit_gated(at, (span.panel + v) * L, *d++);
    }
  }

  ELMAN_INLINE void emit_gated(const Row& at, index unit, Vector<T> d) const {
    const index count = smaller(L, H - unit);
    const Vector<T> before = load_part(at.before + unit, count);
    const Vector<T> gate = load_part(at.gates + unit, count);
    Vector<T> d_gate;
    const Vector<T> d_own = C::template backward_gated<T>(d, before, gate, d_gate);
    store<T>(at.carry + unit, load<T>(at.carry + unit) + d_own);
    store_part(at.d_gates + C::late * H + unit, d_gate, count);
  }

  ELMAN_INLINE Kept<C, T> load_kept(const T* from, index count) const {
    Kept<C, T> kept;
    for (int i = 0; i < C::kept; ++i) kept.values[i] = load_part(from + i * H, count);
    return kept;
  }

  // After the first step: d_h_0.
  void finish(const Chunk& first) const {
    const index active = plan.longest > 0 ? share.rows(plan.active[0]) : 0;
    finish_rows(0, active, true, first);
    finish_rows(active, share.rows(plan.batch), false, first);
  }

  void finish_rows(index from, index to, bool continues, const Chunk& first) const {
    for_tiles<1>(to - from, first_h, last_h, [&]<int R, int V>(index row, index panel) {
      share.look();
      Vector<T> acc[R][V];
      arriving<R, V>(acc, -1, from + row, panel, continues, first);
      for (int r = 0; r < R; ++r) {
        T* to_row = f.d_h_0.at(plan.order[share.position(from + row + r)]);
        for (int v = 0; v < V; ++v) {
          const index unit = (panel + v) * L;
          store_part(to_row + unit, acc[r][v], smaller(L, P - unit));
        }
      }
    });
    for (index i = from; C::has_c && i < to; ++i) {
      const index p = share.position(i);
      T* to_row = f.d_h_0.at(plan.order[p]) + P;
      for (index u = share.first_panel * L; u < smaller(H, share.last_panel * L); ++u)
        to_row[u] = cut(-1, p, continues) ? 0 : f.carry[p * padded + u];
    }
  }

  // What a chunk's gate gradients give beyond the recurrence: d_x and the weight gradients, work
  // shared anew.
  void finish_chunk(const Chunk& chunk) const {
    if (f.d_x.data) multiply_d_x(chunk);
    if (f.d_w_ih) add_weight_gradients(chunk);
    share.wait();
  }

  // Calls f(row of the chunk, step, position) for the chunk's rows from .. to-1.
  template <class F>
  ELMAN_INLINE void for_chunk_rows(const Chunk& chunk, index from, index to, F&& call) const {
    index s = chunk.from;
    for (index row = from; row < to; ++row) {
      while (plan.first[s + 1] - plan.first[chunk.from] <= row) ++s;
      call(row, s, row - (plan.first[s] - plan.first[chunk.from]));
    }
  }

  void multiply_d_x(const Chunk& chunk) const {
    constexpr index kRows = 256;  // rows of d_x whose addresses are worked out at once
    const index from = chunk.rows * share.member / share.members;
    const index to = chunk.rows * (share.member + 1) / share.members;
    for (index begin = from; begin < to; begin += kRows) {
      T* d_x[kRows];
      const index rows = smaller(kRows, to - begin);
      for_chunk_rows(chunk, begin, begin + rows, [&](index row, index s, index p) {
        d_x[row - begin] = f.d_x.at(plan.time(s, p, f.reverse), plan.order[p]);
      });
      multiply_inputs_back<G>(share, w_ih, H, rows, chunk.d_gates + begin * row_size, row_size,
                              d_x);
    }
  }

  void add_weight_gradients(const Chunk& chunk) const {
    // Each thread takes some of the units, of every gate.
    const index from = part(H, 0), to = part(H, 1);
    T* const h_block = scratch.block + panels_of<T>(D) * f.block_rows * L;
    T* const hidden_block = h_block + panels_of<T>(P) * f.block_rows * L;
    for (index begin = 0; begin < chunk.rows; begin += kSumBlock) {
      const index rows = smaller(kSumBlock, chunk.rows - begin);
      const bool first = chunk.to == plan.longest && begin == 0;
      const T* d_rows = chunk.d_gates + begin * row_size;
      for_chunk_rows(chunk, begin, begin + rows, [&](index row, index s, index p) {
        const T* const x = f.x.at(plan.time(s, p, f.reverse), plan.order[p]);
        pack_row(x, D, scratch.block, row - begin);
        pack_row(state_before(s, p), P, h_block, row - begin);
        if constexpr (C::late > 0)
          pack_row(gates(chunk, s, p) + C::kept_gated * H, H, hidden_block, row - begin);
      });
      const auto outer = [&](const T* block) {
        return OuterProduct<T>{scratch.tiles, tile_size, block, f.block_rows, rows, first};
      };
      const auto add = rows <= kFewRows ? add_outer_of_few<T> : add_outer<T>;
      for (int i = 0; i < kGates; ++i) {
        pack_tiles(d_rows + i * H + from, rows, to - from);
        const int g = i - (kGates - G);
        if (i < G)
          add(share, outer(scratch.block), D, f.d_w_ih + C::input_gate[i] * H * D, from, to);
        const T* const met = i < C::late ? hidden_block : h_block;
        if (g >= 0) add(share, outer(met), P, f.d_w_hh + C::hidden_gate[g] * H * P, from, to);
      }
      if constexpr (C::has_c) {
        if (projected) add_projection_gradient(chunk, begin, rows, hidden_block, first);
      }
      if (f.d_b_ih) add_bias_gradients(d_rows, rows, from, to, first);
    }
  }

  // Where this thread's part of n units begins (edge 0) and ends (1).
  index part(index n, int edge) const { return n * (share.member + edge) / share.members; }

  // d_w_hr, from the gradients of h and what was projected.
  void add_projection_gradient(const Chunk& chunk, index begin, index rows, T* block,
                               bool first) const {
    for_chunk_rows(chunk, begin, begin + rows, [&](index row, index s, index p) {
      for (index unit = 0; unit < H; unit += L) {
        const index count = smaller(L, H - unit);
        const Kept<C, T> kept = load_kept(gates(chunk, s, p) + unit, count);
        const Vector<T> after = load_part(state_after(s, p) + own + unit, count);
        store<T>(block + unit * f.block_rows + (row - begin) * L,
                 C::template output<T>(after, kept.values));
      }
    });
    const index from = part(P, 0), to = part(P, 1);
    pack_tiles(chunk.d_gates + begin * row_size + kGates * H + from, rows, to - from);
    const OuterProduct<T> of{scratch.tiles, tile_size, block, f.block_rows, rows, first};
    add_outer(share, of, H, f.d_w_hr, from, to);
  }

  ELMAN_INLINE void pack_row(const T* from, index columns, T* block, index row) const {
    for (index c = 0; c < columns; c += L, block += f.block_rows * L) {
      store<T>(block + row * L, load_part(from + c, smaller(L, columns - c)));
    }
  }

  // Units, kTallest at a time, row behind row, for the tiles of add_outer to walk along.
  void pack_tiles(const T* d, index rows, index units) const {
    for (index row = 0; row < rows; ++row, d += row_size) {
      T* to = scratch.tiles + row * kTallest<1>;
      for (index u = 0; u < units; u += kTallest<1>, to += tile_size) {
        if (u + kTallest<1> <= units) {
          __builtin_memcpy(to, d + u, kTallest<1> * sizeof(T));
        } else {
          for (index i = 0; u + i < units; ++i) to[i] = d[u + i];
        }
      }
    }
  }

  void add_bias_gradients(const T* d_rows, index rows, index from, index to, bool first) const {
    for (int i = 0; i < kGates; ++i) {
      T* sums = scratch.d_bias + i * H;
      for (index u = from; u < to; ++u) sums[u] = 0;
      for (index row = 0; row < rows; ++row) {
        for (index u = from; u < to; ++u) sums[u] += d_rows[row * row_size + i * H + u];
      }
    }
    for (int g = 0; g < G; ++g) {
      for (index u = from; u < to; ++u) {
        T& d_b_ih = f.d_b_ih[C::input_gate[g] * H + u];
        T& d_b_hh = f.d_b_hh[C::hidden_gate[g] * H + u];
        d_b_ih = (first ? 0 : d_b_ih) + scratch.d_bias[g * H + u];
        d_b_hh = (first ? 0 : d_b_hh) + scratch.d_bias[(kGates - G + g) * H + u];
      }
    }
  }
};

template <class C, class T>
void backward(const Backward<T>& f, const BackwardScratch<T>& scratch, const Share& share) {
  BackwardLoop<C, T>{f, scratch, share}.run();
}

}  // namespace elman::ELMAN_ISA
