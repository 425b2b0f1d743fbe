// Experiments, blocks, shards, folders and merged files on the shipped model.
#include "patching/batch_folder.h"

#include <ATen/ops/mul.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <set>

#include "patching/merged_file.h"
#include "patching/tasks.h"

namespace lenscpp {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const HookedTransformer& tiny() {
  static HookedTransformer model = HookedTransformer::from_pretrained(
      fs::path(LENSCPP_SOURCE_DIR) / "python/lenscpp/models/tiny-ioi");
  return model;
}

class BatchTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) /
              ("batch-" + std::to_string(::getpid()) + "-" +
               testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::vector<fs::path> files(const char* where) const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(folder_ / where))
      if (entry.path().extension() == ".h5") found.push_back(entry.path());
    std::ranges::sort(found);
    return found;
  }

  fs::path folder_;
};
using Batches = BatchTest;
using Experiments = BatchTest;

json pair() {
  return {{"id", "a"},
          {"clean", "When John and Mary went to the store, John gave the bag to"},
          {"corrupted", "When John and Mary went to the store, Mary gave the bag to"},
          {"answer", " Mary"},
          {"wrong", " John"}};
}
Experiment experiment(const json& changes = json::object()) {
  json object = pair();
  object.update(changes);
  return experiment_from_json(object, "here");
}

const std::vector<Experiment>& some() {
  static const std::vector<Experiment> experiments = ioi_task(tiny(), {.n = 12}).experiments;
  return experiments;
}

// --- experiments ---

TEST_F(Experiments, ComeBackFromJson) {
  json all = pair();
  all.update({{"sites", {"resid_pre", {{"site", "z"}, {"over", {"layer", "head", "pos"}}}}},
              {"positions", {{"S2", 10}, {"END", -1}}},
              {"template", "0"},
              {"metric", "prob"}});
  EXPECT_EQ(to_json(experiment_from_json(all, "here")), all);
  EXPECT_EQ(to_json(experiment({{"clean", {1, 2}}, {"answer", 7}}))["clean"], json({1, 2}));
}

