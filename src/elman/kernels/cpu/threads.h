// A team of threads that run one function together.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>

namespace elman {

class Team;

// Threads meet here again and again. They spin, since a step of the recurrence lasts microseconds.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  // For the others. Throws where the team has stopped, since they may never come.
  void wait(Team& team, bool caller);

 private:
  const int members_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
};

class Pool;

// Holds up to `wanted` threads, the caller among them, for as long as it lives. There is one pool a
// process: whoever finds it taken works alone, so that two calls at once neither wait for one
// another nor crowd the machine.
//
// What one member throws, or the `watch` that the caller's thread calls several times a second,
// stops them all.
class Team {
 public:
  Team(int wanted, void (*watch)());
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls work(member) on every member at once, and returns when all have. Throws what the first
  // to throw did.
  template <class F>
  void run(const F& work) {
    run([](const void* f, int member) { (*static_cast<const F*>(f))(member); }, &work);
  }

  // To be called now and then by every member: throws where the team has stopped or is to stop.
  void look(bool caller);

 private:
  using Clock = std::chrono::steady_clock;
  struct Stopped {};

  void run(void (*work)(const void*, int), const void* context);
  template <class F>
  void attempt(const F& work);

  Pool* pool_ = nullptr;  // null: working alone
  int size_ = 1;
  void (*const watch_)();
  Clock::time_point next_watch_{};
  std::atomic<bool> stopped_{false};
  std::exception_ptr error_;  // what stopped it
};

}  // namespace elman
