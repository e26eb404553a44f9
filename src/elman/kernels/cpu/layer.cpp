#include "layer.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>

#include "system.h"
#include "threads.h"

namespace elman {

namespace portable {
extern const Kernels kernels;
}
#if defined(ELMAN_X86)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

constexpr index kMostThreads = 1024;
// Multiplications a thread, some 50 microseconds of them: a sleeping thread takes 20 to wake up.
constexpr index kWorthAThread = index{3} << 20;
// Multiplications of a step of the recurrence whose threads meet at a barrier: microseconds, where
// meeting takes a fraction of one.
constexpr index kWorthABarrier = index{1} << 17;
// Values of W_ih x held at a time: enough steps to read W_ih seldom, few enough to stay in the
// cache.
constexpr index kInputGates = index{1} << 17;
// Rows of gate gradients held at a time.
constexpr index kGradientRows = 2 * kSumBlock;

bool available(const Kernels& k) {
#if defined(ELMAN_X86)
  if (&k == &avx2::kernels) return instruction_sets().avx2;
  if (&k == &avx512::kernels) return instruction_sets().avx512;
#endif
  return &k == &portable::kernels;
}

const Kernels& choose_kernels() {
  const std::vector<const Kernels*> widest_first = {
#if defined(ELMAN_X86)
      &avx512::kernels, &avx2::kernels,
#endif
      &portable::kernels};
  const char* const forced = std::getenv("ELMAN_ISA");
  for (const Kernels* k : widest_first) {
    if (forced ? std::string(forced) == k->name : available(*k)) {
      if (available(*k)) return *k;
      throw std::runtime_error(std::string("ELMAN_ISA: this processor does not have ") + forced);
    }
  }
  throw std::runtime_error(
      std::string(
          "ELMAN_ISA: expected portable, avx2 or avx512 on x86-64, portable elsewhere; got ") +
      forced);
}

// How a direction's threads divide its work: by rows where each gets several, else by hidden units.
struct Division {
  int members;
  bool by_units;
};

template <class T>
Division divide(const Kernel<T>& kernel, const Plan& plan, const Sizes& s, int members) {
  const index rows = plan.longest > 0 ? plan.active[0] : 0;
  const index panels = kernel.padded(s.H) / kernel.lanes;
  if (rows >= 8 * members) return {members, false};
  if (rows * kernel.gates * s.H * s.P >= kWorthABarrier && panels >= 2 * members)
    return {members, true};
  if (rows >= 2) return {static_cast<int>(std::min<index>(members, rows / 2)), false};
  return {1, false};
}

// How many of a team's members fall to direction d.
int members_of(int d, int count, int team) { return (team - d + count - 1) / count; }

// Of `products` matrix products of the forward pass's size in each of `count` directions.
template <class T>
int worthwhile_threads(const Kernel<T>& kernel, const Schedule& schedule, const Sizes& s, int count,
                       int products, index threads) {
  // As a real number, since it may be beyond any integer.
  const double work = 1.0 * schedule.rows() * kernel.gates * s.H * (s.D + s.P) * count * products;
  const int most = static_cast<int>(
      std::clamp<double>(work / kWorthAThread, 1, std::min(threads, kMostThreads)));
  if (most < count) return most;
  int used = 0;
  for (int d = 0; d < count; ++d)
    used += divide(kernel, schedule.plan(), s, members_of(d, count, most)).members;
  return used;
}

// Runs work(direction, share) on every thread that divide() gives each direction.
template <class T, class Work>
void run_directions(const Kernel<T>& kernel, const Plan& plan, const Sizes& s, int count,
                    Team& team, const Work& work) {
  const index panels = kernel.padded(s.H) / kernel.lanes;
  const auto run_alone = [&] {
    for (int d = 0; d < count; ++d) work(d, Share{0, 1, 0, panels, 0, 1, nullptr, &team, true});
  };
  if (team.size() < 2) return run_alone();
  Division division[2] = {};
  std::optional<Barrier> barrier[2];
  for (int d = 0; d < count; ++d) {
    division[d] = divide(kernel, plan, s, members_of(d, count, team.size()));
    if (division[d].members > 1) barrier[d].emplace(division[d].members);
  }
  const bool is_done = team.run([&](int member) {
    const int d = member % count, m = member / count, members = division[d].members;
    if (m >= members) return;
    const bool caller = member == 0;
    Barrier* const meeting = barrier[d] ? &*barrier[d] : nullptr;
    if (division[d].by_units) {
      work(d, Share{0, 1, panels * m / members, panels * (m + 1) / members, m, members, meeting,
                    &team, caller});
    } else {
      work(d, Share{m, members, 0, panels, m, members, meeting, &team, caller});
    }
  });
  if (!is_done) run_alone();  // from the beginning: whatever was written is written anew
}

}  // namespace

