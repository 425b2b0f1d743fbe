// Fallbacks, by PyTorch's warning and by the nesting of operators.
#include "hooks/transformer/fallbacks.h"

#include <ATen/record_function.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <mutex>
#include <set>

namespace lenscpp {
namespace {

// at::native::cpu_fallback copies its operands by this, whatever the backend.
constexpr std::string_view kCopyToCpu = "aten::_to_cpu";

std::string_view without_overload(std::string_view op) { return op.substr(0, op.find('.')); }

// Warnings that are said once a process are said to every run. The flag is the whole process's: the
// first of several watches at a time raises it, the last one puts it back.
class WarnAlways {
 public:
  WarnAlways() {
    std::lock_guard lock(mutex_);
    if (users_++ > 0) return;
    before_ = c10::WarningUtils::get_warnAlways();
    c10::WarningUtils::set_warnAlways(true);
  }
  ~WarnAlways() {
    std::lock_guard lock(mutex_);
    if (--users_ == 0) c10::WarningUtils::set_warnAlways(before_);
  }
  WarnAlways(const WarnAlways&) = delete;
  WarnAlways& operator=(const WarnAlways&) = delete;

 private:
  static inline std::mutex mutex_;
  static inline int users_ = 0;
  static inline bool before_ = false;
};

}  // namespace

std::optional<std::string> fallback_in(std::string_view warning) {
  constexpr std::string_view kOperator = "The operator ";
  bool falls_back = warning.find("will fall back to run on the CPU") != warning.npos;
  bool copies = warning.find("appears to be a view operator") != warning.npos &&
                warning.find("has no implementation for the backend") != warning.npos;
  if (!falls_back && !copies) return {};
  std::string_view op = "an operator that the warning does not name";
  if (auto at = warning.find(kOperator); at != warning.npos) {
    op = warning.substr(at + kOperator.size());
    if (op.starts_with('\'')) op.remove_prefix(1);
    op = without_overload(op.substr(0, op.find_first_of("' ")));
  }
  return std::string(op) + (copies ? " (a copy instead of a view)" : "");
}

struct FallbackWatch::State : c10::WarningHandler {
  State();
  ~State() override;
  void process(const c10::Warning& warning) override;
  void note(std::string op) {
    if (std::ranges::find(fallen, op) == fallen.end()) fallen.push_back(std::move(op));
  }
  static std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& function);
  static void leave(const at::RecordFunction&, at::ObserverContext*);

  static thread_local State* current;
  State* outer = current;
  std::vector<std::string> fallen, running;  // running: operators inside of each other
  std::set<std::string> handed_on;
  WarnAlways warn_always;
  c10::WarningHandler* handler_before = c10::WarningUtils::get_warning_handler();
  at::RecordFunctionGuard observed{true};
  at::CallbackHandle handle;
};

thread_local FallbackWatch::State* FallbackWatch::State::current = nullptr;

FallbackWatch::State::State()
    : handle(at::addThreadLocalCallback(
          at::RecordFunctionCallback(&enter, &leave).scopes({at::RecordScope::FUNCTION}))) {
  current = this;
  c10::WarningUtils::set_warning_handler(this);
}

FallbackWatch::State::~State() {
  c10::WarningUtils::set_warning_handler(handler_before);
  at::removeCallback(handle);
  current = outer;
}

void FallbackWatch::State::process(const c10::Warning& warning) {
  if (auto op = fallback_in(warning.msg())) return note(std::move(*op));
  if (handed_on.insert(warning.msg()).second) handler_before->process(warning);
}

std::unique_ptr<at::ObserverContext> FallbackWatch::State::enter(
    const at::RecordFunction& function) {
  if (current == nullptr) return {};
  if (function.name() == kCopyToCpu && !current->running.empty() &&
      current->running.back() != kCopyToCpu)  // of nested watches each one calls this
    current->note(std::string(without_overload(current->running.back())));
  current->running.emplace_back(function.name());
  return {};
}

void FallbackWatch::State::leave(const at::RecordFunction&, at::ObserverContext*) {
  if (current != nullptr && !current->running.empty()) current->running.pop_back();
}

FallbackWatch::FallbackWatch() : state_(std::make_unique<State>()) {}
FallbackWatch::~FallbackWatch() = default;
const std::vector<std::string>& FallbackWatch::operators() const { return state_->fallen; }

}  // namespace lenscpp
