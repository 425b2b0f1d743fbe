// Grids to sealed files and back.
#include "patching/grid_file.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "hooks/nearest.h"
#include "verify/store/run_json.h"
#include "verify/store/sealed_file.h"

namespace lenscpp {

using nlohmann::json;

namespace {

std::shared_future<double> known(double value) {
  std::promise<double> promise;
  promise.set_value(value);
  return promise.get_future().share();
}

Site site_named(const std::string& name) {
  for (const SiteInfo& row : all_sites())
    if (row.name == name) return row.site;
  throw std::logic_error("no site " + in_quotes(name));
}

Axis axis_named(const std::string& name) {
  for (Axis axis : {Axis::layer, Axis::pos, Axis::head, Axis::kv_head, Axis::query, Axis::key})
    if (name_of(axis) == name) return axis;
  throw std::logic_error("no axis " + in_quotes(name));
}

GridVerdict verdict_of(const json& v) {
  return {.status = status_from_name(v.at("status").get<std::string>()),
          .mode = verify_mode_from_name(v.at("mode").get<std::string>()),
          .cells = v.at("cells"),
          .runs = v.at("runs"),
          .refused_runs = v.at("refused_runs"),
          .equal_cells = v.value("equal_cells", std::int64_t{0}),
          .n_compared = v.at("n_compared"),
          .n_projected = v.value("n_projected", std::int64_t{0}),
          .worst_ratio = v.at("worst_ratio"),
          .worst_name = v.at("worst_name"),
          .seconds = v.at("seconds"),
          .refused_cells = v.at("refused_cells"),
          .first_failure = v.at("first_failure")};
}

}  // namespace

void save_grid(const std::filesystem::path& path, const GridResult& grid) {
  json axes = json::array();
  for (const GridAxis& axis : grid.axes())
    axes.push_back({{"axis", name_of(axis.axis)}, {"labels", axis.labels}});
  SealedWriter writer(path, FileKind::grid);
  writer.document("/grid", {{"site", info(grid.site()).name},
                            {"direction", name_of(grid.direction())},
                            {"axes", axes},
                            {"metric", grid.metric()},
                            {"clean", grid.clean()},
                            {"corrupted", grid.corrupted()},
                            {"clean_of_prompts", grid.clean_of_prompts()},
                            {"corrupted_of_prompts", grid.corrupted_of_prompts()},
                            {"error_bar", grid.error_bar()},
                            {"verdict", to_json(grid.verdict())},
                            {"records",
                             {{"clean", to_json(grid.clean_record())},
                              {"corrupted", to_json(grid.corrupted_record())}}}});
  writer.array("/values", grid.values());
  writer.array("/values_of_prompts", grid.values_of_prompts());
  writer.commit(grid.verdict().status);
}

// What makes a grid beside a sweep: a file that a sweep's was saved to.
class GridReader {
 public:
  explicit GridReader(SealedFile file) : file_(std::move(file)) {
    if (file_.kind() != FileKind::grid)
      throw std::invalid_argument("[store] " + file_.origin() + " is a file of kind " +
                                  in_quotes(name_of(file_.kind())) + "; needed: a grid");
  }

  GridResult verified() {
    GridResult::State grid = content();
    std::vector<double> values = grid.values.to_doubles();
    bool finite = std::ranges::all_of(values, [](double x) { return std::isfinite(x); });
    if (grid.verdict.status != Status::verified || !grid.verdict.refused_cells.empty() ||
        grid.verdict.n_compared == 0 || !finite)
      throw NotVerified("[store] " + file_.origin() + ": /grid is not a verified grid");
    return GridResult(std::move(grid));
  }

  GridResult unverified() {
    GridResult::State grid = content();
    if (grid.verdict.status != Status::invalid) grid.verdict.status = Status::unverified;
    return GridResult(std::move(grid));
  }

 private:
  // What is JSON but no grid was written by another version: bad input.
  GridResult::State content() {
    json grid = file_.document("/grid");
    Array values = file_.array("/values"), of_prompts = file_.array("/values_of_prompts");
    try {
      return state_of(grid, std::move(values), std::move(of_prompts));
    } catch (const json::exception& e) {
      refuse(e.what());
    } catch (const std::logic_error& e) {
      refuse(e.what());
    }
  }

  [[noreturn]] void refuse(const std::string& why) const {
    throw std::invalid_argument("[store] " + file_.origin() +
                                " is not a grid that this lenscpp reads: " + why);
  }

  static GridResult::State state_of(const json& grid, Array values, Array of_prompts) {
    GridResult::State state{
        .site = site_named(grid.at("site")),
        .direction = direction_from_name(grid.at("direction").get<std::string>()),
        .axes = {},
        .values = std::move(values),
        .values_of_prompts = std::move(of_prompts),
        .clean = grid.at("clean"),
        .corrupted = grid.at("corrupted"),
        .clean_of_prompts = grid.at("clean_of_prompts"),
        .corrupted_of_prompts = grid.at("corrupted_of_prompts"),
        .error_bar = known(grid.at("error_bar")),
        .metric = grid.at("metric"),
        .verdict = verdict_of(grid.at("verdict")),
        .clean_record = run_record_from_json(grid.at("records").at("clean")),
        .corrupted_record = run_record_from_json(grid.at("records").at("corrupted"))};
    Shape shape;
    for (const json& axis : grid.at("axes")) {
      state.axes.push_back({axis_named(axis.at("axis")), axis.at("labels")});
      shape.push_back(std::ssize(state.axes.back().labels));
    }
    if (state.values.shape() != shape || state.values.dtype() != DType::f64 || shape.empty())
      throw std::logic_error("/values is " + to_string(state.values.shape()) + ", its labels " +
                             to_string(shape));
    shape.push_back(std::ssize(state.clean_of_prompts));
    if (state.values_of_prompts.shape() != shape || state.values_of_prompts.dtype() != DType::f64 ||
        state.corrupted_of_prompts.size() != state.clean_of_prompts.size())
      throw std::logic_error("/values_of_prompts is " + to_string(state.values_of_prompts.shape()) +
                             "; needed: " + to_string(shape));
    for (std::int64_t cell : state.verdict.refused_cells)
      if (cell < 0 || cell >= state.values.numel())
        throw std::logic_error("there is no cell " + std::to_string(cell));
    return state;
  }

  SealedFile file_;
};

GridResult load_grid(const std::filesystem::path& path) {
  return GridReader(SealedFile::open(path)).verified();
}
GridResult load_grid_unverified(const std::filesystem::path& path) {
  return GridReader(SealedFile::open_unverified(path)).unverified();
}

}  // namespace lenscpp
