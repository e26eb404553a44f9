#include "layers.h"

#include <algorithm>
#include <optional>

namespace elman {
namespace {

// Where what a layer keeps for backward lies: of each direction its gates, of each its states, and
// below the last layer its output, which is the next one's x.
template <class T>
struct Kept {
  index gates_size, states_size, output_size;  // of one direction; of both

  Kept(const Kernel<T>& kernel, const Schedule& schedule, const Form& form, bool recompute) {
    const Plan& plan = schedule.plan();
    gates_size = recompute ? 0 : schedule.rows() * kernel.kept * form.first.H;
    states_size = (plan.batch + schedule.rows()) * kernel.state_size(form.first);
    output_size = plan.steps * plan.batch * form.features();
    layer_ = form.directions * (gates_size + states_size) + output_size;
    directions_ = form.directions;
    size = form.layers * layer_ - output_size;
  }

  template <class P>
  P* gates(P* kept, index k, index d) const {
    return gates_size > 0 ? kept + k * layer_ + d * gates_size : nullptr;
  }
  template <class P>
  P* states(P* kept, index k, index d) const {
    return kept + k * layer_ + directions_ * gates_size + d * states_size;
  }
  template <class P>
  P* output(P* kept, index k) const {
    return kept + (k + 1) * layer_ - output_size;
  }

  index size;  // of all

 private:
  index layer_, directions_;
};

// (L, N, features), one behind the other.
template <class T>
Sequence<T> laid_out(T* data, const Plan& plan, index features) {
  return {data, plan.batch * features, features, nullptr};
}

template <class T>
Sequence<const T> read_only(const Sequence<T>& s) {
  return {s.data, s.step, s.row, s.first_row};
}

template <class T>
Sequence<T> columns(Sequence<T> s, index from) {
  if (s.data) s.data += from;
  return s;
}

// A row, or zeros where there is none.
template <class T>
void copy(Rows<const T> from, index n, index count, T* to) {
  if (from.data) {
    std::copy_n(from.at(n), count, to);
  } else {
    std::fill_n(to, count, T{0});
  }
}

// The states of one layer as the kernels take them, one vector a row: [h | c] in memory of their
// own, or h where it lies.
template <class T>
class Joined {
 public:
  Joined(const Kernel<T>& kernel, const Form& form, index batch, index layer)
      : sizes_(form.first),
        parts_(form.directions),
        first_part_(layer * form.directions),
        batch_(batch),
        has_c_(kernel.has_c),
        S_(kernel.state_size(form.first)) {}

  Rows<const T> read(const States<const T> (&from)[2], index d) {
    if (!from[0].data && !from[1].data) return {};
    if (!has_c_) return from[0].of(first_part_ + d);
    const Rows<T> to = own(d);
    for (index n = 0; n < batch_; ++n) {
      copy<T>(from[0].of(first_part_ + d), n, sizes_.P, to.at(n));
      copy<T>(from[1].of(first_part_ + d), n, sizes_.H, to.at(n) + sizes_.P);
    }
    return {to.data, to.row};
  }

  // Where to write them, after which give() hands them out.
  Rows<T> write(const States<T> (&to)[2], index d) {
    return has_c_ || !to[0].data ? own(d) : to[0].of(first_part_ + d);
  }
  void give(const States<T> (&to)[2]) {
    for (index d = 0; has_c_ && d < parts_; ++d) {
      for (index n = 0; n < batch_; ++n) {
        const T* const from = own(d).at(n);
        if (to[0].data) std::copy_n(from, sizes_.P, to[0].of(first_part_ + d).at(n));
        if (to[1].data) std::copy_n(from + sizes_.P, sizes_.H, to[1].of(first_part_ + d).at(n));
      }
    }
  }

