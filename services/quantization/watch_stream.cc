// SPDX-License-Identifier: Apache-2.0
#include <deque>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "services/common/grpc_status.h"
#include "services/quantization/convert.h"
#include "services/quantization/status_macros.h"
#include "services/quantization/streams.h"

namespace nibble {
namespace {

constexpr int32_t kEventsAtOnce = 64;

// Sends what the store has after the last sequence sent; when that is nothing, waits for the hub.
// The queue is filled only when it is empty, so a slow reader costs a few events of memory, and of
// progress it sees the newest only, as the store keeps no other.
class WatchJobStream : public grpc::ServerWriteReactor<v1::JobEvent>,
                       public std::enable_shared_from_this<WatchJobStream> {
 public:
  WatchJobStream(StreamContext context, const Caller& caller, const v1::WatchJobRequest& request)
      : context_(context), caller_(caller), request_(request) {}

  // Once, right after construction.
  void Begin() {
    self_ = shared_from_this();
    // The hub must not keep the stream alive, nor call into one that is gone.
    subscription_ = context_.hub.Add([weak = weak_from_this()] {
      if (const std::shared_ptr<WatchJobStream> stream = weak.lock()) stream->Wake();
    });
    Wake();
  }

  void OnWriteDone(bool ok) override {
    {
      const std::lock_guard lock(mutex_);
      writing_ = false;
      queue_.pop_front();
      gone_ = gone_ || !ok;
    }
    Wake();
  }
  void OnCancel() override {
    {
      const std::lock_guard lock(mutex_);
      gone_ = true;
    }
    Wake();
  }
  void OnDone() override {
    context_.hub.Remove(subscription_);
    self_.reset();
  }

 private:
  // Any thread: lets the pool go on with this stream, once however often it is called.
  void Wake() {
    {
      const std::lock_guard lock(mutex_);
      woken_ = true;
      if (scheduled_ || finished_) return;
      scheduled_ = true;
    }
    context_.pool.Run([self = shared_from_this()] { self->Work(); });
  }

  void Work() {
    for (;;) {
      {
        const std::lock_guard lock(mutex_);
        if (!woken_ || finished_) {
          scheduled_ = false;
          return;
        }
        woken_ = false;
        if (writing_) continue;  // OnWriteDone wakes it again
        if (gone_) {
          finished_ = true;
          Finish(ToGrpc(absl::CancelledError("the watcher is gone")));
          continue;
        }
        if (!queue_.empty()) {
          Write();
          continue;
        }
      }
      const absl::StatusOr<bool> more = Fetch();
      const std::lock_guard lock(mutex_);
      if (!more.ok() || !*more) {
        finished_ = true;
        Finish(ToGrpc(more.status()));
      } else if (!queue_.empty()) {
        Write();
      }
    }
  }

  void Write() {  // needs mutex_
    writing_ = true;
    StartWrite(&queue_.front());
  }

  // Fills the empty queue; false when everything was sent and nothing will follow.
  absl::StatusOr<bool> Fetch() {
    NIBBLE_ASSIGN_OR_RETURN(const JobRecord job, context_.api.FindJob(caller_, request_.name()));
    const QuantizationContext& c = context_.api.context();
    if (!began_) {
      began_ = true;
      sequence_ = request_.has_after_sequence() ? request_.after_sequence() : job.sequence;
      v1::JobEvent snapshot;
      snapshot.set_sequence(job.sequence);
      snapshot.set_kind(v1::JobEvent::SNAPSHOT);
      snapshot.set_attempt(job.attempt);
      *snapshot.mutable_job() = ToProto(job, c.clock.Now());
      snapshot.set_state(snapshot.job().state());
      *snapshot.mutable_progress() = snapshot.job().progress();
      Push(std::move(snapshot));
      return true;
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<JobEventRecord> events,
                            c.jobs.ListEvents(job.id, sequence_, kEventsAtOnce));
    for (const JobEventRecord& record : events) {
      v1::JobEvent event = ToProto(record);
      sequence_ = record.sequence;
      if (record.kind == JobEventKind::kStateChanged && IsTerminal(record.state)) {
        // `job` may be older than its events.
        NIBBLE_ASSIGN_OR_RETURN(const JobRecord ended, c.jobs.GetJob(job.id));
        *event.mutable_job() = ToProto(ended, c.clock.Now());
      }
      if (record.kind == JobEventKind::kProgress && record.sequence == job.sequence) {
        *event.mutable_progress() = ToProto(job, c.clock.Now()).progress();  // with its estimate
      }
      Push(std::move(event));
    }
    if (!events.empty()) return true;
    if (IsTerminal(job.state)) return false;
    if (context_.draining) return absl::UnavailableError("the server is going away");
    return true;
  }

  void Push(v1::JobEvent event) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(event));
  }

  const StreamContext context_;
  const Caller caller_;
  const v1::WatchJobRequest request_;
  std::shared_ptr<WatchJobStream> self_;  // gRPC's hold on it, until OnDone
  int64_t subscription_ = 0;
  // Of the one piece of work on the pool.
  bool began_ = false;
  int64_t sequence_ = 0;
  std::mutex mutex_;  // guards what follows
  std::deque<v1::JobEvent> queue_;
  bool woken_ = false;
  bool scheduled_ = false;
  bool writing_ = false;
  bool gone_ = false;
  bool finished_ = false;
};

}  // namespace

grpc::ServerWriteReactor<v1::JobEvent>* StartWatchJob(StreamContext context, const Caller& caller,
                                                      const v1::WatchJobRequest& request) {
  const auto stream = std::make_shared<WatchJobStream>(context, caller, request);
  stream->Begin();
  return stream.get();
}

}  // namespace nibble
