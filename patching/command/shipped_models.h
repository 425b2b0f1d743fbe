// Which folder a MODEL means: a path, or the name of a model that ships with the program.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace lenscpp::command {

/// This program's own file; empty where the system does not say.
std::filesystem::path program_path();
/// Where shipped models are looked for, in this order: the folders in LENSCPP_MODELS (separated by
/// colons), and beside the program: in the Python package, in a build tree, below an install
/// prefix.
std::vector<std::filesystem::path> model_folders();
/// Their names, in alphabetical order, each once.
std::vector<std::string> shipped_models();
/// A shipped name means the shipped model ("./NAME" a folder here); everything else is a path.
/// Throws std::invalid_argument naming what ships and where it was looked for.
std::filesystem::path resolve_model(const std::string& model);

}  // namespace lenscpp::command