TEST_F(Experiments, UnknownKeysAndWrongTypesNameTheLine) {
  fs::create_directories(folder_);
  auto refusal = [&](const std::string& line) -> std::string {
    std::ofstream(folder_ / "e.jsonl") << pair().dump() << "\n\n" << line << "\n";
    try {
      read_experiments(folder_ / "e.jsonl");
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "";
  };
  json one = pair();
  one["id"] = "b";
  EXPECT_EQ(refusal(one.dump()), "");
  one["awnser"] = 1;
  EXPECT_NE(refusal(one.dump()).find("line 3 has the unknown key \"awnser\""), std::string::npos);
  EXPECT_NE(refusal("{").find("line 3"), std::string::npos);
  EXPECT_NE(refusal(std::string(200000, '[')).find("line 3"), std::string::npos);
  EXPECT_NE(refusal("{\"id\": 1, \"id\": 2}").find("line 3"), std::string::npos);
  EXPECT_NE(refusal(pair().dump()).find("the id \"a\" is that of line 1"), std::string::npos);
  for (const auto& [key, value] :
       std::initializer_list<std::pair<const char*, json>>{{"clean", 3},
                                                           {"clean", json::array()},
                                                           {"answer", json::array()},
                                                           {"answer", 1.5},
                                                           {"sites", "z"},
                                                           {"sites", {{{"site", "z"}}}},
                                                           {"positions", "some"},
                                                           {"positions", {"x"}},
                                                           {"positions", {{"3", 12}}},
                                                           {"metric", "accuracy"},
                                                           {"template", json::array()}}) {
    json bad = pair();
    bad["id"] = "b";
    bad[key] = value;
    EXPECT_NE(refusal(bad.dump()).find("line 3: \"" + std::string(key) + "\" is "),
              std::string::npos)
        << bad.dump() << refusal(bad.dump());
  }
  EXPECT_THROW(read_experiments(folder_ / "none.jsonl"), std::system_error);
  EXPECT_THROW(read_experiments(folder_), std::system_error);
}

TEST_F(Experiments, AreRejectedWithAReason) {
  auto reason = [](const json& changes) {
    auto tokenized = tokenize(tiny(), experiment(changes));
    return std::get<Rejection>(tokenized).reason;
  };
  EXPECT_EQ(
      reason({{"corrupted", "When John and Mary went to the old store, Mary gave the bag to"}}),
      Reason::unequal_lengths);
  EXPECT_EQ(reason({{"answer", " Mary and"}}), Reason::not_one_token);
  EXPECT_EQ(reason({{"answer", " John"}}), Reason::same_answers);
  std::vector<std::int64_t> ids(static_cast<std::size_t>(tiny().config().n_ctx) + 1, 5);
  EXPECT_EQ(reason({{"clean", ids}, {"corrupted", ids}}), Reason::too_long);
}

TEST_F(Experiments, ThatNoModelCouldRunAreErrors) {
  for (const json& changes :
       {json{{"sites", {"resid_per"}}}, json{{"positions", {99}}}, json{{"positions", {0, -15}}},
        json{{"clean", {99999999}}}, json{{"sites", {"resid_pre", "resid_pre"}}},
        json{{"metric", "prob"}, {"answer", {" Mary", " Tom"}}},
        json{{"answer", {" Mary", " Mary"}}},
        json{{"sites", {{{"site", "z"}, {"over", {"head"}}}}}}})
    EXPECT_THROW(tokenize(tiny(), experiment(changes)), std::invalid_argument) << changes.dump();
}

// --- blocks ---

TEST_F(Batches, NamesFollowFromWhatTheValuesDependOn) {
  auto names = [&](const std::vector<Experiment>& e, BatchOptions o = {}) {
    std::set<std::string> all;
    Batch batch(tiny(), e, std::move(o));
    for (const Block& block : batch.blocks()) all.insert(block.name);
    return all;
  };
  auto base = names(some());
  EXPECT_EQ(base, names(some()));
  EXPECT_NE(base, names(some(), {.direction = Direction::noise}));
  EXPECT_NE(base, names(some(), {.verify = VerifyMode::exact}));
  EXPECT_NE(base, names(some(), {.least_difference = 0.5}));
  EXPECT_NE(base, names(some(), {.tokenize = {.sites = {{"mlp_out"}}}}));
  // More experiments leave the shards of other templates as they are.
  auto more = some();
  more.push_back(experiment());
  std::set<std::string> extended = names(more), both;
  std::ranges::set_intersection(base, extended, std::inserter(both, both.end()));
  EXPECT_GE(both.size() + 1, base.size());
  EXPECT_GT(extended.size(), 0U);
}

TEST_F(Batches, ABlockIsTheSameAsItsExperimentsAlone) {
  Batch batch(tiny(), some(), {});
  const Block& block = batch.blocks()[0];
  std::vector<Experiment> few;
  for (const Tokenized& t : block.experiments)
    few.push_back(some()[static_cast<std::size_t>(t.index)]);
  EXPECT_EQ(Batch(tiny(), few, {}).blocks()[0].name, block.name);
}

TEST_F(Batches, ValuesAreThoseOfAGridAPair) {
  Batch batch(tiny(), some(), {});
  const Block& block = batch.blocks()[0];
  Shard shard = batch.run(block);
  ASSERT_EQ(shard.status, Status::verified);
  ASSERT_EQ(shard.experiments.size(), block.experiments.size());
  ASSERT_EQ(shard.grids.size(), 2U);
  EXPECT_EQ(shard.grids[0].key, "resid_pre_by_layer_pos");
  EXPECT_EQ(shard.grids[0].axes[1].labels,
            (std::vector<std::string>{"S1", "S1+1", "IO", "S2", "END"}));
  for (std::size_t i = 0; i < shard.experiments.size(); ++i) {
    const Tokenized& e = shard.experiments[i];
    Tokens clean{1, std::ssize(e.clean), e.clean}, corrupted{1, std::ssize(e.clean), e.corrupted};
    GridOptions options{
        .site = Site::resid_pre,
        .over = {Axis::layer, Axis::pos},
        .verify = VerifyMode::exact,
        .savings = {
            .layers = false, .rows = false, .positions = false, .equal = false, .output = false}};
    options.positions.emplace();
    for (const NamedPosition& p : *e.positions) options.positions->push_back(p.pos);
    GridResult grid = patch_grid(tiny(), tiny().run_with_cache(clean), corrupted, options,
                                 LogitDiff{e.answer[0], e.wrong[0]});
    double range = std::abs(grid.clean() - grid.corrupted());
    EXPECT_NEAR(shard.clean[i], grid.clean(), 1e-4 * range);
    EXPECT_NEAR(shard.corrupted[i], grid.corrupted(), 1e-4 * range);
    for (std::int64_t c = 0; c < grid.values().numel(); ++c)
      EXPECT_NEAR(shard.grids[0].values[static_cast<std::int64_t>(i) * grid.values().numel() + c],
                  grid.values()[c], 1e-4 * range);
  }
}

TEST_F(Batches, PairsThatSayNothingAreRejected) {
  json swapped{{"id", "wrong"}, {"answer", " John"}, {"wrong", " Mary"}};
  json same{{"id", "same"},
            {"corrupted", "When John and Mary went to the store, John gave the bag to"}};
  Batch batch(tiny(), {experiment(), experiment(swapped), experiment(same)}, {});
  ASSERT_EQ(batch.blocks().size(), 1U);
  Shard shard = batch.run(batch.blocks()[0]);
  ASSERT_EQ(shard.rejected.size(), 2U);
  EXPECT_EQ(shard.rejected[0].reason, Reason::clean_wrong);
  EXPECT_EQ(shard.rejected[1].reason, Reason::too_close);
  EXPECT_EQ(shard.experiments.size(), 1U);
  EXPECT_EQ(shard.grids[0].values.size(0), 1);
  Batch kept(tiny(), {experiment(), experiment(swapped)}, {.keep_wrong = true});
  EXPECT_TRUE(kept.run(kept.blocks()[0]).rejected.empty());
  // A block of which nothing is left is a shard all the same.
  Batch none(tiny(), {experiment(same)}, {});
  Shard empty = none.run(none.blocks()[0]);
  EXPECT_EQ(empty.status, Status::verified);
  EXPECT_TRUE(empty.experiments.empty());
}

TEST_F(Batches, OtherMetricsAreTheirOwn) {
  std::int64_t mary = tiny().to_single_token(" Mary"), john = tiny().to_single_token(" John");
  auto value = [&](const json& changes) {
    Batch batch(tiny(), {experiment(changes)}, {});
    return batch.run(batch.blocks()[0]).clean.at(0);
  };
  Array logits = tiny().forward(tiny().to_tokens(pair()["clean"].get<std::string>()));
  EXPECT_NEAR(value({{"metric", "prob"}}), (Prob{mary}(logits)[0]), 1e-5);
  EXPECT_NEAR(value({{"metric", "log_prob"}}), (LogProb{mary}(logits)[0]), 1e-5);
  double tom = Prob{tiny().to_single_token(" Tom")}(logits)[0];
  EXPECT_NEAR(value({{"answer", {" Mary", " Tom"}}}),
              (Prob{mary}(logits)[0] + tom - Prob{john}(logits)[0]), 1e-5);
}

// --- folders ---

TEST_F(Batches, RunOnceAndMergeToTheirShardsValues) {
  BatchReport report = run_experiments(tiny(), some(), {}, {.folder = folder_});
  EXPECT_TRUE(report.complete());
  EXPECT_EQ(report.done, report.shards);
  merge_batch(folder_, folder_ / "merged.h5");
  MergedFile merged = MergedFile::open(folder_ / "merged.h5");
  merged.verify_all();
  std::int64_t rejected = 0;
  for (const auto& [reason, n] : report.rejected) rejected += n;
  EXPECT_EQ(merged.n() + rejected, 12);
  std::vector<double> index = merged.index().to_doubles();
  json rows = merged.experiments(0, merged.n());
  for (std::int64_t i = 0; i < merged.n(); ++i)
    EXPECT_EQ(rows[static_cast<std::size_t>(i)]["id"],
              some()[static_cast<std::size_t>(index[static_cast<std::size_t>(i)])].id);
  // Row by row what the shards hold, read a row at a time and at once.
  std::int64_t row = 0;
  Array all = merged.rows("z", 0, merged.n());
  for (const json& shard : read_plan(folder_).at("shards")) {
    ShardFile file = ShardFile::open(shard_path(folder_, shard.at("name")));
    Array values = file.values("z_by_layer_head");
    for (std::int64_t i = 0; i < file.n(); ++i, ++row) {
      EXPECT_EQ(merged.rows("z", row, row + 1).to_doubles(), values.rows(i, i + 1).to_doubles());
      EXPECT_EQ(all.rows(row, row + 1).to_doubles(), values.rows(i, i + 1).to_doubles());
    }
  }
  GridStatistics s = merged.statistics("z");
  EXPECT_EQ(s.shape, (Shape{4, 4}));
  double mean = 0;
  std::vector<double> base = merged.corrupted().to_doubles();
  for (std::int64_t i = 0; i < merged.n(); ++i)
    mean += (all[i * 16] - base[static_cast<std::size_t>(i)]) / static_cast<double>(merged.n());
  EXPECT_NEAR(s.cells[0].mean, mean, 1e-12 + 1e-12 * std::abs(mean));
}

TEST_F(Batches, ARestartRunsWhatIsMissing) {
  run_experiments(tiny(), some(), {}, {.folder = folder_});
  auto all = files("shards");
  ASSERT_GE(all.size(), 3U);
  merge_batch(folder_, folder_ / "before.h5");
  fs::remove(all[1]);
  EXPECT_THROW(merge_batch(folder_, folder_ / "merged.h5"), std::invalid_argument);
  EXPECT_THROW(run_experiments(tiny(), some(), {}, {.folder = folder_}), std::invalid_argument);
  BatchReport report = run_experiments(tiny(), some(), {}, {.folder = folder_, .resume = true});
  EXPECT_EQ(report.done, 1);
  EXPECT_EQ(report.before, report.shards - 1);
  merge_batch(folder_, folder_ / "merged.h5");
  MergedFile a = MergedFile::open(folder_ / "before.h5"),
             b = MergedFile::open(folder_ / "merged.h5");
  for (const char* key : {"z", "resid_pre"}) {
    EXPECT_EQ(a.rows(key, 0, a.n()).to_doubles(), b.rows(key, 0, b.n()).to_doubles());
    EXPECT_EQ(to_json(a.statistics(key)), to_json(b.statistics(key)));
  }
}

TEST_F(Batches, SharesTogetherAreTheWhole) {
  fs::path whole = folder_ / "whole", shared = folder_ / "shared";
  fs::create_directories(folder_);
  run_experiments(tiny(), some(), {}, {.folder = whole});
  for (std::int64_t index : {2, 1})
    run_experiments(tiny(), some(), {},
                    {.folder = shared, .resume = index == 1, .share = {index, 2}});
  merge_batch(whole, whole / "m.h5");
  merge_batch(shared, shared / "m.h5");
  MergedFile a = MergedFile::open(whole / "m.h5"), b = MergedFile::open(shared / "m.h5");
  ASSERT_EQ(a.n(), b.n());
  EXPECT_EQ(a.experiments(0, a.n()), b.experiments(0, b.n()));
  EXPECT_EQ(a.rows("z", 0, a.n()).to_doubles(), b.rows("z", 0, b.n()).to_doubles());
  EXPECT_EQ(a.clean().to_doubles(), b.clean().to_doubles());
  EXPECT_THROW(run_experiments(tiny(), some(), {}, {.folder = shared, .share = {3, 2}}),
               std::invalid_argument);
}

TEST_F(Batches, AnotherModelOrOtherOptionsAreNotMixedIn) {
  run_experiments(tiny(), {experiment()}, {}, {.folder = folder_});
  try {
    run_experiments(tiny(), {experiment()}, {.direction = Direction::noise},
                    {.folder = folder_, .resume = true});
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("direction"), std::string::npos) << e.what();
  }
  fs::path other = folder_ / "other";
  fs::create_directories(other);
  std::ofstream(other / "thesis.txt") << "mine";
  EXPECT_THROW(run_experiments(tiny(), {experiment()}, {}, {.folder = other, .resume = true}),
               std::invalid_argument);
  EXPECT_THROW(run_experiments(tiny(), {experiment()}, {}, {.folder = other / "thesis.txt"}),
               std::invalid_argument);
}

