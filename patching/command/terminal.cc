// Output for people: standard output and standard error by their descriptors, no stream buffers.
#include "patching/command/terminal.h"

#include <locale.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <system_error>

#include "hooks/tokenizer/utf8.h"

namespace lenscpp::command {
namespace {

bool capable_terminal(int descriptor) {
  const char* term = std::getenv("TERM");
  return ::isatty(descriptor) != 0 && term != nullptr && std::string_view(term) != "dumb";
}

bool coloured() {
  const char* no_color = std::getenv("NO_COLOR");
  static const bool result =
      capable_terminal(STDOUT_FILENO) && (no_color == nullptr || *no_color == '\0');
  return result;
}

// Columns of one code point: 0 and below for what cannot be seen alone. The C library knows; its
// answer depends on the locale, which is set for this thread and this call only.
int columns_of(char32_t c) {
  static const locale_t utf8_locale = [] {
    for (const char* name : {"C.UTF-8", "en_US.UTF-8", "UTF-8"})
      if (locale_t found = ::newlocale(LC_CTYPE_MASK, name, nullptr)) return found;
    return static_cast<locale_t>(nullptr);
  }();
  if (c < 0x20 || (c >= 0x7f && c < 0xa0)) return -1;
  if (utf8_locale == nullptr || c == 0xfffd) return 1;
  locale_t before = ::uselocale(utf8_locale);
  int columns = ::wcwidth(static_cast<wchar_t>(c));
  ::uselocale(before);
  return columns;
}

std::string hexadecimal(std::uint32_t value) {
  std::array<char, 16> text{};
  auto end = std::to_chars(text.data(), text.data() + text.size(), value, 16).ptr;
  return {text.data(), end};
}

std::string escaped(char32_t c) {
  switch (c) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\n':
      return "\\n";
    case '\r':
      return "\\r";
    case '\t':
      return "\\t";
    default:
      break;
  }
  if (columns_of(c) > 0) {
    std::string text;
    utf8::append(text, c);
    return text;
  }
  if (c < 0x80) return (c < 0x10 ? "\\x0" : "\\x") + hexadecimal(c);
  return "\\u{" + hexadecimal(c) + "}";
}

// Returns 0, or errno.
int write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    ssize_t n = ::write(descriptor, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return 0;
}

volatile std::sig_atomic_t busy = 0, interrupted = 0, progress_shown = 0, stops_when_asked = 0,
                           asked_by = 0;
constexpr std::string_view kWipeLine = "\r\x1b[K";

constexpr int kInterrupted = 130;  // 128 + SIGINT, as shells count

extern "C" void on_interrupt(int signal) {
  if (stops_when_asked != 0 && asked_by == 0) {
    asked_by = signal;
    return;
  }
  interrupted = 1;
  if (busy != 0) return;
  if (progress_shown != 0) write_all(STDERR_FILENO, kWipeLine);
  ::_exit(128 + signal);
}

}  // namespace

std::string styled(std::string_view text, Style style) {
  if (!coloured()) return std::string(text);
  const char* code = "";
  switch (style) {
    case Style::bold:
      code = "1";
      break;
    case Style::dim:
      code = "2";
      break;
    case Style::good:
      code = "1;32";
      break;
    case Style::bad:
      code = "1;31";
      break;
    case Style::doubtful:
      code = "1;33";
      break;
  }
  return "\x1b[" + std::string(code) + "m" + std::string(text) + "\x1b[0m";
}

Colours colours_of_output() {
  if (!coloured()) return Colours::none;
  const char* color_term = std::getenv("COLORTERM");
  std::string_view depth = color_term == nullptr ? "" : color_term;
  return depth == "truecolor" || depth == "24bit" ? Colours::all : Colours::few;
}

std::optional<int> width_of_output() {
  winsize size{};
  if (::isatty(STDOUT_FILENO) == 0 || ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) return {};
  return size.ws_col > 0 ? std::optional<int>(size.ws_col) : std::nullopt;
}

