// The engine's plain face: what a call is, and the table of kernels of one instruction set.
// Nothing here depends on Python or on an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace elman {

using index = std::int64_t;

// D input features, H hidden units, P units of h: H, but fewer where a projection makes them.
struct Sizes {
  index D, H, P;

  bool projected() const { return P != H; }
};

// Weights in half precision; all that is computed from them is float.
struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

// A sequence in the caller's memory, read and written in place. Row n of step t begins at
//   data + t * step + n * row             (dense, any strides), or
//   data + (first_row[t] + n) * row       (packed: the steps lie one behind the other).
// The features of a row lie side by side.
template <class T>
struct Sequence {
  T* data = nullptr;  // null: the sequence is absent
  index step = 0, row = 0;
  const index* first_row = nullptr;

  T* at(index t, index n) const {
    return data + (first_row ? (first_row[t] + n) * row : t * step + n * row);
  }
};

template <class T>
struct Rows {
  T* data = nullptr;  // null: absent, read as zeros
  index row = 0;

  T* at(index n) const { return data + n * row; }
};

// Who runs when, the same for every direction and thread. Rows are taken in order of falling
// length, so that the rows still running at step s are the first active[s] of `order`. Row number
// first[s] + p is row `order[p]` at its s-th step: the numbering of everything kept for backward.
struct Plan {
  index steps, batch;   // L, N
  index longest;        // steps of the longest row: 0..L
  const index* order;   // (N): position -> row of the batch
  const index* length;  // (N), by position
  const index* active;  // (longest + 1), the last is 0
  const index* first;   // (longest + 1)
  const bool* reset;    // null: none
  index reset_step, reset_row;
  bool padded;  // outputs past a row's length exist, and are zero

  // The time at which position p takes its s-th step.
  index time(index s, index p, bool reverse) const { return reverse ? length[p] - 1 - s : s; }

  // Does position p start its s-th step from zeros?
  bool resets(index s, index p, bool reverse) const {
    if (!reset) return false;
    const index t = time(s, p, reverse) + (reverse ? 1 : 0);
    return t < length[p] && reset[t * reset_step + order[p] * reset_row];
  }
};

// One direction's weights as PyTorch lays them out: (G*H, D), (G*H, P), (G*H) or null, and (P, H)
// or null, all contiguous, of the kernel's weight type.
struct Weights {
  const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
};
inline constexpr int kWeights = 5;

// The part of a direction's work that falls to one thread: the rows at positions first_row,
// first_row + row_step, ... or the panels of hidden units first_panel .. last_panel of every row,
// with a barrier after each step.
class Barrier;
class Team;
struct Share {
  index first_row, row_step;
  index first_panel, last_panel;
  int member, members;
  Barrier* barrier;  // of this direction's threads; null when alone
  Team* team;
  bool caller;  // the thread that made the call, which looks out for all of them
  mutable unsigned looks = 0;

  index rows(index active) const {
    return active > first_row ? (active - first_row + row_step - 1) / row_step : 0;
  }
  index position(index i) const { return first_row + i * row_step; }
  void wait() const;  // for the direction's other threads
  // Called before each piece of work of microseconds: throws where the call is to end early.
  __attribute__((always_inline)) void look() const {
    if (++looks % 256 == 0) look_closely();
  }
  void look_closely() const;
  // Where this member's part of n panels begins (edge 0) and ends (1), if units are split; or all.
  index part_of_units(index n, int edge) const {
    return row_step == 1 ? n * (member + edge) / members : n * edge;
  }
  void wait_if_units_are_split() const {
    if (row_step == 1) wait();
  }
};

// A row's state is one vector of S values: h, or [h | c].
template <class T>
struct Forward {
  const Plan* plan;
  Sizes sizes;
  bool reverse;
  const void* panels;  // packed weights
  Sequence<const T> x;
  Rows<const T> h_0;   // of states
  Sequence<T> output;  // this direction's P columns, or S where whole
  bool whole;          // output holds states, h and c
  Rows<T> h_n;         // of states
  T* gates;            // kept for backward: (rows, kept * H), or null
  T* states;           // likewise: (N + rows, S), before the first step and after each, or null
  // Scratch shared by the direction's threads.
  T* h;       // 2 * N * padded P: before and after a step
  T* c;       // N * padded H, where there is a c
  T* hidden;  // N * padded H, where they are projected; or what late gates meet
};

// Scratch of one thread in forward.
template <class T>
struct ForwardScratch {
  T* x_gates;        // (chunk_rows, panels, G, lanes)
  const T** x_rows;  // (chunk_rows)
  index chunk_rows;  // at least one step's rows
};

// The gates that forward would have kept, of rows whose x and state before the step are known.
template <class T>
using Recompute = void(const void* forward_panels, const Sizes&, index rows, const T* const* x,
                       const T* const* before, T* gates);

// Rows of a step for which packing the weights takes longer than the product.
inline constexpr index kFewRows = 8;

