// Sealed files: what is written comes back, and whatever happened to a file in between is noticed.
#include "verify/store/sealed_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>

#include "tests/verify/store/temporary_folder.h"
#include "verify/store/sha256.h"
#include "verify/verified_cache.h"

// HDF5 1.10 forgets what it had read of a file that turns out to be damaged.
extern "C" __attribute__((visibility("default"))) const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}

namespace lenscpp {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

Array counting(Shape shape, DType dtype, double from = 0) {
  MutableArray array(std::move(shape), dtype);
  for (std::int64_t i = 0; i < array.numel(); ++i)
    array.set(i, dtype == DType::i64 ? from + static_cast<double>(i)
                                     : std::sin(from + 0.37 * static_cast<double>(i)));
  return std::move(array).freeze();
}

bool same(const Array& a, const Array& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.nbytes() == 0 || std::memcmp(a.bytes(), b.bytes(), a.nbytes()) == 0);
}

const json kDocument = {{"text", "caf\u00e9 \n"}, {"numbers", {1, 0.1, -1e300}}, {"none", nullptr}};

std::map<std::string, Array> some_arrays() {
  return {{"/act/a", counting({2, 5, 3}, DType::f32)},  {"/act/b", counting({4}, DType::bf16)},
          {"/deep/er/c", counting({3, 3}, DType::f16)}, {"/d", counting({}, DType::f64)},
          {"/tokens", counting({2, 5}, DType::i64)},    {"/empty", counting({0, 3}, DType::f32)}};
}

