// Drawing: colours by value, labels that cannot do anything, and as much as fits.
#include "patching/command/heat_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <system_error>

#include "hooks/nearest.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr int kLongestLabel = 24;  // columns
constexpr int kNumber = 6, kTenths = 3;

struct Colour {
  int red, green, blue;
};
constexpr Colour kLow{178, 24, 43}, kWhite{255, 255, 255}, kHigh{33, 102, 172},
    kGrey{150, 150, 150};

Colour colour_of(double value, double reach) {
  if (std::isnan(value)) return kGrey;
  double share = std::clamp(reach > 0 ? value / reach : 0.0, -1.0, 1.0);
  const Colour& end = share < 0 ? kLow : kHigh;
  auto mix = [&](int from, int to) {
    return from + static_cast<int>(std::lround(std::abs(share) * (to - from)));
  };
  return {mix(kWhite.red, end.red), mix(kWhite.green, end.green), mix(kWhite.blue, end.blue)};
}

bool dark(const Colour& c) { return 299 * c.red + 587 * c.green + 114 * c.blue < 140000; }

std::string on_colour(const std::string& text, const Colour& c, Colours colours) {
  if (colours == Colours::none) return text;
  std::string background;
  if (colours == Colours::all) {
    background =
        "2;" + std::to_string(c.red) + ";" + std::to_string(c.green) + ";" + std::to_string(c.blue);
  } else {  // the cube of 6 x 6 x 6
    auto step = [](int x) { return (x * 5 + 127) / 255; };
    background = "5;" + std::to_string(16 + 36 * step(c.red) + 6 * step(c.green) + step(c.blue));
  }
  return "\x1b[48;" + background + ";38;5;" + (dark(c) ? "231" : "16") + "m" + text + "\x1b[0m";
}

std::string without_minus_zero(std::string text) {
  return text.find_first_not_of("-0.") == text.npos && text.starts_with('-') ? text.substr(1)
                                                                             : text;
}

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  return without_minus_zero(fixed(value, std::abs(value) < 99.5 ? 2 : 0));
}

std::string to_width(std::string text, int width, bool right) {
  int space = std::max(0, width - display_width(text));
  return right ? std::string(static_cast<std::size_t>(space), ' ') + text
               : text + std::string(static_cast<std::size_t>(space), ' ');
}

// As a token is quoted: nothing that moves the cursor or takes no column; cut where it is long.
std::string label_of(const std::string& raw) {
  std::string label = quoted_token(raw);
  label = label.substr(1, label.size() - 2);
  if (display_width(label) <= kLongestLabel) return label;
  while (display_width(label) >= kLongestLabel) {
    label.pop_back();
    while (!label.empty() && (static_cast<unsigned char>(label.back()) & 0xc0) == 0x80)
      label.pop_back();
    if (!label.empty() && static_cast<unsigned char>(label.back()) >= 0xc0) label.pop_back();
  }
  return label + "…";
}

// A column has room for a number only: that of a position, without its token.
std::string number_label(const std::string& label) {
  return label_of(label.substr(0, label.find(':')));
}

std::string cell_text(const HeatMap& map, double value, int width, Colours colours) {
  std::string text;
  if (std::isnan(value))
    text = colours == Colours::none && width >= kNumber ? "NaN" : map.blank;
  else if (width >= kNumber)
    text = number(value);
  else
    text = std::to_string(std::clamp(std::lround(10 * value / map.reach), -10L, 10L));
  return to_width(text, width - 1, true) + " ";
}

std::string legend(const HeatMap& map, int cell, Colours colours) {
  std::string text;
  if (colours != Colours::none)
    for (double share : {-1.0, -0.5, 0.0, 0.5, 1.0})
      text += on_colour(" " + number(share * map.reach) + " ",
                        colour_of(share * map.reach, map.reach), colours);
  if (cell < kNumber)
    text += std::string(text.empty() ? "" : " ") + "in tenths of " + number(map.reach);
  if (std::ranges::any_of(map.values, [](double x) { return std::isnan(x); }))
    text += std::string(text.empty() ? "" : "  ") +
            on_colour(colours == Colours::none && cell >= kNumber ? "NaN" : " " + map.blank + " ",
                      kGrey, colours) +
            " " + map.blank_means;
  return text.empty() ? text : text + "\n";
}

std::string hexadecimal(const Colour& c) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text = "#";
  for (int x : {c.red, c.green, c.blue}) {
    text += kDigits[static_cast<std::size_t>(x / 16)];
    text += kDigits[static_cast<std::size_t>(x % 16)];
  }
  return text;
}

