// Where and when device faults fire, on calls made up here: no torch. What each row does to real
// operators: tests/verify/device/simulated.
#include "verify/device/device_faults.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace lenscpp {
namespace {

Config small() {
  return {.family = "gpt2",
          .n_layers = 3,
          .n_heads = 2,
          .n_kv_heads = 2,
          .d_model = 8,
          .d_head = 4,
          .d_mlp = 16,
          .d_vocab = 11,
          .n_ctx = 6,
          .norm_eps = 1e-5,
          .norm = NormKind::layer_norm,
          .activation = Activation::relu,
          .positions = PositionKind::learned,
          .topology = Topology::sequential,
          .scale_attn_by_inverse_layer = false,
          .tied_unembedding = true,
          .stored_dtype = DType::f32};
}

// A product of ones, [2, 2]; every operator of this device computes it.
class Made : public DeviceCall {
 public:
  explicit Made(std::string op) : op_(std::move(op)) {
    for (const char* name : {"mat1", "mat2"})
      inputs_.push_back({.name = name, .shape = {2, 2}, .strides = {2, 1}});
  }
  const std::string& op() const override { return op_; }
  const std::vector<Operand>& inputs() const override { return inputs_; }
  Array input(std::size_t) const override { return ones(); }
  Array memory(std::size_t) const override { return ones(); }
  void replace(std::size_t, const Array&) override { replaced += 1; }
  std::optional<double> scalar(std::string_view) const override { return {}; }
  void set_scalar(std::string_view, double) override {}
  std::string word(std::string_view) const override { return ""; }
  const std::vector<Operand>& outputs() const override { return outputs_; }
  Array output(std::size_t) const override { return ones(); }
  void set_output(std::size_t, const Array&) override {}
  const Array* before(std::size_t) const override { return nullptr; }
  std::int64_t neighbours() const override { return 0; }
  std::int64_t clobber(std::int64_t, std::int64_t, double) override { return 0; }
  static Array ones() { return Array::of(std::vector<float>(4, 1.F), {2, 2}); }
  int replaced = 0;