 private:
  Rows<T> own(index d) {
    if (!memory_) memory_.emplace(parts_ * batch_ * S_);
    return {memory_->get() + d * batch_ * S_, S_};
  }
  const Sizes sizes_;
  const index parts_, first_part_, batch_;
  const bool has_c_;
  const index S_;
  std::optional<Buffer<T>> memory_;
};

}  // namespace

template <class T>
Panels<T>::Panels(const Kernel<T>& kernel, const Form& form, const Weights* weights, Pass pass) {
  own_.reserve(form.parts());
  for (index p = 0; p < form.parts(); ++p) {
    const Sizes sizes = form.sizes(p / form.directions);
    const index bytes =
        pass == kForward ? kernel.forward_panels(sizes) : kernel.backward_panels(sizes);
    void* const to = own_.emplace_back((bytes + 7) / 8).get();
    each_.push_back(to);
    if (pass == kForward) {
      kernel.pack_forward(weights[p], sizes, to);
    } else {
      kernel.pack_backward(weights[p], sizes, static_cast<T*>(to));
    }
  }
}

template <class T>
index kept_size(const Kernel<T>& kernel, const Schedule& schedule, const Form& form,
                bool recompute) {
  return Kept<T>(kernel, schedule, form, recompute).size;
}

bool reads_weights_as_they_lie(const Schedule& schedule, const Form& form) {
  const Plan& plan = schedule.plan();
  const bool all_run = plan.longest == 1 && plan.active[0] == plan.batch;
  return plan.steps == 1 && plan.batch <= kFewRows && all_run && !plan.reset &&
         !form.first.projected();
}

namespace {

// One step of every layer, on this thread.
template <class T>
class SmallStep {
 public:
  SmallStep(const Kernel<T>& kernel, const Schedule& schedule, const LayersForward<T>& f)
      : kernel_(kernel),
        f_(f),
        kept_(kernel, schedule, f.form, f.recompute),
        batch_(schedule.plan().batch),
        S_(kernel.state_size(f.form.first)),
        states_(f.kept ? 0 : 2 * batch_ * S_),
        gates_(kernel.late > 0 && (!f.kept || f.recompute) ? batch_ * kernel.kept * f.form.first.H
                                                           : 0),
        outputs_{Buffer<T>(kept_.output_size), Buffer<T>(kept_.output_size)} {}

  void run() {
    Sequence<const T> x = f_.x;
    for (index k = 0; k < f_.form.layers; ++k) {
      Sequence<T> output = f_.output;
      if (k + 1 < f_.form.layers) {
        T* const own = f_.kept ? kept_.output(f_.kept, k) : outputs_[k % 2].get();
        output = {own, 0, f_.form.features(), nullptr};
      }
      for (index d = 0; d < f_.form.directions; ++d) step(k, d, x, output);
      x = read_only(output);
    }
  }

 private:
  void step(index k, index d, const Sequence<const T>& x, const Sequence<T>& output) {
    const index part = k * f_.form.directions + d;
    const auto [D, H, P] = f_.form.first;
    T* const before = f_.kept ? kept_.states(f_.kept, k, d) : states_.get();
    const T *inputs[kFewRows], *befores[kFewRows];
    T* afters[kFewRows];
    for (index n = 0; n < batch_; ++n) {
      inputs[n] = x.at(0, n);
      befores[n] = before + n * S_;
      afters[n] = before + (batch_ + n) * S_;
      copy<T>(f_.first[0].of(part), n, P, before + n * S_);
      if (kernel_.has_c) copy<T>(f_.first[1].of(part), n, H, before + n * S_ + P);
    }
    kernel_.step(f_.weights[part], f_.form.sizes(k), batch_, inputs, befores, afters, gates(k, d));
    for (index n = 0; n < batch_; ++n) {
      std::copy_n(afters[n], P, output.at(0, n) + d * P);
      std::copy_n(afters[n], P, f_.last[0].of(part).at(n));
      if (kernel_.has_c) std::copy_n(afters[n] + P, H, f_.last[1].of(part).at(n));
    }
  }

  T* gates(index k, index d) {
    T* const kept = f_.kept ? kept_.gates(f_.kept, k, d) : nullptr;
    return kept || kernel_.late == 0 ? kept : gates_.get();
  }

