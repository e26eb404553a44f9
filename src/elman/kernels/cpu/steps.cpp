#include "steps.h"

#include <algorithm>

namespace elman {

template <class T>
Steps<T>::Steps(const Kernel<T>& kernel, const Form& form, const Panels<T>& panels, index rows,
                index threads)
    : form_(form),
      S_(kernel.state_size(form.first)),
      states_size_(form.layers * rows * S_),
      states_(2 * states_size_),
      between_((form.layers - 1) * rows * form.first.P),
      schedule_(Schedule::dense(1, rows, nullptr, {})),
      each_(form.layers) {
  std::fill_n(states(), states_size_, T{0});
  passes_.reserve(form.layers);
  for (index k = 0; k < form.layers; ++k) {
    each_[k].sizes = form.sizes(k);
    each_[k].panels = panels[k];
    passes_.emplace_back(kernel, schedule_, form.sizes(k), 1, threads);
  }
}

template <class T>
void Steps<T>::step(Rows<const T> x, Rows<T> output, void (*watch)()) {
  const index P = form_.first.P;
  T* const before = states();
  T* const after = states_.get() + (1 - newest_) * states_size_;
  for (index k = 0; k < form_.layers; ++k) {
    const bool is_last = k + 1 == form_.layers;
    const Rows<T> to = is_last ? output : Rows<T>{between_.get() + k * rows() * P, P};
    Forward<T>& f = each_[k];
    f.x = {x.data, 0, x.row, nullptr};
    f.output = {to.data, 0, to.row, nullptr};
    f.h_0 = {before + k * rows() * S_, S_};
    f.h_n = {after + k * rows() * S_, S_};
    passes_[k].run(&f, watch);
    x = {to.data, to.row};
  }
  newest_ = 1 - newest_;
}

template class Steps<float>;
template class Steps<double>;

}  // namespace elman
