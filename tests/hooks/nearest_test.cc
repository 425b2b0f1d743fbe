// Names in error messages.
#include "hooks/nearest.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace lenscpp {
namespace {

const std::vector<std::string> kNames{"blocks.0.attn.hook_q", "blocks.0.attn.hook_k", "hook_embed",
                                      "blocks.0.hook_resid_pre", "ln_final.hook_scale"};

TEST(NearestNames, PutsTheLeastChangedFirst) {
  EXPECT_EQ(nearest_names("hook_embd", kNames, 1), "\"hook_embed\"");
  EXPECT_EQ(nearest_names("blocks.0.atn.hook_k", kNames, 2),
            "\"blocks.0.attn.hook_k\", \"blocks.0.attn.hook_q\"");
}

TEST(NearestNames, AnotherCaseIsNearerThanAnotherLetter) {
  std::vector<std::string> names{"w_O", "w_q", "W_K"};
  EXPECT_EQ(nearest_names("W_Q", names, 1), "\"w_q\"");
}

TEST(NearestNames, SwappedNeighboursAreNearerThanAnotherLetter) {
  std::vector<std::string> names{"h.1.weight", "h.0.wieght"};
  EXPECT_EQ(nearest_names("h.0.weight", names, 1), "\"h.0.wieght\"");
}

TEST(NearestNames, GivesWhatThereIs) {
  EXPECT_EQ(nearest_names("x", {}, 3), "");
  EXPECT_EQ(nearest_names("x", kNames, 0), "");
  EXPECT_EQ(nearest_names("x", kNames, -1), "");
  std::vector<std::string> one{"only"};
  EXPECT_EQ(nearest_names("", one, 3), "\"only\"");
}

TEST(NearestNames, EndlessNamesCostLittle) {
  std::string endless(1'000'000, 'a');
  std::vector<std::string> names(20, endless);
  EXPECT_LT(nearest_names(endless, names).size(), 1000u);
}

TEST(InQuotes, EscapesWhatWouldBreakALine) {
  EXPECT_EQ(in_quotes("a\"b\\c\nd\x7f"), "\"a\\\"b\\\\c\\x0ad\\x7f\"");
  EXPECT_EQ(in_quotes(std::string_view("\0", 1)), "\"\\x00\"");
}

TEST(InQuotes, CutsBetweenCharacters) {
  std::string text = std::string(199, 'a') + "\xc3\xa9" + "b";  // e acute ends beyond byte 200
  EXPECT_EQ(in_quotes(text), "\"" + std::string(199, 'a') + "...\"");
  EXPECT_EQ(in_quotes(std::string(200, 'a')), "\"" + std::string(200, 'a') + "\"");
}

}  // namespace
}  // namespace lenscpp
