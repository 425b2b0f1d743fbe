// posix_spawn, two pipes, and a deadline.
#include "patching/command/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <optional>
#include <system_error>
#include <thread>

#include "patching/command/shipped_models.h"

extern char** environ;

namespace lenscpp::command {
namespace {

using Clock = std::chrono::steady_clock;

void check(int error, const char* what) {
  if (error != 0) throw std::system_error(error, std::generic_category(), what);
}

// Both ends close themselves; neither is inherited but where the child asks for it.
struct Pipe {
  Pipe() {
    if (pipe(ends.data()) != 0) check(errno, "[doctor] pipe");
    for (int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
  }
  ~Pipe() {
    close_writer();
    close(ends[0]);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void close_writer() {
    if (ends[1] >= 0) close(ends[1]);
    ends[1] = -1;
  }
  std::array<int, 2> ends{-1, -1};
};

struct FileActions {
  FileActions() { check(posix_spawn_file_actions_init(&actions), "[doctor] posix_spawn"); }
  ~FileActions() { posix_spawn_file_actions_destroy(&actions); }
  FileActions(const FileActions&) = delete;
  FileActions& operator=(const FileActions&) = delete;
  posix_spawn_file_actions_t actions;
};

pid_t spawn(const std::vector<std::string>& arguments, const Pipe& out, const Pipe& err) {
  FileActions file;
  posix_spawn_file_actions_addopen(&file.actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&file.actions, out.ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&file.actions, err.ends[1], STDERR_FILENO);
  std::string program = program_path().string();
  std::vector<char*> argv{program.data()};
  std::vector<std::string> copies = arguments;
  for (std::string& argument : copies) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t child = 0;
  check(posix_spawn(&child, program.c_str(), &file.actions, nullptr, argv.data(), environ),
        "[doctor] the program cannot start itself");
  return child;
}

// Whole lines of a stream, handed on as they come; the last one is remembered.
class Lines {
 public:
  explicit Lines(const std::function<void(const std::string&)>& on_line) : on_line_(on_line) {}
  void add(std::string_view text) {
    for (char c : text) {
      if (c != '\n') {
        line_ += c;
        continue;
      }
      end_line();
    }
  }
  std::string last() {
    end_line();
    return last_;
  }

 private:
  void end_line() {
    if (line_.empty()) return;
    last_ = line_;
    if (on_line_) on_line_(line_);
    line_.clear();
  }
  const std::function<void(const std::string&)>& on_line_;
  std::string line_, last_;
};

// What is there to be read; false at the end of the stream.
bool read_some(int from, std::string& text) {
  std::array<char, 4096> buffer{};
  ssize_t n = read(from, buffer.data(), buffer.size());
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return true;
  if (n <= 0) return false;
  text.assign(buffer.data(), static_cast<std::size_t>(n));
  return true;
}

// A child of ours: gone when this is, whatever was thrown meanwhile.
class Child {
 public:
  explicit Child(pid_t id) : id_(id) {}
  ~Child() { end(); }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  /// Waits for its end until then.
  bool ended_by(Clock::time_point deadline) {
    for (auto pause = std::chrono::milliseconds(1);; pause = std::min(2 * pause, kLongestPause)) {
      if (ended()) return true;
      if (Clock::now() >= deadline) return false;
      std::this_thread::sleep_for(pause);
    }
  }
  /// Kills it unless it has ended; what waitpid says of it. Nothing when it did not end for all
  /// that: a process that is stuck in the kernel cannot be killed, and is left to the system.
  std::optional<int> end() {
    if (!ended()) {
      kill(id_, SIGKILL);
      ended_by(Clock::now() + kAfterKill);
      gone_ = true;
    }
    return status_;
  }

 private:
  static constexpr std::chrono::milliseconds kLongestPause{50};
  static constexpr std::chrono::seconds kAfterKill{5};

  bool ended() {
    if (gone_) return true;
    int status = 0;
    pid_t found = waitpid(id_, &status, WNOHANG);
    gone_ = found == id_ || (found < 0 && errno == ECHILD);
    if (found == id_) status_ = status;
    return gone_;
  }

  pid_t id_;
  bool gone_ = false;
  std::optional<int> status_;
};

constexpr double kLongest_seconds = 1e9;      // of a limit: 31 years
constexpr std::int64_t kPoll_ms = 60 * 1000;  // poll takes an int

}  // namespace

ChildResult run_child(const std::vector<std::string>& arguments, double limit_seconds,
                      const std::function<void(const std::string&)>& on_line) {
  Pipe out, err;
  Child child(spawn(arguments, out, err));
  out.close_writer();
  err.close_writer();
  ChildResult result;
  result.end.limit_seconds = limit_seconds;
  Lines lines(on_line);
  auto deadline = Clock::now() + std::chrono::milliseconds(static_cast<std::int64_t>(
                                     1000 * std::min(limit_seconds, kLongest_seconds)));
  std::array<pollfd, 2> streams{pollfd{out.ends[0], POLLIN, 0}, pollfd{err.ends[0], POLLIN, 0}};
  while (streams[0].fd >= 0 || streams[1].fd >= 0) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) {
      result.end.timed_out = true;
      break;  // what holds the pipes open besides may never close them
    }
    auto wait_ms = std::min<std::int64_t>(left.count() + 1, kPoll_ms);
    if (poll(streams.data(), streams.size(), static_cast<int>(wait_ms)) <= 0) continue;
    for (pollfd& stream : streams) {
      if (stream.fd < 0 || stream.revents == 0) continue;
      std::string text;
      if (!read_some(stream.fd, text)) stream.fd = -1;
      if (&stream == &streams[0])
        result.output += text;
      else
        lines.add(text);
    }
  }
  // It may have closed its streams and not have ended.
  if (!result.end.timed_out) result.end.timed_out = !child.ended_by(deadline);
  std::optional<int> status = child.end();
  if (status && WIFSIGNALED(*status)) result.end.signal = WTERMSIG(*status);
  if (status && WIFEXITED(*status)) result.end.status = WEXITSTATUS(*status);
  result.end.last_line = lines.last();
  return result;
}

}  // namespace lenscpp::command
