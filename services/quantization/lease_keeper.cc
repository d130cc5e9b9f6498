// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/lease_keeper.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace nibble {

LeaseKeeper::LeaseKeeper(JobStore& store, Lease lease, LeaseTimes times,
                         std::function<void()> on_last_resort)
    : store_(store),
      lease_(std::move(lease)),
      times_(times),
      on_last_resort_(std::move(on_last_resort)),
      renewed_(std::chrono::steady_clock::now()),
      asked_(renewed_),
      thread_([this] { Loop(); }) {}

LeaseKeeper::~LeaseKeeper() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  thread_.join();
}

void LeaseKeeper::Loop() {
  std::unique_lock lock(mutex_);
  while (!stop_changed_.wait_for(lock, times_.heartbeat, [this] { return stop_; })) {
    const Time asked = std::chrono::steady_clock::now();
    if (asked - renewed_ > times_.give_up) Lose(asked);
    if (lost_) {
      // The work is asked to stop by Standing(); it has a while to do so.
      if (asked - lost_at_ > times_.last_resort) on_last_resort_();
      continue;
    }
    lock.unlock();
    const absl::StatusOr<bool> cancel = store_.Renew(lease_);
    lock.lock();
    Note(cancel, asked, /*renewed=*/true);
  }
}

absl::Status LeaseKeeper::Standing() {
  std::unique_lock lock(mutex_);
  const Time now = std::chrono::steady_clock::now();
  // A process that was stopped must not believe what it knew before.
  if (now - renewed_ > times_.give_up) Lose(now);
  if (!lost_ && !cancel_ && now - asked_ >= times_.poll) {
    asked_ = now;
    lock.unlock();
    const absl::StatusOr<bool> cancel = store_.CheckLease(lease_);
    lock.lock();
    Note(cancel, now, /*renewed=*/false);
  }
  return StandingLocked();
}

void LeaseKeeper::Note(const absl::StatusOr<bool>& cancel, Time asked, bool renewed) {
  if (cancel.ok()) {
    cancel_ = cancel_ || *cancel;
    if (renewed) renewed_ = asked;
  } else if (absl::IsAborted(cancel.status())) {
    Lose(std::chrono::steady_clock::now());
  }
  // Any other error may pass; if it does not, the time without a renewal grows.
}

void LeaseKeeper::Lose(Time now) {
  if (lost_) return;
  lost_ = true;
  lost_at_ = now;
}

absl::Status LeaseKeeper::StandingLocked() const {
  if (lost_) {
    return absl::AbortedError(
        absl::StrCat("attempt ", lease_.attempt, " of jobs/", lease_.job, " has lost its lease"));
  }
  if (cancel_)
    return absl::CancelledError(absl::StrCat("jobs/", lease_.job, " is to be cancelled"));
  return absl::OkStatus();
}

}  // namespace nibble
