// What many experiments say together: means with their errors, effects that differ from none, and
// how stable the choice of the largest is. Everything repeats: random draws are by a fixed seed.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hooks/array.h"
#include "hooks/parallel.h"
#include "patching/patch_grid.h"

namespace lenscpp {

/// One experiment a row.
struct Measured {
  Array values;                            // float64 [n, cells...]; NaN: it does not have that cell
  std::vector<double> clean, corrupted;    // the metric of its two runs
  std::vector<std::int64_t> cluster = {};  // equal: not independent (one template); empty: all are
  Direction direction = Direction::denoise;
};

struct StatisticsOptions {
  std::int64_t resamples = 2000;      // of the clusters, for the intervals
  std::int64_t permutations = 10000;  // of signs, for the tests; all of them where there are fewer
  double level = 0.95;                // of the intervals
  double false_discovery_rate = 0.05;
  std::int64_t top = 10;
  double error_bar = 0;  // a mean effect up to this is rounding, and never found
  std::uint64_t seed = 0;
};

/// Of one cell. The effect of a patch is what it moves the metric by from its base run: the
/// corrupted one when denoising, the clean one when noising. NaN: it cannot be said, for instance
/// an error from one cluster.
struct CellStatistics {
  std::int64_t n = 0, clusters = 0;
  double mean = 0;            // of the effects, in units of the metric
  double standard_error = 0;  // of that mean, over clusters (Liang and Zeger, 1986)
  double low = 0, high = 0;   // its bootstrap interval over clusters
  /// Sums of (value - corrupted) over those of (clean - corrupted): 0 as corrupted, 1 as clean.
  double ratio_of_means = 0;
  double ratio_low = 0, ratio_high = 0;  // its bootstrap interval
  double mean_of_ratios = 0;        // of each experiment by itself: small differences weigh most
  double ratio_standard_error = 0;  // of mean_of_ratios
  /// Share of experiments whose effect has the mean's sign; NaN where the mean is 0.
  double sign_consistency = 0;
  double p = 1;  // two-sided, of no effect: signs of clusters permuted
  double q = 1;  // by Benjamini and Hochberg over the cells
};

/// Of a grid.
struct GridStatistics {
  Shape shape;                        // of the cells
  std::vector<CellStatistics> cells;  // row-major
  /// Cells with q below the rate, the largest |mean| first; at most `top`.
  std::vector<std::int64_t> top;
  std::int64_t significant = 0;  // cells with q below the rate
  /// Mean Jaccard index of the `top` largest |mean| with those of the resamples.
  double stability = 0;
  StatisticsOptions options;
};

/// Throws std::invalid_argument when the numbers of rows differ or there is none, or an option is
/// out of range.
GridStatistics statistics_of(const Measured& measured, const StatisticsOptions& options = {},
                             const ParallelFor& parallel_for = serial_for);
/// Throws std::invalid_argument naming the option that is out of range, and what is allowed.
void check(const StatisticsOptions& options);
/// {shape, n: [...], mean: [...], ...}: a list a quantity, null for NaN.
nlohmann::json to_json(const GridStatistics& statistics);
/// Throws nlohmann::json::exception for what to_json did not make.
GridStatistics grid_statistics_from_json(const nlohmann::json& json);

}  // namespace lenscpp
