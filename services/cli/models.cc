// SPDX-License-Identifier: Apache-2.0
// nibble models {list,show,push,load,unload,rm}: uploaded models, artifacts, and what is served.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/ops.h"
#include "nibble/v1/generation.grpc.pb.h"
#include "nibble/v1/quantization.grpc.pb.h"
#include "services/cli/client.h"
#include "services/cli/exit_codes.h"
#include "services/cli/json_output.h"
#include "services/cli/progress_bar.h"
#include "services/cli/upload_client.h"
#include "services/cli/verbs.h"
#include "services/quantization/status_macros.h"

namespace nibble {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  ClientOptions client;
  std::string name;    // of a resource; "" where there is none
  std::string target;  // push: a local path
  std::string as;      // push --name, load --as
  std::string kv;
  std::string mode;
  int32_t max_context = 0;
  int32_t max_running = 0;
  int64_t memory = 0;
  bool json = false;
};

// One server seen through both services.
struct Session {
  std::unique_ptr<Client> client;
  std::unique_ptr<v1::QuantizationService::Stub> quantization;
  std::unique_ptr<v1::GenerationService::Stub> generation;

  template <typename Stub, typename Request, typename Response>
  absl::Status Call(Stub& stub,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response) const {
    grpc::ClientContext context;
    client->Prepare(&context);
    return client->Explain((stub.*method)(&context, request, response));
  }
};

using Quantization = v1::QuantizationService::Stub;
using Generation = v1::GenerationService::Stub;

absl::StatusOr<Session> Open(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Client::Make(options.client));
  Session session;
  session.quantization = v1::QuantizationService::NewStub(client->channel());
  session.generation = v1::GenerationService::NewStub(client->channel());
  session.client = std::move(client);
  return session;
}

// A server may carry one of the services only; then there is nothing of the other to list.
absl::Status UnlessAbsent(const absl::Status& status) {
  return absl::IsUnimplemented(status) ? absl::OkStatus() : status;
}

absl::Status List(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Session session, Open(options));
  Json json = {
      {"models", Json::array()}, {"artifacts", Json::array()}, {"served_models", Json::array()}};
  const char* format = "%-34s %-10s %-16s %8s %9s  %s\n";
  if (!options.json) std::printf(format, "NAME", "SIZE", "SCHEME", "BITS", "KL", "STATE");
  const auto figure = [](bool set, double value) {
    char text[24] = "-";
    if (set) std::snprintf(text, sizeof(text), "%.4g", value);
    return std::string(text);
  };

  v1::ListModelsRequest models;
  do {
    v1::ListModelsResponse page;
    NIBBLE_RETURN_IF_ERROR(UnlessAbsent(
        session.Call(*session.quantization, &Quantization::ListModels, models, &page)));
    for (const v1::Model& model : page.models()) {
      json["models"].push_back(ToJson(model));
      if (options.json) continue;
      std::printf(format, model.name().c_str(), FormatBytes(model.size_bytes()).c_str(), "-", "-",
                  "-", "source");
    }
    models.set_page_token(page.next_page_token());
  } while (!models.page_token().empty());

  v1::ListArtifactsRequest artifacts;
  do {
    v1::ListArtifactsResponse page;
    NIBBLE_RETURN_IF_ERROR(UnlessAbsent(
        session.Call(*session.quantization, &Quantization::ListArtifacts, artifacts, &page)));
    for (const v1::Artifact& artifact : page.artifacts()) {
      json["artifacts"].push_back(ToJson(artifact));
      if (options.json) continue;
      const v1::Quality& quality = artifact.quality();
      std::printf(format, artifact.name().c_str(), FormatBytes(artifact.size_bytes()).c_str(),
                  artifact.scheme().c_str(),
                  figure(quality.has_bits_per_weight(), quality.bits_per_weight()).c_str(),
                  figure(quality.has_kl(), quality.kl()).c_str(), "artifact");
    }
    artifacts.set_page_token(page.next_page_token());
  } while (!artifacts.page_token().empty());

  v1::ListServedModelsRequest served;
  do {
    v1::ListServedModelsResponse page;
    NIBBLE_RETURN_IF_ERROR(UnlessAbsent(
        session.Call(*session.generation, &Generation::ListServedModels, served, &page)));
    for (const v1::ServedModel& model : page.models()) {
      json["served_models"].push_back(ToJson(model));
      if (options.json) continue;
      std::printf(
          format, model.name().c_str(),
          FormatBytes(model.weight_bytes() + model.kv_bytes()).c_str(), model.scheme().c_str(), "-",
          "-",
          absl::StrCat(v1::ServedModel::State_Name(model.state()), " ", model.source()).c_str());
    }
    served.set_page_token(page.next_page_token());
  } while (!served.page_token().empty());
  if (options.json) PrintJson(json);
  return absl::OkStatus();
}

