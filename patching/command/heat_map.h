// Grids of numbers in colours: in the terminal, and as tables of an HTML page that needs nothing
// else.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "patching/command/terminal.h"
#include "patching/patch_grid.h"

namespace lenscpp::command {

/// Numbers over two axes. NaN is a cell that was refused, or what `blank_means` says.
struct HeatMap {
  std::string title;  // one line; empty: none
  std::string row_title, column_title;
  std::vector<std::string> row_labels, column_labels;  // any text
  std::vector<double> values;                          // [row, column], row-major
  double reach = 1;  // colours go from red at -reach over white at 0 to blue at reach
  std::string blank = "×", blank_means = "refused";  // in one column; in words
};

/// The map as lines of text, a legend last: numbers on coloured cells; where they do not fit into
/// `width` columns, tenths of the reach; where those do not either, as many columns as do, and a
/// line that says how many are not shown. Without `width` nothing is left out.
std::string heat_map_text(const HeatMap& map, Colours colours, std::optional<int> width);
/// As standard output takes it.
std::string heat_map_text(const HeatMap& map);
/// A table of HTML; every label is escaped, hovering tells a cell's labels and value.
std::string heat_map_html(const HeatMap& map);
/// A whole page around such tables. `title` is text, `body` is HTML.
std::string html_page(const std::string& title, const std::string& body);
std::string escaped_html(const std::string& text);

/// A grid as maps: positions down and layers across, one map for each index of the axes in between
/// ("head 2"). Normalized where the metric tells clean from corrupted, else the metric itself.
std::vector<HeatMap> heat_maps(const GridResult& grid);
/// Writes a page of grids, each with its verdict, below `lines` of text. Throws std::system_error.
void write_page(const std::filesystem::path& path, const std::vector<GridResult>& grids,
                const std::vector<std::string>& lines);
/// "denoise resid_pre: logit_diff, clean +9.42, corrupted -7.20, error bar 6e-06; 0 is the
/// corrupted run, 1 the clean one".
std::string grid_in_words(const GridResult& grid);
/// site, over, labels, values (flat, refused cells null), shape, baselines, error bar, verdict.
nlohmann::ordered_json grid_to_json(const GridResult& grid);

}  // namespace lenscpp::command
