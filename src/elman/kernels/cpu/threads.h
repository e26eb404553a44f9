// A team of threads that run one function together.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>

namespace elman {

class Team;

// Where threads wait for what others are about to do. They spin at first, since a step of the
// recurrence lasts microseconds. Then they let others have the processor, among whom may be those
// they wait for: there may be more threads than processors, of this library or of others. Then
// they sleep: a sleeper is woken sooner than one that has spun its time away.
class WaitingRoom {
 public:
  // Until done(). Calls look() several times a second, which may throw.
  template <class Done, class Look>
  void wait(Done done, Look look);
  // To be called after done() has become true.
  void wake();

 private:
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
};

// Threads meet here again and again.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  // For the others. Throws where the team has stopped, since they may never come.
  void wait(Team& team, bool caller);

 private:
  const int members_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
  WaitingRoom room_;
};

class Pool;
struct OpenMP;

// Holds up to `wanted` threads, the caller among them, for as long as it lives. There is one pool a
// process: whoever finds it taken works alone, so that two calls at once neither wait for one
// another nor crowd the machine. Where the process has OpenMP's threads, as PyTorch does, the team
// is of these: they spin on for milliseconds after their work, in the way of any others.
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

  Pool* pool_ = nullptr;            // null: working alone
  const OpenMP* openmp_ = nullptr;  // null: the pool's own threads
  int size_ = 1;
  void (*const watch_)();
  Clock::time_point next_watch_{};
  std::atomic<bool> stopped_{false};
  std::exception_ptr error_;  // what stopped it
};

}  // namespace elman