std::string with_coloured_status(std::string_view text) {
  constexpr std::pair<std::string_view, Style> kWords[] = {
      {"VERIFIED", Style::good}, {"INVALID", Style::bad}, {"UNVERIFIED", Style::doubtful}};
  for (auto [word, style] : kWords)
    if (text.starts_with(word)) return styled(word, style) + std::string(text.substr(word.size()));
  return std::string(text);
}

std::string quoted_token(std::string_view text) {
  std::string result = "\"";
  for (std::size_t at = 0; at < text.size();) {
    utf8::Step step = utf8::step(text, at);
    result += escaped(step.code_point);
    at += step.length;
  }
  return result + "\"";
}

int display_width(std::string_view text) {
  int width = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (text[at] == '\x1b') {
      at = std::min(text.find('m', at), text.size() - 1) + 1;
      continue;
    }
    utf8::Step step = utf8::step(text, at);
    width += std::max(0, columns_of(step.code_point));
    at += step.length;
  }
  return width;
}

std::string fixed(double value, int decimals) {
  std::array<char, 400> text{};  // 1.8e308 has 309 digits
  auto end = std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed,
                           decimals)
                 .ptr;
  return {text.data(), end};
}

std::string percent(double share) { return fixed(100 * share, 1) + " %"; }

std::string bytes_in_words(std::size_t n_bytes) {
  if (n_bytes < 1000) return std::to_string(n_bytes) + " bytes";
  double value = static_cast<double>(n_bytes);
  std::size_t unit = 0;
  constexpr std::string_view kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  for (; value >= 999.5 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  return fixed(value, value < 9.95 ? 1 : 0) + " " + std::string(kUnits[unit]);
}

std::string Table::str() const {
  std::vector<int> widths;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    widths.push_back(display_width(columns_[c].title));
    for (const auto& row : rows_) widths[c] = std::max(widths[c], display_width(row[c]));
  }
  auto line = [&](const auto& cell_of) {
    std::string text;
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      std::string cell = cell_of(c);
      std::string space(static_cast<std::size_t>(widths[c] - display_width(cell)), ' ');
      text += (c == 0 ? "" : "  ") + (columns_[c].right ? space + cell : cell + space);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    return text + "\n";
  };
  std::string text = line([&](std::size_t c) { return columns_[c].title; });
  text = styled(text.substr(0, text.size() - 1), Style::bold) + "\n";
  for (const auto& row : rows_) text += line([&](std::size_t c) { return row[c]; });
  return text;
}

void print(std::string_view text) {
  static bool closed = false;  // by its reader: `| head`
  if (closed) return;
  int error = write_all(STDOUT_FILENO, text);
  if (error == EPIPE)
    closed = true;
  else if (error != 0)
    throw std::system_error(error, std::generic_category(),
                            "[output] standard output cannot be written");
}

void complain(std::string_view message) {
  std::string line = "lenscpp: " + std::string(message);
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  write_all(STDERR_FILENO, line + "\n");
}

Progress::Progress(std::string_view what) : shown_(capable_terminal(STDERR_FILENO)) {
  if (!shown_) return;
  progress_shown = 1;
  write_all(STDERR_FILENO, "\r" + std::string(what) + " ...");
}
Progress::~Progress() {
  if (!shown_) return;
  write_all(STDERR_FILENO, kWipeLine);
  progress_shown = 0;
}

void prepare_signals() {
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, nullptr);
  struct sigaction before {};
  ::sigaction(SIGINT, nullptr, &before);
  if (before.sa_handler == SIG_IGN) return;  // in the background of a script: left so
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
}

StopWhenAsked::StopWhenAsked() {
  asked_by = 0;
  stops_when_asked = 1;
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGTERM, &action, nullptr);
}
StopWhenAsked::~StopWhenAsked() {
  stops_when_asked = 0;
  ::signal(SIGTERM, SIG_DFL);
}
int StopWhenAsked::asked() { return asked_by; }

Uninterrupted::Uninterrupted() { busy = 1; }
Uninterrupted::~Uninterrupted() {
  busy = 0;
  if (interrupted != 0) ::_exit(kInterrupted);
}

}  // namespace lenscpp::command