 private:
  std::string op_;
  std::vector<Operand> inputs_, outputs_ = {{.name = "out", .shape = {2, 2}, .strides = {2, 1}}};
};

// Calls `op` once; how many elements a fault changed in it.
bool fires(DeviceFaults& faults, const std::string& op) {
  Made call(op);
  if (!faults.begin_call(call)) {
    faults.end_call(call, 0);
    return false;
  }
  faults.before(call);
  faults.after(call);
  faults.end_call(call, 3);
  return true;
}

const TensorId kPre{Site::mlp_pre, 1}, kPost{Site::mlp_post, 1}, kOut{Site::mlp_out, 1};

TEST(DeviceFaultTable, SaysOfEveryRowWhatItIs) {
  std::set<std::string_view> ids, names;
  for (const DeviceFaultInfo& row : device_fault_catalogue()) {
    for (std::string_view text :
         {row.id, row.name, row.description, row.source, row.trigger, row.recipe})
      EXPECT_FALSE(text.empty()) << row.id;
    EXPECT_TRUE(ids.insert(row.id).second && names.insert(row.name).second) << row.id;
    EXPECT_FALSE(row.operators.empty()) << row.id;
    EXPECT_NE(row.triggers, nullptr) << row.id;
    EXPECT_TRUE(row.before != nullptr || row.after != nullptr) << row.id;
    EXPECT_THROW(fault_info(row.name), std::invalid_argument) << "names of taps are others";
    EXPECT_EQ(&device_fault_info(row.id), &device_fault_info(row.name));
  }
  for (const FaultInfo& row : fault_catalogue()) EXPECT_FALSE(is_device_fault(row.name));
}

TEST(DeviceFaults, FireOnlyBetweenTheTensorBeforeAndTheirOwn) {
  DeviceFaults faults({{.name = "P5", .hook = "blocks.1.mlp.hook_post"}}, small());
  EXPECT_FALSE(fires(faults, "addmm")) << "outside of a run";
  faults.begin({kPre, kPost, kOut});
  EXPECT_FALSE(fires(faults, "addmm"));
  faults.passed(kPre);
  EXPECT_FALSE(fires(faults, "gelu")) << "P5 sits in products";
  EXPECT_TRUE(fires(faults, "addmm"));
  EXPECT_TRUE(fires(faults, "bmm"));
  faults.passed(kPost);
  EXPECT_FALSE(fires(faults, "addmm"));
  faults.end();
  ASSERT_EQ(faults.fired(), 2);
  EXPECT_EQ(faults.log()[0].fault, "P5");
  EXPECT_EQ(faults.log()[0].op, "addmm");
  EXPECT_EQ(faults.log()[0].call, 2) << "the third addmm";
  EXPECT_EQ(faults.log()[0].id, kPost);
  EXPECT_EQ(faults.log()[0].changed, 3);
}

TEST(DeviceFaults, OfACopyToTheHostAreOfTheTensorJustPassed) {
  DeviceFaults faults({{.name = "C2", .parameters = {{"always", 1}}, .hook = "mlp.hook_post"}},
                      small());
  faults.begin({kPre, kPost, kOut});
  faults.passed(kPre);
  EXPECT_FALSE(fires(faults, "copy_to_host"));
  faults.passed(kPost);
  EXPECT_TRUE(fires(faults, "copy_to_host"));
}

TEST(DeviceFaults, OfAnEditAreOfItsStage) {
  DeviceFaults faults({{.name = "P5", .hook = "blocks.1.mlp.hook_post", .stage = 1}}, small());
  faults.begin({kPre, kPost, {Site::mlp_post, 1, 1}, kOut});
  faults.passed(kPre);
  EXPECT_FALSE(fires(faults, "addmm"));
  faults.passed(kPost);
  EXPECT_TRUE(fires(faults, "addmm"));
}

TEST(DeviceFaults, AreLimitedToOneCallThatMeetsTheCondition) {
  DeviceFaults faults(std::vector<FaultSpec>{{.name = "P5", .parameters = {{"call", 1}}}});
  EXPECT_FALSE(fires(faults, "addmm"));
  EXPECT_FALSE(fires(faults, "gelu"));
  EXPECT_TRUE(fires(faults, "mm"));
  EXPECT_FALSE(fires(faults, "addmm"));
}

TEST(DeviceFaults, HappenByChanceTheSameWayForASeed) {
  auto pattern = [](std::uint64_t seed) {
    DeviceFaults faults(
        std::vector<FaultSpec>{{.name = "P5", .parameters = {{"probability", 0.5}}, .seed = seed}});
    std::string text;
    for (int i = 0; i < 40; ++i) text += fires(faults, "addmm") ? '1' : '0';
    return text;
  };
  EXPECT_EQ(pattern(1), pattern(1));
  EXPECT_NE(pattern(1), pattern(2));
  std::string once = pattern(1);
  auto ones = std::count(once.begin(), once.end(), '1');
  EXPECT_TRUE(ones > 5 && ones < 35) << once;
}

TEST(DeviceFaults, HaveNotFiredWhereNoBitChanged) {
  DeviceFaults faults(std::vector<FaultSpec>{{.name = "P5"}});
  Made call("addmm");
  ASSERT_TRUE(faults.begin_call(call));
  faults.before(call);
  EXPECT_EQ(call.replaced, 2) << "both operands";
  faults.end_call(call, 0);
  EXPECT_EQ(faults.fired(), 0);
}

struct Bad {
  FaultSpec spec;
  const char* says;
};
class WrongDeviceFault : public testing::TestWithParam<Bad> {};

TEST_P(WrongDeviceFault, IsRefusedByName) {
  try {
    DeviceFaults({GetParam().spec}, small());
    FAIL();
  } catch (const std::logic_error& e) {  // invalid_argument, out_of_range
    EXPECT_NE(std::string(e.what()).find(GetParam().says), std::string::npos) << e.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, WrongDeviceFault,
    testing::Values(Bad{{.name = "S10"}, "nearest: "},
                    Bad{{.name = "short_operand"}, "\"short_operands\""},
                    Bad{{.name = "P5", .parameters = {{"bit", 3}}}, "no parameter \"bit\""},
                    Bad{{.name = "P5", .parameters = {{"bits", 1.5}}}, "needed: a whole number"},
                    Bad{{.name = "P5", .parameters = {{"call", 0.5}}}, "needed: a whole number"},
                    Bad{{.name = "P5", .parameters = {{"call", -1}}}, "0 or more"},
                    Bad{{.name = "M7", .parameters = {{"kv_heads", 0}}}, "needed: 1 or more"},
                    Bad{{.name = "M7", .parameters = {{"heads", 0}}}, "needed: 1 or more"},
                    Bad{{.name = "P4", .parameters = {{"columns", 0}}}, "needed: 1 or more"},
                    Bad{{.name = "Z14", .parameters = {{"n", 0}}}, "needed: 1 or more"},
                    Bad{{.name = "Z10", .parameters = {{"bytes", 0}}}, "needed: 1 or more"},
                    Bad{{.name = "Z1", .parameters = {{"right", -5}}}, "needed: 0 or more"},
                    Bad{{.name = "Z12", .parameters = {{"rows", -1}}}, "needed: 0 or more"},
                    Bad{{.name = "Z8", .parameters = {{"elements", -64}}}, "needed: 0 or more"},
                    Bad{{.name = "Z11", .parameters = {{"elements", -64}}}, "needed: 0 or more"},
                    Bad{{.name = "Z5", .parameters = {{"extra", -1}}}, "needed: 0 or more"},
                    Bad{{.name = "M1", .parameters = {{"group", 0}}}, "needed: 1 or more"},
                    Bad{{.name = "P5", .hook = "hook_attn_outt"}, "\"hook_attn_out\""},
                    Bad{{.name = "P5", .hook = "blocks.3.mlp.hook_pre"}, "has 3 layers"},
                    Bad{{.name = "P5", .layer = 3}, "out of range"}));

// What counts or indexes something has a least value: memory would be read where nothing is.
TEST(DeviceFaultTable, NoWholeNumberIsWithoutALeastValue) {
  for (const DeviceFaultInfo& row : device_fault_catalogue())
    for (const FaultParameter& parameter : row.parameters)
      EXPECT_TRUE(!parameter.whole || parameter.minimum || parameter.name == "transposed" ||
                  parameter.name == "zero")
          << row.id << " " << parameter.name;
}

TEST(DeviceFaults, OutsideOfRunsHaveNoHook) {
  using Specs = std::vector<FaultSpec>;
  EXPECT_THROW(DeviceFaults(Specs{{.name = "P5", .hook = "mlp.hook_pre"}}), std::invalid_argument);
  EXPECT_NO_THROW(DeviceFaults(Specs{{.name = "P5"}}));
}

}  // namespace
}  // namespace lenscpp