std::string NameOf(const Json& resource) { return resource["name"].get<std::string>(); }

// The resource behind a name. A bare one is an artifact's or a model's, which must not be both, or
// else a served model's.
absl::StatusOr<Json> Find(const Session& session, const std::string& name) {
  std::vector<std::string> candidates = {name};
  if (!absl::StrContains(name, "/")) {
    candidates = {absl::StrCat("artifacts/", name), absl::StrCat("models/", name),
                  absl::StrCat("servedModels/", name)};
  }
  std::vector<Json> found;
  absl::Status missing = absl::NotFoundError(absl::StrCat("there is no ", name));
  for (const std::string& candidate : candidates) {
    absl::Status status;
    if (absl::StartsWith(candidate, "models/")) {
      v1::GetModelRequest request;
      request.set_name(candidate);
      v1::Model model;
      status = session.Call(*session.quantization, &Quantization::GetModel, request, &model);
      if (status.ok()) found.push_back(ToJson(model));
    } else if (absl::StartsWith(candidate, "artifacts/")) {
      v1::GetArtifactRequest request;
      request.set_name(candidate);
      v1::Artifact artifact;
      status = session.Call(*session.quantization, &Quantization::GetArtifact, request, &artifact);
      if (status.ok()) found.push_back(ToJson(artifact));
    } else if (absl::StartsWith(candidate, "servedModels/")) {
      v1::GetServedModelRequest request;
      request.set_name(candidate);
      v1::ServedModel model;
      status = session.Call(*session.generation, &Generation::GetServedModel, request, &model);
      if (status.ok()) found.push_back(ToJson(model));
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", name, "' must be models/<id>, artifacts/<id>, servedModels/<id> or an id"));
    }
    if (!status.ok() && !absl::IsNotFound(status) && !absl::IsUnimplemented(status)) return status;
  }
  if (found.empty()) return missing;
  const bool ambiguous = found.size() > 1 && !absl::StartsWith(NameOf(found[1]), "servedModels/");
  if (ambiguous) {
    return absl::InvalidArgumentError(absl::StrCat("'", name, "' could be ", NameOf(found[0]),
                                                   " or ", NameOf(found[1]),
                                                   "; write the whole name"));
  }
  return std::move(found.front());
}

absl::Status Show(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Session session, Open(options));
  NIBBLE_ASSIGN_OR_RETURN(const Json resource, Find(session, options.name));
  if (options.json) {
    PrintJson(resource);
    return absl::OkStatus();
  }
  for (const auto& [key, value] : resource.items()) {
    if (!value.is_structured()) {
      std::printf("%-22s %s\n", key.c_str(),
                  value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
      continue;
    }
    std::printf("%s\n", key.c_str());
    for (const auto& [name, entry] : value.items()) {
      if (entry.is_object()) {
        std::printf("  %-40s %s\n", entry.value("name", name).c_str(),
                    FormatBytes(entry.value("size_bytes", int64_t{0})).c_str());
      } else {
        std::printf("  %-20s %s\n", name.c_str(), entry.dump().c_str());
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Push(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Session session, Open(options));
  NIBBLE_ASSIGN_OR_RETURN(const std::string name,
                          UploadModel(*session.client, options.target, {options.as, options.json}));
  if (options.json) {
    PrintJson({{"name", name}});
  } else {
    std::printf("%s\n", name.c_str());
  }
  return absl::OkStatus();
}

absl::Status Load(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Session session, Open(options));
  v1::LoadModelRequest request;
  std::string source = options.name;
  if (!absl::StrContains(source, "/")) {
    // A bare name is an artifact's or a model's; otherwise a path on the server, which it checks.
    const absl::StatusOr<Json> resource = Find(session, source);
    if (resource.ok()) source = NameOf(*resource);
  }
  request.set_source(source);
  request.set_name(options.as.empty() ? source.substr(source.rfind('/') + 1) : options.as);
  request.set_kv_format(options.kv);
  request.set_mode(options.mode);
  request.set_max_context(options.max_context);
  request.set_max_running(options.max_running);
  request.set_memory_budget_bytes(options.memory);
  v1::LoadModelResponse response;
  NIBBLE_RETURN_IF_ERROR(
      session.Call(*session.generation, &Generation::LoadModel, request, &response));
  if (options.json) {
    PrintJson(ToJson(response.model()));
  } else {
    std::printf("%s serves %s (%s, %s, context %d)\n", response.model().name().c_str(),
                response.model().source().c_str(), response.model().scheme().c_str(),
                response.model().device().c_str(), response.model().max_context());
  }
  return absl::OkStatus();
}

absl::Status Unload(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Session session, Open(options));
  v1::UnloadModelRequest request;
  request.set_name(options.name);
  v1::UnloadModelResponse response;
  NIBBLE_RETURN_IF_ERROR(
      session.Call(*session.generation, &Generation::UnloadModel, request, &response));
  if (!options.json) std::printf("%s is unloaded\n", options.name.c_str());
  return absl::OkStatus();
}

absl::Status Remove(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Session session, Open(options));
  NIBBLE_ASSIGN_OR_RETURN(const Json resource, Find(session, options.name));
  const std::string name = NameOf(resource);
  google::protobuf::Empty empty;
  if (absl::StartsWith(name, "artifacts/")) {
    v1::DeleteArtifactRequest request;
    request.set_name(name);
    NIBBLE_RETURN_IF_ERROR(
        session.Call(*session.quantization, &Quantization::DeleteArtifact, request, &empty));
  } else if (absl::StartsWith(name, "models/")) {
    v1::DeleteModelRequest request;
    request.set_name(name);
    NIBBLE_RETURN_IF_ERROR(
        session.Call(*session.quantization, &Quantization::DeleteModel, request, &empty));
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is served; `nibble models unload` ends that"));
  }
  if (!options.json) std::printf("%s is removed\n", name.c_str());
  return absl::OkStatus();
}

