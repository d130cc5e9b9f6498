// SPDX-License-Identifier: Apache-2.0
// nibble jobs {list,show,watch,cancel,logs}
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "nibble/v1/quantization.grpc.pb.h"
#include "services/cli/client.h"
#include "services/cli/exit_codes.h"
#include "services/cli/job_watch.h"
#include "services/cli/json_output.h"
#include "services/cli/verbs.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ClientOptions client;
  std::string job;
  bool json = false;
};

std::string FullName(const std::string& job) {
  return job.rfind("jobs/", 0) == 0 ? job : absl::StrCat("jobs/", job);
}

struct Session {
  std::unique_ptr<Client> client;
  std::unique_ptr<v1::QuantizationService::Stub> stub;
};

absl::StatusOr<Session> Open(const Options& options) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Make(options.client);
  if (!client.ok()) return client.status();
  Session session{*std::move(client), nullptr};
  session.stub = v1::QuantizationService::NewStub(session.client->channel());
  return session;
}

int List(const Options& options) {
  const absl::StatusOr<Session> session = Open(options);
  if (!session.ok()) return Fail("jobs list", session.status());
  Json list = Json::array();
  if (!options.json) {
    std::printf("%-22s %-11s %-5s %-18s %-16s %s\n", "JOB", "STATE", "DONE", "RECIPE", "SCHEME",
                "SOURCE");
  }
  v1::ListJobsRequest request;
  do {
    grpc::ClientContext context;
    session->client->Prepare(&context);
    v1::ListJobsResponse page;
    const grpc::Status status = session->stub->ListJobs(&context, request, &page);
    if (!status.ok()) return Fail("jobs list", session->client->Explain(status));
    for (const v1::Job& job : page.jobs()) {
      if (options.json) {
        list.push_back(ToJson(job));
        continue;
      }
      const v1::JobSpec& spec = job.spec();
      std::printf("%-22s %-11s %3.0f%%  %-18s %-16s %s\n", job.name().c_str(),
                  v1::Job::State_Name(job.state()).c_str(), 100 * job.progress().fraction(),
                  spec.recipe().empty() ? "custom" : spec.recipe().c_str(), spec.scheme().c_str(),
                  spec.model().empty() ? spec.model_path().c_str() : spec.model().c_str());
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  if (options.json) PrintJson(list);
  return kExitOk;
}

int Show(const Options& options) {
  const absl::StatusOr<Session> session = Open(options);
  if (!session.ok()) return Fail("jobs show", session.status());
  v1::GetJobRequest request;
  request.set_name(FullName(options.job));
  grpc::ClientContext context;
  session->client->Prepare(&context);
  v1::Job job;
  const grpc::Status status = session->stub->GetJob(&context, request, &job);
  if (!status.ok()) return Fail("jobs show", session->client->Explain(status));
  if (options.json) {
    PrintJson(ToJson(job));
    return kExitOk;
  }
  const v1::JobSpec& spec = job.spec();
  std::printf("%s\n", job.name().c_str());
  const auto line = [](const char* label, const std::string& value) {
    if (!value.empty()) std::printf("  %-12s %s\n", label, value.c_str());
  };
  line("state", v1::Job::State_Name(job.state()));
  if (job.reason() != v1::Job::REASON_UNSPECIFIED) {
    line("reason", v1::Job::Reason_Name(job.reason()));
  }
  line("message", job.message());
  line("paused", job.pause_reason());
  line("source", spec.model().empty() ? spec.model_path() : spec.model());
  line("recipe", spec.recipe().empty() ? "custom" : spec.recipe());
  line("scheme", spec.scheme());
  line("KV format", spec.kv_format());
  line("phase", job.progress().phase());
  line("blocks", absl::StrCat(job.progress().blocks_done(), " of ", job.progress().blocks_total()));
  line("attempts", absl::StrCat(job.attempts()));
  line("artifact", job.artifact());
  line("digest", job.artifact_digest());
  return kExitOk;
}

int Watch(const Options& options) {
  const absl::StatusOr<Session> session = Open(options);
  if (!session.ok()) return Fail("jobs watch", session.status());
  const absl::StatusOr<v1::Job> job =
      WatchJobToEnd(*session->client, FullName(options.job),
                    options.json ? WatchOutput::kJsonLines : WatchOutput::kProgress);
  if (!job.ok()) return Fail("jobs watch", job.status());
  return options.json ? JobExitCode(*job) : PrintJobEnd(*session->client, *job);
}

int Cancel(const Options& options) {
  const absl::StatusOr<Session> session = Open(options);
  if (!session.ok()) return Fail("jobs cancel", session.status());
  v1::CancelJobRequest request;
  request.set_name(FullName(options.job));
  grpc::ClientContext context;
  session->client->Prepare(&context);
  v1::Job job;
  const grpc::Status status = session->stub->CancelJob(&context, request, &job);
  if (!status.ok()) return Fail("jobs cancel", session->client->Explain(status));
  if (options.json) {
    PrintJson(ToJson(job));
  } else {
    std::printf("%s is %s%s\n", job.name().c_str(), v1::Job::State_Name(job.state()).c_str(),
                job.cancel_requested() && job.state() == v1::Job::RUNNING ? ", stopping" : "");
  }
  return kExitOk;
}

int Logs(const Options& options) {
  const absl::StatusOr<Session> session = Open(options);
  if (!session.ok()) return Fail("jobs logs", session.status());
  v1::ListJobLogsRequest request;
  request.set_name(FullName(options.job));
  request.set_page_size(1000);
  do {
    grpc::ClientContext context;
    session->client->Prepare(&context);
    v1::ListJobLogsResponse page;
    const grpc::Status status = session->stub->ListJobLogs(&context, request, &page);
    if (!status.ok()) return Fail("jobs logs", session->client->Explain(status));
    for (const v1::LogLine& line : page.lines()) {
      const Json json = ToJson(line);
      if (options.json) {
        PrintJson(json, /*compact=*/true);
      } else {
        std::printf("%s [%lld] %s\n", json["time"].get<std::string>().c_str(),
                    static_cast<long long>(line.attempt()), line.text().c_str());
      }
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return kExitOk;
}

struct SubVerb {
  const char* name;
  const char* summary;
  bool takes_job;
  int (*run)(const Options& options);
};

constexpr SubVerb kSubVerbs[] = {
    {"list", "all jobs, newest first", false, List},
    {"show", "one job", true, Show},
    {"watch", "follow a job to its end; exit code 6 if its gate failed, 1 if it failed otherwise",
     true, Watch},
    {"cancel", "ask a job to stop; a running one stops within a block", true, Cancel},
    {"logs", "what the workers wrote about a job", true, Logs},
};

}  // namespace

RunVerb AddJobs(CLI::App& command) {
  const auto options = std::make_shared<Options>();
  const auto run = std::make_shared<int (*)(const Options&)>(nullptr);
  command.require_subcommand(1);
  command.footer(
      "Examples:\n"
      "  nibble jobs list\n"
      "  nibble jobs watch jobs/7f3k2m9q1x4c8v6b\n"
      "  nibble jobs list --json | jq -r '.[] | select(.state == \"FAILED\") | .name'");
  for (const SubVerb& verb : kSubVerbs) {
    CLI::App* sub = command.add_subcommand(verb.name, verb.summary);
    if (verb.takes_job) {
      sub->add_option("job", options->job, "jobs/<id>, or the id alone")->required();
    }
    sub->add_flag("--json", options->json, "JSON for scripts");
    AddClientOptions(*sub, &options->client);
    sub->callback([run, &verb] { *run = verb.run; });
  }
  return [options, run] { return (*run)(*options); };
}

}  // namespace nibble
