// What a member of a team throws reaches the caller, nobody is left behind at a barrier, and nobody
// waits for long for members that do not run.
#include "threads.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

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

using std::chrono::milliseconds;

// After as long as teams may be of one, since members did not run.
void rest() { std::this_thread::sleep_for(milliseconds(1100)); }

// All members count together for as many rounds.
void count_together(Team& team, int rounds) {
  Barrier barrier(team.size());
  std::atomic<int> count{0};
  const bool is_done = team.run([&](int member) {
    for (int round = 0; round < rounds; ++round) {
      ++count;
      barrier.wait(team, member == 0);
    }
  });
  expect(is_done && count == rounds * team.size(), "a member of the team is missing");
}

void throwing_members() {
  for (int thrower = 0; thrower < 3; ++thrower) {
    Team team(3, nullptr);
    expect(team.size() == 3, "expected a team of three");
    Barrier barrier(team.size());
    const std::string what = thrown_by([&] {
      [[maybe_unused]] const bool is_done = team.run([&](int member) {
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

// The second of two does not run for a while whenever it is asked. So it is not asked again and
// again, but now and then; and when it runs, it is.
void absent_members() {
  rest();
  int asked = 0, given_up = 0;
  constexpr int kCalls = 50;
  const auto call = [&](milliseconds absence, bool meet) {
    Team team(2, nullptr);
    if (team.size() < 2) return;
    Barrier barrier(2);
    ++asked;
    given_up += !team.run([&](int member) {
      if (member > 0) std::this_thread::sleep_for(absence);
      if (meet) barrier.wait(team, member == 0);
    });
    expect(team.size() == (meet ? 1 : 2), "who gives up works alone");
  };
  for (int i = 0; i < kCalls; ++i) call(milliseconds(30), true);
  expect(asked > 0 && given_up == asked, "who does not come to a barrier is not waited for");
  expect(asked < kCalls / 2, "who does not come is not asked each time");
  rest();
  asked = 0;
  for (int i = 0; i < kCalls; ++i) call(milliseconds(30), false);
  expect(asked > 0 && asked < kCalls / 2, "who is late in the end is not asked each time");
  rest();
  asked = 0;
  for (int i = 0; i < kCalls; ++i) call(milliseconds(0), false);
  expect(asked > 0, "who does not come is asked again after a while");
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

std::atomic<int> sleeps{0};
void sleep_for_long() {
  if (sleeps++ == 0) std::this_thread::sleep_for(milliseconds(300));
}

// The last state of a recurrence of so many steps.
std::vector<float> last_state(index steps, int threads, void (*watch)()) {
  constexpr index batch = 5, H = 200;
  const Kernel<float>& k = gru<float>();
  const Sizes sizes{1, H, H};
  std::vector<float> weights(3 * H * H);
  for (std::size_t i = 0; i < weights.size(); ++i)
    weights[i] = 0.01f * static_cast<float>(i % 17) - 0.08f;
  const Buffer<char> panels(k.forward_panels(sizes));
  k.pack_forward({weights.data(), weights.data(), nullptr, nullptr, nullptr}, sizes, panels.get());
  const float x = 0.5f;
  std::vector<float> output(batch * H), h_n(batch * H);
  Forward<float> f{};
  f.sizes = sizes;
  f.panels = panels.get();
  f.x = {&x, 0, 0};
  f.output = {output.data(), 0, H};
  f.h_n = {h_n.data(), H};
  run_forward(k, Schedule::dense(steps, batch, nullptr, {}), &f, 1, threads, watch);
  return h_n;
}

// Work in whose midst the caller sleeps, so that the other gives it up, is done all the same.
void given_up_layer() {
  const Clock::time_point start = Clock::now();
  last_state(100, 1, nullptr);
  const auto steps = 100 * (1 + milliseconds(500) / (Clock::now() - start));
  rest();
  const std::vector<float> h_n = last_state(steps, 2, sleep_for_long);
  expect(sleeps > 0, "the caller slept");
  expect(h_n == last_state(steps, 1, nullptr),
         "who works alone in the end works from the beginning");
}

int run() {
  absent_members();
  given_up_layer();
  always_wait(true);
  throwing_members();
  watched_layer<float>(1, 16, 1);
  watched_layer<double>(30, 64, 3);  // rows divided
  watched_layer<float>(5, 200, 3);   // units divided
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace elman

int main() { return elman::run(); }
