// One layer of one or two directions: who runs when, on how many threads, in what memory.
#pragma once

#include <memory>
#include <vector>

#include "engine.h"
#include "memory.h"

namespace elman {

// The kernels of the widest instruction set that this processor has, or of the one that ELMAN_ISA
// names. Throws std::runtime_error where that one is unknown or not to be had.
const Kernels& kernels();

// A plan and the memory behind it.
class Schedule {
 public:
  struct Reset {
    const bool* data = nullptr;
    index step = 0, row = 0;
  };

  // Rows of L steps, or of lengths[n] steps each (0 .. L, else std::invalid_argument).
  static Schedule dense(index steps, index batch, const index* lengths, Reset reset);
  // Packed: row n runs while batch_sizes[t] > n. Throws std::invalid_argument where they rise, or
  // are negative.
  static Schedule packed(index steps, const index* batch_sizes);

  const Plan& plan() const { return plan_; }
  index rows() const { return plan_.first[plan_.longest]; }

 private:
  Schedule(index steps, index batch);
  index* order() { return memory_.data(); }
  index* length() { return order() + batch_; }
  void finish(index steps, Reset reset, bool padded);

  index batch_;
  std::vector<index> memory_;  // of all that the plan points to
  Plan plan_{};
};

// The forward pass of one layer, in memory that is taken once, to be run again and again.
template <class T>
class ForwardPass {
 public:
  ForwardPass(const Kernel<T>& kernel, const Schedule& schedule, const Sizes& sizes, int directions,
              index threads);
  // As run_forward.
  void run(Forward<T>* directions, void (*watch)());

 private:
  const Kernel<T>& kernel_;
  const Plan plan_;
  const Sizes sizes_;
  const int directions_, threads_;
  index chunk_rows_, states_size_, x_gates_size_;
  Buffer<T> values_;
  std::unique_ptr<const T*[]> x_rows_;
};

// The directions run side by side; they share the plan, which is that of `schedule`. During a long
// call `watch` is called several times a second on the calling thread: what it throws ends the
// call, with its results half written.
template <class T>
void run_forward(const Kernel<T>& kernel, const Schedule& schedule, Forward<T>* directions,
                 int count, index threads, void (*watch)());
template <class T>
void run_backward(const Kernel<T>& kernel, const Schedule& schedule, Backward<T>* directions,
                  int count, index threads, void (*watch)());

}  // namespace elman
