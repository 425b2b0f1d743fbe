// SHA-256 by libcrypto, which uses the processor's instructions for it.
#include "verify/store/sha256.h"

#include <openssl/evp.h>

#include <array>
#include <stdexcept>

namespace lenscpp {

std::string sha256(std::span<const std::byte> bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1)
    throw std::runtime_error("[store] libcrypto computes no SHA-256");
  std::string text;
  for (unsigned i = 0; i < size; ++i)
    for (unsigned char half : {digest[i] >> 4, digest[i] & 0xf}) text += "0123456789abcdef"[half];
  return text;
}

std::string sha256(std::string_view text) { return sha256(std::as_bytes(std::span(text))); }

}  // namespace lenscpp
