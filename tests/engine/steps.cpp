// Steps one after another have the bits of the whole sequence, and take no memory.
#include "steps.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "threads.h"

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
namespace {
std::atomic<long> taken{0};
}
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
void* malloc(std::size_t size) {
  ++taken;
  return __libc_malloc(size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  ++taken;
  return __libc_memalign(alignment, size);
}
}
#else
namespace {
const long taken = 0;
}
#endif

namespace elman {
namespace {

int wrong = 0;

void expect(bool condition, const char* what, const char* cell) {
  if (condition) return;
  std::fprintf(stderr, "%s: %s\n", cell, what);
  ++wrong;
}

template <class T>
std::vector<T> random_values(index size) {
  static std::mt19937 generator(0);
  std::vector<T> values(size);
  for (T& value : values) value = static_cast<T>(generator() / 4294967296.0 - 0.5) / 4;
  return values;
}

template <class T>
void steps_and_whole(const Kernel<T>* table, const Form& form, index steps, index rows,
                     index threads) {
  const Kernel<T>& kernel = table[form.cell];
  const auto [_, H, P] = form.first;
  std::vector<std::vector<T>> values;
  std::vector<Weights> weights;
  for (index k = 0; k < form.layers; ++k) {
    const index gates = kernel.gates * H;
    const auto weight = [&](index size) {
      return values.emplace_back(random_values<T>(size)).data();
    };
    weights.push_back({weight(gates * form.sizes(k).D), weight(gates * P), weight(gates),
                       weight(gates), form.first.projected() ? weight(P * H) : nullptr});
  }
  const Panels<T> panels(kernel, form, weights.data(), Panels<T>::kForward);
  const index D = form.first.D, S = kernel.state_size(form.first);
  const std::vector<T> x = random_values<T>(steps * rows * D);

  std::vector<T> whole(steps * rows * P), last(form.layers * rows * S);
  LayersForward<T> f{};
  f.form = form;
  f.panels = &panels;
  f.x = {x.data(), rows * D, D, nullptr};
  f.output = {whole.data(), rows * P, P, nullptr};
  f.last[0] = {last.data(), rows * S, S};
  if (kernel.has_c) f.last[1] = {last.data() + P, rows * S, S};
  run_layers(kernel, Schedule::dense(steps, rows, nullptr, {}), f, threads, nullptr);

  Steps<T> stream(kernel, form, panels, rows, threads);
  std::vector<T> output(whole.size());
  const long before = taken;
  for (index t = 0; t < steps; ++t) {
    stream.step({x.data() + t * rows * D, D}, {output.data() + t * rows * P, P}, nullptr);
  }
  // With several threads the loader does, asked whether OpenMP is there by now.
  expect(threads > 1 || taken == before, "a step takes memory", kernel.name);
  const auto same = [](const T* a, const T* b, std::size_t size) {
    return std::memcmp(a, b, size * sizeof(T)) == 0;
  };
  expect(same(output.data(), whole.data(), whole.size()), "output is another", kernel.name);
  expect(same(stream.states(), last.data(), last.size()), "the last state is another", kernel.name);
}

void every_cell() {
  const Kernels& k = kernels();
  for (int cell = 0; cell < k.cells; ++cell) {
    for (const index rows : {1, 3, 20}) {
      for (const index layers : {1, 3}) {
        steps_and_whole(k.float32, {cell, layers, 1, {5, 20, 20}}, 7, rows, 1);
        steps_and_whole(k.float64, {cell, layers, 1, {5, 20, 20}}, 7, rows, 1);
      }
    }
    steps_and_whole(k.float32, {cell, 1, 1, {64, 1500, 1500}}, 3, 4, 3);
    if (!k.float32[cell].has_c) continue;
    steps_and_whole(k.float32, {cell, 2, 1, {5, 20, 9}}, 7, 3, 1);
    steps_and_whole(k.float64, {cell, 2, 1, {5, 20, 9}}, 7, 3, 1);
  }
}

}  // namespace
}  // namespace elman

int main() {
  elman::poison_buffers(true);
  elman::always_wait(true);
  elman::every_cell();
  return elman::wrong == 0 ? 0 : 1;
}
