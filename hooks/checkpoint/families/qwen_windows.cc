// Windows of Qwen2 and Qwen3, by configuration_qwen2.py.
#include "hooks/checkpoint/families/qwen_windows.h"

namespace lenscpp {

void read_qwen_windows(Fields& fields, Config& config) {
  auto window = fields.optional_dimension({"sliding_window"}, kLongestContext);
  auto first = fields.number({"max_window_layers"}).value_or(28);
  if (fields.flag({"use_sliding_window"}, false)) config.window = window;
  if (config.window)
    for (std::int64_t l = 0; l < config.n_layers; ++l)
      config.windowed_layers.push_back(static_cast<double>(l) >= first);
  read_layer_types(fields, config);
}

}  // namespace lenscpp