Interference wrong_z() {
  return [](const TensorId& id, const at::Tensor& x) {
    return id.site == Site::z && id.layer == 1 ? at::mul(x, 1.01) : x;
  };
}

TEST_F(Batches, RefusedShardsAreKeptApartAndRunAgain) {
  BatchReport half = run_experiments(tiny(), some(), {}, {.folder = folder_, .share = {1, 2}});
  auto good = files("shards");
  BatchReport report = run_experiments(tiny(), some(), {.interference = wrong_z()},
                                       {.folder = folder_, .resume = true});
  EXPECT_EQ(report.before, half.done);
  EXPECT_EQ(report.done, 0);
  EXPECT_EQ(report.refused, report.shards - half.done);
  ASSERT_FALSE(report.refusals.empty());
  EXPECT_NE(report.refusals[0].find("blocks.1.attn.hook_z"), std::string::npos);
  EXPECT_EQ(files("shards"), good);
  auto refused = files("refused");
  ASSERT_EQ(std::ssize(refused), report.refused);
  EXPECT_THROW(ShardFile::open(refused[0]), NotVerified);
  EXPECT_EQ(ShardFile::open_unverified(refused[0]).verdict()["status"], "INVALID");
  EXPECT_THROW(merge_batch(folder_, folder_ / "merged.h5"), std::invalid_argument);
  merge_batch(folder_, folder_ / "part.h5", {.partial = true});
  EXPECT_EQ(std::ssize(MergedFile::open(folder_ / "part.h5").about().at("missing")),
            report.refused);
  EXPECT_TRUE(run_experiments(tiny(), some(), {}, {.folder = folder_, .resume = true}).complete());
  merge_batch(folder_, folder_ / "merged.h5");
}

