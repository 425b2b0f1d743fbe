// Which layers of a Qwen model have a window.
#pragma once

#include "hooks/checkpoint/families/decoder.h"

namespace lenscpp {

/// use_sliding_window, sliding_window, and layer_types or max_window_layers: the first layers see
/// everything.
void read_qwen_windows(Fields& fields, Config& config);

}  // namespace lenscpp
