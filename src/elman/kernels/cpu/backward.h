// The loop over time, backwards, and the gradients of one direction of one layer.
#pragma once

#include "panels.h"

namespace elman::ELMAN_ISA {

template <class C, class T>
struct BackwardLoop {
  static constexpr index L = kLanes<T>;
  static constexpr int G = C::gates, kGates = C::d_gates;

  const Backward<T>& f;
  const BackwardScratch<T>& scratch;
  const Share& share;
  const Plan& plan = *f.plan;
  const index H = f.hidden_size, D = f.input_size;
  const index padded = (H + L - 1) / L * L;
  const index panel_size = H * G * L;
  const index row_size = f.d_gates_row;
  const T* const w_hh = f.panels;
  const T* const w_ih = f.panels + panel_size * (padded / L);
  // Does what is kept lie beyond the second cache, and take the product long enough to fetch it?
  const bool far_away = H >= 128 && plan.first[plan.longest] * H * (C::kept + 2) > (index{1} << 21);
  // A cache line past a power of two, or the tiles would fall on one another in the cache.
  const index tile_size = kTallest * f.block_rows + 64 / sizeof(T);

  // Rows of `d_gates` of steps from .. to-1; the buffers take turns from chunk to chunk.
  struct Chunk {
    T* d_gates = nullptr;
    const T* gates = nullptr;
    index from = 0, to = 0, rows = 0;
  };

  T* d_gates(const Chunk& c, index s, index p) const {
    return c.d_gates + (plan.first[s] - plan.first[c.from] + p) * row_size;
  }

