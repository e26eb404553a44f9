// A layer of R's in the engine: its weights, and its calls.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.h"
#include "boundary.h"
#include "engine/layers.h"

namespace elman {

template <class T>
const Kernel<T>* table() {
  if constexpr (sizeof(T) == sizeof(double)) {
    return kernels().float64;
  } else {
    return kernels().float32;
  }
}

template <class T>
const Kernel<T>& kernel_named(const char* cell) {
  for (int i = 0; i < kernels().cells; ++i) {
    if (std::strcmp(table<T>()[i].name, cell) == 0) return table<T>()[i];
  }
  throw std::invalid_argument(std::string("unknown cell ") + cell);
}

// What R says of a layer, of module.R: list(name, cell, sizes, dtype, recompute, weights).
struct Description {
  const char *name, *cell;
  index layers, directions, D, H, P;
  int states;  // 1, h, or 2, h and c
  bool is_double, recompute;
  SEXP weights;  // of each layer and direction those that there are, in the order of struct Weights

  explicit Description(SEXP list)
      : name(CHAR(STRING_ELT(VECTOR_ELT(list, 0), 0))),
        cell(CHAR(STRING_ELT(VECTOR_ELT(list, 1), 0))),
        is_double(std::strcmp(CHAR(STRING_ELT(VECTOR_ELT(list, 3), 0)), "float64") == 0),
        recompute(Rf_asLogical(VECTOR_ELT(list, 4)) != 0),
        weights(VECTOR_ELT(list, 5)) {
    const int* const sizes = INTEGER(VECTOR_ELT(list, 2));
    layers = sizes[0];
    directions = sizes[1];
    D = sizes[2];
    H = sizes[3];
    P = sizes[4];
    states = sizes[5];
  }

  index features() const { return directions * P; }         // of the output
  index state_size(int s) const { return s == 0 ? P : H; }  // of h, and of c
  // The first layer's, and those above it.
  Form form(index k) const { return {0, 1, directions, {k == 0 ? D : features(), H, P}}; }
};

// The weights, packed when first used.
template <class T>
class Layer {
 public:
  explicit Layer(const Description& d)
      : kernel(kernel_named<T>(d.cell)), directions_(d.directions) {
    const index parts = d.layers * d.directions, each = Rf_xlength(d.weights) / parts;
    for (index i = 0; i < parts * each; ++i) {
      const SEXP w = VECTOR_ELT(d.weights, i);
      layouts_.push_back({Rf_nrows(w), 1, Rf_ncols(w), 1, 0});
    }
    values_ = Buffer<T>(size());
    weights_.resize(parts);
    constexpr const void* Weights::* kEach[kWeights] = {
        &Weights::w_ih, &Weights::w_hh, &Weights::b_ih, &Weights::b_hh, &Weights::w_hr};
    for_each([&](index part, index which, index i, index at) {
      T* const to = values_.get() + at;
      from_r(layouts_[i], REAL(VECTOR_ELT(d.weights, i)), to);
      weights_[part].*kEach[which] = to;
    });
    for (auto& packed : packed_) packed.resize(d.layers);
  }

  // Of all weights.
  index size() const {
    index size = 0;
    for (const Layout& layout : layouts_) size += layout.size();
    return size;
  }

  // Calls visit(part, number in struct Weights, number in R's list, place of its values).
  template <class Visit>
  void for_each(const Visit& visit) const {
    const index count = static_cast<index>(layouts_.size());
    const index each = count / static_cast<index>(weights_.size());
    for (index i = 0, at = 0; i < count; at += layouts_[i++].size()) {
      // It is the last, and there are two biases or none.
      const bool is_projection = each % 2 == 1 && i % each == each - 1;
      visit(i / each, is_projection ? kWeights - 1 : i % each, i, at);
    }
  }

  const Layout& layout(index i) const { return layouts_[i]; }