void write(const fs::path& path, double from = 0, Status status = Status::verified) {
  SealedWriter writer(path, FileKind::grid);
  writer.document("/run", kDocument);
  for (const auto& [name, array] : some_arrays()) writer.array(name, array);
  writer.array("/which", counting({3}, DType::f64, from));
  writer.commit(status);
}

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}
void put(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::size_t files_in(const fs::path& folder) {
  return static_cast<std::size_t>(
      std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

template <class Exception, class Work>
std::string message_of(const Work& work) {
  try {
    work();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of the kind was thrown";
  return "";
}

TEST(Sha256, IsTheStandardsExample) {  // FIPS 180-2, appendix B.1
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(SealedFile, ReturnsWhatWasWritten) {
  TemporaryFolder folder;
  write(folder / "a.h5");
  SealedFile file = SealedFile::open(folder / "a.h5");
  EXPECT_EQ(file.kind(), FileKind::grid);
  EXPECT_EQ(file.status(), Status::verified);
  EXPECT_EQ(file.document("/run"), kDocument);
  for (const auto& [name, array] : some_arrays())
    EXPECT_TRUE(same(file.array(name), array)) << name;
  EXPECT_EQ(file.entries().size(), some_arrays().size() + 2);
  file.verify_all();
  EXPECT_EQ(SealedFile::kind_of(folder / "a.h5"), FileKind::grid);
  EXPECT_EQ(files_in(folder.path()), 1U);
}

TEST(SealedFile, KeepsEveryBitPatternOfEveryDType) {
  TemporaryFolder folder;
  std::map<std::string, Array> arrays;
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64}) {
    MutableArray patterns({65536}, dtype);
    for (std::int64_t i = 0; i < 65536; ++i)  // NaNs with payloads, infinities, subnormals
      std::memcpy(patterns.bytes() + static_cast<std::size_t>(i + 1) * size_of(dtype) - 2, &i, 2);
    arrays["/" + std::string(name_of(dtype))] = std::move(patterns).freeze();
  }
  SealedWriter writer(folder / "a.h5", FileKind::run);
  for (const auto& [name, array] : arrays) writer.array(name, array);
  writer.commit(Status::verified);
  SealedFile file = SealedFile::open(folder / "a.h5");
  for (const auto& [name, array] : arrays) EXPECT_TRUE(same(file.array(name), array)) << name;
}

TEST(SealedFile, ReturnsArraysOfManyChunksDeflatedOrNot) {
  TemporaryFolder folder;
  Array random = counting({3, 700, 301}, DType::f32),
        zeros = Array::of(std::vector<double>(400000, 0.0), {400000}),
        column = counting({300000, 1}, DType::f64);
  SealedWriter writer(folder / "a.h5", FileKind::run);
  writer.array("/random", random);
  writer.array("/zeros", zeros);
  writer.array("/column", column);
  writer.commit(Status::verified);
  SealedFile file = SealedFile::open(folder / "a.h5");
  EXPECT_TRUE(same(file.array("/random"), random));
  EXPECT_TRUE(same(file.array("/zeros"), zeros));
  EXPECT_TRUE(same(file.array("/column"), column));
  EXPECT_LT(fs::file_size(folder / "a.h5"), random.nbytes() + column.nbytes() + 100000);
}

TEST(SealedFile, IsTheSameFileForTheSameContent) {
  TemporaryFolder folder;
  write(folder / "a.h5");
  write(folder / "b.h5");
  EXPECT_EQ(bytes_of(folder / "a.h5"), bytes_of(folder / "b.h5"));
}

TEST(SealedFile, RefusesWhatIsNotVerified) {
  TemporaryFolder folder;
  for (Status status : {Status::invalid, Status::unverified}) {
    write(folder / "a.h5", 0, status);
    std::string message = message_of<NotVerified>([&] { SealedFile::open(folder / "a.h5"); });
    EXPECT_NE(message.find(name_of(status)), message.npos) << message;
    SealedFile file = SealedFile::open_unverified(folder / "a.h5");
    EXPECT_EQ(file.status(), status);
    EXPECT_EQ(file.document("/run"), kDocument);
    for (const auto& [name, array] : some_arrays())
      EXPECT_TRUE(same(file.array(name), array)) << name;
  }
}

TEST(SealedFile, RefusesWhatIsNoFileOfOurs) {
  TemporaryFolder folder;
  put(folder / "text.h5", "this is not HDF5");
  put(folder / "empty.h5", "");
  for (const char* name : {"text.h5", "empty.h5"})
    EXPECT_NE(message_of<std::invalid_argument>([&] {
                SealedFile::open(folder / name);
              }).find("is not an HDF5 file"),
              std::string::npos);
  EXPECT_THROW(SealedFile::open(folder / "none.h5"), std::system_error);
  EXPECT_THROW(SealedFile::open(folder.path()), std::system_error);
}

TEST(SealedFile, NamesTheNearestOfWhatItHasNot) {
  TemporaryFolder folder;
  write(folder / "a.h5");
  SealedFile file = SealedFile::open(folder / "a.h5");
  EXPECT_NE(message_of<std::invalid_argument>([&] { file.array("/act/aa"); }).find("\"/act/a\""),
            std::string::npos);
  EXPECT_THROW(file.array("/run"), std::invalid_argument);
  EXPECT_THROW(file.document("/act/a"), std::invalid_argument);
}

TEST(SealedFile, TakesNoNameTwiceAndNoneOfItsOwn) {
  TemporaryFolder folder;
  SealedWriter writer(folder / "a.h5", FileKind::run);
  writer.document("/run", kDocument);
  for (const char* name :
       {"/run", "run", "", "/", "/a/", "/a//b", "/status", "/digests", "/root_digest"})
    EXPECT_THROW(writer.document(name, kDocument), std::invalid_argument) << name;
}

// A flip is refused, or nothing that is read differs.
void flips_are_noticed(std::size_t step) {
  TemporaryFolder folder;
  write(folder / "a.h5");
  const std::string good = bytes_of(folder / "a.h5");
  std::size_t refused = 0, harmless = 0;
  for (std::size_t at = 0; at < good.size(); at += step) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (at % 8)));
    put(folder / "b.h5", bad);
    try {
      SealedFile file = SealedFile::open(folder / "b.h5");
      for (const auto& [name, array] : some_arrays())
        ASSERT_TRUE(same(file.array(name), array)) << name << ", byte " << at;
      ASSERT_EQ(file.document("/run"), kDocument) << "byte " << at;
      ASSERT_EQ(file.kind(), FileKind::grid) << "byte " << at;
      file.verify_all();
      harmless += 1;
    } catch (const NotVerified&) {
      refused += 1;
    } catch (const std::invalid_argument&) {  // the signature, the format's name and version
      refused += 1;
    }
    try {  // through the other door: anything but a crash
      SealedFile::open_unverified(folder / "b.h5").verify_all();
    } catch (const std::exception&) {
    }
  }
  EXPECT_GT(refused, 0U);
  ::testing::Test::RecordProperty("refused", static_cast<int>(refused));
  ::testing::Test::RecordProperty("harmless", static_cast<int>(harmless));
}