  void run() const {
    const index rows = share.rows(plan.batch);
    for (index i = 0; i < rows; ++i) begin_row(share.position(i));
    if (f.d_w_ih && plan.longest == 0 && share.member == 0) clear_weight_gradients();
    Chunk next;
    for (int turn = 0; turn == 0 || next.from > 0; ++turn) {
      const Chunk chunk = chunk_before(next, f.d_gates[turn & 1]);
      if (!f.gates) recompute_gates(chunk);
      for (index s = chunk.to - 1; s >= chunk.from; --s) {
        step(s, chunk, s + 1 < chunk.to ? chunk : next);
        share.wait_if_units_are_split();
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
      carry[u] = f.d_h_n.data && u < H ? f.d_h_n.at(n)[u] : 0;
    }
    if (!f.d_x.data || !plan.padded || share.first_panel > 0) return;
    for (index t = plan.length[p]; t < plan.steps; ++t) {
      share.look();
      for (index d = 0; d < D; ++d) f.d_x.at(t, n)[d] = 0;
    }
  }

  void clear_weight_gradients() const {
    for (index i = 0; i < G * H * D; ++i) f.d_w_ih[i] = 0;
    for (index i = 0; i < G * H * H; ++i) f.d_w_hh[i] = 0;
    for (index i = 0; f.d_b_ih && i < G * H; ++i) f.d_b_ih[i] = f.d_b_hh[i] = 0;
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

  // For where forward kept the states alone.
  void recompute_gates(const Chunk& chunk) const {
    const index first = plan.first[chunk.from];
    for_rows_of_x(chunk, [&](index row, index rows, const T* const* x) {
      f.recompute(f.forward_panels, D, H, rows, x, f.states + (first + row) * H,
                  f.chunk_gates + row * C::kept * H);
    });
    share.wait();
  }

  // Calls f(row of the chunk, rows, addresses in x) for this thread's part of the chunk, some rows
  // at a time.
  template <class F>
  void for_rows_of_x(const Chunk& chunk, F&& call) const {
    constexpr index kRows = 64;
    const index from = chunk.rows * share.member / share.members;
    const index to = chunk.rows * (share.member + 1) / share.members;
    for (index begin = from; begin < to; begin += kRows) {
      share.look();
      const T* x[kRows];
      const index rows = smaller(kRows, to - begin);
      for_chunk_rows(chunk, begin, begin + rows,
                     [&](index row, index t, index n) { x[row - begin] = f.x.at(t, n); });
      call(begin, rows, x);
    }
  }

  // The gradient that arrives at the state after step s, for one tile: the carry, plus that of step
  // s + 1 through W_hh. Rows that take no step s + 1 have the carry alone, which is d_h_n; nothing
  // comes back across a reset.
  template <int R, int P>
  ELMAN_INLINE void arriving(Vector<T> (&acc)[R][P], index s, index row, index panel,
                             bool continues, const Chunk& after) const {
    if (continues) {
      const T* rows[R];
      for (int r = 0; r < R; ++r)
        rows[r] = d_gates(after, s + 1, share.position(row + r)) + (kGates - G) * H;
      multiply_gates<T, R, P, G>(acc, rows, w_hh + panel * panel_size, panel_size, H);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        const Vector<T> carry =
            load<T>(f.carry + share.position(row + r) * padded + (panel + p) * L);
        acc[r][p] = continues ? acc[r][p] + carry : carry;
      }
    }
    if (!continues || !plan.reset) return;
    for (int r = 0; r < R; ++r) {
      if (plan.resets(s + 1, share.position(row + r), f.reverse)) {
        for (int p = 0; p < P; ++p) acc[r][p] = Vector<T>{};
      }
    }
  }

  void step(index s, const Chunk& chunk, const Chunk& after) const {
    const index active = share.rows(plan.active[s]), continuing = share.rows(plan.active[s + 1]);
    step_rows(s, 0, continuing, true, chunk, after);
    step_rows(s, continuing, active, false, chunk, after);
  }

  void step_rows(index s, index from, index to, bool continues, const Chunk& chunk,
                 const Chunk& after) const {
    for_tiles<1>(
        to - from, share.first_panel, share.last_panel, [&]<int R, int P>(index row, index panel) {
          share.look();
          for (int r = 0; far_away && r < R; ++r)
            fetch<P>(s, share.position(from + row + r), panel * L, chunk);
          Vector<T> acc[R][P];
          arriving<R, P>(acc, s, from + row, panel, continues, after);
          for (int r = 0; r < R; ++r) {
            const index p = share.position(from + row + r);
            const T* d_output = f.d_output.data
                                    ? f.d_output.at(plan.time(s, p, f.reverse), plan.order[p])
                                    : nullptr;
            for (int i = 0; i < P; ++i) emit(s, p, (panel + i) * L, acc[r][i], d_output, chunk);
          }
        });
  }

  // Asks for the memory that emit() is going to read and write for P vectors of units.
  template <int P>
  ELMAN_INLINE void fetch(index s, index p, index unit, const Chunk& chunk) const {
    const T* kept = gates(chunk, s, p);
    const T* before = f.states + (plan.first[s] + p) * H;
    const T* d_output =
        f.d_output.data ? f.d_output.at(plan.time(s, p, f.reverse), plan.order[p]) : before;
    const T* d_row = d_gates(chunk, s, p);
    for (int i = 0; i < P; ++i, unit += L) {
      for (int g = 0; g < C::kept; ++g) __builtin_prefetch(kept + g * H + unit);
      for (int g = 0; g < kGates; ++g) __builtin_prefetch(d_row + g * H + unit, 1);
      __builtin_prefetch(before + unit);
      __builtin_prefetch(d_output + unit);
    }
  }

  // The cell itself, for one vector of units of one row.
  ELMAN_INLINE void emit(index s, index p, index unit, Vector<T> d, const T* d_output,
                         const Chunk& chunk) const {
    const index count = smaller(L, H - unit);
    if (d_output) d += load_part(d_output + unit, count);
    Vector<T> kept[C::kept], d_gate[kGates];
    for (int i = 0; i < C::kept; ++i) kept[i] = load_part(gates(chunk, s, p) + i * H + unit, count);
    const Vector<T> before = load_part(f.states + (plan.first[s] + p) * H + unit, count);
    T* d_row = d_gates(chunk, s, p);
    store<T>(f.carry + p * padded + unit, C::template backward<T>(d, before, kept, d_gate));
    for (int i = 0; i < kGates; ++i) store_part(d_row + i * H + unit, d_gate[i], count);
  }

  // After the first step: d_h_0.
  void finish(const Chunk& first) const {
    const index active = plan.longest > 0 ? share.rows(plan.active[0]) : 0;
    finish_rows(0, active, true, first);
    finish_rows(active, share.rows(plan.batch), false, first);
  }

  void finish_rows(index from, index to, bool continues, const Chunk& first) const {
    for_tiles<1>(to - from, share.first_panel, share.last_panel,
                 [&]<int R, int P>(index row, index panel) {
                   share.look();
                   Vector<T> acc[R][P];
                   arriving<R, P>(acc, -1, from + row, panel, continues, first);
                   for (int r = 0; r < R; ++r) {
                     T* to_row = f.d_h_0.at(plan.order[share.position(from + row + r)]);
                     for (int p = 0; p < P; ++p) {
                       const index unit = (panel + p) * L;
                       store_part(to_row + unit, acc[r][p], smaller(L, H - unit));
                     }
                   }
                 });
  }

  // What a chunk's gate gradients give beyond the recurrence: d_x and the weight gradients, work
  // shared anew.
  void finish_chunk(const Chunk& chunk) const {
    if (f.d_x.data) multiply_d_x(chunk);
    if (f.d_w_ih) add_weight_gradients(chunk);
    share.wait();
  }

  // Calls f(row of the chunk, time, row of the batch) for the chunk's rows from .. to-1.
  template <class F>
  ELMAN_INLINE void for_chunk_rows(const Chunk& chunk, index from, index to, F&& call) const {
    index s = chunk.from;
    for (index row = from; row < to; ++row) {
      while (plan.first[s + 1] - plan.first[chunk.from] <= row) ++s;
      const index p = row - (plan.first[s] - plan.first[chunk.from]);
      call(row, plan.time(s, p, f.reverse), plan.order[p]);
    }
  }

  void multiply_d_x(const Chunk& chunk) const {
    constexpr index kRows = 256;  // rows of d_x whose addresses are worked out at once
    const index from = chunk.rows * share.member / share.members;
    const index to = chunk.rows * (share.member + 1) / share.members;
    for (index begin = from; begin < to; begin += kRows) {
      T* d_x[kRows];
      const index rows = smaller(kRows, to - begin);
      for_chunk_rows(chunk, begin, begin + rows,
                     [&](index row, index t, index n) { d_x[row - begin] = f.d_x.at(t, n); });
      for_tiles<1>(rows, 0, (D + L - 1) / L, [&]<int R, int P>(index row, index panel) {
        share.look();
        const T* d_rows[R];
        for (int r = 0; r < R; ++r) d_rows[r] = chunk.d_gates + (begin + row + r) * row_size;
        Vector<T> acc[R][P];
        multiply_gates<T, R, P, G>(acc, d_rows, w_ih + panel * panel_size, panel_size, H);
        for (int r = 0; r < R; ++r) {
          for (int p = 0; p < P; ++p) {
            const index column = (panel + p) * L;
            store_part(d_x[row + r] + column, acc[r][p], smaller(L, D - column));
          }
        }
      });
    }
  }

  void add_weight_gradients(const Chunk& chunk) const {
    // Each thread takes some of the units, of every gate.
    const index from = H * share.member / share.members,
                to = H * (share.member + 1) / share.members;
    const index d_panels = (D + L - 1) / L;
    T* const h_block = scratch.block + d_panels * f.block_rows * L;
    for (index begin = 0; begin < chunk.rows; begin += kSumBlock) {
      const index rows = smaller(kSumBlock, chunk.rows - begin);
      const bool first = chunk.to == plan.longest && begin == 0;
      const T* d_rows = chunk.d_gates + begin * row_size;
      for_chunk_rows(chunk, begin, begin + rows, [&](index row, index t, index n) {
        pack_row(f.x.at(t, n), D, scratch.block, row - begin);
      });
      const T* states = f.states + (plan.first[chunk.from] + begin) * H;
      for (index row = 0; row < rows; ++row) pack_row(states + row * H, H, h_block, row);
      for (int i = 0; i < kGates; ++i) {
        pack_tiles(d_rows + i * H + from, rows, to - from);
        const int g = i - (kGates - G);
        if (i < G)
          add_outer(rows, scratch.block, D, f.d_w_ih + C::input_gate[i] * H * D, from, to, first);
        if (g >= 0)
          add_outer(rows, h_block, H, f.d_w_hh + C::hidden_gate[g] * H * H, from, to, first);
      }
      if (f.d_b_ih) add_bias_gradients(d_rows, rows, from, to, first);
    }
  }

  ELMAN_INLINE void pack_row(const T* from, index columns, T* block, index row) const {
    for (index c = 0; c < columns; c += L, block += f.block_rows * L) {
      store<T>(block + row * L, load_part(from + c, smaller(L, columns - c)));
    }
  }

  // Units, kTallest at a time, row behind row, for the tiles of add_outer to walk along.
  void pack_tiles(const T* d, index rows, index units) const {
    for (index row = 0; row < rows; ++row, d += row_size) {
      T* to = scratch.tiles + row * kTallest;
      for (index u = 0; u < units; u += kTallest, to += tile_size) {
        if (u + kTallest <= units) {
          __builtin_memcpy(to, d + u, kTallest * sizeof(T));
        } else {
          for (index i = 0; u + i < units; ++i) to[i] = d[u + i];
        }
      }
    }
  }

  // d_w[unit][column] += sum over rows of the packed d[unit][row] * block[row][column]; `first`
  // finds nothing there yet. The columns go by in groups that stay in the cache.
  void add_outer(index rows, const T* block, index columns, T* d_w, index from, index to,
                 bool first) const {
    constexpr index kGroup = 24;
    const index panels = (columns + L - 1) / L;
    for (index group = 0; group < panels; group += kGroup) {
      const T* tile = scratch.tiles;
      for (index begin = from; begin < to; begin += kTallest, tile += tile_size) {
        for_tiles<1>(
            smaller(kTallest, to - begin), group, smaller(group + kGroup, panels),
            [&]<int R, int P>(index unit, index panel) {
              share.look();
              T* to_w = d_w + (begin + unit) * columns + panel * L;
              for (int r = 0; r < R; ++r) {
                for (int p = 0; p < P; ++p) __builtin_prefetch(to_w + r * columns + p * L);
              }
              Vector<T> acc[R][P] = {};
              multiply_outer<T, R, P>(acc, tile + unit, kTallest, block + panel * f.block_rows * L,
                                      f.block_rows * L, rows);
              for (int r = 0; r < R; ++r, to_w += columns) {
                for (int p = 0; p < P; ++p) {
                  const index count = smaller(L, columns - (panel + p) * L);
                  const Vector<T> sum = first ? Vector<T>{} : load_part(to_w + p * L, count);
                  store_part(to_w + p * L, sum + acc[r][p], count);
                }
              }
            });
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
