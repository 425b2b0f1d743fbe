// A grid as a sealed file of kind "grid":
//
//   /grid               {site, direction, axes: [{axis, labels}], metric, clean, corrupted,
//                       clean_of_prompts, corrupted_of_prompts, error_bar, verdict,
//                       records: {clean, corrupted}}
//   /values             float64, shaped by the axes; NaN in the cells that the verdict lists as
//                       refused
//   /values_of_prompts  the same of each prompt, the prompts last
#pragma once

#include <filesystem>

#include "patching/patch_grid.h"

namespace lenscpp {

/// Saves a grid with its status: one with refused cells only as INVALID, so that load_grid refuses
/// it. Throws what SealedWriter throws; what stood at `path` is then as before.
void save_grid(const std::filesystem::path& path, const GridResult& grid);
/// Reads a grid and checks every byte of it. Throws what SealedFile::open throws; NotVerified when
/// the grid in it is not a verified one, std::invalid_argument for another kind of file.
GridResult load_grid(const std::filesystem::path& path);
/// Reads a grid whatever its status and digests say: UNVERIFIED, or INVALID where the file says so.
GridResult load_grid_unverified(const std::filesystem::path& path);

}  // namespace lenscpp
