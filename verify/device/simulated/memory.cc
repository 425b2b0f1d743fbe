// Poison, canaries, and Apple's way to refuse a large buffer.
#include "verify/device/simulated/memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace lenscpp::simulated {
namespace {

constexpr std::size_t kMargin = 64;  // bytes of canary on each side
constexpr unsigned char kPoison = 0xff, kCanary = 0xa5;

// The first block since this thread armed faults.
thread_local std::int64_t marked = 0;

unsigned char* bytes_of(void* data) { return static_cast<unsigned char*>(data); }

}  // namespace

Memory& memory_of_device() {
  static auto* instance = new Memory;
  return *instance;
}

c10::DataPtr Memory::allocate(std::size_t bytes) {
  c10::Device device(c10::DeviceType::PrivateUse1, 0);
  if (bytes == 0) return {nullptr, nullptr, &release, device};
  std::lock_guard lock(mutex_);
  if (limit_ > 0 && bytes > static_cast<std::size_t>(limit_)) {
    std::fprintf(stderr,
                 "-[MPSNDArray initWithDevice:descriptor:isTextureBacked:]: failed assertion "
                 "`[MPSNDArray initWithDevice:descriptor:isTextureBacked:] Error: total bytes of "
                 "NDArray > 2**32' (simulated: %zu bytes, the limit is %lld)\n",
                 bytes, static_cast<long long>(limit_));
    std::abort();
  }
  auto* base = static_cast<unsigned char*>(
      std::aligned_alloc(kMargin, (bytes + 3 * kMargin - 1) / kMargin * kMargin));
  if (base == nullptr) throw std::bad_alloc();
  std::memset(base, kCanary, kMargin);
  std::memset(base + kMargin, kPoison, bytes);
  std::memset(base + kMargin + bytes, kCanary, kMargin);
  live_[base + kMargin] = {bytes, serial_++, std::this_thread::get_id()};
  return {base + kMargin, base + kMargin, &release, device};
}

std::string Memory::broken(const void* data, const Live& block) {
  const auto* begin = static_cast<const unsigned char*>(data);
  auto is_canary = [](unsigned char byte) { return byte == kCanary; };
  std::string where;
  if (!std::all_of(begin - kMargin, begin, is_canary)) where = "before";
  if (!std::all_of(begin + block.bytes, begin + block.bytes + kMargin, is_canary))
    where += where.empty() ? "behind" : " and behind";
  return where.empty() ? ""
                       : "written " + where + " a block of " + std::to_string(block.bytes) +
                             " bytes, allocation " + std::to_string(block.serial);
}

void Memory::release(void* data) {
  if (data == nullptr) return;
  Memory& self = memory_of_device();
  {
    std::lock_guard lock(self.mutex_);
    auto found = self.live_.find(data);
    if (found == self.live_.end()) return;
    if (std::string what = broken(data, found->second); !what.empty())
      self.violations_.push_back(what);
    self.live_.erase(found);
  }
  std::free(bytes_of(data) - kMargin);
}

c10::DeleterFnPtr Memory::raw_deleter() const { return &release; }

void Memory::copy_data(void* destination, const void* source, std::size_t bytes) const {
  std::memcpy(destination, source, bytes);
}

void Memory::set_limit(std::int64_t bytes) {
  std::lock_guard lock(mutex_);
  limit_ = bytes;
}

void Memory::mark() {
  std::lock_guard lock(mutex_);
  marked = serial_;
}

std::vector<Memory::Block> Memory::blocks() const {
  std::lock_guard lock(mutex_);
  std::vector<std::pair<std::int64_t, Block>> found;
  for (const auto& [data, block] : live_)
    if (block.serial >= marked && block.thread == std::this_thread::get_id())
      found.push_back({block.serial, {data, block.bytes}});
  std::ranges::sort(found, {}, [](const auto& entry) { return entry.first; });
  std::vector<Block> blocks;
  for (const auto& [serial, block] : found) blocks.push_back(block);
  return blocks;
}

std::vector<std::string> Memory::violations() const {
  std::lock_guard lock(mutex_);
  std::vector<std::string> all = violations_;
  for (const auto& [data, block] : live_)
    if (std::string what = broken(data, block); !what.empty())
      all.push_back(what + ", still alive");
  return all;
}

REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory_of_device());

}  // namespace lenscpp::simulated
