// Layers one above the other, run step by step.
#pragma once

#include <vector>

#include "layers.h"

namespace elman {

// Layers of one direction, whose steps follow one another in memory that is taken once.
template <class T>
class Steps {
 public:
  // From zeros. What is given must stay.
  Steps(const Kernel<T>& kernel, const Form& form, const Panels<T>& panels, index rows,
        index threads);

  index rows() const { return schedule_.plan().batch; }
  // The state of every layer, (layers, rows, S): here until the next step.
  T* states() const { return states_.get() + newest_ * states_size_; }
  // x (rows, D), and output (rows, P) elsewhere. What `watch` throws leaves the states as they
  // were.
  void step(Rows<const T> x, Rows<T> output, void (*watch)());

 private:
  const Form form_;
  const index S_, states_size_;
  Buffer<T> states_, between_;  // the states twice, before a step and after; what layers hand on
  const Schedule schedule_;     // of one step
  int newest_ = 0;
  std::vector<ForwardPass<T>> passes_;
  std::vector<Forward<T>> each_;
};

}  // namespace elman
