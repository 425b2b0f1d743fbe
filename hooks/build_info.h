// What this library was built from: goes into every RunRecord. Generated at build time.
#pragma once

namespace lenscpp {

/// The full commit hash, or "unknown" when built outside a git checkout.
const char* build_commit();

/// Whether tracked files differed from that commit when this was built.
bool build_dirty();

/// The release, such as "0.1.0".
const char* lenscpp_version();

}  // namespace lenscpp