constexpr const char* kStyle = R"(
body{font:14px system-ui,sans-serif;margin:2em;color:#111;background:#fff}
table{border-collapse:separate;border-spacing:1px;margin:1em 0;font-size:12px}
caption{text-align:left;font-weight:600;padding:4px 0}
td{min-width:3.2em;text-align:right;padding:2px 5px}
th{font-weight:400;text-align:right;padding:2px 6px;white-space:pre}
td.refused{background:repeating-linear-gradient(45deg,#bbb 0 3px,#eee 3px 6px)}
.VERIFIED{color:#1a7f37}.INVALID{color:#cf222e}.UNVERIFIED{color:#9a6700}
)";

}  // namespace

std::string heat_map_text(const HeatMap& map, Colours colours, std::optional<int> width) {
  std::size_t columns = map.column_labels.size(), shown = columns;
  std::vector<std::string> names;
  int margin = display_width(map.row_title);
  for (const std::string& label : map.row_labels) {
    names.push_back(label_of(label));
    margin = std::max(margin, display_width(names.back()));
  }
  margin += 2;
  int cell = kNumber;
  auto fits = [&](int one) { return !width || margin + static_cast<int>(columns) * one <= *width; };
  if (!fits(cell)) cell = kTenths;
  if (!fits(cell)) shown = static_cast<std::size_t>(std::max(1, (*width - margin) / cell));
  std::string text = map.title.empty() ? "" : styled(map.title, Style::bold) + "\n";
  std::string head = to_width(map.row_title, margin, false);
  for (std::size_t c = 0; c < shown; ++c) {
    std::string label = number_label(map.column_labels[c]);
    bool room =
        display_width(label) < cell;  // two digits in three columns; longer ones every other
    head += to_width(room || c % 3 == 0 ? label : "", cell - 1, true) + " ";
  }
  if (!map.column_title.empty())
    text += std::string(static_cast<std::size_t>(margin), ' ') + map.column_title + "\n";
  text += head.substr(0, head.find_last_not_of(' ') + 1) + "\n";
  for (std::size_t r = 0; r < names.size(); ++r) {
    text += to_width(names[r], margin, false);
    for (std::size_t c = 0; c < shown; ++c) {
      double value = map.values[r * columns + c];
      text += on_colour(cell_text(map, value, cell, colours), colour_of(value, map.reach), colours);
    }
    text += "\n";
  }
  if (shown < columns)
    text += "columns " + std::to_string(shown) + ".." + std::to_string(columns - 1) +
            " are not shown: the terminal has " + std::to_string(*width) + " columns\n";
  return text + legend(map, cell, colours);
}

std::string heat_map_text(const HeatMap& map) {
  return heat_map_text(map, colours_of_output(), width_of_output());
}

std::string escaped_html(const std::string& text) {
  std::string safe;
  for (char c : text) switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      case '\'':
        safe += "&#39;";
        break;
      default:
        safe += c;
    }
  return safe;
}

std::string heat_map_html(const HeatMap& map) {
  auto visible = [](const std::string& raw) {
    std::string label = quoted_token(raw);
    return escaped_html(label.substr(1, label.size() - 2));
  };
  std::string html = "<table>";
  if (!map.title.empty()) html += "<caption>" + escaped_html(map.title) + "</caption>";
  html +=
      "<tr><th>" + escaped_html(map.row_title) + " \\ " + escaped_html(map.column_title) + "</th>";
  for (const std::string& label : map.column_labels) html += "<th>" + visible(label) + "</th>";
  html += "</tr>\n";
  for (std::size_t r = 0; r < map.row_labels.size(); ++r) {
    html += "<tr><th>" + visible(map.row_labels[r]) + "</th>";
    for (std::size_t c = 0; c < map.column_labels.size(); ++c) {
      double value = map.values[r * map.column_labels.size() + c];
      bool refused = std::isnan(value);
      Colour colour = colour_of(value, map.reach);
      html += "<td title=\"" + visible(map.row_labels[r]) + ", " + visible(map.column_labels[c]) +
              ": " +
              (refused ? escaped_html(map.blank_means) + " (NaN)"
                       : without_minus_zero(fixed(value, 4))) +
              "\"" +
              (refused ? " class=\"refused\""
                       : " style=\"background:" + hexadecimal(colour) +
                             (dark(colour) ? ";color:#fff" : "") + "\"") +
              ">" + (refused ? escaped_html(map.blank) : number(value)) + "</td>";
    }
    html += "</tr>\n";
  }
  return html + "</table>\n";
}

std::string html_page(const std::string& title, const std::string& body) {
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>" +
         escaped_html(title) + "</title><style>" + kStyle + "</style></head><body>\n<h1>" +
         escaped_html(title) + "</h1>\n" + body + "</body></html>\n";
}

namespace {

// Where a flat cell of a grid stands: which map, row and column.
struct Layout {
  std::vector<std::int64_t> extents;
  std::size_t row, column;  // axes; row == column where there is one axis alone

  explicit Layout(const std::vector<GridAxis>& axes) : row(0), column(axes.size() - 1) {
    for (const GridAxis& axis : axes) extents.push_back(std::ssize(axis.labels));
    auto at = [&](Axis axis) {
      return static_cast<std::size_t>(std::ranges::find(axes, axis, &GridAxis::axis) -
                                      axes.begin());
    };
    if (at(Axis::query) < axes.size() && at(Axis::key) < axes.size()) {
      row = at(Axis::query), column = at(Axis::key);
      return;
    }
    // Tokens are read along rows, so that positions go down.
    bool down = axes[column].axis == Axis::pos && axes[row].axis == Axis::layer;
    if (down) std::swap(row, column);
  }
};

}  // namespace

std::vector<HeatMap> heat_maps(const GridResult& grid) {
  const auto& axes = grid.axes();
  Layout layout(axes);
  std::vector<double> values = grid.values().to_doubles();
  double reach = 1;
  try {
    values = grid.normalized().to_doubles();
  } catch (const std::invalid_argument&) {
    reach = 0;  // the metric itself
  }
  for (double x : values)
    if (std::abs(x) > reach) reach = std::abs(x);
  std::map<std::string, std::size_t> index;
  std::vector<HeatMap> maps;
  bool one = layout.row == layout.column;
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::string title;
    std::int64_t row = 0, column = 0, rest = static_cast<std::int64_t>(i);
    for (std::size_t d = axes.size(); d-- > 0; rest /= layout.extents[d]) {
      std::int64_t at = rest % layout.extents[d];
      if (d == layout.column) column = at;
      if (d == layout.row && !one) row = at;
      if (d != layout.row && d != layout.column)
        title = std::string(name_of(axes[d].axis)) + " " +
                axes[d].labels[static_cast<std::size_t>(at)] + (title.empty() ? "" : ", ") + title;
    }
    auto [found, added] = index.try_emplace(title, maps.size());
    if (added)
      maps.push_back({.title = title,
                      .row_title = one ? "" : std::string(name_of(axes[layout.row].axis)),
                      .column_title = std::string(name_of(axes[layout.column].axis)),
                      .row_labels = one ? std::vector<std::string>{""} : axes[layout.row].labels,
                      .column_labels = axes[layout.column].labels,
                      .values = {},
                      .reach = reach > 0 ? reach : 1});
    HeatMap& map = maps[found->second];
    map.values.resize(map.row_labels.size() * map.column_labels.size());
    map.values[static_cast<std::size_t>(row) * map.column_labels.size() +
               static_cast<std::size_t>(column)] = values[i];
  }
  return maps;
}