  const Panels<T>& panels(const Form& form, index k, typename Panels<T>::Pass pass) {
    std::optional<Panels<T>>& packed = packed_[pass][k];
    if (!packed) packed.emplace(kernel, form, &weights_[k * directions_], pass);
    return *packed;
  }

  const Kernel<T>& kernel;

 private:
  const index directions_;
  std::vector<Layout> layouts_;
  Buffer<T> values_;
  std::vector<Weights> weights_;
  std::vector<std::optional<Panels<T>>> packed_[2];
};

// What R says of a call. The arrays are R's; null: absent.
struct Call {
  const double* input;
  bool batch_first;
  index L, N;
  const int *lengths, *reset;
  const double* states[2];  // of forward those before, of backward the gradients of those after
  SEXP masks;               // of what lies between layers, a list of vectors; or R_NilValue
};

// One call of a layer, whose layers are run one by one, with what lies between them in memory that
// is kept for backward or dropped. Steps stand one behind the other, (L, N, features).
template <class T>
class Run {
 public:
  Run(const Description& description, Layer<T>& layer, const Call& call, int threads)
      : d_(description),
        layer_(layer),
        c_(call),
        threads_(threads),
        reset_(call.reset ? std::make_unique<bool[]>(call.L * call.N) : nullptr),
        schedule_(schedule()),
        output_size_(call.L * call.N * d_.features()),
        kept_size_(elman::kept_size(layer.kernel, schedule_, d_.form(0), d_.recompute)) {}

  // Values: of each layer what the engine keeps, and below the last one its output.
  index kept_size() const { return d_.layers * (kept_size_ + output_size_) - output_size_; }

  void forward(double* output, double* const (&states)[2], T* kept) {
    const Buffer<T> x = read(c_.input, d_.D), result(output_size_);
    const Buffer<T> between[2] = {Buffer<T>(room_between(kept)), Buffer<T>(room_between(kept))};
    const Buffer<T> first[2] = {read_state(0), read_state(1)}, last[2] = {state(0), state(1)};
    const T* below = x.get();
    for (index k = 0; k < d_.layers; ++k) {
      const bool is_last = k + 1 == d_.layers;
      T* const to = is_last ? result.get() : kept ? output_of(kept, k) : between[k % 2].get();
      LayersForward<T> f{};
      f.form = d_.form(k);
      f.panels = &layer_.panels(f.form, k, Panels<T>::kForward);
      f.x = steps(below, f.form.first.D);
      f.output = steps(to, d_.features());
      for (int s = 0; s < 2; ++s) {
        f.first[s] = states_of<const T>(first[s].get(), s, k);
        f.last[s] = states_of(last[s].get(), s, k);
      }
      f.kept = kept ? kept_of(kept, k) : nullptr;
      f.recompute = d_.recompute;
      run_layers(layer_.kernel, schedule_, f, threads_, watch);
      if (!is_last) drop_out(k, to);
      below = to;
    }
    to_r(layout(d_.features()), result.get(), output);
    for (int s = 0; s < d_.states; ++s) to_r(state_layout(s), last[s].get(), states[s]);
  }

