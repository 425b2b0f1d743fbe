// Runs saved and loaded: everything comes back, and a VerifiedCache only from what was verified.
#include "verify/store/run_file.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/verify/honest_run.h"
#include "tests/verify/store/temporary_folder.h"
#include "verify/store/run_json.h"
#include "verify/store/sealed_file.h"

namespace lenscpp {
namespace {

using nlohmann::json;

RunRecord record_of(const Request& request) {
  RunRecord record;
  record.model = "three_layers";
  record.model_digest = "a digest";
  record.batch = request.rows.batch;
  record.pos = request.rows.pos;
  record.tokens = request.rows.tokens;
  record.end_layer = request.rows.end_layer;
  record.plan = {{{"kind", "zero"}}};
  record.hooks = {{"hook_embed", "steer", "aa", "bb", true}};
  record.processing = {{"fold_ln", true}};
  record.ambient = {{"tf32", "off"}};
  record.libraries = {{"torch", "2.13.0"}};
  record.threads = 3;
  record.seed = 18446744073709551615U;
  record.fallbacks = {"aten::sin"};
  record.time = "2026-01-02T03:04:05Z";
  return record;
}

VerifiedCache verified(DType dtype, VerifierOptions options = {}) {
  auto weights = honest::weights("three_layers", dtype);
  Request request = honest::request(*weights);
  options.dtype = dtype;
  options.keep = [](Site, std::int64_t) { return true; };
  Verifier verifier(weights, request, options);
  honest::run(*weights, request, verifier);
  return std::move(verifier).finish(record_of(request));
}

UnverifiedCache refused(DType dtype) {
  auto weights = honest::weights("three_layers", dtype);
  Request request = honest::request(*weights);
  Verifier verifier(weights, request, honest::keep_all(*weights));
  honest::run(*weights, request, verifier, [](const TensorId& id, const Array& value) {
    return id.site == Site::q && id.layer == 1 ? honest::with(value, 5, NAN) : value;
  });
  try {
    std::move(verifier).finish(record_of(request));
  } catch (const VerificationFailed& error) {
    return error.unverified_cache();
  }
  throw std::logic_error("a NaN passed");
}

bool same(const Array& a, const Array& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         std::memcmp(a.bytes(), b.bytes(), a.nbytes()) == 0;
}

void expect_equal(const Activations& a, const Activations& b) {
  ASSERT_EQ(a.entries().size(), b.entries().size());
  ASSERT_GT(a.entries().size(), 0U);
  for (std::size_t i = 0; i < a.entries().size(); ++i) {
    EXPECT_EQ(a.entries()[i].name, b.entries()[i].name);
    EXPECT_EQ(a.entries()[i].id, b.entries()[i].id);
    EXPECT_EQ(a.entries()[i].digest, b.entries()[i].digest);
    EXPECT_TRUE(same(a.entries()[i].value, b.entries()[i].value)) << a.entries()[i].name;
  }
  EXPECT_EQ(a.output().id, b.output().id);
  EXPECT_TRUE(same(a.output().value, b.output().value));
}

void expect_equal(const Verdict& a, const Verdict& b) {
  EXPECT_EQ(to_json(a), to_json(b));
  EXPECT_EQ(a.table(), b.table());
  ASSERT_EQ(a.points.size(), b.points.size());
  for (std::size_t i = 0; i < a.points.size(); ++i) {
    EXPECT_EQ(a.points[i].id, b.points[i].id);
    EXPECT_EQ(a.points[i].shape, b.points[i].shape);
    EXPECT_EQ(a.points[i].worst_index, b.points[i].worst_index);
  }
}

class RunFile : public testing::TestWithParam<DType> {
 protected:
  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "run.h5";
};
INSTANTIATE_TEST_SUITE_P(DTypes, RunFile,
                         testing::Values(DType::f32, DType::f64, DType::bf16, DType::f16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(RunFile, ReturnsEverythingOfAVerifiedRun) {
  VerifiedCache cache = verified(GetParam(), {.drift = true});
  save_run(path_, cache, {.strings = {"a", " b"}, .remarks = {{"prompt", "a b"}}});
  LoadedRun loaded = load_run(path_);
  expect_equal(cache.activations(), loaded.cache.activations());
  expect_equal(cache.verdict(), loaded.cache.verdict());
  EXPECT_EQ(to_json(cache.record()), to_json(loaded.cache.record()));
  EXPECT_EQ(cache.config(), loaded.cache.config());
  EXPECT_TRUE(same(cache.output(), loaded.cache.output()));
  EXPECT_EQ(loaded.notes.strings, (std::vector<std::string>{"a", " b"}));
  EXPECT_EQ(loaded.notes.remarks, json({{"prompt", "a b"}}));
  EXPECT_FALSE(loaded.notes.positions);
}

TEST_P(RunFile, IsTheSameFileWhenALoadedRunIsSavedAgain) {
  save_run(path_, verified(GetParam()));
  save_run(folder_ / "again.h5", load_run(path_).cache);
  SealedFile a = SealedFile::open(path_), b = SealedFile::open(folder_ / "again.h5");
  ASSERT_EQ(a.entries().size(), b.entries().size());
  for (const auto& [name, entry] : a.entries())
    EXPECT_EQ(entry.sha256, b.entries().at(name).sha256) << name;
}

TEST_P(RunFile, KeepsWhichPositionsThereAre) {
  std::vector<std::int64_t> positions = {5, 1};
  VerifiedCache cache = verified(GetParam(), {.pos_slice = positions});
  save_run(path_, cache, {.positions = positions});
  LoadedRun loaded = load_run(path_);
  expect_equal(cache.activations(), loaded.cache.activations());
  EXPECT_EQ(loaded.notes.positions, positions);
}

TEST_P(RunFile, GivesNoVerifiedCacheOfAnInvalidRun) {
  UnverifiedCache cache = refused(GetParam());
  save_run(path_, cache);
  EXPECT_THROW(load_run(path_), NotVerified);
  LoadedUnverifiedRun loaded = load_run_unverified(path_);
  expect_equal(cache.activations(), loaded.cache.activations());
  EXPECT_EQ(loaded.cache.verdict().status, Status::invalid);
  expect_equal(cache.verdict(), loaded.cache.verdict());
  EXPECT_EQ(SealedFile::open_unverified(path_).status(), Status::invalid);
}

TEST_P(RunFile, IsUnverifiedThroughTheOtherDoorWhateverItSays) {
  VerifiedCache cache = verified(GetParam());
  save_run(path_, cache);
  LoadedUnverifiedRun loaded = load_run_unverified(path_);
  EXPECT_EQ(loaded.cache.verdict().status, Status::unverified);
  expect_equal(cache.activations(), loaded.cache.activations());
  save_run(path_, loaded.cache);
  EXPECT_THROW(load_run(path_), NotVerified);
}

TEST_P(RunFile, HasWeightsOnlyOfTheModelThatItRan) {
  VerifiedCache cache = verified(GetParam());
  save_run(path_, cache);
  LoadedRun without = load_run(path_);
  EXPECT_THROW(without.cache.weights(), std::invalid_argument);
  EXPECT_THROW(without.cache.shared_weights(), std::invalid_argument);
  EXPECT_EQ(load_run(path_, ModelAtHand{cache.shared_weights(), "a digest"}).cache.shared_weights(),
            cache.shared_weights());
  EXPECT_THROW(load_run(path_, ModelAtHand{cache.shared_weights(), "another"}),
               std::invalid_argument);
}

TEST_P(RunFile, IsNotSavedWhenBytesWereOverwritten) {
  VerifiedCache cache = verified(GetParam());
  save_run(path_, cache);
  const Array& q = cache["blocks.1.attn.hook_q"];
  auto* written = const_cast<std::byte*>(q.bytes());
  *written ^= std::byte{1};
  EXPECT_THROW(save_run(path_, cache), NotVerified);
  *written ^= std::byte{1};
  EXPECT_NO_THROW(load_run(path_)) << "the old file stays";
}

TEST(RunFileOfAnotherKind, IsNotLoaded) {
  TemporaryFolder folder;
  SealedWriter writer(folder / "grid.h5", FileKind::grid);
  writer.document("/grid", {{"shape", {1}}});
  writer.commit(Status::verified);
  EXPECT_THROW(load_run(folder / "grid.h5"), std::invalid_argument);
  SealedWriter empty(folder / "run.h5", FileKind::run);
  empty.document("/run", json::object());
  empty.commit(Status::verified);
  EXPECT_THROW(load_run(folder / "run.h5"), std::invalid_argument);
}

// A file that is sealed and says VERIFIED, around a verdict that is not.
TEST(RunFileWithoutEvidence, IsNotLoaded) {
  TemporaryFolder folder;
  VerifiedCache cache = verified(DType::f32);
  save_run(folder / "run.h5", cache);
  for (const char* what : {"failing point", "no points", "status"}) {
    SealedFile file = SealedFile::open(folder / "run.h5");
    {
      SealedWriter writer(folder / "forged.h5", FileKind::run);
      for (const auto& [name, entry] : file.entries()) {
        if (entry.dtype) {
          writer.array(name, file.array(name));
          continue;
        }
        json document = file.document(name);
        bool point = name.starts_with("/verify/");
        if (point && std::string(what) == "no points") continue;
        if (point && std::string(what) == "failing point") document[0]["failed"] = 1;
        if (name == "/verdict" && std::string(what) == "status") document["status"] = "UNVERIFIED";
        writer.document(name, document);
      }
      writer.commit(Status::verified);
    }
    EXPECT_THROW(load_run(folder / "forged.h5"), NotVerified) << what;
  }
}

TEST(RunJson, NamesEverySiteOnce) {
  for (const SiteInfo& row : all_sites()) {
    TensorId id{row.site, row.per_layer ? 2 : 0, 1};
    EXPECT_EQ(id_from_json(id_to_json(id)), id) << row.name;
  }
}

TEST(RunJson, KeepsWhatIsNotFinite) {
  Point point{.id = {Site::q, 1, 2},
              .op = Op::edit,
              .compared = 3,
              .failed = 2,
              .worst_ratio = INFINITY,
              .device_value = NAN,
              .reference_value = -INFINITY,
              .shape = {1, 3},
              .why = "a",
              .hint = "b"};
  Point back = point_from_json(json::parse(point_to_json(point).dump()));
  EXPECT_EQ(point_to_json(back), point_to_json(point));
  EXPECT_TRUE(std::isnan(back.device_value));
  EXPECT_EQ(back.reference_value, -INFINITY);
}

}  // namespace
}  // namespace lenscpp
