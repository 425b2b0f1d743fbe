// Runs to sealed files and back.
#include "verify/store/run_file.h"

#include "hooks/nearest.h"
#include "verify/store/run_json.h"
#include "verify/store/sealed_file.h"

namespace lenscpp {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

using Entry = Activations::Entry;

json run_document(const Config& config, const RunRecord& record, const Activations& activations,
                  const RunNotes& notes) {
  json names = json::array();
  for (const Entry& entry : activations.entries()) names.push_back(id_to_json(entry.id));
  const Entry& output = activations.output();
  return {{"config", to_json(config)},
          {"record", to_json(record)},
          {"activations", names},
          {"output", output.name.empty() ? json() : id_to_json(output.id)},
          {"remarks", notes.remarks}};
}

void write_prompts(SealedWriter& writer, const RunRecord& record, const RunNotes& notes) {
  if (!record.tokens.empty())
    writer.array("/prompts/tokens", Array::of(std::span<const std::int64_t>(record.tokens),
                                              {record.batch, record.pos}));
  if (!notes.strings.empty()) writer.document("/prompts/strings", notes.strings);
  if (notes.positions)
    writer.array("/prompts/positions",
                 Array::of(std::span<const std::int64_t>(*notes.positions),
                           {static_cast<std::int64_t>(notes.positions->size())}));
}

void write_verdict(SealedWriter& writer, const Verdict& verdict) {
  writer.document("/verdict", verdict_to_json(verdict));
  std::map<std::string, json> points;
  for (std::size_t i = 0; i < verdict.points.size(); ++i) {
    json point = point_to_json(verdict.points[i]);
    point["order"] = i;
    std::string name = point.at("name");
    points[name].push_back(std::move(point));
  }
  for (const auto& [name, of_name] : points) writer.document("/verify/" + name, of_name);
}

const Array& value_of(const VerifiedCache& cache, const Entry& entry) { return cache[entry.name]; }
const Array& value_of(const UnverifiedCache&, const Entry& entry) { return entry.value; }
const Array& output_of(const VerifiedCache& cache) { return cache.output(); }
const Array& output_of(const UnverifiedCache& cache) { return cache.activations().output().value; }

template <class Cache>
void save(const fs::path& path, const Cache& cache, const RunNotes& notes, Status status) {
  SealedWriter writer(path, FileKind::run);
  writer.document("/run", run_document(cache.config(), cache.record(), cache.activations(), notes));
  write_prompts(writer, cache.record(), notes);
  for (const Entry& entry : cache.activations().entries())
    writer.array("/act/" + entry.name, value_of(cache, entry));
  if (!cache.activations().output().name.empty()) writer.array("/output", output_of(cache));
  write_verdict(writer, cache.verdict());
  writer.commit(status);
}

}  // namespace

void save_run(const fs::path& path, const VerifiedCache& cache, const RunNotes& notes) {
  save(path, cache, notes, Status::verified);
}
void save_run(const fs::path& path, const UnverifiedCache& cache, const RunNotes& notes) {
  save(path, cache, notes,
       cache.verdict().status == Status::invalid ? Status::invalid : Status::unverified);
}

// The second and last that can make a VerifiedCache: from a file that a Verifier's was saved to.
class RunReader {
 public:
  RunReader(SealedFile file, std::optional<ModelAtHand> model)
      : file_(std::move(file)), model_(std::move(model)) {
    if (file_.kind() != FileKind::run)
      throw std::invalid_argument("[store] " + file_.origin() + " is a file of kind " +
                                  in_quotes(name_of(file_.kind())) + "; needed: a run");
  }

  LoadedRun verified() {
    Content run = content();
    if (run.verdict.status != Status::verified || run.verdict.first_failure() != nullptr ||
        run.verdict.n_compared() == 0)
      throw NotVerified("[store] " + file_.origin() + ": /verdict is not that of a verified run");
    return {VerifiedCache({weights(), std::move(run.activations), std::move(run.record),
                           std::move(run.verdict), std::move(run.config)}),
            std::move(run.notes)};
  }