void write_page(const std::filesystem::path& path, const std::vector<GridResult>& grids,
                const std::vector<std::string>& lines) {
  std::string body = "<p>";
  for (const std::string& line : lines) body += escaped_html(line) + "<br>";
  body += "</p>\n";
  for (const GridResult& grid : grids) {
    std::string status(name_of(grid.verdict().status));
    body += "<h2>" + escaped_html(grid_in_words(grid)) + "</h2>\n<p class=\"" + status + "\">" +
            escaped_html(grid.verdict().summary()) + "</p>\n";
    for (const HeatMap& map : heat_maps(grid)) body += heat_map_html(map);
  }
  const RunRecord& record = grids.at(0).clean_record();
  std::string title = "Activation patching: " + record.model + ", " + record.dtype + " on " +
                      record.device + ", " + std::string(name_of(grids[0].verdict().status));
  std::ofstream file(path, std::ios::binary);
  file << html_page(title, body);
  file.close();
  if (!file)
    throw std::system_error(errno, std::generic_category(),
                            "[html] " + in_quotes(path.string()) + " cannot be written");
}

std::string grid_in_words(const GridResult& grid) {
  auto signed_number = [](double x) { return (x >= 0 ? "+" : "") + fixed(x, 3); };
  std::string scale = "; 0 is the corrupted run, 1 the clean one";
  try {
    grid.normalized();
  } catch (const std::invalid_argument&) {
    scale = "; the metric itself, since it does not tell the two apart";
  }
  std::array<char, 32> bar{};
  std::snprintf(bar.data(), bar.size(), "%.1e", grid.error_bar());
  return std::string(name_of(grid.direction())) + " " + short_name(grid.site()) + ": " +
         grid.metric().at("metric").get<std::string>() + ", clean " + signed_number(grid.clean()) +
         ", corrupted " + signed_number(grid.corrupted()) + ", error bar " + bar.data() + scale;
}

ordered_json grid_to_json(const GridResult& grid) {
  ordered_json labels = ordered_json::object(), over = ordered_json::array();
  for (const GridAxis& axis : grid.axes()) {
    over.push_back(name_of(axis.axis));
    labels[std::string(name_of(axis.axis))] = axis.labels;
  }
  ordered_json json{{"site", short_name(grid.site())},
                    {"direction", name_of(grid.direction())},
                    {"over", over},
                    {"labels", labels},
                    {"shape", grid.values().shape()},
                    {"values", grid.values().to_doubles()},
                    {"normalized", nullptr},
                    {"clean", grid.clean()},
                    {"corrupted", grid.corrupted()},
                    {"error_bar", grid.error_bar()},
                    {"metric", grid.metric()},
                    {"status", name_of(grid.verdict().status)},
                    {"verdict", to_json(grid.verdict())}};
  try {
    json["normalized"] = grid.normalized().to_doubles();
  } catch (const std::invalid_argument&) {  // null says so
  }
  return json;
}

}  // namespace lenscpp::command