  const Kernel<T>& kernel_;
  const LayersForward<T>& f_;
  const Kept<T> kept_;
  const index batch_, S_;
  Buffer<T> states_, gates_, outputs_[2];  // where they are not kept
};

}  // namespace

template <class T>
void run_layers(const Kernel<T>& kernel, const Schedule& schedule, const LayersForward<T>& f,
                index threads, void (*watch)()) {
  if (!f.panels) return SmallStep<T>(kernel, schedule, f).run();
  const Form& form = f.form;
  const Plan& plan = schedule.plan();
  const Kept<T> kept(kernel, schedule, form, f.recompute);
  std::optional<Buffer<T>> below, between;  // outputs, where they are not kept
  Sequence<const T> x = f.x;
  for (index k = 0; k < form.layers; ++k) {
    Sequence<T> output = f.output;
    if (k + 1 < form.layers) {
      if (!f.kept) between.emplace(kept.output_size);
      output = laid_out(f.kept ? kept.output(f.kept, k) : between->get(), plan, form.features());
    }
    Joined<T> first(kernel, form, plan.batch, k), last(kernel, form, plan.batch, k);
    Forward<T> each[2] = {};
    for (index d = 0; d < form.directions; ++d) {
      each[d].sizes = form.sizes(k);
      each[d].reverse = form.reverse || d == 1;
      each[d].panels = (*f.panels)[k * form.directions + d];
      each[d].x = x;
      each[d].h_0 = first.read(f.first, d);
      each[d].output = columns(output, d * form.first.P);
      each[d].h_n = last.write(f.last, d);
      if (!f.kept) continue;
      each[d].gates = kept.gates(f.kept, k, d);
      each[d].states = kept.states(f.kept, k, d);
    }
    run_forward(kernel, schedule, each, static_cast<int>(form.directions), threads, watch);
    last.give(f.last);
    x = read_only(output);
    std::swap(below, between);
  }
}

namespace {

// d_x of both directions, added.
template <class T>
void add(const Plan& plan, index features, const T* first, const T* second, Sequence<T> to) {
  for (index t = 0; t < plan.steps; ++t) {
    for (index n = 0; n < plan.batch; ++n, first += features, second += features) {
      T* const row = to.at(t, n);
      for (index i = 0; i < features; ++i) row[i] = first[i] + second[i];
    }
  }
}

}  // namespace

template <class T>
void run_layers_backward(const Kernel<T>& kernel, const Schedule& schedule,
                         const LayersBackward<T>& b, index threads, void (*watch)()) {
  const Form& form = b.form;
  const Plan& plan = schedule.plan();
  const Kept<T> kept(kernel, schedule, form, b.forward_panels != nullptr);
  const index rows = plan.steps * plan.batch;
  std::optional<Buffer<T>> above, between;  // gradients of what lies between layers
  Sequence<const T> d_output = b.d_output;
  for (index k = form.layers; k-- > 0;) {
    const Sizes sizes = form.sizes(k);
    Sequence<T> d_x = b.d_x;
    if (k > 0) {
      between.emplace(rows * sizes.D);
      d_x = laid_out(between->get(), plan, sizes.D);
    }
    const bool apart = form.directions == 2 && d_x.data;
    const Buffer<T> d_xs(apart ? 2 * rows * sizes.D : 0);
    Joined<T> d_last(kernel, form, plan.batch, k), d_first(kernel, form, plan.batch, k);
    Backward<T> each[2] = {};
    for (index d = 0; d < form.directions; ++d) {
      const index part = k * form.directions + d;
      each[d].sizes = sizes;
      each[d].reverse = form.reverse || d == 1;
      if (b.panels) {
        each[d].panels = static_cast<const T*>((*b.panels)[part]);
      } else {
        each[d].w_ih = static_cast<const T*>(b.weights[part].w_ih);
        each[d].w_hh = static_cast<const T*>(b.weights[part].w_hh);
      }
      if (b.forward_panels) each[d].forward_panels = (*b.forward_panels)[part];
      each[d].x =
          k == 0 ? b.x : laid_out<const T>(kept.output(b.kept, k - 1), plan, form.features());
      each[d].gates = kept.gates(b.kept, k, d);
      each[d].states = kept.states(b.kept, k, d);
      each[d].d_output = columns(d_output, d * form.first.P);
      each[d].d_h_n = d_last.read(b.d_last, d);
      each[d].d_x = apart ? laid_out(d_xs.get() + d * rows * sizes.D, plan, sizes.D) : d_x;
      each[d].d_h_0 = d_first.write(b.d_first, d);
      T* const* const d_w = b.d_weights + part * kWeights;
      each[d].d_w_ih = d_w[0];
      each[d].d_w_hh = d_w[1];
      each[d].d_b_ih = d_w[2];
      each[d].d_b_hh = d_w[3];
      each[d].d_w_hr = d_w[4];
    }
    run_backward(kernel, schedule, each, static_cast<int>(form.directions), threads, watch);
    d_first.give(b.d_first);
    if (apart) add(plan, sizes.D, d_xs.get(), d_xs.get() + rows * sizes.D, d_x);
    d_output = read_only(d_x);
    std::swap(above, between);
  }
}

template class Panels<float>;
template class Panels<double>;
template index kept_size(const Kernel<float>&, const Schedule&, const Form&, bool);
template index kept_size(const Kernel<double>&, const Schedule&, const Form&, bool);
template void run_layers(const Kernel<float>&, const Schedule&, const LayersForward<float>&, index,
                         void (*)());
template void run_layers(const Kernel<double>&, const Schedule&, const LayersForward<double>&,
                         index, void (*)());
template void run_layers_backward(const Kernel<float>&, const Schedule&,
                                  const LayersBackward<float>&, index, void (*)());
template void run_layers_backward(const Kernel<double>&, const Schedule&,
                                  const LayersBackward<double>&, index, void (*)());

}  // namespace elman
