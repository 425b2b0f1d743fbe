#include "hooks/prompts.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace lenscpp {
namespace {

std::vector<Span> of(std::vector<std::int64_t> mask, std::int64_t batch) {
  return spans_of_mask(mask, batch, std::ssize(mask) / batch);
}

TEST(Prompts, SpansAreWhereAMaskIsOne) {
  EXPECT_EQ(of({0, 1, 1, 1, 1, 0}, 2), (std::vector<Span>{{1, 3}, {0, 2}}));
  EXPECT_EQ(of({0, 1, 0, 1, 1, 1}, 2), (std::vector<Span>{{1, 2}, {0, 3}}));
}

TEST(Prompts, AMaskOfOnesIsNone) { EXPECT_TRUE(of({1, 1, 1, 1}, 2).empty()); }

TEST(Prompts, MasksThatMeanNothingAreRefused) {
  EXPECT_THROW(of({1, 0, 1}, 1), std::invalid_argument);
  EXPECT_THROW(of({0, 0, 1, 1}, 2), std::invalid_argument);
  EXPECT_THROW(of({1, 2}, 1), std::invalid_argument);
  EXPECT_THROW(of({-1, 1}, 1), std::invalid_argument);
  EXPECT_THROW(spans_of_mask(std::vector<std::int64_t>{1, 1, 1}, 2, 2), std::invalid_argument);
}

TEST(Prompts, PositionsAreCountedFromTheFirstToken) {
  constexpr Span prompt{2, 5};
  std::vector<std::int64_t> found;
  for (std::int64_t p = 0; p < 7; ++p) found.push_back(position_in(prompt, p));
  EXPECT_EQ(found, (std::vector<std::int64_t>{0, 0, 0, 1, 2, 2, 2}));
}

}  // namespace
}  // namespace lenscpp
