// Layers one above the other, run in one call.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "layer.h"

namespace elman {

// What a module is: layers of one or two directions, each on the output of the one below.
struct Form {
  int cell;  // its place in the tables of kernels
  index layers, directions;
  Sizes first;           // the first layer's
  bool reverse = false;  // a single direction runs from the last step to the first

  // Directions of all layers, K. Direction d of layer k is number k * directions + d.
  index parts() const { return layers * directions; }
  Sizes sizes(index layer) const { return {layer == 0 ? first.D : features(), first.H, first.P}; }
  index features() const { return directions * first.P; }  // of the output
};

// A state of every part, (K, N, features), in the caller's memory.
template <class T>
struct States {
  T* data = nullptr;  // null: absent
  index part = 0, row = 0;

  Rows<T> of(index p) const { return {data ? data + p * part : nullptr, row}; }
};

// The weights of every part, packed for forward or for backward.
template <class T>
class Panels {
 public:
  enum Pass { kForward, kBackward };
  Panels(const Kernel<T>& kernel, const Form& form, const Weights* weights, Pass pass);
  // Of such as were packed elsewhere, and stay there.
  explicit Panels(std::vector<const void*> each) : each_(std::move(each)) {}
  const void* operator[](index part) const { return each_[part]; }

 private:
  std::vector<const void*> each_;
  std::vector<Buffer<double>> own_;
};

template <class T>
struct LayersForward {
  Form form;
  const Panels<T>* panels;  // null: weights are read as they lie, see reads_weights_as_they_lie()
  const Weights* weights;   // which else are not needed
  Sequence<const T> x;
  States<const T> first[2];  // h_0 and c_0, both or neither
  Sequence<T> output;
  States<T> last[2];  // h_n and c_n
  T* kept;            // kept_size() values for backward, or null
  bool recompute;     // keep no gates
};

template <class T>
struct LayersBackward {
  Form form;
  const Panels<T>* panels;  // null, and weights: as in LayersForward
  const Weights* weights;
  const Panels<T>* forward_panels;  // where gates were not kept
  Sequence<const T> x;
  const T* kept;
  Sequence<const T> d_output;
  States<const T> d_last[2];
  Sequence<T> d_x;
  States<T> d_first[2];
  T* const* d_weights;  // kWeights of each part, as in Backward
};

// Whether a call is a step so small that packing its weights would take longer than the product.
bool reads_weights_as_they_lie(const Schedule& schedule, const Form& form);

template <class T>
index kept_size(const Kernel<T>& kernel, const Schedule& schedule, const Form& form,
                bool recompute);

// As run_forward and run_backward of one layer.
template <class T>
void run_layers(const Kernel<T>& kernel, const Schedule& schedule, const LayersForward<T>& f,
                index threads, void (*watch)());
template <class T>
void run_layers_backward(const Kernel<T>& kernel, const Schedule& schedule,
                         const LayersBackward<T>& b, index threads, void (*watch)());

}  // namespace elman
