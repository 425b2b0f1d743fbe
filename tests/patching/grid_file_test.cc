// Grids from their files, and what of a file is refused.
#include "patching/grid_file.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/verify/store/temporary_folder.h"
#include "verify/store/sealed_file.h"

namespace lenscpp {
namespace {

GridResult grid_of(VerifyMode verify) {
  at::set_num_threads(1);
  HookedTransformer model = HookedTransformer::from_pretrained(
      std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/gpt2/three_layers");
  VerifiedCache clean = model.run_with_cache(model.tokens_of({1, 2, 3, 4}, 1));
  return patch_grid(model, clean, model.tokens_of({1, 9, 3, 4}, 1),
                    {.site = Site::z, .over = {Axis::layer, Axis::head}, .verify = verify},
                    LogitDiff{5, 6});
}

TEST(GridFile, ComesBackAsItWasSaved) {
  TemporaryFolder folder;
  GridResult grid = grid_of(VerifyMode::exact);
  save_grid(folder / "grid.h5", grid);
  GridResult back = load_grid(folder / "grid.h5");
  EXPECT_EQ(back.values().digest(), grid.values().digest());
  EXPECT_EQ(back.site(), Site::z);
  EXPECT_EQ(back.axes()[1].axis, Axis::head);
  EXPECT_EQ(back.clean(), grid.clean());
  EXPECT_EQ(back.error_bar(), grid.error_bar());
  EXPECT_EQ(to_json(back.verdict()), to_json(grid.verdict()));
  EXPECT_EQ(to_json(back.clean_record()), to_json(grid.clean_record()));
  EXPECT_EQ(load_grid_unverified(folder / "grid.h5").verdict().status, Status::unverified);
}

TEST(GridFile, AnUncheckedGridIsRefused) {
  TemporaryFolder folder;
  save_grid(folder / "grid.h5", grid_of(VerifyMode::off));
  EXPECT_THROW(load_grid(folder / "grid.h5"), NotVerified);
}

TEST(GridFile, AStatusThatItsVerdictDoesNotHaveIsRefused) {
  TemporaryFolder folder;
  GridResult grid = grid_of(VerifyMode::off);
  save_grid(folder / "grid.h5", grid);
  SealedFile file = SealedFile::open_unverified(folder / "grid.h5");
  SealedWriter writer(folder / "forged.h5", FileKind::grid);
  writer.document("/grid", file.document("/grid"));
  writer.array("/values", grid.values());
  writer.array("/values_of_prompts", grid.values_of_prompts());
  writer.commit(Status::verified);
  EXPECT_THROW(load_grid(folder / "forged.h5"), NotVerified);
}

TEST(GridFile, WhatIsNoGridIsBadInput) {
  TemporaryFolder folder;
  GridResult grid = grid_of(VerifyMode::exact);
  SealedWriter run(folder / "run.h5", FileKind::run);
  run.commit(Status::verified);
  EXPECT_THROW(load_grid(folder / "run.h5"), std::invalid_argument);
  save_grid(folder / "grid.h5", grid);
  nlohmann::json document = SealedFile::open(folder / "grid.h5").document("/grid");
  auto refused = [&](const nlohmann::json& changed) {
    SealedWriter writer(folder / "other.h5", FileKind::grid);
    writer.document("/grid", changed);
    writer.array("/values", grid.values());
    writer.array("/values_of_prompts", grid.values_of_prompts());
    writer.commit(Status::verified);
    EXPECT_THROW(load_grid(folder / "other.h5"), std::invalid_argument) << changed.dump();
  };
  for (const char* key :
       {"site", "direction", "axes", "verdict", "records", "clean", "clean_of_prompts"}) {
    nlohmann::json without = document;
    without.erase(key);
    refused(without);
  }
  nlohmann::json shorter = document;
  shorter["axes"][0]["labels"] = {"0"};
  refused(shorter);
  nlohmann::json elsewhere = document;
  elsewhere["verdict"]["refused_cells"] = {1000};
  refused(elsewhere);
}

}  // namespace
}  // namespace lenscpp
