// What a member of a team throws reaches the caller, and nobody is left behind at a barrier.
#include "threads.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "layer.h"

namespace elman {
namespace {

int wrong = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "%s\n", what);
  ++wrong;
}

template <class F>
std::string thrown_by(const F& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

// All members count together for as many rounds.
void count_together(Team& team, int rounds) {
  Barrier barrier(team.size());
  std::atomic<int> count{0};
  team.run([&](int member) {
    for (int round = 0; round < rounds; ++round) {
      ++count;
      barrier.wait(team, member == 0);
    }
  });
  expect(count == rounds * team.size(), "a member of the team is missing");
}

void throwing_members() {
  for (int thrower = 0; thrower < 3; ++thrower) {
    Team team(3, nullptr);
    expect(team.size() == 3, "expected a team of three");
    Barrier barrier(team.size());
    const std::string what = thrown_by([&] {
      team.run([&](int member) {
        for (int round = 0;; ++round) {
          if (member == thrower && round == 100) throw std::runtime_error("enough");
          barrier.wait(team, member == 0);
        }
      });
    });
    expect(what == "enough", "what a member throws reaches the caller");
  }
  Team team(3, nullptr);
  count_together(team, 1000);
}

void watch() { throw std::runtime_error("watched"); }

template <class T>
const Kernel<T>& gru() {
  int cell = 0;
  while (std::string(kernels().float32[cell].name) != "gru") ++cell;
  if constexpr (sizeof(T) == sizeof(float)) {
    return kernels().float32[cell];
  } else {
    return kernels().float64[cell];
  }
}

// A recurrence of minutes: all its steps read the same x and write the same output.
template <class T>
void watched_layer(index batch, index H, index threads) {
  const Kernel<T>& k = gru<T>();
  const Sizes sizes{1, H, H};
  const index size = k.forward_panels(sizes) / static_cast<index>(sizeof(T));
  const Buffer<T> panels(size);
  std::fill_n(panels.get(), size, T(0));
  const T x = 0;
  const Buffer<T> output(batch * H), h_n(batch * H);
  Forward<T> f{};
  f.sizes = sizes;
  f.panels = panels.get();
  f.x = {&x, 0, 0};
  f.output = {output.get(), 0, H};
  f.h_n = {h_n.get(), H};
  const Schedule schedule = Schedule::dense(10'000'000, batch, nullptr, {});
  expect(thrown_by([&] { run_forward(k, schedule, &f, 1, threads, watch); }) == "watched",
         "what the watch throws ends the call");
  Team team(3, nullptr);
  expect(team.size() == 3, "expected a team of three");
  count_together(team, 1000);
}

int run() {
  throwing_members();
  watched_layer<float>(1, 16, 1);
  watched_layer<double>(30, 64, 3);  // rows divided
  watched_layer<float>(5, 200, 3);   // units divided
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace elman

int main() { return elman::run(); }