TEST_F(Batches, AShardThatCannotBeRunDoesNotEndTheOthers) {
  // The device takes one call badly: the run of one block throws.
  auto calls = std::make_shared<int>(0);
  Interference once = [calls](const TensorId&, const at::Tensor& x) {
    if (++*calls == 1) throw std::invalid_argument("this prompt cannot be run");
    return x;
  };
  BatchReport report = run_experiments(tiny(), some(), {.interference = once}, {.folder = folder_});
  EXPECT_EQ(report.failed, 1);
  EXPECT_EQ(report.done, report.shards - 1);
  EXPECT_NE(report.failures.at(0).find("this prompt cannot be run"), std::string::npos);
}

TEST_F(Batches, StopWhenAskedBetweenShards) {
  int asked = 0;
  BatchReport report =
      run_experiments(tiny(), some(), {}, {.folder = folder_, .stop = [&] { return ++asked > 2; }});
  EXPECT_TRUE(report.stopped);
  EXPECT_EQ(report.done, 2);
  EXPECT_EQ(report.left, report.shards - 2);
}

TEST_F(Batches, AClaimedShardIsLeftToItsProcess) {
  Batch batch(tiny(), some(), {});
  BatchFolder there(folder_, batch, false);
  auto claim = there.claim(batch.blocks()[0].name);
  ASSERT_TRUE(claim.has_value());
  EXPECT_FALSE(there.claim(batch.blocks()[0].name).has_value());
  BatchReport report = run_experiments(tiny(), some(), {}, {.folder = folder_, .resume = true});
  EXPECT_EQ(report.elsewhere, 1);
  EXPECT_EQ(report.done, report.shards - 1);
  claim.reset();
  EXPECT_TRUE(run_experiments(tiny(), some(), {}, {.folder = folder_, .resume = true}).complete());
}

