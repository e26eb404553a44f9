// The engine without Python: prints a digest of what each case gives, forward and backward. Every
// machine, instruction set, compiler and number of threads must print hashes.txt.
//
// Inputs come from integers alone, so that no library's exp or random numbers take part; they are
// made again in NumPy in test_hashes.py, which holds the extension to the same digests.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "layer.h"
#include "threads.h"

namespace elman {
namespace {

// splitmix64
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Each input has numbers of its own.
enum Stream : std::uint64_t {
  kX,
  kScale,
  kH0,
  kDOutput,
  kDHn,
  kLengths,
  kReset,
  kOfWeights,
  kOfProjections = kOfWeights + 8
};

std::uint64_t draw(std::uint64_t stream, index i) { return mix((stream << 32) + i); }

// Multiples of 2^-23 in [-1, 1), times 2^exponent.
template <class T>
T number(std::uint64_t stream, index i, int exponent = 0) {
  return std::ldexp(static_cast<T>(static_cast<int>(draw(stream, i) >> 40) - (1 << 23)),
                    exponent - 23);
}

// Half precision: any sign and mantissa, one of eight exponents; of each type its bits.
template <>
bfloat16 number(std::uint64_t stream, index i, int) {
  const std::uint64_t x = draw(stream, i);
  return {static_cast<std::uint16_t>((x & 0x807f) | (116 + (x >> 16) % 8) << 7)};
}

template <>
float16 number(std::uint64_t stream, index i, int) {
  const std::uint64_t x = draw(stream, i);
  return {static_cast<std::uint16_t>((x & 0x83ff) | (4 + (x >> 16) % 8) << 10)};
}

template <class T>
std::vector<T> numbers(std::uint64_t stream, index size, int exponent = 0) {
  std::vector<T> values(size);
  for (index i = 0; i < size; ++i) values[i] = number<T>(stream, i, exponent);
  return values;
}

// The sum over i of mix(bits of value i, i), so that cases can be put together in any order.
class Digest {
 public:
  template <class T>
  void add(const std::vector<T>& values) {
    for (const T& value : values) {
      std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t> bits;
      std::memcpy(&bits, &value, sizeof bits);
      sum_ += mix(bits ^ mix(count_++));
    }
  }
  std::uint64_t sum() const { return sum_; }

