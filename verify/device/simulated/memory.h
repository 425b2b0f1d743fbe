// Memory of the simulated device: fresh blocks hold NaN in every float type, canaries stand on both
// sides of each and are looked at when it is freed. Of the shared object alone.
#pragma once

#include <c10/core/Allocator.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace lenscpp::simulated {

class Memory : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void copy_data(void* destination, const void* source, std::size_t bytes) const override;

  /// Larger allocations abort the process, as Apple's do; 0: no limit.
  void set_limit(std::int64_t bytes);
  /// Blocks that this thread made since its last call of `mark`, oldest first.
  struct Block {
    void* data;
    std::size_t bytes;
  };
  void mark();
  std::vector<Block> blocks() const;
  /// Broken canaries, of blocks that live and of those that were freed, in words.
  std::vector<std::string> violations() const;

 private:
  struct Live {
    std::size_t bytes;
    std::int64_t serial;
    std::thread::id thread;
  };
  static void release(void* data);
  static std::string broken(const void* data, const Live& block);

  mutable std::mutex mutex_;
  std::map<void*, Live> live_;
  std::vector<std::string> violations_;
  std::int64_t serial_ = 0, limit_ = 0;
};

/// The device's; never destroyed, since tensors may outlive everything else.
Memory& memory_of_device();

}  // namespace lenscpp::simulated
