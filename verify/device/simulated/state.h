// What the simulated device was told: limits, faults, and how often it was called. Of the shared
// object alone.
#pragma once

#include <c10/core/Storage.h>

#include <map>
#include <mutex>

#include "verify/device/simulated.h"

namespace lenscpp::simulated {

class State : public SimulatedDevice {
 public:
  void set_limits(const SimulatedLimits& limits) override;
  std::shared_ptr<const SimulatedLimits> limits() const override;
  void arm(std::shared_ptr<DeviceFaults> faults) override;
  std::vector<std::string> violations() const override;
  std::vector<std::pair<std::string, std::int64_t>> calls() const override;

  /// This thread's, else those of the limits, else null.
  std::shared_ptr<DeviceFaults> faults() const;
  std::mutex& faults_mutex() { return faults_mutex_; }
  void count(const std::string& op);

 private:
  mutable std::mutex mutex_;
  std::mutex faults_mutex_;
  std::shared_ptr<const SimulatedLimits> limits_ = std::make_shared<SimulatedLimits>();
  std::shared_ptr<DeviceFaults> standing_;
  std::map<std::string, std::int64_t> calls_;
};

/// The device's; never destroyed.
State& state();
void resize_storage(const c10::Storage& storage, std::size_t bytes);

}  // namespace lenscpp::simulated