TEST_F(Batches, EveryByteOfAShardIsGuarded) {
  run_experiments(tiny(), {experiment()}, {.tokenize = {.sites = {{"head_z"}}}},
                  {.folder = folder_});
  fs::path path = files("shards").at(0);
  std::ifstream in(path, std::ios::binary);
  std::string whole((std::istreambuf_iterator<char>(in)), {});
  std::int64_t refused = 0, silent = 0, last = std::ssize(whole);
  ShardFile before = ShardFile::open(path);
  std::vector<double> values = before.values("z_by_layer_head").to_doubles();
  for (std::int64_t at = 0; at < last; at += 97) {
    std::string changed = whole;
    changed[static_cast<std::size_t>(at)] ^= 0x10;
    std::ofstream(path, std::ios::binary) << changed;
    try {
      ShardFile file = ShardFile::open(path);
      file.verify_all();
      // HDF5's padding holds nothing.
      EXPECT_EQ(file.values("z_by_layer_head").to_doubles(), values) << at;
      EXPECT_EQ(file.experiments(), before.experiments()) << at;
      ++silent;
    } catch (const NotVerified& e) {
      EXPECT_NE(std::string(e.what()).find(path.filename().string()), std::string::npos)
          << e.what();
      ++refused;
    } catch (const std::invalid_argument&) {
      ++refused;  // no file of this library any more
    }
  }
  EXPECT_GT(refused, silent / 4);
  // A restart sets a damaged shard aside and runs it anew.
  std::string changed = whole;
  auto data = whole.find("\"first_failure\"");
  ASSERT_NE(data, whole.npos);
  changed[data + 2] ^= 1;
  std::ofstream(path, std::ios::binary) << changed;
  EXPECT_THROW(merge_batch(folder_, folder_ / "merged.h5"), NotVerified);
  BatchReport report =
      run_experiments(tiny(), {experiment()}, {.tokenize = {.sites = {{"head_z"}}}},
                      {.folder = folder_, .resume = true});
  EXPECT_EQ(report.damaged.size(), 1U);
  EXPECT_TRUE(report.complete());
  EXPECT_EQ(files("refused").size(), 1U);
}

