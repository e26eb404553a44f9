// A team of threads that run one function together.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>

namespace elman {

class Team;
using Clock = std::chrono::steady_clock;

// Where threads wait for what others are about to do. They spin at first, since a step of the
// recurrence lasts microseconds. Then they let others have the processor, among whom may be those
// they wait for: there may be more threads than processors, of this library or of others. Then
// they sleep: a sleeper is woken sooner than one that has spun its time away.
class WaitingRoom {
 public:
  // Until done(). Where that takes long, calls look(waited) now and then, which may throw.
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
  // For the others. Throws where the team has stopped, since they may never come, and stops it
  // where they do not come.
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
// Where other programs, or the threads of other libraries that wait in the same way, have the
// processors, a member may not run for milliseconds, and with it no other that waits for it. Then
// the caller does the work alone, and teams are of one for a while: for twice as long each time
// that this happens, and a little less each time that it does not.
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
  // to throw did. False: it was given up before its end, since a member did not come to a barrier.
  // The team is of one then.
  template <class F>
  [[nodiscard]] bool run(const F& work) {
    return run([](const void* f, int member) { (*static_cast<const F*>(f))(member); }, &work);
  }

  // To be called now and then by every member: throws where the team has stopped or is to stop.
  void look(bool caller);
  // By who has waited so long for the others at a barrier where they have met so many times: gives
  // up where they do not come.
  void look(bool caller, Clock::duration waited, unsigned meetings);

 private:
  struct Stopped {};

  bool run(void (*work)(const void*, int), const void* context);
  // More than from one meeting to the next so far, and no mere matter of waking up?
  bool is_long(Clock::duration waited, unsigned meetings) const;
  template <class F>
  void attempt(const F& work);

  Pool* pool_ = nullptr;            // null: working alone
  const OpenMP* openmp_ = nullptr;  // null: the pool's own threads
  int size_ = 1;
  void (*const watch_)();
  Clock::time_point next_watch_{};
  Clock::time_point started_{};
  bool is_given_up_ = false;
  std::atomic<bool> stopped_{false};
  std::exception_ptr error_;  // what stopped it
};

// From now on teams wait for their members for as long as it takes, so that a test has the threads
// that it asks for.
void always_wait(bool on);

}  // namespace elman