void Share::wait() const {
  if (barrier) barrier->wait(*team, caller);
}

void Share::look_closely() const { team->look(caller); }

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

// No row takes more than `steps` steps.
Schedule::Schedule(index steps, index batch)
    : batch_(batch), memory_(2 * (batch + (batch > 0 ? steps : 0) + 1)) {
  std::iota(order(), order() + batch, 0);
}

Schedule Schedule::dense(index steps, index batch, const index* lengths, Reset reset) {
  Schedule s(steps, batch);
  std::fill_n(s.length(), batch, steps);
  if (lengths) {
    for (index n = 0; n < batch; ++n) {
      if (lengths[n] < 0 || lengths[n] > steps) {
        throw std::invalid_argument("lengths must lie between 0 and L = " + std::to_string(steps) +
                                    ", got " + std::to_string(lengths[n]) + " for row " +
                                    std::to_string(n));
      }
    }
    std::stable_sort(s.order(), s.order() + batch,
                     [&](index a, index b) { return lengths[a] > lengths[b]; });
    for (index p = 0; p < batch; ++p) s.length()[p] = lengths[s.order()[p]];
  }
  s.finish(steps, reset, true);
  return s;
}

Schedule Schedule::packed(index steps, const index* batch_sizes) {
  for (index t = 0; t < steps; ++t) {
    if (batch_sizes[t] < 0 || (t > 0 && batch_sizes[t] > batch_sizes[t - 1])) {
      throw std::invalid_argument("batch_sizes must not be negative and never rise, got " +
                                  std::to_string(batch_sizes[t]) + " at step " + std::to_string(t));
    }
  }
  Schedule s(steps, steps > 0 ? batch_sizes[0] : 0);
  for (index t = 0; t < steps; ++t) {
    const index next = t + 1 < steps ? batch_sizes[t + 1] : 0;
    for (index n = next; n < batch_sizes[t]; ++n) s.length()[n] = t + 1;
  }
  s.finish(steps, {}, false);
  return s;
}

void Schedule::finish(index steps, Reset reset, bool padded) {
  const index longest = batch_ > 0 ? length()[0] : 0;
  index* const active = length() + batch_;
  index* const first = active + longest + 1;
  index running = batch_, total = 0;
  for (index s = 0; s <= longest; ++s) {
    while (running > 0 && length()[running - 1] <= s) --running;
    active[s] = running;
    first[s] = total;
    total += running;
  }
  plan_ = {steps, batch_,     longest,    order(),   length(), active,
           first, reset.data, reset.step, reset.row, padded};
}

template <class T>
ForwardPass<T>::ForwardPass(const Kernel<T>& kernel, const Schedule& schedule, const Sizes& s,
                            int directions, index threads)
    : kernel_(kernel),
      plan_(schedule.plan()),
      sizes_(s),
      directions_(directions),
      threads_(worthwhile_threads(kernel, schedule, s, directions, 1, threads)) {
  const index H = kernel.padded(s.H), P = kernel.padded(s.P);
  const index active = plan_.longest > 0 ? plan_.active[0] : 0;
  chunk_rows_ = std::min(schedule.rows(), std::max(active, kInputGates / (kernel.gates * H)));
  const auto whole_lines = [](index values) { return (values + 15) / 16 * 16; };
  const index row = 2 * P + (kernel.has_c ? H : 0) + (kernel.has_hidden(s) ? H : 0);
  states_size_ = whole_lines(plan_.batch * row);
  x_gates_size_ = whole_lines(chunk_rows_ * kernel.gates * H);
  values_ = Buffer<T>(directions * states_size_ + threads_ * x_gates_size_);
  x_rows_ = std::make_unique_for_overwrite<const T*[]>(threads_ * chunk_rows_);
}