 private:
  std::uint64_t sum_ = 0, count_ = 0;
};

enum class Extent { whole, ragged, packed };  // ragged: with lengths and reset

struct Case {
  int cell;  // its place in the tables of kernels
  Extent extent;
  int directions;
  index L, N, D, H, P;
  std::uint64_t (*digest)(const Case&, index threads, bool recompute);
  std::string name;
};

// Sizes that end inside a vector, inside a tile, inside a block of a sum, and past a chunk of
// steps; and that threads divide by rows, or by units.
constexpr index kSizes[][4] = {{1, 1, 1, 1},   {7, 3, 5, 17},   {20, 30, 40, 64},
                               {45, 25, 5, 9}, {70, 5, 8, 200}, {3, 2, 600, 300}};

std::vector<index> lengths(const Case& c) {
  std::vector<index> n(c.N);
  for (index i = 0; i < c.N; ++i) n[i] = static_cast<index>(draw(kLengths, i) % (c.L + 1));
  return n;
}

Schedule schedule(const Case& c, const std::unique_ptr<bool[]>& reset) {
  if (c.extent == Extent::whole) return Schedule::dense(c.L, c.N, nullptr, {});
  const std::vector<index> n = lengths(c);
  if (c.extent == Extent::ragged) return Schedule::dense(c.L, c.N, n.data(), {reset.get(), c.N, 1});
  std::vector<index> batch_sizes(c.L, 1);  // the first row never ends
  for (index t = 0; t < c.L; ++t) {
    for (index i = 1; i < c.N; ++i) batch_sizes[t] += n[i] > t;
  }
  return Schedule::packed(c.L, batch_sizes.data());
}

// What one direction has to itself.
template <class T, class W>
struct Direction {
  std::vector<W> weights[kWeights];
  std::vector<char> forward_panels, backward_panels;
  std::vector<T> d_weights[kWeights], gates, states, d_x;
};

// The kernels with weights of a type.
const Kernel<float>* of(const Kernels& all, float) { return all.float32; }
const Kernel<double>* of(const Kernels& all, double) { return all.float64; }
const Kernel<float>* of(const Kernels& all, bfloat16) { return all.bfloat16; }
const Kernel<float>* of(const Kernels& all, float16) { return all.float16; }

template <class T, class W>
std::uint64_t digest(const Case& c, index threads, bool recompute) {
  const Kernel<T>& k = of(kernels(), W{})[c.cell];
  const auto reset = std::make_unique<bool[]>(c.L * c.N);
  for (index i = 0; i < c.L * c.N; ++i) reset[i] = draw(kReset, i) % 8 == 0;
  const Schedule s = schedule(c, reset);
  const Plan& plan = s.plan();
  const bool packed = c.extent == Extent::packed;
  const Sizes sizes{c.D, c.H, c.P};
  const index S = k.state_size(sizes);
  const index rows = packed ? s.rows() : c.L * c.N, N = plan.batch, width = c.directions * c.P;
  const auto sequence = [&](auto& values, index features, index from = 0) {
    return Sequence<std::remove_pointer_t<decltype(values.data())>>{
        values.data() + from, packed ? 0 : N * features, features, packed ? plan.first : nullptr};
  };
  const auto states = [&](auto& values, int d) {
    return Rows<std::remove_pointer_t<decltype(values.data())>>{values.data() + d * N * S, S};
  };

  // From the smallest to those that saturate every gate.
  std::vector<T> x = numbers<T>(kX, rows * c.D);
  for (index i = 0; i < rows * c.D; ++i)
    x[i] = std::ldexp(x[i], static_cast<int>(draw(kScale, i / c.D) % 32) - 24);
  const std::vector<T> h_0 = numbers<T>(kH0, c.directions * N * S);
  const std::vector<T> d_output = numbers<T>(kDOutput, rows * width);
  const std::vector<T> d_h_n = numbers<T>(kDHn, c.directions * N * S);
  std::vector<T> output(rows * width), h_n(h_0.size()), d_h_0(h_0.size());

  Direction<T, W> direction[2];
  Forward<T> f[2] = {};
  Backward<T> b[2] = {};
  for (int d = 0; d < c.directions; ++d) {
    Direction<T, W>& own = direction[d];
    const index each = k.gates * c.H, projection = sizes.projected() ? c.P * c.H : 0;
    const index count[kWeights] = {each * c.D, each * c.P, each, each, projection};
    for (int i = 0; i < kWeights; ++i) {
      const std::uint64_t stream = i < 4 ? kOfWeights + 4 * d + i : kOfProjections + d;
      own.weights[i] = numbers<W>(stream, count[i], -3);
      own.d_weights[i].resize(count[i]);
    }
    const Weights w{own.weights[0].data(), own.weights[1].data(), own.weights[2].data(),
                    own.weights[3].data(), own.weights[4].data()};
    own.forward_panels.resize(k.forward_panels(sizes));
    own.backward_panels.resize(k.backward_panels(sizes));
    k.pack_forward(w, sizes, own.forward_panels.data());
    T* const backward_panels = static_cast<T*>(static_cast<void*>(own.backward_panels.data()));
    k.pack_backward(w, sizes, backward_panels);
    own.gates.resize(rows * k.kept * c.H);
    own.states.resize((N + rows) * S);
    own.d_x.resize(rows * c.D);

    f[d].sizes = b[d].sizes = sizes;
    f[d].reverse = b[d].reverse = d == 1;
    f[d].panels = own.forward_panels.data();
    f[d].x = b[d].x = sequence(std::as_const(x), c.D);
    f[d].h_0 = states(h_0, d);
    f[d].output = sequence(output, width, d * c.P);
    f[d].h_n = states(h_n, d);
    f[d].gates = own.gates.data();
    f[d].states = own.states.data();
    b[d].panels = backward_panels;
    b[d].gates = own.gates.data();
    b[d].states = own.states.data();
    b[d].d_output = sequence(d_output, width, d * c.P);
    b[d].d_h_n = states(d_h_n, d);
    b[d].d_x = sequence(own.d_x, c.D);
    b[d].d_h_0 = states(d_h_0, d);
    b[d].d_w_ih = own.d_weights[0].data();
    b[d].d_w_hh = own.d_weights[1].data();
    b[d].d_b_ih = own.d_weights[2].data();
    b[d].d_b_hh = own.d_weights[3].data();
    b[d].d_w_hr = own.d_weights[4].data();
  }
  if (recompute) {
    for (int d = 0; d < c.directions; ++d) {
      f[d].gates = nullptr;
      b[d].gates = nullptr;
      b[d].forward_panels = f[d].panels;
    }
  }
  run_forward(k, s, f, c.directions, threads, nullptr);
  run_backward(k, s, b, c.directions, threads, nullptr);

  std::vector<T> d_x = direction[0].d_x;
  for (index i = 0; c.directions == 2 && i < rows * c.D; ++i) d_x[i] += direction[1].d_x[i];
  Digest all;
  for (const auto* values : {&output, &h_n, &d_x, &d_h_0}) all.add(*values);
  for (int d = 0; d < c.directions; ++d) {
    for (const auto& d_w : direction[d].d_weights) all.add(d_w);
  }
  return all.sum();
}

// Of each cell; and where it has a c, with a projection to about half of its units.
template <class T, class W>
void add_cases(const char* dtype, std::vector<Case>& cases) {
  constexpr const char* extents[] = {"whole", "ragged", "packed"};
  const auto add = [&](int cell, bool projected) {
    for (int extent = 0; extent < 3; ++extent) {
      for (const auto& [L, N, D, H] : kSizes) {
        const index P = projected ? (H + 1) / 2 : H;
        if (projected && P == H) continue;
        const int directions = extent == 0 ? 1 : 2;
        std::string name = dtype;
        name.append(" ").append(kernels().float32[cell].name).append(projected ? "_projected" : "");
        name.append(" ").append(extents[extent]);
        for (const index n : {index{directions}, L, N, D, H}) name += " " + std::to_string(n);
        cases.push_back(
            {cell, static_cast<Extent>(extent), directions, L, N, D, H, P, digest<T, W>, name});
      }
    }
  };
  for (int cell = 0; cell < kernels().cells; ++cell) {
    add(cell, false);
    if (kernels().float32[cell].has_c) add(cell, true);
  }
}

// Does a step that reads the weights as they lie give the bits of forward?
template <class T>
bool step_agrees(int cell, index rows, index D, index H, bool biases) {
  const Kernel<T>& k = of(kernels(), T{})[cell];
  const Sizes sizes{D, H, H};
  const index S = k.state_size(sizes), each = k.gates * H;
  const index count[] = {each * D, each * H, each, each};
  std::vector<T> weights[4];
  for (int i = 0; i < 4; ++i) weights[i] = numbers<T>(kOfWeights + i, count[i], -3);
  const Weights w{weights[0].data(), weights[1].data(), biases ? weights[2].data() : nullptr,
                  biases ? weights[3].data() : nullptr, nullptr};
  std::vector<char> panels(k.forward_panels(sizes));
  k.pack_forward(w, sizes, panels.data());

  const std::vector<T> x = numbers<T>(kX, rows * D), before = numbers<T>(kH0, rows * S);
  std::vector<T> output(rows * H), after(rows * S), gates(rows * k.kept * H);
  Forward<T> f = {};
  f.sizes = sizes;
  f.panels = panels.data();
  f.x = {x.data(), 0, D};
  f.h_0 = {before.data(), S};
  f.output = {output.data(), 0, H};
  f.h_n = {after.data(), S};
  f.gates = gates.data();
  run_forward(k, Schedule::dense(1, rows, nullptr, {}), &f, 1, 1, nullptr);

  std::vector<T> step_after(after.size()), step_gates(gates.size());
  std::vector<const T*> x_rows, before_rows;
  std::vector<T*> after_rows;
  for (index r = 0; r < rows; ++r) {
    x_rows.push_back(x.data() + r * D);
    before_rows.push_back(before.data() + r * S);
    after_rows.push_back(step_after.data() + r * S);
  }
  k.step(w, sizes, rows, x_rows.data(), before_rows.data(), after_rows.data(), step_gates.data());
  Digest forward, step;
  for (const auto* values : {&after, &gates}) forward.add(*values);
  for (const auto* values : {&step_after, &step_gates}) step.add(*values);
  return forward.sum() == step.sum();
}

template <class T>
int wrong_steps(const char* dtype) {
  constexpr index rows = 4 + 2 + 1;  // as many as its tiles have
  int wrong = 0;
  for (int cell = 0; cell < kernels().cells; ++cell) {
    for (const auto& [L, N, D, H] : kSizes) {
      for (const bool biases : {false, true}) {
        if (step_agrees<T>(cell, rows, D, H, biases)) continue;
        std::fprintf(stderr, "%s %s, D %d, H %d: a step differs\n", dtype,
                     kernels().float32[cell].name, static_cast<int>(D), static_cast<int>(H));
        ++wrong;
      }
    }
  }
  return wrong;
}

int run() {
  always_wait(true);
  std::vector<Case> cases;
  add_cases<float, float>("float32", cases);
  add_cases<double, double>("float64", cases);
  add_cases<float, bfloat16>("bfloat16", cases);
  add_cases<float, float16>("float16", cases);

  std::vector<std::uint64_t> digests;
  for (const Case& c : cases) {
    digests.push_back(c.digest(c, 1, false));
    std::printf("%s %016llx\n", c.name.c_str(), static_cast<unsigned long long>(digests.back()));
  }
  // Several threads, several calls at once, and gates that are computed again.
  std::atomic<int> wrong{0};
  const auto again = [&](std::size_t first, std::size_t step, index threads, bool recompute) {
    for (std::size_t i = first; i < cases.size(); i += step) {
      if (cases[i].digest(cases[i], threads, recompute) == digests[i]) continue;
      std::fprintf(stderr, "%s: differs on %d threads%s\n", cases[i].name.c_str(),
                   static_cast<int>(threads), recompute ? ", gates computed again" : "");
      ++wrong;
    }
  };
  again(0, 1, 3, false);
  again(0, 1, 1, true);
  std::vector<std::thread> callers;
  for (std::size_t first = 0; first < 4; ++first) callers.emplace_back(again, first, 4, 3, true);
  for (std::thread& caller : callers) caller.join();
  wrong += wrong_steps<float>("float32");
  wrong += wrong_steps<double>("float64");
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace elman

int main() { return elman::run(); }
