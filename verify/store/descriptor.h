// A file descriptor that closes itself.
#pragma once

#include <unistd.h>

namespace lenscpp {

/// Takes what open() returned; negative: there is none.
struct Descriptor {
  int fd;
  explicit Descriptor(int descriptor) : fd(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace lenscpp
