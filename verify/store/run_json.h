// What the JSON of a saved run says: the inverse of to_json for configs, records and verdicts.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "hooks/checkpoint/config.h"
#include "hooks/run_record.h"
#include "verify/verdict.h"

namespace lenscpp {

/// Each throws nlohmann::json::exception or std::logic_error for what to_json did not write.
Config config_from_json(const nlohmann::json& json);
RunRecord run_record_from_json(const nlohmann::json& json);

/// {site, layer, stage}.
nlohmann::json id_to_json(const TensorId& id);
TensorId id_from_json(const nlohmann::json& json);

/// A point in full: to_json(point), and what that leaves out.
nlohmann::json point_to_json(const Point& point);
Point point_from_json(const nlohmann::json& json);
/// A verdict without its points.
nlohmann::json verdict_to_json(const Verdict& verdict);
Verdict verdict_from_json(const nlohmann::json& json);

}  // namespace lenscpp
