// What people see: columns that align, tokens that show what they hold, colours only where they
// help.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lenscpp::command {

enum class Style { bold, dim, good, bad, doubtful };

/// `text` in a style when standard output is a terminal (not TERM=dumb) and NO_COLOR is unset or
/// empty; else as it is.
std::string styled(std::string_view text, Style style);
/// Colours that standard output shows: none where `styled` leaves text as it is, else 256, or all
/// where COLORTERM says so.
enum class Colours { none, few, all };
Colours colours_of_output();
/// Its width in columns; unset when it is no terminal.
std::optional<int> width_of_output();
/// A text that begins with VERIFIED, INVALID or UNVERIFIED, that word in its colour.
std::string with_coloured_status(std::string_view text);

/// In double quotes, with escapes for quotes, backslashes, control characters, and whatever takes
/// no column:
/// "\n", "\x1b", "\u{301}".
std::string quoted_token(std::string_view utf8);
/// Columns of a terminal that text takes; escape sequences of `styled` take none.
int display_width(std::string_view utf8);

std::string fixed(double value, int decimals);    // "-0.99"
std::string percent(double share);                // "97.3 %"
std::string bytes_in_words(std::size_t n_bytes);  // "1.2 MB"

/// Rows of cells. Columns are as wide as their widest cell; numbers stand at the right.
class Table {
 public:
  struct Column {
    std::string title;
    bool right = false;
  };
  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}
  void add(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string str() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

/// Writes to standard output. When nobody reads any more the rest is dropped in silence; throws
/// std::system_error when it cannot be written for another reason.
void print(std::string_view text);
/// One line on standard error: "lenscpp: MESSAGE", line breaks in the message replaced.
void complain(std::string_view message);

/// Says on standard error what is going on, on one line that is wiped afterwards. Silent unless
/// that is a terminal.
class Progress {
 public:
  explicit Progress(std::string_view what);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

 private:
  bool shown_;
};

/// SIGPIPE is ignored (print drops the rest); SIGINT ends the program with status 130, but never
/// inside of an `Uninterrupted`, whose end it waits for.
void prepare_signals();
/// While one lives, the first SIGINT or SIGTERM only asks to stop; the second ends the program.
class StopWhenAsked {
 public:
  StopWhenAsked();
  ~StopWhenAsked();
  StopWhenAsked(const StopWhenAsked&) = delete;
  StopWhenAsked& operator=(const StopWhenAsked&) = delete;
  /// The signal that asked; 0: none.
  static int asked();
};
class Uninterrupted {
 public:
  Uninterrupted();
  ~Uninterrupted();
  Uninterrupted(const Uninterrupted&) = delete;
  Uninterrupted& operator=(const Uninterrupted&) = delete;
};

}  // namespace lenscpp::command
