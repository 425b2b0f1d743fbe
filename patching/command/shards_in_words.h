// Batches in words and as JSON: their progress, their shards, what they come to.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "patching/batch_folder.h"
#include "patching/merged_file.h"

namespace lenscpp::command {

/// "shard 13 of 63: 41,230 patches, 3,912 a second, 2 min left, 1 refused".
std::string progress_in_words(const BatchProgress& progress);
/// "2 h 5 min", "48 s".
std::string duration_in_words(double seconds);
/// What a merged batch comes to: a table a grid, its largest effects first.
std::string merged_in_words(const MergedFile& merged);
nlohmann::ordered_json merged_to_json(const MergedFile& merged);
/// How much of a batch is in its folder.
nlohmann::ordered_json folder_to_json(const std::filesystem::path& folder);
std::string folder_in_words(const std::filesystem::path& folder,
                            const nlohmann::ordered_json& counts);

}  // namespace lenscpp::command
