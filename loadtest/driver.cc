// SPDX-License-Identifier: Apache-2.0
#include "loadtest/driver.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <condition_variable>
#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>
#include <utility>
#include <vector>

#include "loadtest/report.h"
#include "loadtest/request.h"
#include "loadtest/schedule.h"

namespace nibble::load {
namespace {

using Stub = v1::GenerationService::Stub;

std::vector<std::unique_ptr<Stub>> Connect(const Options& options) {
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!options.tls_ca.empty()) {
    std::ostringstream roots;
    roots << std::ifstream(options.tls_ca).rdbuf();
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = roots.str();
    credentials = grpc::SslCredentials(ssl);
  }
  std::vector<std::unique_ptr<Stub>> stubs;
  for (int i = 0; i < options.connections; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("grpc.channel_number", i);  // channels with equal arguments share a connection
    arguments.SetMaxReceiveMessageSize(-1);
    stubs.push_back(v1::GenerationService::NewStub(
        grpc::CreateCustomChannel(options.server, credentials, arguments)));
  }
  return stubs;
}

// What the callbacks of requests and the sending thread share.
class Board {
 public:
  void Started() {
    std::lock_guard lock(mutex_);
    ++in_flight_;
  }
  void Ended(const Outcome& outcome) {
    std::lock_guard lock(mutex_);
    report_.Add(outcome);
    --in_flight_;
    changed_.notify_all();
  }
  void NotSent() {
    std::lock_guard lock(mutex_);
    report_.NotSent();
  }
  // Waits until fewer than `count` are in flight or the time has come; whether they are.
  bool WaitBelow(int count, Clock::time_point until) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, until, [&] { return in_flight_ < count; });
  }
  const Report& report() const { return report_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  Report report_;
  int in_flight_ = 0;
};

}  // namespace

Result Drive(const Options& options) {
  Result result;
  const std::vector<std::unique_ptr<Stub>> stubs = Connect(options);
  grpc::ClientContext context;
  if (!options.token.empty()) context.AddMetadata("authorization", "Bearer " + options.token);
  v1::GetServedModelRequest who;
  who.set_name(options.model);
  v1::ServedModel model;
  const grpc::Status status = stubs[0]->GetServedModel(&context, who, &model);
  if (!status.ok()) {
    result.error = options.server + ": " + status.error_message();
    return result;
  }

  Schedule schedule(options, model.vocabulary());
  Board board;
  const bool open_loop = options.rate > 0;
  const Clock::time_point start = Clock::now();
  const Clock::time_point never = start + std::chrono::hours(24 * 365);
  const auto after = [&](double seconds) {
    return start +
           std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  };
  const Clock::time_point stop = options.duration > 0 ? after(options.duration) : never;
  for (int64_t sent = 0; options.requests == 0 || sent < options.requests; ++sent) {
    const Plan plan = schedule.Next();
    Clock::time_point intended;
    if (open_loop) {
      intended = after(plan.arrival);
      if (intended >= stop) break;
      std::this_thread::sleep_until(intended);
      if (!board.WaitBelow(options.max_in_flight, intended)) {
        board.NotSent();
        continue;
      }
    } else {
      if (!board.WaitBelow(options.clients, stop) || Clock::now() >= stop) break;
      intended = Clock::now();
    }
    board.Started();
    Request::Send(*stubs[static_cast<size_t>(sent) % stubs.size()], options, plan, intended,
                  [&board](const Outcome& outcome) { board.Ended(outcome); });
  }
  board.WaitBelow(1, never);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  result.report = board.report().ToJson(seconds);
  result.any_success = board.report().succeeded() > 0;
  return result;
}

}  // namespace nibble::load
