// A SAX handler that builds the document and refuses what nlohmann's own would let pass.
#include "hooks/checkpoint/json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "hooks/nearest.h"

namespace lenscpp {
namespace {

using nlohmann::json;

// The parser's messages quote what they choked on: bytes that are not UTF-8 must not travel on.
std::string printable(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) > 0x7e) c = '?';
  return text;
}

// Linear in the input; the library's parser callback walks all siblings at the end of each object.
class StrictBuilder : public nlohmann::json_sax<json> {
 public:
  explicit StrictBuilder(const std::string& origin) : origin_(origin) {}
  json take() { return std::move(root_); }

  bool null() override { return add(json(nullptr)); }
  bool boolean(bool value) override { return add(json(value)); }
  bool number_integer(number_integer_t value) override { return add(json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return add(json(value)); }
  bool number_float(number_float_t value, const string_t&) override { return add(json(value)); }
  bool string(string_t& value) override { return add(json(std::move(value))); }
  bool binary(binary_t&) override { refuse("binary values are not JSON"); }
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    auto [place, inserted] = open_.back()->get_ref<json::object_t&>().try_emplace(name, nullptr);
    if (!inserted) refuse("the key " + in_quotes(name) + " stands twice in one object");
    member_ = &place->second;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    std::string_view what = error.what();  // "[json.exception...] parse error at ...: <reason>"
    std::size_t reason = what.find(": ");
    refuse("not JSON in UTF-8, at byte " + std::to_string(position) + ": " +
           printable(std::string(reason == what.npos ? what : what.substr(reason + 2))));
  }

 private:
  static constexpr std::size_t kDeepest = 64;

  [[noreturn]] void refuse(const std::string& reason) const {
    throw std::invalid_argument(origin_ + ": " + reason);
  }
  json* place(json&& value) {
    if (open_.empty()) return &(root_ = std::move(value));
    if (open_.back()->is_object()) return &(*member_ = std::move(value));
    auto& elements = open_.back()->get_ref<json::array_t&>();
    elements.push_back(std::move(value));
    return &elements.back();
  }
  bool add(json&& value) {
    place(std::move(value));
    return true;
  }
  bool open(json&& value) {
    if (open_.size() == kDeepest)
      refuse("nested deeper than " + std::to_string(kDeepest) + " levels");
    open_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& origin_;
  json root_;
  std::vector<json*> open_;  // containers from the root down; only the last one grows
  json* member_ = nullptr;
};

}  // namespace

json parse_json(std::string_view text, const std::string& origin) {
  // The library takes a NUL byte for the end, and would read nothing of what hides behind it.
  if (std::size_t nul = text.find('\0'); nul != text.npos)
    throw std::invalid_argument(origin + ": not JSON: a NUL at byte " + std::to_string(nul));
  StrictBuilder builder(origin);
  try {
    json::sax_parse(text.begin(), text.end(), &builder);
  } catch (const json::exception& error) {  // numbers too large for a double
    throw std::invalid_argument(origin + ": not JSON: " + printable(error.what()));
  }
  return builder.take();
}

std::string show(const json& value) {
  std::string text =
      value.dump(-1, ' ', true, json::error_handler_t::replace);  // ASCII: cut anywhere
  return text.size() <= 200 ? text : text.substr(0, 200) + "...";
}

std::string read_text(const std::filesystem::path& path, std::size_t limit_bytes) {
  auto fail = [&](int error) {
    throw std::system_error(error, std::generic_category(), "[checkpoint] " + path.string());
  };
  struct Descriptor {
    int fd;
    ~Descriptor() {
      if (fd >= 0) ::close(fd);
    }
  } file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};  // a pipe must not block
  struct stat status {};
  if (file.fd < 0 || ::fstat(file.fd, &status) != 0) fail(errno);
  if (S_ISDIR(status.st_mode)) fail(EISDIR);
  if (!S_ISREG(status.st_mode)) fail(EINVAL);
  std::string text;
  char chunk[1 << 16];
  for (;;) {
    ssize_t n = ::read(file.fd, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(errno);
    if (n == 0) return text;
    text.append(chunk, static_cast<std::size_t>(n));
    if (text.size() > limit_bytes)
      throw std::invalid_argument("[checkpoint] " + path.string() + ": larger than " +
                                  std::to_string(limit_bytes) + " bytes, which is allowed");
  }
}

}  // namespace lenscpp
