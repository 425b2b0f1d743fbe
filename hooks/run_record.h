// What was run, on what, under which circumstances: travels with every cache, picture and file.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "hooks/array.h"
#include "hooks/prompts.h"

namespace lenscpp {

/// One call of a callback: what it was handed, and what the run went on with.
struct HookCall {
  std::string name;           // of the hook point
  std::string function;       // of the callback
  std::string before, after;  // Array::digest
  bool changed = false;       // any bit
};

/// Everything that one needs to judge or repeat a run.
struct RunRecord {
  std::string model;             // name or folder as given
  std::string model_digest;      // of config and master weights, as processed and rounded
  std::string tokenizer_digest;  // empty without a tokenizer
  std::int64_t batch = 0, pos = 0;
  std::vector<std::int64_t> tokens;  // [batch * pos], row-major; empty when started from a residual
  std::vector<Span> spans;           // of each prompt; empty: no padding
  std::vector<std::int64_t> token_types;  // [batch * pos]; empty: all of kind 0
  std::vector<std::int64_t> kept_pos;     // positions whose activations were kept; empty: all
  std::int64_t first_layer = 0, end_layer = 0;
  std::vector<std::int64_t> split;  // prompts of each part that ran by itself; empty: all at once
  nlohmann::json plan = nlohmann::json::array();
  std::vector<HookCall> hooks;  // in the order in which they were called
  nlohmann::json processing = nlohmann::json::object();
  std::string adapter;  // folder and digest of what was merged into the weights; empty without one
  std::string device, device_name, dtype;
  MatmulPrecision matmul_precision = MatmulPrecision::ieee;  // as declared
  std::map<std::string, std::string> ambient;                // flags of torch as pinned for the run
  std::map<std::string, std::string> libraries;              // versions
  std::string build_commit;
  bool build_dirty = false;
  std::int64_t threads = 0;
  std::optional<std::uint64_t> seed;   // of the checksums' projections, where they were used
  std::vector<std::string> fallbacks;  // operators that ran on the CPU instead of the device
  std::string mode;                    // of the verification
  double coverage = 0;                 // share of elements compared exactly
  std::string time;                    // UTC, ISO 8601
};

nlohmann::json to_json(const HookCall& call);
nlohmann::json to_json(const RunRecord& record);

}  // namespace lenscpp