  LoadedUnverifiedRun unverified() {
    Content run = content();
    if (run.verdict.status != Status::invalid) run.verdict = Verdict{};
    return {UnverifiedCache(weights(), std::move(run.activations), std::move(run.record),
                            std::move(run.verdict), std::move(run.config)),
            std::move(run.notes)};
  }

 private:
  struct Content {
    Activations activations;
    RunRecord record;
    Verdict verdict;
    Config config;
    RunNotes notes;
  };

  // What is JSON but no run, or of kinds unknown here, was written by another version: bad input.
  Content content() {
    auto refuse = [&](const std::exception& error) -> Content {
      throw std::invalid_argument("[store] " + file_.origin() +
                                  " is not a run that this lenscpp reads: " + error.what());
    };
    try {
      run_ = file_.document("/run");
      RunRecord record = run_record_from_json(run_.at("record"));
      check_model(record);
      return {activations(), std::move(record), verdict(), config_from_json(run_.at("config")),
              notes()};
    } catch (const std::invalid_argument&) {
      throw;
    } catch (const json::exception& error) {
      return refuse(error);
    } catch (const std::logic_error& error) {
      return refuse(error);
    }
  }

  void check_model(const RunRecord& record) const {
    if (!model_ || model_->digest == record.model_digest) return;
    throw std::invalid_argument("[store] " + file_.origin() + " is a run of " +
                                in_quotes(record.model) + " with digest " + record.model_digest +
                                "; the model given has " + model_->digest +
                                " (its processing and dtype must be those of the run)");
  }

  Activations activations() const {
    Activations activations;
    for (const json& entry : run_.at("activations")) {
      TensorId id = id_from_json(entry);
      Array value = file_.array("/act/" + hook_name(id.site, id.layer));
      std::string digest = value.digest();
      activations.add(id, std::move(value), std::move(digest));
    }
    if (run_.at("output").is_null()) return activations;
    Array output = file_.array("/output");
    std::string digest = output.digest();
    activations.set_output(id_from_json(run_.at("output")), std::move(output), std::move(digest));
    return activations;
  }

  Verdict verdict() const {
    Verdict verdict = verdict_from_json(file_.document("/verdict"));
    std::map<std::int64_t, Point> in_order;
    for (const auto& [name, entry] : file_.entries())
      if (name.starts_with("/verify/"))
        for (const json& point : file_.document(name))
          in_order.emplace(point.at("order").get<std::int64_t>(), point_from_json(point));
    for (auto& [order, point] : in_order) verdict.points.push_back(std::move(point));
    return verdict;
  }

  RunNotes notes() const {
    RunNotes notes{.remarks = run_.at("remarks")};
    if (file_.has("/prompts/strings"))
      notes.strings = file_.document("/prompts/strings").get<std::vector<std::string>>();
    if (file_.has("/prompts/positions")) {
      Array positions = file_.array("/prompts/positions");
      auto values = positions.as<std::int64_t>();
      notes.positions.emplace(values.begin(), values.end());
    }
    if (file_.has("/prompts/tokens")) file_.array("/prompts/tokens");  // for its digest alone
    return notes;
  }

  std::shared_ptr<const Weights> weights() const { return model_ ? model_->weights : nullptr; }

  SealedFile file_;
  std::optional<ModelAtHand> model_;
  json run_;
};

LoadedRun load_run(const fs::path& path, const std::optional<ModelAtHand>& model) {
  return RunReader(SealedFile::open(path), model).verified();
}
LoadedUnverifiedRun load_run_unverified(const fs::path& path,
                                        const std::optional<ModelAtHand>& model) {
  return RunReader(SealedFile::open_unverified(path), model).unverified();
}

}  // namespace lenscpp
