// Drives a fuzz target without libFuzzer: every file of the given folders as it is, then mutations
// of them from a fixed seed. The input under which the target dies is left in crash-input. Not a
// search: nothing is learnt from coverage.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;
const Bytes* current = nullptr;

void save_current() {
  if (current == nullptr) return;
  if (std::FILE* file = std::fopen("crash-input", "wb")) {
    std::fwrite(current->data(), 1, current->size(), file);
    std::fclose(file);
    std::fprintf(stderr, "[fuzz] the input of %zu bytes is in crash-input\n", current->size());
  }
  current = nullptr;
}

void run(const Bytes& input) {
  const Bytes exact(input.begin(), input.end());  // no spare capacity: an overrun is seen
  current = &exact;
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  current = nullptr;
}

// Numbers at the edges of what lengths and offsets can hold, as bytes and as text.
const std::vector<std::string> kTokens = {std::string(8, '\xff'),
                                          std::string(8, '\0'),
                                          std::string("\0\0\0\0\0\0\0\x80", 8),
                                          "18446744073709551615",
                                          "9223372036854775808",
                                          "-1",
                                          "1e400",
                                          "null",
                                          "[]",
                                          "{}",
                                          "\"",
                                          "\\ud800",
                                          "\xc0\x80",
                                          "\xf4\x90\x80\x80"};

Bytes mutated(const Bytes& seed, const std::vector<Bytes>& corpus, std::mt19937_64& random) {
  Bytes bytes = seed;
  const auto below = [&](std::size_t n) {
    return n == 0 ? 0 : static_cast<std::size_t>(random() % n);
  };
  // Headers matter most: half of all places are among the first 256 bytes.
  const auto place = [&] {
    return below(random() % 2 == 0 ? std::min<std::size_t>(bytes.size(), 256) : bytes.size());
  };
  for (std::size_t n = 1 + below(4); n > 0; --n) {
    const std::size_t at = place();
    const auto here = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    const std::size_t length = std::min(bytes.size() - at, 1 + below(32));
    const auto end = here + static_cast<std::ptrdiff_t>(length);
    switch (below(7)) {
      case 0:
        if (!bytes.empty()) bytes[at] ^= static_cast<std::uint8_t>(1u << below(8));
        break;
      case 1:
        if (!bytes.empty()) bytes[at] = static_cast<std::uint8_t>(random());
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.erase(here, end);
        break;
      case 4: {
        const Bytes copy(here, end);
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(place()), copy.begin(),
                     copy.end());
        break;
      }
      case 5: {
        const std::string& token = kTokens[below(kTokens.size())];
        if (random() % 2 == 0) bytes.erase(here, end);
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), token.begin(), token.end());
        break;
      }
      default: {
        const Bytes& other = corpus[below(corpus.size())];
        const auto from = other.begin() + static_cast<std::ptrdiff_t>(below(other.size() + 1));
        bytes.resize(at);
        bytes.insert(bytes.end(), from, other.end());
      }
    }
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t mutations = 0;
  std::uint64_t seed = 1;
  double seconds = 60;
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    const auto number = [&] { return i + 1 < argc ? std::strtoull(argv[++i], nullptr, 10) : 0; };
    if (std::strcmp(argv[i], "--mutations") == 0) {
      mutations = number();
    } else if (std::strcmp(argv[i], "--seed") == 0) {
      seed = number();
    } else if (std::strcmp(argv[i], "--seconds") == 0) {
      seconds = static_cast<double>(number());
    } else if (std::filesystem::is_directory(argv[i])) {
      for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
        if (entry.is_regular_file()) files.push_back(entry.path());
      }
    } else {
      files.emplace_back(argv[i]);
    }
  }
  std::sort(files.begin(), files.end());

  std::set_terminate([] {
    save_current();
    std::abort();
  });
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(save_current);
#endif

  std::vector<Bytes> corpus;
  for (const auto& path : files) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "[fuzz] cannot read %s\n", path.c_str());
      return 2;
    }
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    run(corpus.back());
  }
  if (corpus.empty()) {
    std::fprintf(stderr, "[fuzz] no inputs: name at least one file or folder\n");
    return 2;
  }

  const auto start = std::chrono::steady_clock::now();
  std::mt19937_64 random(seed);
  std::uint64_t done = 0;
  for (; done < mutations; ++done) {
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > seconds)
      break;
    run(mutated(corpus[done % corpus.size()], corpus, random));
  }
  std::printf("[fuzz] %zu files and %llu mutations, seed %llu: nothing found\n", corpus.size(),
              static_cast<unsigned long long>(done), static_cast<unsigned long long>(seed));
  return 0;
}