TEST_F(Batches, AShardUnderAnothersNameIsRefused) {
  run_experiments(tiny(), some(), {}, {.folder = folder_});
  auto all = files("shards");
  fs::copy_file(all[0], all[1], fs::copy_options::overwrite_existing);
  EXPECT_THROW(merge_batch(folder_, folder_ / "merged.h5"), NotVerified);
}

TEST_F(Batches, WithoutVerificationNothingIsVerified) {
  run_experiments(tiny(), some(), {.verify = VerifyMode::off}, {.folder = folder_});
  EXPECT_THROW(ShardFile::open(files("shards").at(0)), NotVerified);
  merge_batch(folder_, folder_ / "merged.h5");
  EXPECT_THROW(MergedFile::open(folder_ / "merged.h5"), NotVerified);
  EXPECT_EQ(MergedFile::open_unverified(folder_ / "merged.h5").status(), Status::unverified);
  EXPECT_TRUE(run_experiments(tiny(), some(), {.verify = VerifyMode::off},
                              {.folder = folder_, .resume = true})
                  .complete());
}

TEST_F(Batches, UnverifiedShardsKeepTheirDigests) {
  BatchOptions off{.verify = VerifyMode::off};
  run_experiments(tiny(), some(), off, {.folder = folder_});
  auto all = files("shards");
  std::string before;
  {
    std::ifstream in(all[0], std::ios::binary);
    before.assign(std::istreambuf_iterator<char>(in), {});
  }
  auto at = before.find("\"first_failure\"");
  ASSERT_NE(at, before.npos);
  before[at + 2] ^= 1;
  std::ofstream(all[0], std::ios::binary) << before;
  EXPECT_THROW(merge_batch(folder_, folder_ / "merged.h5"), NotVerified);
  EXPECT_EQ(
      run_experiments(tiny(), some(), off, {.folder = folder_, .resume = true}).damaged.size(), 1U);
  fs::copy_file(all[0], all[1], fs::copy_options::overwrite_existing);
  EXPECT_THROW(merge_batch(folder_, folder_ / "merged.h5"), NotVerified);
}

