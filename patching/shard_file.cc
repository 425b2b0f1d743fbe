#include "patching/shard_file.h"

#include <stdexcept>

#include "hooks/nearest.h"

namespace lenscpp {

using nlohmann::json;

namespace {

Array column(const std::vector<double>& values) {
  return Array::of(std::span<const double>(values), {std::ssize(values)});
}

Axis axis_named(const std::string& name) {
  for (Axis axis : {Axis::layer, Axis::pos, Axis::head, Axis::kv_head, Axis::query, Axis::key})
    if (name_of(axis) == name) return axis;
  throw std::logic_error("no axis " + in_quotes(name));
}

template <class Item>
json list_of(const std::vector<Item>& items) {
  json list = json::array();
  for (const Item& item : items) list.push_back(to_json(item));
  return list;
}

}  // namespace

json axes_to_json(const std::vector<GridAxis>& axes) {
  json list = json::array();
  for (const GridAxis& axis : axes)
    list.push_back({{"axis", name_of(axis.axis)}, {"labels", axis.labels}});
  return list;
}

std::vector<GridAxis> axes_from_json(const json& list) {
  std::vector<GridAxis> axes;
  for (const json& axis : list) axes.push_back({axis_named(axis.at("axis")), axis.at("labels")});
  return axes;
}

void save_shard(const std::filesystem::path& path, const Shard& shard) {
  json grids = json::array();
  for (const ShardGrid& grid : shard.grids)
    grids.push_back({{"key", grid.key}, {"axes", axes_to_json(grid.axes)}});
  SealedWriter writer(path, FileKind::shard);
  writer.document("/shard", {{"name", shard.name},
                             {"verdict", shard.verdict},
                             {"provenance", shard.provenance},
                             {"error_bar", shard.error_bar},
                             {"grids", grids}});
  writer.document("/experiments", list_of(shard.experiments));
  writer.document("/rejected", list_of(shard.rejected));
  writer.array("/clean", column(shard.clean));
  writer.array("/corrupted", column(shard.corrupted));
  for (const ShardGrid& grid : shard.grids) writer.array("/values/" + grid.key, grid.values);
  writer.commit(shard.status);
}

ShardFile::ShardFile(SealedFile file, bool checked) : file_(std::move(file)), checked_(checked) {
  if (file_.kind() != FileKind::shard)
    throw std::invalid_argument("[store] " + file_.origin() + " is a file of kind " +
                                in_quotes(name_of(file_.kind())) + "; needed: a shard");
  auto need = [&](const std::string& name, const Shape& shape) {
    const SealedFile::Entry& entry = file_.entries().at(name);
    if (entry.dtype != DType::f64 || entry.shape != shape)
      throw std::logic_error(name + " is " + to_string(entry.shape) + "; needed: float64 " +
                             to_string(shape));
  };
  try {
    json shard = file_.document("/shard");
    name_ = shard.at("name");
    verdict_ = shard.at("verdict");
    provenance_ = shard.at("provenance");
    error_bar_ = shard.at("error_bar");
    experiments_ = file_.document("/experiments");
    rejected_ = file_.document("/rejected");
    need("/clean", {n()});
    need("/corrupted", {n()});
    for (const json& grid : shard.at("grids")) {
      grids_.push_back({grid.at("key"), axes_from_json(grid.at("axes"))});
      Shape shape{n()};
      for (const GridAxis& axis : grids_.back().axes) shape.push_back(std::ssize(axis.labels));
      need("/values/" + grids_.back().key, shape);
    }
  } catch (const NotVerified&) {
    throw;
  } catch (const std::exception& e) {
    throw NotVerified("[store] " + file_.origin() +
                      ": it is no shard of this library: " + e.what());
  }
}

ShardFile ShardFile::open_of_any_status(const std::filesystem::path& path) {
  ShardFile shard(SealedFile::open_of_any_status(path), true);
  if (shard.name_ != path.stem().string())
    throw NotVerified("[store] " + shard.origin() + " holds the shard " +
                      shard.name_.substr(0, 12) + ", not the one that it is named after");
  return shard;
}

ShardFile ShardFile::open(const std::filesystem::path& path) {
  SealedFile::open(path);  // whose refusal says what to do
  ShardFile shard = open_of_any_status(path);
  if (shard.verdict_.value("status", "") != lenscpp::name_of(Status::verified) ||
      shard.verdict_.value("n_compared", std::int64_t{0}) <= 0)
    throw NotVerified("[store] " + shard.origin() + ": /shard is not a verified shard");
  return shard;
}

ShardFile ShardFile::open_unverified(const std::filesystem::path& path) {
  return {SealedFile::open_unverified(path), false};
}

const ShardFile::Grid* ShardFile::grid(const std::string& key) const {
  for (const Grid& grid : grids_)
    if (grid.key == key) return &grid;
  return nullptr;
}

}  // namespace lenscpp
