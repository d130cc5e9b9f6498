// SPDX-License-Identifier: Apache-2.0
#include "services/quantization/supervisor.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/common/log.h"

extern char** environ;

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kTick{50};
constexpr int kLifelineInChild = 3;

std::string HowItEnded(int status) {
  if (WIFSIGNALED(status)) return absl::StrCat("killed by signal ", WTERMSIG(status));
  return absl::StrCat("exited with ", WEXITSTATUS(status));
}

}  // namespace

Supervisor::Supervisor(SupervisorOptions options, JobStore& jobs)
    : options_(std::move(options)), jobs_(jobs), slots_(static_cast<size_t>(options_.workers)) {
  for (Slot& slot : slots_) slot.start_at = Clock::now();
  thread_ = std::thread([this] { Loop(); });
}

Supervisor::~Supervisor() { Stop(); }

void Supervisor::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

std::vector<pid_t> Supervisor::pids() const {
  std::vector<pid_t> pids;
  const std::lock_guard lock(mutex_);
  for (const Slot& slot : slots_) {
    if (slot.pid > 0) pids.push_back(slot.pid);
  }
  return pids;
}

void Supervisor::Loop() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    for (Slot& slot : slots_) {
      if (slot.pid > 0) Reap(slot, /*wait=*/false);
      if (slot.pid > 0 || Clock::now() < slot.start_at) continue;
      if (slot.generation > 0) ++restarts_;
      if (absl::Status status = Start(slot); !status.ok()) {
        LogError("worker_start_failed", {{"error", status.ToString()}});
        slot.backoff = options_.longest_backoff;
        slot.start_at = Clock::now() + slot.backoff;
      }
    }
    stop_changed_.wait_for(lock, kTick, [this] { return stop_; });
  }
  CloseAndWait();
}

absl::Status Supervisor::Start(Slot& slot) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    return absl::InternalError(absl::StrCat("pipe: ", strerror(errno)));
  slot.name = absl::StrCat("worker-", ::getpid(), "-", slot.generation++, "-",
                           static_cast<int64_t>(&slot - slots_.data()));
  std::vector<std::string> arguments = options_.command;
  arguments.insert(arguments.end(),
                   {"--name", slot.name, "--lifeline-fd", absl::StrCat(kLifelineInChild)});
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);

  // The child gets the pipe's reading end and nothing else of ours: everything is close-on-exec.
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, ends[0], kLifelineInChild);
  // A group of its own: Ctrl-C in a terminal reaches the service, which then drains its workers.
  // gRPC's threads block signals; the child starts with none blocked.
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
  ::posix_spawnattr_setpgroup(&attributes, 0);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, argv[0], &actions, &attributes, argv.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(ends[0]);
  if (error != 0) {
    ::close(ends[1]);
    return absl::InternalError(absl::StrCat("spawn ", arguments[0], ": ", strerror(error)));
  }
  slot.pid = pid;
  slot.lifeline = ends[1];
  slot.started = Clock::now();
  LogInfo("worker_started", {{"name", slot.name}, {"pid", absl::StrCat(pid)}});
  return absl::OkStatus();
}

void Supervisor::Reap(Slot& slot, bool wait) {
  int status = 0;
  pid_t reaped;
  do {
    reaped = ::waitpid(slot.pid, &status, wait ? 0 : WNOHANG);
  } while (reaped < 0 && errno == EINTR);
  if (reaped == 0) return;
  slot.pid = -1;
  ::close(std::exchange(slot.lifeline, -1));
  const std::string how = HowItEnded(status);
  const bool crashed = !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  if (crashed) LogWarning("worker_died", {{"name", slot.name}, {"how", how}});
  const absl::StatusOr<int> reclaimed =
      jobs_.ReclaimFrom(slot.name, absl::StrCat("the worker was ", how));
  if (!reclaimed.ok()) {
    LogWarning("reclaim_failed", {{"error", reclaimed.status().ToString()}});  // the lease runs out
  }
  const bool healthy = Clock::now() - slot.started >= options_.healthy;
  slot.backoff = healthy || slot.backoff.count() == 0
                     ? options_.first_backoff
                     : std::min(2 * slot.backoff, options_.longest_backoff);
  slot.start_at = Clock::now() + slot.backoff;
}

void Supervisor::CloseAndWait() {
  for (Slot& slot : slots_) {
    if (slot.lifeline >= 0) ::close(std::exchange(slot.lifeline, -1));
  }
  const Clock::time_point deadline = Clock::now() + options_.stop_grace;
  const auto running = [this] {
    return std::any_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.pid > 0; });
  };
  while (running() && Clock::now() < deadline) {
    for (Slot& slot : slots_) {
      if (slot.pid > 0) Reap(slot, /*wait=*/false);
    }
    std::this_thread::sleep_for(kTick / 5);
  }
  for (Slot& slot : slots_) {
    if (slot.pid <= 0) continue;
    LogWarning("worker_killed", {{"name", slot.name}});
    ::kill(slot.pid, SIGKILL);
    Reap(slot, /*wait=*/true);
  }
}

}  // namespace nibble
