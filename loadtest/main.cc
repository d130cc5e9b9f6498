// SPDX-License-Identifier: Apache-2.0
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "loadtest/driver.h"
#include "loadtest/options.h"
#include "loadtest/report.h"

int main(int argc, char** argv) {
  using nibble::load::Options;
  Options options;
  bool json = false;
  CLI::App app("Puts load on a nibble server over gRPC and tells how it did.", "nibble-load");
  app.add_option("--server", options.server, "host:port")->capture_default_str();
  app.add_option("--model", options.model, "served model")->required();
  app.add_option("--clients", options.clients, "closed loop: requests always under way")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--rate", options.rate,
                 "open loop instead: requests per second, arriving at random (Poisson)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--requests", options.requests, "stop after so many; 0 = by --duration only")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--duration", options.duration, "seconds of sending; 0 = by --requests only")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--max-in-flight", options.max_in_flight, "open loop: beyond it nothing is sent")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--prompt-tokens", options.prompt_tokens, "random tokens of a prompt (mean)")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens, "tokens to ask for (mean)")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--spread", options.spread, "both vary by this fraction of their mean, 0..1")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--temperature", options.temperature, "")->capture_default_str();
  app.add_flag("--ignore-eos", options.ignore_eos, "always generate all of --max-tokens");
  app.add_option("--abort-fraction", options.abort_fraction,
                 "fraction of the requests that are cancelled half-way, 0..1")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--timeout", options.timeout, "deadline of a request in seconds")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--connections", options.connections, "TCP connections")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "same seed, same requests")->capture_default_str();
  app.add_option("--token", options.token, "bearer token")->envname("NIBBLE_TOKEN");
  app.add_option("--tls-ca", options.tls_ca, "PEM file with the certificate to trust")
      ->check(CLI::ExistingFile);
  app.add_flag("--json", json, "one JSON object instead of a table");
  app.footer(
      "Exit codes: 0 at least one request succeeded, 1 none did, 2 wrong command line.\n\n"
      "Examples:\n"
      "  nibble-load --model alice --clients 16 --duration 30\n"
      "  nibble-load --model alice --rate 20 --duration 60 --json\n"
      "  nibble-load --model alice --clients 200 --requests 200 --duration 0 --abort-fraction 0.5");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (options.requests == 0 && options.duration == 0) {
    std::fprintf(stderr, "nibble-load: --requests and --duration are both 0; give one of them\n");
    return 2;
  }
  const nibble::load::Result result = nibble::load::Drive(options);
  if (!result.error.empty()) {
    std::fprintf(stderr, "nibble-load: %s\n", result.error.c_str());
    return 1;
  }
  if (json) {
    std::printf("%s\n", result.report.dump(2).c_str());
  } else {
    std::fputs(nibble::load::Report::Table(result.report).c_str(), stdout);
  }
  return result.any_success ? 0 : 1;
}
