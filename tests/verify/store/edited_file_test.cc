// Sealed files edited with HDF5 itself, as another program would: whatever no longer is what was
// written is refused, by name.
#include <gtest/gtest.h>
#include <hdf5.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <ostream>
#include <vector>

#include "tests/verify/store/temporary_folder.h"
#include "verify/store/sealed_file.h"
#include "verify/verified_cache.h"

namespace lenscpp {
namespace {

namespace fs = std::filesystem;

void write(const fs::path& path, Status status = Status::verified) {
  SealedWriter writer(path, FileKind::run);
  writer.document("/run", {{"a", 1}});
  writer.array("/act/x", Array::of(std::vector<double>{1, 2, 3, 4}, {2, 2}));
  writer.commit(status);
}

void edit(const fs::path& path, const std::function<void(hid_t)>& change) {
  hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  change(file);
  H5Fclose(file);
}

void remove(hid_t file, const char* name) { H5Ldelete(file, name, H5P_DEFAULT); }

void add(hid_t file, const char* name, hid_t type, std::vector<hsize_t> extents) {
  hid_t space = H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr);
  H5Dclose(H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  H5Sclose(space);
}

// Over the bytes that are there.
void overwrite(hid_t file, const char* name,
               const std::function<void(std::vector<char>&)>& change) {
  hid_t set = H5Dopen2(file, name, H5P_DEFAULT), type = H5Dget_type(set), space = H5Dget_space(set);
  std::vector<char> bytes(H5Tget_size(type) *
                          static_cast<std::size_t>(H5Sget_simple_extent_npoints(space)));
  H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data());
  change(bytes);
  H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data());
  H5Sclose(space);
  H5Tclose(type);
  H5Dclose(set);
}

struct Edit {
  const char* name;
  std::function<void(hid_t)> change;
  std::string says;
};
void PrintTo(const Edit& edit, std::ostream* out) { *out << edit.name; }

