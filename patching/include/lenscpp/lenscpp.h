// Everything that experiments in C++ use: HookedTransformer, verified caches, plans, analyses,
// faults.
#pragma once

#include "hooks/hook_point.h"
#include "hooks/plan.h"
#include "hooks/run_record.h"
#include "lens/attribution.h"
#include "lens/compare.h"
#include "lens/decomposition.h"
#include "lens/fault_injection.h"
#include "lens/hooked_transformer.h"
#include "lens/logit_lens.h"
#include "lens/saved_run.h"
#include "patching/batch_folder.h"
#include "patching/grid_file.h"
#include "patching/merged_file.h"
#include "patching/metrics.h"
#include "patching/patch_grid.h"
#include "patching/tasks.h"
#include "verify/verdict.h"
#include "verify/verified_cache.h"
#include "verify/verifier.h"