  // `d_weights`: of each weight in R's list.
  void backward(const T* kept, const double* d_output, double* d_input,
                double* const (&d_states)[2], SEXP d_weights) {
    const Buffer<T> x = read(c_.input, d_.D), d_x(c_.L * c_.N * d_.D);
    const Buffer<T> above = d_output ? read(d_output, d_.features()) : Buffer<T>();
    const Buffer<T> between[2] = {Buffer<T>(output_size_), Buffer<T>(output_size_)};
    const Buffer<T> last[2] = {read_state(0), read_state(1)}, first[2] = {state(0), state(1)};
    const Buffer<T> gradients(layer_.size());
    std::vector<T*> places(kWeights * d_.layers * d_.directions);
    layer_.for_each([&](index part, index which, index, index at) {
      places[kWeights * part + which] = gradients.get() + at;
    });
    const T* d_above = d_output ? above.get() : nullptr;
    for (index k = d_.layers; k-- > 0;) {
      T* const to = k == 0 ? d_x.get() : between[k % 2].get();
      LayersBackward<T> b{};
      b.form = d_.form(k);
      b.panels = &layer_.panels(b.form, k, Panels<T>::kBackward);
      if (d_.recompute) b.forward_panels = &layer_.panels(b.form, k, Panels<T>::kForward);
      b.x = steps(k == 0 ? x.get() : output_of(kept, k - 1), b.form.first.D);
      b.kept = kept_of(kept, k);
      b.d_output = steps(d_above, d_.features());
      b.d_x = steps(to, b.form.first.D);
      for (int s = 0; s < 2; ++s) {
        b.d_last[s] = states_of<const T>(last[s].get(), s, k);
        b.d_first[s] = states_of(first[s].get(), s, k);
      }
      b.d_weights = &places[kWeights * k * d_.directions];
      run_layers_backward(layer_.kernel, schedule_, b, threads_, watch);
      if (k > 0) drop_out(k - 1, to);
      d_above = to;
    }
    to_r(layout(d_.D), d_x.get(), d_input);
    for (int s = 0; s < d_.states; ++s) to_r(state_layout(s), first[s].get(), d_states[s]);
    layer_.for_each([&](index, index, index i, index at) {
      to_r(layer_.layout(i), gradients.get() + at, REAL(VECTOR_ELT(d_weights, i)));
    });
  }

 private:
  Schedule schedule() {
    const index L = c_.L, N = c_.N;
    if (reset_) std::copy_n(c_.reset, L * N, reset_.get());
    const std::vector<index> lengths(c_.lengths, c_.lengths ? c_.lengths + N : nullptr);
    return Schedule::dense(L, N, c_.lengths ? lengths.data() : nullptr,
                           {reset_.get(), c_.batch_first ? N : 1, c_.batch_first ? 1 : L});
  }

  Layout layout(index features) const {
    if (c_.batch_first) return {c_.N, c_.L, features, 1, c_.N};
    return {c_.L, c_.N, features, c_.N, 1};
  }
  Layout state_layout(int s) const {
    return {d_.layers * d_.directions, c_.N, d_.state_size(s), c_.N, 1};
  }

  static Buffer<T> read(const Layout& layout, const double* from) {
    Buffer<T> to(layout.size());
    from_r(layout, from, to.get());
    return to;
  }
  Buffer<T> read(const double* from, index features) const { return read(layout(features), from); }
  // Null where R gave none.
  Buffer<T> read_state(int s) const {
    return c_.states[s] ? read(state_layout(s), c_.states[s]) : Buffer<T>();
  }
  Buffer<T> state(int s) const { return Buffer<T>(s < d_.states ? state_layout(s).size() : 0); }
  index room_between(const T* kept) const { return kept || d_.layers == 1 ? 0 : output_size_; }

  template <class P>
  P* kept_of(P* kept, index k) const {
    return kept + k * (kept_size_ + output_size_);
  }
  template <class P>
  P* output_of(P* kept, index k) const {
    return kept_of(kept, k) + kept_size_;
  }

  template <class P>
  Sequence<P> steps(P* data, index features) const {
    return {data, c_.N * features, features, nullptr};
  }
  template <class P>
  States<P> states_of(P* data, int s, index k) const {
    const index row = d_.state_size(s), part = c_.N * row;
    return {data ? data + k * d_.directions * part : nullptr, part, row};
  }

  // What lies above layer k, or its gradient.
  void drop_out(index k, T* values) const {
    if (c_.masks == R_NilValue) return;
    const double* const mask = REAL(VECTOR_ELT(c_.masks, k));
    for (index i = 0; i < output_size_; ++i) values[i] *= static_cast<T>(mask[i]);
  }

  const Description& d_;
  Layer<T>& layer_;
  const Call& c_;
  const int threads_;
  const std::unique_ptr<bool[]> reset_;
  const Schedule schedule_;
  const index output_size_, kept_size_;
};

}  // namespace elman
