// lenscpp verify: checks a run that was recorded elsewhere, or with --verify off.
#include "hooks/checkpoint/safetensors.h"
#include "hooks/nearest.h"
#include "lens/saved_run.h"
#include "patching/command/common.h"
#include "patching/command/report.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr const char* kFooter = R"(Examples:
  lenscpp run tiny-ioi --prompt "John and Mary" --device mps --verify off --out run.h5
  lenscpp verify run.h5 tiny-ioi --out checked.h5
  lenscpp verify recorded.safetensors path/to/gpt2     # hook name -> tensor, and the token ids as "tokens"

What was not recorded is recomputed inside the operation that spans it, whose bound is widened accordingly.
The dtype is the recording's unless --dtype says otherwise. Weights must be those that ran: --no-processing where
nothing was folded.
)";

struct Options : CommonOptions {
  std::string file, out;
};

// What was recorded, and from which tokens.
struct Recording {
  std::int64_t batch = 0;
  std::vector<std::int64_t> ids = {};
  std::vector<Span> spans = {};
  std::vector<std::int64_t> types = {};
  std::map<std::string, Array> activations = {};
  std::string dtype = {}, model_digest = {};
  nlohmann::json record = {};  // of the run, where the file has one
};

[[noreturn]] void refuse(const Options& o, const std::string& what) {
  throw std::invalid_argument("[verify] " + o.file + ": " + what);
}

Recording recording_of_run(const Options& o) {
  LoadedUnverifiedRun run = load_run_unverified(o.file);
  const RunRecord& record = run.cache.record();
  if (record.tokens.empty())
    refuse(o, "the run started from a residual; needed: a run from its tokens");
  if (!record.plan.empty() || !record.hooks.empty())
    refuse(o, "the run had edits or hooks; needed: the clean run, whose tensors are the model's");
  if (run.notes.positions)
    refuse(o, "only some positions were kept (pos_slice); needed: whole activations");
  return {.batch = record.batch,
          .ids = record.tokens,
          .spans = record.spans,
          .types = record.token_types,
          .activations = activations_of(run.cache),
          .dtype = record.dtype,
          .model_digest = record.model_digest,
          .record = to_json(record)};
}

std::vector<std::int64_t> integers_of(const Array& array) {
  if (array.dtype() != DType::i64)
    throw std::invalid_argument("[verify] attention_mask and token_type_ids are int64; found: " +
                                std::string(name_of(array.dtype())));
  auto values = array.as<std::int64_t>();
  return {values.begin(), values.end()};
}

// A norm's scale is stored wider than the model: its dtype is the narrowest of all.
Recording recording_of_tensors(const Options& o) {
  SafetensorsFile file = SafetensorsFile::open(o.file);
  if (!file.has("tokens")) refuse(o, "there is no tensor \"tokens\" with the token ids, int64");
  Array tokens = file.tensor("tokens");
  if (tokens.dtype() != DType::i64 || (tokens.rank() != 1 && tokens.rank() != 2) || tokens.empty())
    refuse(o, "tokens are " + std::string(name_of(tokens.dtype())) + " " +
                  to_string(tokens.shape()) + "; allowed: int64 [pos] or [batch, pos]");
  auto ids = tokens.as<std::int64_t>();
  Recording recording{.batch = tokens.rank() == 1 ? 1 : tokens.size(0),
                      .ids = {ids.begin(), ids.end()}};
  std::size_t narrowest = sizeof(double) + 1;
  std::int64_t pos = std::ssize(recording.ids) / recording.batch;
  if (file.has("attention_mask"))
    recording.spans =
        spans_of_mask(integers_of(file.tensor("attention_mask")), recording.batch, pos);
  if (file.has("token_type_ids")) recording.types = integers_of(file.tensor("token_type_ids"));
  for (const std::string& name : file.names()) {
    if (name == "tokens" || name == "attention_mask" || name == "token_type_ids") continue;
    Array value = file.tensor(name);
    if (value.dtype() != DType::i64 && size_of(value.dtype()) < narrowest) {
      narrowest = size_of(value.dtype());
      recording.dtype = name_of(value.dtype());
    }
    recording.activations.emplace(name, std::move(value));
  }
  if (recording.dtype.empty()) refuse(o, "holds no activation beside the tokens");
  return recording;
}

ordered_json document_of(const Options& o, const HookedTransformer& model, const Tokens& tokens,
                         const Recording& recording, const VerifiedCache& cache) {
  ordered_json document{{"command", "verify"},
                        {"exit_status", 0},
                        {"status", name_of(cache.verdict().status)},
                        {"file", o.file},
                        {"tokens", tokens_to_json(model, tokens)},
                        {"verdict", to_json(cache.verdict())},
                        {"record", record_to_json(cache.record(), o)},
                        {"recorded", recording.record},
                        {"saved", nullptr}};
  if (o.out.empty()) return document;
  document["saved"] = {
      {"path", o.out},
      {"activations", cache.activations().entries().size()},
      {"bytes", save_sealed(o.out, cache, model,
                            {{"verified_from", o.file}, {"recorded", recording.record}})}};
  return document;
}

ExitStatus verify(Options o, bool dtype_given) {
  if (!o.out.empty()) checked_output(o.out, {".h5"});
  bool tensors = std::filesystem::path(o.file).extension() == ".safetensors";
  Recording recording;
  from_disk([&] { recording = tensors ? recording_of_tensors(o) : recording_of_run(o); });
  if (!dtype_given) o.dtype = recording.dtype;
  HookedTransformer model = load(o);
  Tokens tokens = model.tokens_of(recording.ids, recording.batch);
  tokens.spans = recording.spans;
  tokens.types = recording.types;
  std::string heading = model_in_words(model) + "\n" + tokens_in_words(model, tokens) + "\n";
  if (!recording.model_digest.empty() && recording.model_digest != model.digest())
    heading +=
        "these are not the weights that the file names: another checkpoint, or processed "
        "otherwise (--no-processing)\n";
  std::optional<VerifiedCache> cache;
  try {
    Progress progress("checking");
    on_device(o, [&] { cache.emplace(model.verify_recorded(tokens, recording.activations)); });
  } catch (const VerificationFailed& e) {
    if (!o.json) print(heading + "\n" + points_table(e.verdict()));
    if (!o.out.empty()) complain("[--out] nothing was written to " + o.out);
    throw;
  }
  ordered_json document = document_of(o, model, tokens, recording, *cache);
  if (o.json) {
    print_json(document);
    return ExitStatus::done;
  }
  print(heading + "\n" + points_table(cache->verdict()) +
        with_coloured_status(cache->verdict().summary()) + "\n" +
        (o.out.empty() ? "" : "saved: " + o.out + "\n"));
  return ExitStatus::done;
}

}  // namespace

Action add_verify(CLI::App& program) {
  auto o = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("verify", "Check a run recorded elsewhere, or with --verify off");
  command
      .add_option("FILE", o->file,
                  "A run as FILE.h5, or hook name -> tensor and \"tokens\" as FILE.safetensors")
      ->required()
      ->type_name("");
  command
      .add_option("MODEL", o->model,
                  "What ran: a Hugging Face folder, or the name of a model that ships: tiny-ioi")
      ->required()
      ->type_name("");
  command.add_option("--out", o->out, "Save the verified run: FILE.h5")
      ->type_name("FILE")
      ->group("Output");
  add_common_options(command, *o);
  command.footer(kFooter);
  const CLI::Option* dtype = command.get_option("--dtype");
  return [o, dtype] { return verify(*o, dtype->count() > 0); };
}

}  // namespace lenscpp::command