// One step of all units for such rows, with weights as they lie, not packed; the same bits.
// x, before and after: by row; before and after are states of S values, [h | c], that lie apart;
// `gates` (rows, kept * H) as forward keeps them, or null but for a cell with late gates. Without a
// projection only.
template <class T>
using Step = void(const Weights&, const Sizes&, index rows, const T* const* x,
                  const T* const* before, T* const* after, T* gates);

template <class T>
struct Backward {
  const Plan* plan;
  Sizes sizes;
  bool reverse;
  const T* panels;             // packed weights; null, of one step: they are read as they lie
  const T *w_ih, *w_hh;        // there
  const void* forward_panels;  // packed, as forward has them: where gates are not kept
  Sequence<const T> x;
  const T* gates;  // null: to be computed again
  const T* states;
  Sequence<const T> d_output;  // this direction's P columns, or S where whole, or absent
  bool whole;
  Rows<const T> d_h_n;  // of states, or absent
  Sequence<T> d_x;      // or absent
  Rows<T> d_h_0;        // of states
  // As Weights; d_w_ih null: no weight gradients; those of biases and of the projection may be null
  T *d_w_ih, *d_w_hh, *d_b_ih, *d_b_hh, *d_w_hr;
  // Scratch shared by the direction's threads.
  Recompute<T>* recompute;
  const T* zeros;     // S of them: the state that a reset leaves
  T* chunk_gates;     // (chunk_rows, kept * H), where gates are computed again
  T* carry;           // (N, padded H): the gradient that reaches a cell's own state past its gates
  T* d_gates[2];      // (chunk_rows, d_gates_row), of this chunk of steps and of the one after it
  index d_gates_row;  // at least d_gates * H, and P more for d_h where it is projected
  index chunk_rows;   // at least one step's rows
  index block_rows;   // summed at once for the weight gradients
};

// Scratch of one thread in backward.
template <class T>
struct BackwardScratch {
  T* block;   // (block_rows, padded D + P + H): rows of x, h, and what is projected, or late gates
              // meet, as panels
  T* tiles;   // (H in whole kTileUnits, block_rows + 16): gradients of one gate, in tiles
  T* d_bias;  // (d_gates * H)
};

// Weight gradients are summed over this many rows at a time, one chain of fused multiply-adds, and
// these sums are added in order.
inline constexpr index kSumBlock = 256;

// The most units in a tile of them, whatever the instruction set.
inline constexpr index kTileUnits = 8;

// Bytes of a cache line, by which panels lie further apart than they are long. Else those that a
// tile reads side by side would often, at 256 hidden units say, push one another out of the first
// cache.
inline constexpr index kCacheLine = 64;

// The kernels of one cell, number type and instruction set.
template <class T>
struct Kernel {
  const char *name, *kind;  // "gru", and "GRU", as users know it
  int lanes;        // values in a vector; a panel holds the weights of that many hidden units
  int gates;        // G: rows of weights a hidden unit
  int late;         // of these, those whose rows of W_hh meet what the others make of h
  int kept;         // values kept for backward a unit and row, the state before the step apart
  int d_gates;      // gradients of gates a unit and row
  bool has_c;       // beside h
  int weight_size;  // bytes of a weight
  void (*pack_forward)(const Weights&, const Sizes&, void* panels);
  void (*pack_backward)(const Weights&, const Sizes&, T* panels);
  void (*forward)(const Forward<T>&, const ForwardScratch<T>&, const Share&);
  Recompute<T>* recompute;
  Step<T>* step;  // null for weights in half precision
  void (*backward)(const Backward<T>&, const BackwardScratch<T>&, const Share&);

  // Does every unit need something of all units within a step, and not h alone?
  bool has_hidden(const Sizes& s) const { return late > 0 || s.projected(); }
  index padded(index n) const { return (n + lanes - 1) / lanes * lanes; }
  // S
  index state_size(const Sizes& s) const { return s.P + (has_c ? s.H : 0); }
  // Bytes of the packed weights.
  index forward_panels(const Sizes& s) const {
    const index biases = padded(s.H) * (gates + 1) * static_cast<index>(sizeof(T));
    return panels(s.H, gates * s.D, weight_size) + panels(s.H, (gates - late) * s.P, weight_size) +
           panels(s.H, late * s.P, weight_size) + biases +
           panels(s.P, s.projected() ? s.H : 0, weight_size);
  }
  index backward_panels(const Sizes& s) const {
    constexpr index size = sizeof(T);
    return panels(s.P, (gates - late) * s.H, size) + panels(s.P, late * s.H, size) +
           panels(s.D, gates * s.H, size) + panels(s.H, s.projected() ? s.P : 0, size);
  }
  // Bytes of the panels of n columns, each of so many weights, of so many bytes.
  index panels(index n, index weights, index size) const {
    return weights > 0 ? padded(n) * weights * size + padded(n) / lanes * kCacheLine : 0;
  }
};

// Those of one instruction set: a table for each type of weights, all cells in the same order.
struct Kernels {
  const char* name;
  int cells;
  const Kernel<float>* float32;
  const Kernel<double>* float64;
  const Kernel<float>*bfloat16, *float16;
};

}  // namespace elman