TEST(SealedFile, NoticesAFlippedBitWhereverItIsRead) { flips_are_noticed(13); }

TEST(SealedFile, NoticesEveryTruncation) {
  TemporaryFolder folder;
  write(folder / "a.h5");
  const std::string good = bytes_of(folder / "a.h5");
  for (std::size_t size = 0; size < good.size(); size += 97) {
    put(folder / "b.h5", good.substr(0, size));
    EXPECT_ANY_THROW(SealedFile::open(folder / "b.h5")) << size;
  }
}

TEST(SealedFile, LeavesNothingOfAWriterThatDidNotFinish) {
  TemporaryFolder folder;
  write(folder / "a.h5", 1);
  const std::string before = bytes_of(folder / "a.h5");
  {
    SealedWriter writer(folder / "a.h5", FileKind::run);
    writer.array("/x", counting({1000}, DType::f32));
    EXPECT_EQ(files_in(folder.path()), 2U);
  }
  EXPECT_EQ(files_in(folder.path()), 1U);
  EXPECT_EQ(bytes_of(folder / "a.h5"), before);
}

TEST(SealedFile, SaysWhyItCannotBeWritten) {
  TemporaryFolder folder;
  fs::create_directory(folder / "folder.h5");
  auto error_of = [](const fs::path& path) {
    try {
      write(path);
    } catch (const std::system_error& error) {
      return error.code().value();
    }
    return 0;
  };
  EXPECT_EQ(error_of(folder / "folder.h5"), EISDIR);
  EXPECT_EQ(error_of(folder / "none" / "a.h5"), ENOENT);
  EXPECT_EQ(error_of(folder / (std::string(300, 'a') + ".h5")), ENAMETOOLONG);
  EXPECT_EQ(files_in(folder.path()), 1U);
}

// In a process of its own: it leaves HDF5 with a file that it cannot close.
TEST(SealedFile, KeepsTheOldFileWhenTheDiskIsFull) {
  TemporaryFolder folder;
  write(folder / "a.h5", 1);
  const std::string before = bytes_of(folder / "a.h5");
  for (rlim_t limit : {rlim_t{0}, rlim_t{1000}, rlim_t{3000}, rlim_t{200000}, rlim_t{3000000}}) {
    pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::signal(SIGXFSZ, SIG_IGN);
      rlimit files{limit, limit};
      ::setrlimit(RLIMIT_FSIZE, &files);
      int status = 1;
      try {
        SealedWriter writer(folder / "a.h5", FileKind::run);
        writer.document("/run", kDocument);
        for (int i = 0; i < 4; ++i)
          writer.array("/" + std::to_string(i), counting({300000}, DType::f32));
        writer.commit(Status::verified);
      } catch (const std::system_error& error) {
        status = error.code().value() == EFBIG ? 0 : 2;
      } catch (const std::exception&) {
        status = 3;
      }
      ::_exit(status);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << limit << ": " << status;
    EXPECT_EQ(files_in(folder.path()), 1U) << limit;
    EXPECT_EQ(bytes_of(folder / "a.h5"), before) << limit;
  }
}