TEST_F(Batches, ShardsOfElsewhereAreAdoptedOnlyIfTheyAreOfThisBatch) {
  BatchReport all = run_experiments(tiny(), some(), {}, {.folder = folder_ / "a"});
  run_experiments(tiny(), some(), {.verify = VerifyMode::off}, {.folder = folder_ / "off"});
  Batch batch(tiny(), some(), {});
  BatchFolder b(folder_ / "b", batch, false);
  std::string name = batch.blocks()[0].name;
  auto adopted = [&](const fs::path& from) {
    fs::path copy = folder_ / "b" / from.filename();
    fs::copy_file(from, copy, fs::copy_options::overwrite_existing);
    return adopt_shard(folder_ / "b", copy);
  };
  EXPECT_EQ(adopted(shard_path(folder_ / "a", name)), Status::verified);
  EXPECT_TRUE(fs::exists(shard_path(folder_ / "b", name)));
  // One that is unverified, one of another batch, and one under a name that is not its own.
  for (const auto& entry : fs::directory_iterator(folder_ / "off" / "shards"))
    EXPECT_THROW(adopted(entry.path()), NotVerified);
  run_experiments(tiny(), {experiment()}, {}, {.folder = folder_ / "c"});
  for (const auto& entry : fs::directory_iterator(folder_ / "c" / "shards"))
    EXPECT_THROW(adopted(entry.path()), NotVerified);
  fs::path forged = folder_ / (batch.blocks()[1].name + ".h5");
  fs::copy_file(shard_path(folder_ / "a", name), forged);
  EXPECT_THROW(adopt_shard(folder_ / "b", forged), NotVerified);
}

TEST_F(Batches, FaultsThatPassTheChecksAreNoResults) {
  BatchReport report =
      run_experiments(tiny(), {experiment()}, {.injected = {"a tiny one"}}, {.folder = folder_});
  EXPECT_EQ(report.refused, 1);
  EXPECT_NE(report.refusals.at(0).find("a tiny one"), std::string::npos);
  EXPECT_TRUE(
      run_experiments(tiny(), {experiment()}, {}, {.folder = folder_, .resume = true}).complete());
}

TEST_F(Batches, MetricsHaveGridsOfTheirOwn) {
  run_experiments(tiny(), {experiment(), experiment({{"id", "p"}, {"metric", "prob"}})}, {},
                  {.folder = folder_});
  merge_batch(folder_, folder_ / "merged.h5");
  MergedFile merged = MergedFile::open(folder_ / "merged.h5");
  EXPECT_EQ(merged.statistics("z_by_layer_head").cells[0].n, 1);
  EXPECT_EQ(merged.statistics("z_by_layer_head_of_prob").cells[0].n, 1);
  EXPECT_THROW(merged.grid("z"), std::invalid_argument);
}

TEST_F(Batches, ABatchLosesNoExperimentsUnasked) {
  run_experiments(tiny(), some(), {}, {.folder = folder_});
  auto fewer = some();
  fewer.pop_back();
  EXPECT_THROW(run_experiments(tiny(), fewer, {}, {.folder = folder_, .resume = true}),
               std::invalid_argument);
  auto more = some();
  more.push_back(experiment());
  EXPECT_TRUE(run_experiments(tiny(), more, {}, {.folder = folder_, .resume = true}).complete());
}

TEST_F(Batches, APlanThatIsNoneIsBadInput) {
  run_experiments(tiny(), {experiment()}, {}, {.folder = folder_});
  for (const char* text : {"", "3", "{\"identity\": 3}", "[[[[[["}) {
    std::ofstream(folder_ / "batch.json") << text;
    EXPECT_THROW(read_plan(folder_), std::invalid_argument) << text;
  }
  EXPECT_THROW(run_experiments(tiny(), {experiment()}, {}, {.folder = ""}), std::invalid_argument);
}

TEST_F(Batches, ASharePicksEveryNth) {
  BatchReport report =
      run_experiments(tiny(), some(), {}, {.folder = folder_, .share = {3, INT64_MAX}});
  EXPECT_EQ(report.shards, 1);
}

TEST_F(Batches, WhatACallerThrowsEndsTheBatch) {
  auto progress = [](const BatchProgress&) { throw std::invalid_argument("enough"); };
  EXPECT_THROW(run_experiments(tiny(), some(), {}, {.folder = folder_, .progress = progress}),
               std::invalid_argument);
}

TEST_F(Batches, LengthsAndSitesMayDiffer) {
  std::vector<Experiment> mixed = {
      experiment(), experiment({{"id", "short"},
                                {"clean", "When John and Mary went home, John gave the bag to"},
                                {"corrupted", "When John and Mary went home, Mary gave the bag to"},
                                {"sites", {"resid_pre"}}})};
  run_experiments(tiny(), mixed, {.keep_wrong = true}, {.folder = folder_});
  merge_batch(folder_, folder_ / "merged.h5");
  MergedFile merged = MergedFile::open(folder_ / "merged.h5");
  ASSERT_EQ(merged.n(), 2);
  GridStatistics by_pos = merged.statistics("resid_pre");
  EXPECT_EQ(by_pos.shape, (Shape{4, 15}));
  EXPECT_EQ(by_pos.cells[0].n, 2);
  EXPECT_EQ(by_pos.cells[14].n, 1);
  EXPECT_EQ(merged.statistics("z").cells[0].n, 1);
  EXPECT_TRUE(std::isnan(merged.rows("z", 1, 2)[0]));
}

