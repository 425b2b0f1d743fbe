// A run in words, as JSON and as a file: what the commands print and save.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lens/hooked_transformer.h"
#include "lens/logit_lens.h"
#include "patching/command/common.h"

namespace lenscpp::command {

/// The text of a token; "<id 7>" for an id of the model that its tokenizer has not.
std::string token_text(const HookedTransformer& model, std::int64_t id);
/// "15 tokens: "When" " John" ...", cut in the middle when there are many.
std::string tokens_in_words(const HookedTransformer& model, const Tokens& tokens);
/// "tiny-ioi on cpu in float32", in bold.
std::string model_in_words(const HookedTransformer& model);
nlohmann::ordered_json tokens_to_json(const HookedTransformer& model, const Tokens& tokens);
nlohmann::ordered_json to_json(const HookedTransformer& model, const std::vector<RankedToken>& top);
/// A record with the seed of the options.
nlohmann::json record_to_json(const RunRecord& record, const CommonOptions& options);

/// Logits [batch, pos, d_vocab] as one row of a lens: to rank tokens and turn them into
/// probabilities.
LogitLens as_lens(const Array& logits);
/// A verdict's table without the summary below it, and an empty line; nothing where nothing was
/// compared.
std::string points_table(const Verdict& verdict);
/// The logit lens at the last of its positions: a row a layer, the `k` most likely tokens, and how
/// `followed` stands.
std::string lens_table(const HookedTransformer& model, const LogitLens& lens, std::int64_t followed,
                       std::int64_t k);
nlohmann::ordered_json lens_to_json(const HookedTransformer& model, const LogitLens& lens,
                                    std::int64_t followed, std::int64_t k);

/// A file to be written: refuses (std::invalid_argument) what cannot be, before any work is done.
/// The suffix says the format, and must be one of `suffixes`.
std::filesystem::path checked_output(const std::string& path,
                                     const std::vector<std::string>& suffixes = {".h5",
                                                                                 ".safetensors"});
/// Saves a run as run_file.h has it, with the texts of its tokens; returns the file's size in
/// bytes.
template <class Cache>
std::uintmax_t save_sealed(const std::filesystem::path& path, const Cache& cache,
                           const HookedTransformer& model, nlohmann::json remarks);
/// Writes a safetensors file of what the caller vouches for: activations, tokens, and verdict,
/// record and prompt in the metadata. Returns the file's size in bytes.
std::uintmax_t save(const std::filesystem::path& path,
                    const std::map<std::string, Array>& activations, const Tokens& tokens,
                    const nlohmann::ordered_json& document);
std::map<std::string, Array> activations_of(const VerifiedCache& cache);
std::map<std::string, Array> activations_of(const UnverifiedCache& cache);

/// One JSON document and a line break, invalid UTF-8 replaced.
void print_json(const nlohmann::ordered_json& document);

}  // namespace lenscpp::command