TEST(SealedFile, KilledWhileSavingLeavesTheOldFileOrTheNew) {
  TemporaryFolder folder;
  write(folder / "a.h5", 0);
  int of_new = 0;
  for (int round = 1; round <= 50; ++round) {
    double before = SealedFile::open(folder / "a.h5").array("/which")[0];
    pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (int i = 0;; ++i) write(folder / "a.h5", round * 1000 + i);
    }
    ::usleep(static_cast<useconds_t>(500 + (round * 7919) % 9000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    SealedFile file = SealedFile::open(folder / "a.h5");
    file.verify_all();
    of_new += file.array("/which")[0] != before ? 1 : 0;
  }
  EXPECT_GT(of_new, 0);
  write(folder / "a.h5", -1);
  EXPECT_EQ(files_in(folder.path()), 1U) << "a save removes what killed ones left";
}

TEST(SealedFile, IsWrittenAndReadByManyThreads) {
  TemporaryFolder folder;
  write(folder / "shared.h5");
  SealedFile shared = SealedFile::open(folder / "shared.h5");
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      fs::path own = folder / (std::to_string(t) + ".h5");
      for (int i = 0; i < 10; ++i) try {
          write(own, t * 100 + i);
          SealedFile file = SealedFile::open(own);
          if (!same(file.array("/which"), counting({3}, DType::f64, t * 100 + i))) ++wrong;
          if (!same(shared.array("/act/a"), some_arrays().at("/act/a"))) ++wrong;
        } catch (const std::exception&) {
          ++wrong;
        }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// Rows 0 to 9 in groups of 4, 1 and 5.
void write_rows(const fs::path& path) {
  SealedWriter writer(path, FileKind::batch);
  Array all = counting({10, 3, 2}, DType::f64);
  writer.document("/run", kDocument);
  writer.begin_rows("/values/a", DType::f64, all.shape());
  for (auto [begin, end] : {std::pair{0, 4}, {4, 5}, {5, 10}})
    writer.append_rows(all.rows(begin, end));
  writer.array("/b", counting({3}, DType::f64));
  writer.commit(Status::verified);
}

TEST(SealedFile, RowsAreReadByThemselves) {
  TemporaryFolder folder;
  write_rows(folder / "a.h5");
  SealedFile file = SealedFile::open(folder / "a.h5");
  Array all = counting({10, 3, 2}, DType::f64);
  EXPECT_TRUE(same(file.array("/values/a"), all));
  for (std::int64_t begin = 0; begin <= 10; ++begin)
    for (std::int64_t end = begin; end <= 10; ++end)
      EXPECT_TRUE(same(file.rows("/values/a", begin, end), all.rows(begin, end)));
  EXPECT_TRUE(same(file.rows("/b", 1, 3), counting({3}, DType::f64).rows(1, 3)));
  EXPECT_THROW(file.rows("/values/a", 3, 11), std::out_of_range);
  EXPECT_THROW(file.rows("/values/a", 4, 3), std::out_of_range);
  file.verify_all();
  SealedFile unverified = SealedFile::open_unverified(folder / "a.h5");
  EXPECT_TRUE(same(unverified.rows("/values/a", 3, 7), all.rows(3, 7)));
}

TEST(SealedFile, RowsThatDoNotFitAreRefused) {
  TemporaryFolder folder;
  SealedWriter writer(folder / "a.h5", FileKind::batch);
  EXPECT_THROW(writer.append_rows(counting({1, 2}, DType::f64)), std::invalid_argument);
  EXPECT_THROW(writer.begin_rows("/a", DType::f64, {0, 2}), std::invalid_argument);
  writer.begin_rows("/a", DType::f64, {3, 2});
  writer.append_rows(counting({2, 2}, DType::f64));
  EXPECT_THROW(writer.append_rows(counting({1, 3}, DType::f64)), std::invalid_argument);
  EXPECT_THROW(writer.append_rows(counting({1, 2}, DType::f32)), std::invalid_argument);
  EXPECT_THROW(writer.append_rows(counting({2, 2}, DType::f64)), std::invalid_argument);
  EXPECT_THROW(writer.commit(Status::verified), std::invalid_argument);
  writer.append_rows(counting({1, 2}, DType::f64));
  writer.commit(Status::verified);
  EXPECT_EQ(files_in(folder.path()), 1U);
}

}  // namespace
}  // namespace lenscpp