const std::vector<Edit> kEdits = {
    {"ObjectRemoved", [](hid_t f) { remove(f, "/act/x"); }, "/act/x is missing"},
    {"DocumentRemoved", [](hid_t f) { remove(f, "/run"); }, "/run is missing"},
    {"StatusRemoved", [](hid_t f) { remove(f, "/status"); }, "/status is missing"},
    {"RootDigestRemoved", [](hid_t f) { remove(f, "/root_digest"); }, "/root_digest is missing"},
    {"DigestsRemoved", [](hid_t f) { remove(f, "/digests"); }, "/digests is missing"},
    {"ObjectAdded", [](hid_t f) { add(f, "/act/y", H5T_IEEE_F64LE, {2}); }, "/act/y was added"},
    {"GroupAdded",
     [](hid_t f) { H5Gclose(H5Gcreate2(f, "/g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)); },
     "/g was added"},
    {"SoftLinkAdded",
     [](hid_t f) {
       remove(f, "/act/x");
       H5Lcreate_soft("/run", f, "/act/x", H5P_DEFAULT, H5P_DEFAULT);
     },
     "/act/x is a link"},
    {"OtherDType",
     [](hid_t f) {
       remove(f, "/act/x");
       add(f, "/act/x", H5T_IEEE_F32LE, {2, 2});
     },
     "/act/x is of another dtype or shape"},
    {"OtherShape",
     [](hid_t f) {
       remove(f, "/act/x");
       add(f, "/act/x", H5T_IEEE_F64LE, {4});
     },
     "/act/x is of another dtype or shape"},
    {"UnknownType",
     [](hid_t f) {
       remove(f, "/act/x");
       add(f, "/act/x", H5T_STD_I8LE, {2, 2});
     },
     "/act/x is of a type"},
    {"NoMarkOfBfloat16",
     [](hid_t f) {
       remove(f, "/act/x");
       add(f, "/act/x", H5T_STD_U16LE, {2, 2});
     },
     "/act/x is uint16"},
    {"ArrayOverwritten", [](hid_t f) { overwrite(f, "/act/x", [](auto& b) { b[3] ^= 1; }); },
     "/act/x was changed"},
    {"DocumentOverwritten", [](hid_t f) { overwrite(f, "/run", [](auto& b) { b[5] = '2'; }); },
     "/run was changed"},
    {"RootDigestOverwritten",
     [](hid_t f) { overwrite(f, "/root_digest", [](auto& b) { b[0] = b[0] == 'a' ? 'b' : 'a'; }); },
     "root digest"},
    {"DigestsOverwritten",
     [](hid_t f) { overwrite(f, "/digests", [](auto& b) { b[b.size() - 2] = '9'; }); },
     "root digest"},
    {"StatusOverwritten", [](hid_t f) { overwrite(f, "/status", [](auto& b) { b[0] = 'v'; }); },
     "/status says"},
};

class EditedFile : public testing::TestWithParam<Edit> {};
INSTANTIATE_TEST_SUITE_P(Edits, EditedFile, testing::ValuesIn(kEdits),
                         [](const auto& info) { return std::string(info.param.name); });

TEST_P(EditedFile, IsRefusedByName) {
  TemporaryFolder folder;
  write(folder / "a.h5");
  SealedFile::open(folder / "a.h5").verify_all();
  edit(folder / "a.h5", GetParam().change);
  try {
    SealedFile::open(folder / "a.h5").verify_all();
    FAIL() << "not refused";
  } catch (const NotVerified& refused) {
    EXPECT_NE(std::string(refused.what()).find(GetParam().says), std::string::npos)
        << refused.what();
  }
}

TEST(EditedFile, IsNotVerifiedBySayingSo) {
  TemporaryFolder folder;
  for (Status status : {Status::invalid, Status::unverified}) {
    write(folder / "a.h5", status);
    write(folder / "b.h5");
    edit(folder / "a.h5", [&](hid_t file) {
      hid_t other = H5Fopen((folder / "b.h5").c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
      remove(file, "/status");
      H5Ocopy(other, "/status", file, "/status", H5P_DEFAULT, H5P_DEFAULT);
      H5Fclose(other);
    });
    EXPECT_THROW(SealedFile::open(folder / "a.h5"), NotVerified);
  }
}

TEST(EditedFile, OfALaterVersionIsNotRead) {
  TemporaryFolder folder;
  write(folder / "a.h5");
  edit(folder / "a.h5", [](hid_t file) {
    hid_t attribute = H5Aopen(file, "version", H5P_DEFAULT);
    std::int64_t later = 2;
    H5Awrite(attribute, H5T_NATIVE_INT64, &later);
    H5Aclose(attribute);
  });
  EXPECT_THROW(SealedFile::open(folder / "a.h5"), std::invalid_argument);
  EXPECT_THROW(SealedFile::open_unverified(folder / "a.h5"), std::invalid_argument);
}

TEST(EditedFile, IsReadThroughTheOtherDoor) {
  TemporaryFolder folder;
  write(folder / "a.h5");
  edit(folder / "a.h5", [](hid_t file) {
    overwrite(file, "/act/x", [](auto& bytes) { bytes[3] ^= 1; });
    remove(file, "/root_digest");
  });
  SealedFile file = SealedFile::open_unverified(folder / "a.h5");
  EXPECT_EQ(file.array("/act/x")[3], 4);
  EXPECT_NE(file.array("/act/x")[0], 1);
}

// HDF5 renews its own checksum of the chunk: only the digest of those rows knows.
TEST(EditedFile, ARowWrittenAnewIsRefusedAndTheOthersAreRead) {
  TemporaryFolder folder;
  fs::path path = folder / "a.h5";
  std::vector<double> values(20);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
  Array all = Array::of(std::span<const double>(values), {10, 2});
  {
    SealedWriter writer(path, FileKind::batch);
    writer.begin_rows("/values", DType::f64, all.shape());
    for (auto [begin, end] : {std::pair{0, 4}, {4, 5}, {5, 10}})
      writer.append_rows(all.rows(begin, end));
    writer.commit(Status::verified);
  }
  edit(path, [&](hid_t file) {
    values[9] = 99;
    hid_t set = H5Dopen2(file, "/values", H5P_DEFAULT);
    H5Dwrite(set, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data());
    H5Dclose(set);
  });
  SealedFile file = SealedFile::open(path);
  EXPECT_EQ(file.rows("/values", 0, 4).to_doubles(), all.rows(0, 4).to_doubles());
  EXPECT_EQ(file.rows("/values", 6, 10).to_doubles(), all.rows(6, 10).to_doubles());
  EXPECT_THROW(file.rows("/values", 3, 5), NotVerified);
  EXPECT_THROW(file.array("/values"), NotVerified);
  EXPECT_THROW(file.verify_all(), NotVerified);
}

}  // namespace
}  // namespace lenscpp
