// The standard tasks of circuit analysis as experiments, for any tokenizer: indirect object
// identification (Wang et al., 2022), greater-than (Hanna et al., 2023), induction (Olsson et al.,
// 2022). Sentences are this library's own. Words that are not one token of a tokenizer are left
// out, and listed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "patching/experiments.h"

namespace lenscpp {

/// How many experiments, and which.
struct TaskOptions {
  std::int64_t n = 100;
  std::uint64_t seed = 0;
  /// Of ioi: "flipped" (the two names change places in the second clause) or "abc" (three fresh
  /// names).
  std::string corruption = "flipped";
  std::vector<std::string> names = {};  // of ioi, in place of the built-in ones
  std::int64_t length = 20;             // of induction: random tokens before they repeat
};

/// Experiments of a task, and what could not be used for this tokenizer.
struct Task {
  std::string name;
  std::vector<Experiment> experiments;
  /// "names: Oscar (2 tokens)": words that are not one token.
  std::vector<std::string> dropped;
};

/// "When John and Mary went to the store, John gave the bag to": 15 templates in both orders of the
/// names (BABA and ABBA), n experiments spread over them evenly. Positions IO, S1, S1+1, S2, END;
/// id "ioi-000007-ABBA", template "template 3". Throws std::invalid_argument when fewer than five
/// names are one token each.
Task ioi_task(const HookedTransformer& model, const TaskOptions& options = {});
/// "The war lasted from the year 1741 to the year 17": the answers are the two-digit tokens above
/// 41, wrong are the others; in the corrupted prompt the year is 1701. Positions XX, YY, END; the
/// metric is prob_diff. Throws std::invalid_argument when the tokenizer has too few years that
/// split after the century.
Task greater_than_task(const HookedTransformer& model, const TaskOptions& options = {});
/// A run of random tokens twice, cut short in the second: the answer is the token that followed in
/// the first; in the corrupted prompt another one followed. Positions PREV, FOLLOWED, END. Throws
/// std::invalid_argument when the model has no room for it, or too few ordinary tokens.
Task induction_task(const HookedTransformer& model, const TaskOptions& options = {});

/// The task of a name: ioi, greater_than, induction. Throws std::invalid_argument naming them.
Task task_named(const std::string& name, const HookedTransformer& model,
                const TaskOptions& options = {});

}  // namespace lenscpp