template <class T>
void ForwardPass<T>::run(Forward<T>* directions, void (*watch)()) {
  const index H = kernel_.padded(sizes_.H), P = kernel_.padded(sizes_.P);
  for (int d = 0; d < directions_; ++d) {
    directions[d].plan = &plan_;
    directions[d].h = values_.get() + d * states_size_;
    T* const behind = directions[d].h + plan_.batch * 2 * P;
    if (kernel_.has_c) directions[d].c = behind;
    directions[d].hidden = behind + (kernel_.has_c ? plan_.batch * H : 0);
  }
  T* const x_gates = values_.get() + directions_ * states_size_;
  Team team(threads_, watch);
  run_directions(kernel_, plan_, sizes_, directions_, team, [&](int d, const Share& share) {
    const int thread = team.size() < 2 ? 0 : share.member * directions_ + d;
    kernel_.forward(
        directions[d],
        {x_gates + thread * x_gates_size_, x_rows_.get() + thread * chunk_rows_, chunk_rows_},
        share);
  });
}

template <class T>
void run_forward(const Kernel<T>& kernel, const Schedule& schedule, Forward<T>* directions,
                 int count, index threads, void (*watch)()) {
  ForwardPass<T>(kernel, schedule, directions[0].sizes, count, threads).run(directions, watch);
}

template <class T>
void run_backward(const Kernel<T>& kernel, const Schedule& schedule, Backward<T>* directions,
                  int count, index threads, void (*watch)()) {
  const Plan& plan = schedule.plan();
  const Sizes& s = directions[0].sizes;
  const index H = kernel.padded(s.H), projected = s.projected() ? s.P : 0;
  Team team(worthwhile_threads(kernel, schedule, s, count, 2, threads), watch);
  const index active = plan.longest > 0 ? plan.active[0] : 0;
  const index chunk_rows = std::min(schedule.rows(), std::max(active, kGradientRows));
  // Rows a power of two apart would fall on one another in the cache, where weight gradients read
  // down a column.
  const index d_gates_row = (kernel.d_gates * s.H + projected + 15) / 16 * 16 + 16;
  const index chunk_size = chunk_rows * d_gates_row, block_rows = std::min(chunk_rows, kSumBlock);
  Buffer<T> carry(plan.batch * H * count);
  Buffer<T> d_gates(2 * chunk_size * count);
  const index gates_size = directions[0].gates ? 0 : chunk_rows * kernel.kept * s.H;
  Buffer<T> gates(gates_size * count);
  const std::vector<T> zeros(kernel.state_size(s));
  const index columns = kernel.padded(s.D) + kernel.padded(s.P) + (kernel.has_hidden(s) ? H : 0);
  std::vector<Buffer<T>> block, tiles, d_bias;
  for (int m = 0; m < team.size(); ++m) {
    block.emplace_back(block_rows * columns);
    tiles.emplace_back((s.H + kTileUnits - 1) / kTileUnits * kTileUnits * (block_rows + 16));
    d_bias.emplace_back(kernel.d_gates * s.H);
  }
  for (int d = 0; d < count; ++d) {
    directions[d].plan = &plan;
    directions[d].carry = carry.get() + d * plan.batch * H;
    directions[d].d_gates[0] = d_gates.get() + d * 2 * chunk_size;
    directions[d].d_gates[1] = directions[d].d_gates[0] + chunk_size;
    directions[d].d_gates_row = d_gates_row;
    directions[d].recompute = kernel.recompute;
    directions[d].zeros = zeros.data();
    directions[d].chunk_gates = gates.get() + d * gates_size;
    directions[d].chunk_rows = chunk_rows;
    directions[d].block_rows = block_rows;
  }
  run_directions(kernel, plan, s, count, team, [&](int d, const Share& share) {
    const int thread = team.size() < 2 ? 0 : share.member * count + d;
    kernel.backward(directions[d], {block[thread].get(), tiles[thread].get(), d_bias[thread].get()},
                    share);
  });
}

template class ForwardPass<float>;
template class ForwardPass<double>;
template void run_forward(const Kernel<float>&, const Schedule&, Forward<float>*, int, index,
                          void (*)());
template void run_forward(const Kernel<double>&, const Schedule&, Forward<double>*, int, index,
                          void (*)());
template void run_backward(const Kernel<float>&, const Schedule&, Backward<float>*, int, index,
                           void (*)());
template void run_backward(const Kernel<double>&, const Schedule&, Backward<double>*, int, index,
                           void (*)());

}  // namespace elman