struct SubVerb {
  const char* name;
  const char* summary;
  const char* argument;  // nullptr = none
  absl::Status (*run)(const Options& options);
};

constexpr SubVerb kSubVerbs[] = {
    {"list", "uploaded models, artifacts and served models", nullptr, List},
    {"show", "one of them, with its files", "name", Show},
    {"push", "send a Hugging Face directory or GGUF file to the server", "path", Push},
    {"load", "serve an artifact, an uploaded model, or a path beneath the server's model root",
     "source", Load},
    {"unload", "stop serving a model", "name", Unload},
    {"rm", "delete an artifact or an uploaded model", "name", Remove},
};

}  // namespace

RunVerb AddModels(CLI::App& command) {
  const auto options = std::make_shared<Options>();
  const auto chosen = std::make_shared<const SubVerb*>(nullptr);
  Options& o = *options;
  command.require_subcommand(1);
  command.footer(
      "Examples:\n"
      "  nibble models push ./llama --name llama\n"
      "  nibble models load artifacts/llama-int4 --as llama\n"
      "  nibble models list --json | jq -r '.artifacts[].name'");
  for (const SubVerb& verb : kSubVerbs) {
    CLI::App* sub = command.add_subcommand(verb.name, verb.summary);
    if (verb.run == Push) {
      sub->add_option(verb.argument, o.target, "directory or file")->required();
      sub->add_option("--name", o.as, "id of the model to be (default: drawn by the server)");
    } else if (verb.argument != nullptr) {
      sub->add_option(verb.argument, o.name, "artifacts/<id>, models/<id>, or the id alone")
          ->required();
    }
    if (verb.run == Load) {
      sub->add_option("--as", o.as, "name to serve it under (default: the source's id)");
      sub->add_option("--kv", o.kv,
                      "KV cache format: " + KvFormatNames() + " (default: the artifact's)");
      sub->add_option("--mode", o.mode, "fast or exact (default: fast)");
      sub->add_option(
          "--max-context", o.max_context,
          "longest sequence in tokens (default: the model's, up to the server's bound)");
      sub->add_option("--max-running", o.max_running,
                      "sequences that run at once (default: the server's)");
      sub->add_option("--memory", o.memory,
                      "bytes for weights and KV cache (default: the server's --model-memory)");
    }
    sub->add_flag("--json", o.json, "JSON for scripts");
    AddClientOptions(*sub, &o.client);
    sub->callback([chosen, &verb] { *chosen = &verb; });
  }
  return [options, chosen]() -> int {
    const absl::Status status = (*chosen)->run(*options);
    if (status.ok()) return kExitOk;
    return Fail(absl::StrCat("models ", (*chosen)->name).c_str(), status);
  };
}

}  // namespace nibble
