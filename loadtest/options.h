// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace nibble::load {

struct Options {
  std::string server = "127.0.0.1:7460";
  std::string model;
  std::string token;         // bearer token, "" = none
  std::string tls_ca;        // PEM file, "" = no TLS
  int clients = 8;           // closed loop: so many requests are always under way
  double rate = 0;           // open loop if > 0: requests per second, Poisson arrivals
  int64_t requests = 0;      // stop after so many; 0 = no such limit
  double duration = 10;      // stop sending after so many seconds; 0 = no such limit
  int max_in_flight = 4096;  // open loop: beyond it arrivals are counted as not sent
  int prompt_tokens = 64;    // mean
  int max_tokens = 64;       // mean
  double spread = 0;         // both vary uniformly by this fraction of the mean, 0..1
  double temperature = 1;
  bool ignore_eos = false;
  double abort_fraction = 0;  // of the requests are cancelled by us after a random number of tokens
  double timeout = 600;       // deadline of a request in seconds
  uint64_t seed = 1;          // same seed, same requests and arrivals
  int connections = 1;
};

}  // namespace nibble::load