// --- tasks ---

TEST(Tasks, IoiIsWhatItSays) {
  Task task = ioi_task(tiny(), {.n = 60});
  ASSERT_EQ(task.experiments.size(), 60U);
  std::set<std::string> templates;
  for (const Experiment& e : task.experiments) {
    templates.insert(e.cluster);
    auto t = std::get<Tokenized>(tokenize(tiny(), e));
    std::map<std::string, std::int64_t> at;
    for (const NamedPosition& p : *t.positions) at[p.name] = p.pos;
    auto token = [&](const char* where) { return t.clean[static_cast<std::size_t>(at[where])]; };
    EXPECT_EQ(token("IO"), t.answer[0]);
    EXPECT_EQ(token("S1"), t.wrong[0]);
    EXPECT_EQ(token("S2"), t.wrong[0]);
    EXPECT_EQ(at["S1+1"], at["S1"] + 1);
    EXPECT_EQ(at["END"], std::ssize(t.clean) - 1);
    EXPECT_EQ(e.id.ends_with("BABA"), at["S1"] < at["IO"]);
    std::int64_t changed = 0;
    for (std::size_t i = 0; i < t.clean.size(); ++i)
      changed += t.clean[i] != t.corrupted[i] ? 1 : 0;
    EXPECT_EQ(changed, 1);
  }
  EXPECT_EQ(templates.size(), 15U);
  Task abc = ioi_task(tiny(), {.n = 4, .corruption = "abc"});
  auto t = std::get<Tokenized>(tokenize(tiny(), abc.experiments[0]));
  std::int64_t changed = 0;
  for (std::size_t i = 0; i < t.clean.size(); ++i) changed += t.clean[i] != t.corrupted[i] ? 1 : 0;
  EXPECT_EQ(changed, 3);
}

TEST(Tasks, NamesThatAreNotOneTokenAreListed) {
  Task task =
      ioi_task(tiny(), {.n = 2, .names = {"Mary", "John", "Tom", "Dan", "Amy", "Xanthippe"}});
  ASSERT_EQ(task.dropped.size(), 1U);
  EXPECT_NE(task.dropped[0].find("Xanthippe"), std::string::npos);
  EXPECT_THROW(ioi_task(tiny(), {.n = 2, .names = {"Xanthippe"}}), std::invalid_argument);
  EXPECT_THROW(ioi_task(tiny(), {.n = 2, .corruption = "shuffled"}), std::invalid_argument);
  EXPECT_THROW(task_named("docstring", tiny()), std::invalid_argument);
}

TEST(Tasks, InductionRepeatsAndIsAskedWhatFollowed) {
  Task task = induction_task(tiny(), {.n = 5, .length = 12});
  for (const Experiment& e : task.experiments) {
    auto t = std::get<Tokenized>(tokenize(tiny(), e));
    std::map<std::string, std::size_t> at;
    for (const NamedPosition& p : *t.positions) at[p.name] = static_cast<std::size_t>(p.pos);
    EXPECT_EQ(t.clean[at["PREV"]], t.clean[at["END"]]);
    EXPECT_EQ(t.clean[at["FOLLOWED"]], t.answer[0]);
    EXPECT_EQ(t.corrupted[at["FOLLOWED"]], t.wrong[0]);
  }
  EXPECT_THROW(induction_task(tiny(), {.n = 1, .length = tiny().config().n_ctx}),
               std::invalid_argument);
}

TEST(Tasks, OfOneSeedAreTheSame) {
  auto text = [](std::uint64_t seed) {
    return to_json(ioi_task(tiny(), {.n = 9, .seed = seed}).experiments[8]).dump();
  };
  EXPECT_EQ(text(1), text(1));
  EXPECT_NE(text(1), text(2));
}

}  // namespace
}  // namespace lenscpp
