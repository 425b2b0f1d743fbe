// The table of device faults: one row, and one or two functions, a bug that was reported.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "verify/device/device_faults.h"

namespace lenscpp {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(),
                 kInfinity = std::numeric_limits<double>::infinity();

using Context = DeviceFaultContext;

std::optional<std::size_t> named(const std::vector<Operand>& operands, std::string_view name) {
  for (std::size_t i = 0; i < operands.size(); ++i)
    if (operands[i].name == name) return i;
  return {};
}

// What a matrix product multiplies: x [batch, m, k] by w [batch, k, n].
struct Product {
  std::size_t x, w;
  std::int64_t batch, m, k, n;
};
std::optional<Product> product(const DeviceCall& call) {
  const auto& in = call.inputs();
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"mat1", "mat2"}, {"batch1", "batch2"}, {"self", "mat2"}};
  for (auto [x_name, w_name] : kNames) {
    auto x = named(in, x_name), w = named(in, w_name);
    if (!x || !w) continue;
    const Shape &a = in[*x].shape, &b = in[*w].shape;
    if (a.size() < 2 || a.size() != b.size()) continue;
    return Product{
        *x, *w, a.size() == 3 ? a[0] : 1, a[a.size() - 2], a[a.size() - 1], b[b.size() - 1]};
  }
  return {};
}

// The elements of `memory` that a tensor of this shape has if it lies with these strides; zero
// beyond its end.
Array strided(const Array& memory, const Shape& shape, const Shape& strides, std::int64_t offset) {
  MutableArray values(shape, memory.dtype());
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    std::int64_t at = offset, rest = i;
    for (std::size_t d = shape.size(); d-- > 0;) {
      at += rest % shape[d] * strides[d];
      rest /= shape[d];
    }
    if (at < memory.numel()) values.set(i, memory[at]);
  }
  return std::move(values).freeze();
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (std::size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

// An operand read as if it lay without gaps in the order of its shape; or, on demand, as if its
// last two axes lay exchanged, whatever the truth: this library hands over contiguous operands
// only.
void misread_strides(Context& c, std::size_t i) {
  const Operand& x = c.call.inputs()[i];
  Shape strides = contiguous_strides(x.shape);
  if (c.get("transposed") != 0 && x.shape.size() >= 2) {
    std::size_t last = x.shape.size() - 1;
    strides[last] = x.shape[last - 1];
    strides[last - 1] = 1;
  }
  c.call.replace(i, strided(c.call.memory(i), x.shape, strides, x.offset));
}
constexpr FaultParameter kTransposed{
    "transposed", "1: read as if its last two axes lay exchanged, however it lies", 0, true};

Array rounded(const Array& x, int bits) {
  MutableArray y(x);
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    int exponent;
    double fraction = std::frexp(x[i], &exponent);
    if (std::isfinite(fraction))
      y.set(i, std::ldexp(std::nearbyint(std::ldexp(fraction, bits)), exponent - bits));
  }
  return std::move(y).freeze();
}

constexpr std::string_view kProducts[] = {"addmm", "mm", "baddbmm", "bmm"};
constexpr std::string_view kActivations[] = {"gelu", "silu",     "relu",
                                             "elu",  "softplus", "threshold"};
constexpr std::string_view kSums[] = {"add", "sub", "mul", "div"};
constexpr std::string_view kNorm[] = {"native_layer_norm"};
constexpr std::string_view kScores[] = {"baddbmm"};
constexpr std::string_view kToDevice[] = {"copy_to_device"};
constexpr std::string_view kToHost[] = {"copy_to_host"};

bool narrow(DType dtype) { return dtype == DType::f16 || dtype == DType::bf16; }
DType dtype_of(const DeviceCall& call) {
  return call.inputs().empty() ? DType::f32 : call.inputs()[0].dtype;
}

// Output 0 as a matrix of rows along its last axis, to be changed and written back.
class Output {
 public:
  explicit Output(Context& c) : c_(c), values(c.call.output(0)) {
    columns = values.shape().empty() ? 1 : std::max<std::int64_t>(1, values.shape().back());
    rows = values.numel() / columns;
  }
  void fill(std::int64_t row, const std::vector<double>& from) {
    for (std::int64_t j = 0; j < columns; ++j)
      values.set(row * columns + j, from[static_cast<std::size_t>(row * columns + j)]);
  }
  void write() { c_.call.set_output(0, std::move(values).freeze()); }

 private:
  Context& c_;

 public:
  MutableArray values;
  std::int64_t rows, columns;
};

// S1, S2, S7: strides ignored.
bool has_strides(const Operand& x) { return !x.contiguous(); }
bool weight_has_strides(Context& c) {
  auto p = product(c.call);
  return p && (has_strides(c.call.inputs()[p->w]) || c.get("transposed") != 0);
}
void ignore_weight_strides(Context& c) {
  if (auto p = product(c.call)) misread_strides(c, p->w);
}
bool input_has_strides(Context& c) {
  return has_strides(c.call.inputs().at(0)) || c.get("transposed") != 0;
}
void ignore_input_strides(Context& c) { misread_strides(c, 0); }
constexpr std::string_view kS1Operators[] = {"addmm", "mm"}, kS2Operators[] = {"gelu"},
                           kS7Operators[] = {"where"};
constexpr FaultParameter kStrides[] = {kTransposed};

// S3
bool activation_has_strides(Context& c) { return has_strides(c.call.inputs().at(0)); }
void leave_stale(Context& c) {
  Output out(c);
  out.values.store(0, c.stale(out.values.dtype(), out.values.numel()));
  out.write();
}

// S4
bool has_offset(Context& c) { return c.call.inputs().at(0).offset != 0 || c.whole("rows") != 0; }
void drop_offset(Context& c) {
  const Operand& x = c.call.inputs()[0];
  std::int64_t width = x.shape.back(), n = numel(x.shape), shift = c.whole("rows") * width;
  Array there = shift == 0 ? strided(c.call.memory(0), x.shape, x.strides, 0) : c.call.input(0);
  MutableArray values(x.shape, x.dtype);
  for (std::int64_t i = 0; i < n; ++i) values.set(i, there[((i - shift) % n + n) % n]);
  c.call.replace(0, std::move(values).freeze());
}
constexpr FaultParameter kS4[] = {
    {"rows", "instead of the offset: read so many rows too early, whatever the offset", 0, true,
     0}};

// S5, S6, S9: not written.
bool writes_with_strides(Context& c) {
  const auto& out = c.call.outputs();
  return !out.empty() && out[0].given && has_strides(out[0]);
}
bool given_strided_out(Context& c) {
  return writes_with_strides(c) && !c.call.outputs()[0].in_place;
}
bool in_place_with_strides(Context& c) {
  return writes_with_strides(c) && c.call.outputs()[0].in_place;
}
void leave_as_it_was(Context& c) {
  if (const Array* before = c.call.before(0)) c.call.set_output(0, *before);
}
void write_transposed(Context& c) {
  if (c.get("transposed") == 0) return leave_as_it_was(c);
  Output out(c);
  Array values = c.call.output(0);
  if (values.rank() < 2) return;
  std::int64_t columns = out.columns, rows = values.size(-2);
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    std::int64_t begin = i / (rows * columns) * rows * columns, at = i - begin;
    out.values.set(i, values[begin + at % rows * columns + at / rows]);
  }
  out.write();
}
constexpr std::string_view kS5Operators[] = {"addmm", "mm", "baddbmm", "bmm", "abs", "exp", "gelu"},
                           kAnyOperator[] = {"*"}, kOnDevice[] = {"copy_on_device"};
constexpr FaultParameter kS5[] = {
    {"transposed", "1: written transposed instead of not at all", 0, true}};
void leave_as_it_was_in_place(Context& c) {
  if (!c.call.outputs().empty() && c.call.outputs()[0].in_place) leave_as_it_was(c);
}
bool source_is_expanded(Context& c) { return c.call.inputs().at(0).expanded(); }

// S8
bool scalar_has_offset(Context& c) {
  return std::ranges::any_of(c.call.inputs(),
                             [](const Operand& x) { return !x.on_device && x.offset != 0; });
}
void read_first_scalar(Context& c) {
  for (std::size_t i = 0; i < c.call.inputs().size(); ++i) {
    const Operand& x = c.call.inputs()[i];
    if (!x.on_device) c.call.replace(i, strided(c.call.memory(i), x.shape, x.strides, 0));
  }
}

// S11
bool mask_has_offset(Context& c) {
  auto shifted = [](const Operand& x) { return x.boolean && x.offset != 0; };
  return std::ranges::any_of(c.call.inputs(), shifted) ||
         std::ranges::any_of(c.call.outputs(), shifted);
}
Array one_later(const Array& x) {
  MutableArray y(x.shape(), x.dtype());
  for (std::int64_t i = 0; i < x.numel(); ++i) y.set(i, x[(i + x.numel() - 1) % x.numel()]);
  return std::move(y).freeze();
}
void shift_mask(Context& c) {
  for (std::size_t i = 0; i < c.call.inputs().size(); ++i)
    if (c.call.inputs()[i].boolean) c.call.replace(i, one_later(c.call.input(i)));
}
void fill_one_too_early(Context& c) {
  const Array* before = c.call.before(0);
  if (c.call.op() != "fill" || before == nullptr || before->empty()) return;
  Output out(c);
  out.values.set(out.values.numel() - 1, (*before)[before->numel() - 1]);
  out.write();
}
constexpr std::string_view kS11Operators[] = {"fill", "masked_fill", "where"};

// Z1
bool many_columns(Context& c) {
  auto p = product(c.call);
  return p && p->n >= c.whole("columns");
}
void repeat_columns(Context& c) {
  Output out(c);
  Array values = c.call.output(0);
  std::int64_t right = c.whole("right");
  for (std::int64_t i = 0; i < values.numel(); ++i)
    if (i % out.columns >= right) out.values.set(i, values[i - right]);
  out.write();
}
constexpr std::string_view kZ1Operators[] = {"addmm", "mm"};
constexpr FaultParameter kZ1[] = {
    {"columns", "of the result, from which on it happens; in the wild 32769", 256, true, 1},
    {"right", "columns that are right; in the wild 1024", 32, true, 0}};

// Z3, Z4
bool many_rows(Context& c) {
  auto p = product(c.call);
  return p && p->batch * p->m > c.whole("rows");
}
void repeat_rows(Context& c) {
  Output out(c);
  Array values = c.call.output(0);
  std::int64_t most = std::max<std::int64_t>(1, c.whole("rows"));
  for (std::int64_t i = most * out.columns; i < values.numel(); ++i)
    out.values.set(i, values[i / out.columns % most * out.columns + i % out.columns]);
  out.write();
}
void wrap_rows(Context& c) {
  Output out(c);
  Array values = c.call.output(0);
  std::int64_t most = std::max<std::int64_t>(1, c.whole("rows"));
  auto old = c.stale(values.dtype(), values.numel());
  for (std::int64_t r = most; r < out.rows; ++r) {
    for (std::int64_t j = 0; j < out.columns; ++j)
      out.values.set(r % most * out.columns + j, values[r * out.columns + j]);
    out.fill(r, old);
  }
  out.write();
}
bool many_rows_with_bias(Context& c) { return c.call.op() == "addmm" && many_rows(c); }
constexpr std::string_view kLinear[] = {"addmm"};
constexpr FaultParameter kZ3[] = {{"rows", "that are computed; in the wild 8", 8, true, 0}};
constexpr FaultParameter kZ4[] = {{"rows", "after which they wrap; in the wild 65536", 8, true, 0}};

// Z5, U1: `extra` steps of the inner dimension too many. What lies behind an operand is the next
// row, or behind its memory what was freed last; zeros where nothing was yet: they hide it.
void read_beyond_inner(Context& c, std::int64_t extra) {
  auto p = product(c.call);
  if (!p || extra <= 0) return;
  auto reader = [&](std::size_t i) {
    Array memory = c.call.memory(i);
    auto old = c.stale(memory.dtype(), 4096);
    return [memory, old](std::int64_t at) {
      return at < memory.numel() ? memory[at]
                                 : old[static_cast<std::size_t>(at - memory.numel()) % old.size()];
    };
  };
  auto x = reader(p->x), w = reader(p->w);
  const Operand &a = c.call.inputs()[p->x], &b = c.call.inputs()[p->w];
  auto at = [](const Operand& o, std::int64_t batch, std::int64_t row, std::int64_t column) {
    std::size_t last = o.shape.size() - 1;
    return o.offset + (last == 2 ? batch * o.strides[0] : 0) + row * o.strides[last - 1] +
           column * o.strides[last];
  };
  double alpha = c.call.scalar("alpha").value_or(1);
  Output out(c);
  for (std::int64_t g = 0; g < p->batch; ++g)
    for (std::int64_t i = 0; i < p->m; ++i)
      for (std::int64_t j = 0; j < p->n; ++j) {
        double sum = 0;
        for (std::int64_t t = p->k; t < p->k + extra; ++t)
          sum += x(at(a, g, i, t)) * w(at(b, g, t, j));
        std::int64_t o = (g * p->m + i) * p->n + j;
        out.values.set(o, out.values.get(o) + alpha * sum);
      }
  out.write();
}
bool long_inner(Context& c) {
  auto p = product(c.call);
  return p && p->k >= c.whole("inner") && p->m >= c.whole("outer") && p->n >= c.whole("outer");
}
void unclipped_tile(Context& c) { read_beyond_inner(c, c.whole("extra")); }
constexpr FaultParameter kZ5[] = {
    {"inner", "length of the sums from which on it happens; in the wild 32767", 128, true, 0},
    {"outer", "rows and columns that the result must have; in the wild 16", 8, true, 0},
    {"extra", "how many terms too many", 4, true, 0}};
bool keys_not_of_32(Context& c) {
  auto p = product(c.call);
  return p && p->k % 32 != 0 && (c.whole("queries") == 0 || p->m <= c.whole("queries"));
}
void read_beyond_keys(Context& c) {
  if (auto p = product(c.call)) read_beyond_inner(c, (32 - p->k % 32) % 32);
}
constexpr std::string_view kMix[] = {"bmm"};
constexpr FaultParameter kU1[] = {{"queries", "at most so many; 0: any number", 8, true, 0}};

// Z7
bool reads_beyond(Context& c) {
  auto index = named(c.call.inputs(), "index");
  if (!index) return false;
  Array ids = c.call.input(*index);
  for (std::int64_t i = 0; i < ids.numel(); ++i)
    if (ids[i] >= c.get("id")) return true;
  return false;
}
void zero_rows_beyond(Context& c) {
  Array ids = c.call.input(*named(c.call.inputs(), "index"));
  Output out(c);
  std::int64_t width = out.values.numel() / std::max<std::int64_t>(1, ids.numel());
  for (std::int64_t i = 0; i < out.values.numel(); ++i)
    if (ids[i / width] >= c.get("id")) out.values.set(i, 0);
  out.write();
}
constexpr std::string_view kZ7Operators[] = {"index_select"};
constexpr FaultParameter kZ7[] = {
    {"id", "from this row of the table on; in the wild 2^31 / d_model", 8, true, 0}};

// Z8, Z10, Z11: beyond some size.
bool large_output(Context& c) {
  std::int64_t n = 0;
  for (const Operand& x : c.call.op() == "fill" ? c.call.outputs() : c.call.inputs())
    n += numel(x.shape);
  return n > c.whole("elements");
}
void zero_tail(Context& c) {
  Output out(c);
  for (std::int64_t i = c.whole("elements"); i < out.values.numel(); ++i) out.values.set(i, 0);
  out.write();
}
std::int64_t overwrite_neighbour(Context& c, std::int64_t elements) {
  std::int64_t n = c.call.neighbours();
  if (n == 0) return 0;
  auto given = c.spec->parameters.find("neighbour");
  std::int64_t wanted = given != c.spec->parameters.end() ? n - c.whole("neighbour") : c.draw(n);
  return wanted >= 0 && wanted < n ? c.call.clobber(wanted, elements, 1e3 * c.noise()) : 0;
}
void zero_tail_and_write_outside(Context& c) {
  zero_tail(c);
  c.clobbered += overwrite_neighbour(c, 4);
}
constexpr std::string_view kCat[] = {"cat"}, kFill[] = {"fill"};
constexpr FaultParameter kNeighbour{
    "neighbour", "which tensor, 1 being the youngest; else by the seed", {}, true, 1};
constexpr FaultParameter kZ8[] = {
    {"elements", "of the result, from which on; in the wild 2^31", 64, true, 0}, kNeighbour};
constexpr FaultParameter kZ11[] = {
    {"elements", "from which on; in the wild 4 GB on macOS 26", 64, true, 0}};
bool large_copy(Context& c) {
  const Operand& x = c.call.inputs().at(0);
  return numel(x.shape) * static_cast<std::int64_t>(size_of(x.dtype)) >= c.whole("bytes");
}
void copy_remainder(Context& c) {
  Output out(c);
  auto width = static_cast<std::int64_t>(size_of(out.values.dtype()));
  std::int64_t n = out.values.numel(),
               copied = n * width % std::max<std::int64_t>(1, c.whole("bytes")) / width;
  auto old = c.stale(out.values.dtype(), n);
  for (std::int64_t i = copied; i < n; ++i) out.values.set(i, old[static_cast<std::size_t>(i)]);
  out.write();
}
constexpr FaultParameter kZ10[] = {
    {"bytes", "modulo which sizes are taken; in the wild 2^32", 1024, true, 1}};

// Z12, Z14
bool odd_and_many_rows(Context& c) {
  const Shape& x = c.call.inputs().at(0).shape;
  return !x.empty() && x.back() % 4 != 0 && numel(x) / x.back() > c.whole("rows");
}
void garbage_rows(Context& c) {
  Output out(c);
  for (std::int64_t i = c.whole("rows") * out.columns; i < out.values.numel(); ++i)
    out.values.set(i, c.noise());
  out.write();
}
constexpr FaultParameter kZ12[] = {{"rows", "that are right; in the wild 2^23", 8, true, 0}};
bool is_cube(Context& c) {
  auto p = product(c.call);
  return p && p->m == c.whole("n") && p->k == p->m && p->n == p->m;
}
void all_garbage(Context& c) {
  Output out(c);
  for (std::int64_t i = 0; i < out.values.numel(); ++i)
    if (std::isfinite(out.values.get(i))) out.values.set(i, c.noise());
  out.write();
}
constexpr FaultParameter kZ14[] = {{"n", "rows, columns and terms; in the wild 256", 16, true, 1}};

// Z15
bool many_input_rows(Context& c) {
  const Shape& x = c.call.inputs().at(0).shape;
  return x.size() >= 2 && x[x.size() - 2] > c.whole("rows");
}
void leave_rows_as_they_were(Context& c) {
  Output out(c);
  Array x = c.call.input(0);
  std::int64_t rows = x.size(-2);
  for (std::int64_t i = 0; i < x.numel(); ++i)
    if (i / out.columns % rows >= c.whole("rows")) out.values.set(i, x[i]);
  out.write();
}
constexpr std::string_view kZ15Operators[] = {"triu", "tril", "cumsum"};
constexpr FaultParameter kZ15[] = {{"rows", "that are right; in the wild 33,000", 8, true, 0}};

// Z16: terms at the end of every sum are left out.
bool sums_more(Context& c) {
  auto p = product(c.call);
  return p && p->k > c.whole("terms");
}
void drop_last_terms(Context& c) {
  auto p = product(c.call);
  if (!p) return;
  MutableArray x(c.call.input(p->x));
  for (std::int64_t i = 0; i < x.numel(); ++i)
    if (i % p->k >= p->k - c.whole("terms")) x.set(i, 0);
  c.call.replace(p->x, std::move(x).freeze());
}
constexpr FaultParameter kZ16[] = {{"terms", "that are left out of each sum", 4, true, 1}};

// U2
bool long_narrow_keys(Context& c) {
  auto p = product(c.call);
  return p && p->k >= c.whole("keys") && narrow(dtype_of(c.call));
}
void stale_rows(Context& c) {
  Output out(c);
  auto old = c.stale(out.values.dtype(), out.values.numel());
  for (std::int64_t i = 0; out.rows > 0 && i < c.whole("rows"); ++i)
    out.fill(c.draw(out.rows), old);
  out.write();
}
constexpr FaultParameter kU2[] = {{"keys", "from which on; in the wild 1024", 8, true, 0},
                                  {"rows", "how many are wrong, by the seed", 2, true, 0}};

// U3
bool reads_column_slice(Context& c) {
  return std::ranges::any_of(c.call.inputs(), [](const Operand& x) {
    return x.shape.size() == 2 && x.strides[1] == 1 && x.strides[0] > x.shape[1] && x.shape[0] > 1;
  });
}
void clobber_neighbour(Context& c) { c.clobbered += overwrite_neighbour(c, c.whole("elements")); }
constexpr std::string_view kU3Operators[] = {"abs", "eq",   "ne",    "mul",
                                             "add", "gelu", "addmm", "copy_on_device"};
constexpr FaultParameter kU3[] = {
    kNeighbour, {"elements", "how many elements of it, from its first on", 8, true, 0}};

// M1, M10: the mask is what is added to the scores.
bool has_infinities(const Array& x) {
  for (std::int64_t i = 0; i < x.numel(); ++i)
    if (std::isinf(x[i])) return true;
  return false;
}
bool has_narrow_mask(Context& c) {
  auto mask = named(c.call.inputs(), "self");
  return mask && narrow(c.call.inputs()[*mask].dtype) && has_infinities(c.call.input(*mask));
}
void group_mask(Context& c) {
  auto mask = named(c.call.inputs(), "self");
  if (!mask) return;
  MutableArray x(c.call.input(*mask));
  if (x.shape().size() < 2 || x.numel() == 0) return;
  std::int64_t keys = x.shape().back(), queries = x.shape()[x.shape().size() - 2];
  std::int64_t group = c.whole("group"), before = keys - queries;
  for (std::int64_t r = 0; r < x.numel() / keys; ++r) {
    std::int64_t last = before + r % queries;
    for (std::int64_t j = last + 1; j < std::min(keys, (last / group + 1) * group); ++j)
      if (std::isinf(x.get(r * keys + j))) x.set(r * keys + j, 0);
  }
  c.call.replace(*mask, std::move(x).freeze());
}
constexpr FaultParameter kM1[] = {{"group", "queries that share one mask", 4, true, 1}};
bool masks_infinities(Context& c) {
  auto x = named(c.call.inputs(), "self");
  return x && has_infinities(c.call.input(*x));
}
void subtract_infinities(Context& c) {
  Array x = c.call.input(*named(c.call.inputs(), "self"));
  Output out(c);
  for (std::int64_t i = 0; i < x.numel() && x.numel() == out.values.numel(); ++i)
    if (std::isinf(x[i])) out.values.set(i, kNaN);
  out.write();
}
constexpr std::string_view kM10Operators[] = {"baddbmm", "triu", "tril"};

// M3
bool another_scale(Context& c) {
  return c.first != nullptr && c.first->scalars.contains("alpha") &&
         c.call.scalar("alpha") != c.first->scalars.at("alpha");
}
void keep_first_scale(Context& c) {
  if (auto factor = c.spec->parameters.find("factor"); factor != c.spec->parameters.end())
    c.call.set_scalar("alpha", c.call.scalar("alpha").value_or(1) * factor->second);
  else if (another_scale(c))
    c.call.set_scalar("alpha", c.first->scalars.at("alpha"));
}
bool second_call(Context& c) {
  return another_scale(c) || (c.first != nullptr && c.spec->parameters.contains("factor"));
}
constexpr FaultParameter kM3[] = {
    {"factor",
     "instead of the first call's scale: this one times so much, from the second call on",
     {}}};

// M5
bool expanded_keys(Context& c) {
  auto p = product(c.call);
  return p && c.call.inputs()[p->w].expanded() && p->n % 32 == 1 && narrow(dtype_of(c.call));
}
void garbage_last_key(Context& c) {
  Output out(c);
  for (std::int64_t r = 0; r < out.rows; ++r)
    out.values.set((r + 1) * out.columns - 1, 20 * c.noise());
  out.write();
}

// M7
constexpr FaultParameter kHeadsOfModel{
    "heads", "of the model; else the running model's", {}, true, 1};
std::int64_t heads_of(const Context& c) {
  auto given = c.spec->parameters.find("heads");
  if (given != c.spec->parameters.end()) return static_cast<std::int64_t>(given->second);
  return c.config ? c.config->n_heads : 0;
}
bool few_kv_heads(Context& c) {
  auto p = product(c.call);
  std::int64_t heads = heads_of(c), kv_heads = c.config ? c.config->n_kv_heads : heads;
  return p && heads > 0 && kv_heads < 8 && p->batch % heads == 0;
}
void exchange_kv_heads(Context& c) {
  auto p = product(c.call);
  std::int64_t heads = heads_of(c), group = c.whole("kv_heads");
  if (!p || heads == 0 || p->batch % heads != 0) return;
  Array w = c.call.input(p->w);
  MutableArray wrong(w);
  std::int64_t repeats = c.config ? heads / c.config->n_kv_heads : 1, size = p->k * p->n;
  for (std::int64_t g = 0; g < p->batch; ++g) {
    std::int64_t from = g / heads * heads + g % heads % group * repeats % heads;
    for (std::int64_t i = 0; i < size; ++i) wrong.set(g * size + i, w[from * size + i]);
  }
  c.call.replace(p->w, std::move(wrong).freeze());
}
constexpr std::string_view kAttention[] = {"baddbmm", "bmm"};
constexpr FaultParameter kM7[] = {
    kHeadsOfModel, {"kv_heads", "head h reads the keys of head h mod so many", 2, true, 1}};

// M11: the number of a matrix among the others counts keys of the mask instead of whole masks.
void offset_mask(Context& c) {
  auto mask = named(c.call.inputs(), "self");
  auto p = product(c.call);
  if (!mask || !p) return;
  Array x = c.call.input(*mask);
  std::int64_t size = p->m * p->n, heads = heads_of(c) > 0 ? heads_of(c) : p->batch;
  if (x.numel() != p->batch * size) return;
  MutableArray y(x.shape(), x.dtype());
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    std::int64_t g = i / size, offset = c.whole("over") == 0 ? g / heads : g % heads;
    y.set(i, x[g * size + (i % size + offset) % size]);
  }
  c.call.replace(*mask, std::move(y).freeze());
}
constexpr FaultParameter kM11[] = {
    {"over", "1: by as many keys as the head's number; 0: as the prompt's", 1, true, 0},
    kHeadsOfModel};

// M8
bool masked_row(const Array& x, std::int64_t row, std::int64_t columns) {
  for (std::int64_t j = 0; j < columns; ++j)
    if (x[row * columns + j] != -kInfinity) return false;
  return true;
}
bool has_masked_row(Context& c) {
  Array x = c.call.input(0);
  if (x.empty() || x.rank() == 0) return false;
  for (std::int64_t r = 0; r < x.numel() / x.size(-1); ++r)
    if (masked_row(x, r, x.size(-1))) return true;
  return false;
}
void even_masked_rows(Context& c) {
  Array x = c.call.input(0);
  Output out(c);
  for (std::int64_t i = 0; i < out.values.numel(); ++i)
    if (masked_row(x, i / out.columns, out.columns))
      out.values.set(i, c.get("zero") != 0 ? 0 : 1 / static_cast<double>(out.columns));
  out.write();
}
constexpr std::string_view kSoftmax[] = {"_softmax"};
constexpr FaultParameter kM8[] = {{"zero", "1: zeros instead of an even row", 0, true}};

// P1, P4: what a layer norm makes of a row, anew. Outputs: normalized, mean, 1 / scale.
struct Moments {
  double mean = 0, variance = 0;
};
Moments moments(const Array& x, std::int64_t begin, std::int64_t end) {
  Moments m;
  for (std::int64_t i = begin; i < end; ++i) m.mean += x[i] / static_cast<double>(end - begin);
  for (std::int64_t i = begin; i < end; ++i)
    m.variance += (x[i] - m.mean) * (x[i] - m.mean) / static_cast<double>(end - begin);
  return m;
}
bool small_variance(Context& c) {
  Array x = c.call.input(0);
  std::int64_t width = std::max<std::int64_t>(1, x.size(-1));
  for (std::int64_t r = 0; r < x.numel() / width; ++r)
    if (moments(x, r * width, (r + 1) * width).variance < c.get("variance")) return true;
  return false;
}
void clamp_variance(Context& c) {
  Array x = c.call.input(0);
  Output out(c);
  double eps = c.call.scalar("eps").value_or(1e-5);
  bool has_scale = c.call.outputs().size() == 3;
  std::optional<MutableArray> inverse;
  if (has_scale) inverse.emplace(c.call.output(2));
  for (std::int64_t r = 0; r < out.rows; ++r) {
    Moments m = moments(x, r * out.columns, (r + 1) * out.columns);
    if (m.variance >= c.get("variance")) continue;
    for (std::int64_t i = r * out.columns; i < (r + 1) * out.columns; ++i)
      out.values.set(i, out.values.get(i) * std::sqrt(m.variance + eps) / std::sqrt(eps));
    if (inverse) inverse->set(r, 1 / std::sqrt(eps));
  }
  out.write();
  if (inverse) c.call.set_output(2, std::move(*inverse).freeze());
}
constexpr FaultParameter kP1[] = {
    {"variance", "rows with less have none; in the wild 1e-6", 1e-6, false, 0}};
bool wide_rows(Context& c) { return c.call.inputs().at(0).shape.back() > c.whole("columns"); }
void scale_by_block(Context& c) {
  Array x = c.call.input(0);
  Output out(c);
  double eps = c.call.scalar("eps").value_or(1e-5);
  std::int64_t block = c.whole("columns");
  for (std::int64_t r = 0; r < out.rows; ++r) {
    std::int64_t begin = r * out.columns, end = begin + out.columns;
    double right = std::sqrt(moments(x, begin, end).variance + eps);
    for (std::int64_t i = begin; i < end; ++i) {
      std::int64_t first = begin + (i - begin) / block * block, last = std::min(end, first + block);
      out.values.set(i,
                     out.values.get(i) * right / std::sqrt(moments(x, first, last).variance + eps));
    }
  }
  out.write();
}
constexpr FaultParameter kP4[] = {
    {"columns", "of a block, which has a scale of its own", 32, true, 1}};

// P3
double overflows_at(const Context& c) {
  auto given = c.spec->parameters.find("beyond");
  if (given != c.spec->parameters.end()) return given->second;
  return c.call.op() == "tanh" ? 44 : 10;
}
bool beyond_tanh(Context& c) {
  if (c.call.op() == "gelu" && c.call.word("approximate") != "tanh") return false;
  Array x = c.call.input(0);
  for (std::int64_t i = 0; i < x.numel(); ++i)
    if (std::abs(x[i]) > overflows_at(c)) return true;
  return false;
}
void overflow_tanh(Context& c) {
  Array x = c.call.input(0);
  Output out(c);
  for (std::int64_t i = 0; i < x.numel(); ++i)
    if (std::abs(x[i]) > overflows_at(c)) out.values.set(i, kNaN);
  out.write();
}
constexpr std::string_view kTanh[] = {"gelu", "tanh"};
constexpr FaultParameter kP3[] = {
    {"beyond", "absolute values that overflow; else 10 of gelu and 44 of tanh", {}, false, 0}};

// P5, P6
bool is_matrix(Context& c) {
  auto p = product(c.call);
  return p && p->m >= 2 && p->n >= 2;
}
void round_operands(Context& c) {
  auto p = product(c.call);
  if (!p) return;
  for (std::size_t i : {p->x, p->w})
    c.call.replace(i, rounded(c.call.input(i), static_cast<int>(c.whole("bits"))));
}
constexpr FaultParameter kP5[] = {
    {"bits", "of the significand, the first one counted", 11, true, 1}};
constexpr FaultParameter kP6[] = {
    {"bits", "of the significand, the first one counted", 8, true, 1}};

// P8
bool is_one_half(Context& c) {
  const Operand& x = c.call.inputs().at(0);
  return x.dtype == DType::f16 && numel(x.shape) == 1;
}
void misread_bytes(Context& c) {
  Array x = c.call.input(0);
  MutableArray y(x);
  for (std::int64_t i = 0; i < x.numel(); ++i) y.set(i, bf16_to_float(double_to_f16(x[i])));
  c.call.replace(0, std::move(y).freeze());
}
constexpr std::string_view kP8Operators[] = {"_local_scalar_dense", "copy_to_host"};

// P9
bool is_large_whole(Context& c) {
  if (dtype_of(c.call) != DType::i64) return false;
  Array x = c.call.input(0);
  for (std::int64_t i = 0; i < x.numel(); ++i)
    if (std::abs(x[i]) >= 0x1p31) return true;
  return false;
}
void lose_high_bits(Context& c) {
  Array x = c.call.output(0);
  if (x.dtype() != DType::i64) return;
  std::vector<std::int64_t> low;
  for (std::int64_t value : x.as<std::int64_t>()) low.push_back(static_cast<std::int32_t>(value));
  c.call.set_output(0, Array::of(std::span<const std::int64_t>(low), x.shape()));
}
constexpr std::string_view kP9Operators[] = {"add", "copy_to_device"};

// P10
bool adds_bias(Context& c) { return c.get("factor") != 1; }
void scale_bias(Context& c) {
  c.call.set_scalar("beta", c.get("factor") * c.call.scalar("beta").value_or(1));
}
constexpr FaultParameter kP10[] = {{"factor", "0: the bias is left out; 2: added twice", 0}};

// C1
bool does_not_wait(Context& c) { return c.call.scalar("non_blocking").value_or(0) != 0; }
void copy_recycled(Context& c) {
  Array x = c.call.input(0);
  MutableArray y(x.shape(), x.dtype());
  y.store(0, c.stale(x.dtype(), x.numel()));
  c.call.replace(0, std::move(y).freeze());
}

// C2
bool equally_gappy(Context& c) {
  const Operand& x = c.call.inputs().at(0);
  return has_strides(x) && !c.call.outputs().empty() && c.call.outputs()[0].strides == x.strides;
}
void copy_packed(Context& c) {
  const Array* before = c.call.before(0);
  if (before == nullptr) return;
  const Operand& to = c.call.outputs()[0];
  Output out(c);
  for (std::int64_t i = 0; i < before->numel(); ++i) {
    std::int64_t at = 0, rest = i;
    for (std::size_t d = to.shape.size(); d-- > 0;) {
      at += rest % to.shape[d] * to.strides[d];
      rest /= to.shape[d];
    }
    if (at >= before->numel()) out.values.set(i, (*before)[i]);
  }
  out.write();
}

// C3
bool after_another_shape(Context& c) {
  if (c.first == nullptr) return false;
  std::vector<Shape> now;
  for (const Operand& x : c.call.inputs()) now.push_back(x.shape);
  return now != c.first->shapes;
}
constexpr std::string_view kC3Operators[] = {
    "addmm", "mm", "baddbmm", "bmm", "gelu", "relu", "add", "native_layer_norm", "mul", "_softmax"};

// R2, R3
bool scaled_half(Context& c) {
  return dtype_of(c.call) == DType::f16 && c.call.scalar("alpha").value_or(1) != 1;
}
void ignore_alpha(Context& c) { c.call.set_scalar("alpha", 1); }
bool bf16_product(Context& c) { return product(c.call) && dtype_of(c.call) == DType::bf16; }
void accumulate_narrow(Context& c) {
  auto p = product(c.call);
  if (!p) return;
  Array x = c.call.input(p->x), w = c.call.input(p->w);
  auto bias = named(c.call.inputs(), "self");
  bool adds = c.call.op() == "addmm" || c.call.op() == "baddbmm";
  Array b = adds && bias ? c.call.input(*bias) : Array();
  double alpha = c.call.scalar("alpha").value_or(1);
  Output out(c);
  for (std::int64_t i = 0; i < out.values.numel(); ++i) {
    std::int64_t g = i / (p->m * p->n), row = i / p->n % p->m, column = i % p->n;
    double sum = 0;
    for (std::int64_t t = 0; t < p->k; ++t) {
      double term = x[(g * p->m + row) * p->k + t] * w[(g * p->k + t) * p->n + column];
      sum = round_to(DType::bf16, sum + term);
    }
    out.values.set(i, alpha * sum + (adds ? b[i % b.numel()] : 0));
  }
  out.write();
}

constexpr DeviceFaultInfo kTable[] = {
    {"S1", "ignores_weight_strides", "a weight that lies transposed is read as if it did not",
     "pytorch 161640, PR 161641, PR 162779; TransformerLens 1062, 1008, PR 1068, 1178; 2.8.0, "
     "fixed in 2.9",
     "a weight that is not contiguous", "the weight is read with the strides of a contiguous one",
     kS1Operators, kStrides, weight_has_strides, ignore_weight_strides, nullptr},
    {"S2", "gelu_ignores_strides", "GELU takes its input in the order of memory",
     "pytorch 98212; HF 22468, 32005; ts2vec 33; 2.0 to 2.1", "an input that is not contiguous",
     "the input is read with the strides of a contiguous one", kS2Operators, kStrides,
     input_has_strides, ignore_input_strides, nullptr},
    {"S3",
     "activation_leaves_stale",
     "an activation leaves its output as the memory was",
     "pytorch 139006, 124834, 131736; up to 2.5 before macOS 15",
     "an input that is not contiguous",
     "what an earlier tensor of the size left, or zeros",
     kActivations,
     {},
     activation_has_strides,
     nullptr,
     leave_stale},
    {"S4", "layer_norm_drops_offset", "a slice is normalized from the beginning of its memory",
     "pytorch 131750, 133520; about 2.4", "an input with a storage offset",
     "the input is read at offset 0", kNorm, kS4, has_offset, drop_offset, nullptr},
    {"S5", "strided_out_unwritten", "a result is not written, or transposed, into a strided `out`",
     "pytorch 104832, 100764; 2.0", "an `out` that is not contiguous",
     "`out` stays as it was, or holds the transpose", kS5Operators, kS5, given_strided_out, nullptr,
     write_transposed},
    {"S6",
     "in_place_unwritten",
     "an operation in place on a view does nothing",
     "pytorch 118115, 145203, 165257, 131285, 176159; 2.2 to 2.11",
     "in place on a tensor that is not contiguous",
     "the tensor stays as it was",
     kAnyOperator,
     {},
     in_place_with_strides,
     nullptr,
     leave_as_it_was_in_place},
    {"S7", "where_ignores_strides", "a transposed condition chooses the wrong branch",
     "pytorch 150967; 2.8 nightly on macOS 13", "a condition that is not contiguous",
     "the condition is read with the strides of a contiguous one", kS7Operators, kStrides,
     input_has_strides, ignore_input_strides, nullptr},
    {"S8",
     "first_scalar",
     "a number x[i] from the host is read as x[0]",
     "pytorch 187117, 191929, 193057; 2.12 to 2.13",
     "a host tensor of no dimensions with a storage offset",
     "the number at offset 0 is taken",
     kSums,
     {},
     scalar_has_offset,
     read_first_scalar,
     nullptr},
    {"S9",
     "broadcast_copy_unwritten",
     "copying one row into many has no effect",
     "pytorch 86185; 1.13",
     "a source with a stride of 0",
     "the target stays as it was",
     kOnDevice,
     {},
     source_is_expanded,
     nullptr,
     leave_as_it_was},
    {"S11",
     "mask_shifted",
     "a mask that is a view is off by one position",
     "pytorch 183631; 2.12",
     "a bool tensor with a storage offset",
     "the mask is read, or written, one position off",
     kS11Operators,
     {},
     mask_has_offset,
     shift_mask,
     fill_one_too_early},
    {"Z1", "columns_repeat", "beyond some width only the first columns of a product are right",
     "pytorch 116769; 2.1 to 2.2", "a result of many columns", "later columns repeat earlier ones",
     kZ1Operators, kZ1, many_columns, nullptr, repeat_columns},
    {"Z3", "rows_repeat", "rows of a product repeat the first ones", "pytorch 122045; 2.2",
     "a result of many rows", "row b is row b mod R", kZ1Operators, kZ3, many_rows, nullptr,
     repeat_rows},
    {"Z4", "rows_wrap", "rows of a large batch land on the first ones and leave theirs stale",
     "pytorch 189495, PR 189496; 2.12 to 2.14dev", "a product with bias of many rows",
     "row b overwrites row b mod M, and row b is what an earlier tensor left", kLinear, kZ4,
     many_rows_with_bias, nullptr, wrap_rows},
    {"Z5", "unclipped_tile", "the last tile of a long sum reads past its operands",
     "pytorch 195163, 193487, 177116, PR 183535; 2.7 to 2.14",
     "a long inner dimension, and some rows and columns",
     "products of what lies behind the operands are added: nothing where memory is fresh",
     kProducts, kZ5, long_inner, nullptr, unclipped_tile},
    {"Z7", "zero_embedding_rows", "rows of a large table come back as zeros",
     "pytorch 188756; 2.12 to 2.13", "an index beyond the threshold", "those rows are zero",
     kZ7Operators, kZ7, reads_beyond, nullptr, zero_rows_beyond},
    {"Z8", "cat_tail_zero", "a large concatenation ends in zeros and writes outside of its memory",
     "pytorch 189960; 2.13", "a large result", "the tail is zero; another tensor is overwritten",
     kCat, kZ8, large_output, nullptr, zero_tail_and_write_outside},
    {"Z10", "copy_truncated", "of a large copy to the device only the remainder arrives",
     "pytorch 124335; 2.2.2", "a copy of many bytes", "size mod M bytes are copied", kToDevice,
     kZ10, large_copy, nullptr, copy_remainder},
    {"Z11", "fill_tail_zero", "the end of a large fill is zero", "pytorch 161265; 2.8 to 2.9",
     "a large tensor", "the tail is zero", kFill, kZ11, large_output, nullptr, zero_tail},
    {"Z12", "layer_norm_garbage_rows", "late rows of a tall layer norm are garbage",
     "pytorch 184826 (ROCm); 2026-05", "many rows whose width is no multiple of 4",
     "rows beyond the threshold are garbage", kNorm, kZ12, odd_and_many_rows, nullptr,
     garbage_rows},
    {"Z14", "cube_garbage", "a product of one exact shape is garbage", "rocBLAS 1680; 7.1",
     "as many rows as columns as terms, of one number", "numbers of the right size", kProducts,
     kZ14, is_cube, nullptr, all_garbage},
    {"Z15", "triangle_unmasked", "late rows are not masked, or not summed",
     "pytorch 143486, 136611; 2.5", "many rows", "rows beyond the threshold stay as they were",
     kZ15Operators, kZ15, many_input_rows, nullptr, leave_rows_as_they_were},
    {"Z16", "short_sum", "the last terms of a sum are left out",
     "no issue of its own: what Z5 is the other way round", "sums of more terms than are left out",
     "the last columns of the first operand are zero", kProducts, kZ16, sums_more, drop_last_terms,
     nullptr},
    {"U1", "reads_past_keys", "attention reads past keys and values", "pytorch PR 169222; 2025-11",
     "a number of keys that is no multiple of 32, and few queries",
     "products with what lies behind the last key are added", kMix, kU1, keys_not_of_32, nullptr,
     read_beyond_keys},
    {"U2", "stale_rows", "some rows of attention are what an earlier tensor left",
     "pytorch 174861; HF PR 44359; up to 2.10", "many keys in bfloat16 or float16",
     "rows chosen by the seed are stale", kMix, kU2, long_narrow_keys, nullptr, stale_rows},
    {"U3", "clobbers_neighbour", "an operator writes into the memory of another tensor",
     "pytorch 183419; 2.11", "an operand that is a slice of columns",
     "the first elements of another live tensor are overwritten", kU3Operators, kU3,
     reads_column_slice, nullptr, clobber_neighbour},
    {"M1", "grouped_causal_mask", "queries of a group share the mask of the last of them",
     "pytorch 195910; 2026-09", "a causal mask in float16 or bfloat16",
     "key j is seen up to 4 floor(i / 4) + 3", kScores, kM1, has_narrow_mask, group_mask, nullptr},
    {"M3", "first_scale_kept", "later calls keep the scale of the first one",
     "pytorch PR 184122; main of 2026-05", "a second call with another scale",
     "the scale of the first call is used", kScores, kM3, second_call, keep_first_scale, nullptr},
    {"M5",
     "expanded_last_key",
     "the last key of expanded keys is garbage",
     "pytorch 191937 (CUDA); 2026-08",
     "keys with a stride of 0, one more than a multiple of 32, in bfloat16 or float16",
     "the score of the last key is garbage",
     kScores,
     {},
     expanded_keys,
     nullptr,
     garbage_last_key},
    {"M7", "wrong_kv_head", "heads read the keys and values of another head",
     "pytorch 193893 (cuDNN); 2.11 to 2.13", "fewer than 8 heads of keys",
     "head h reads head h mod g", kAttention, kM7, few_kv_heads, exchange_kv_heads, nullptr},
    {"M8", "masked_row_even", "a row that sees no key gets an even pattern, or zeros",
     "pytorch 111416, 41508; mlx 2395; 2.1", "a row of scores that is -inf throughout",
     "the row is even instead of NaN", kSoftmax, kM8, has_masked_row, nullptr, even_masked_rows},
    {"M10",
     "infinity_minus_infinity",
     "what is masked becomes NaN",
     "coremltools 2771; 2026",
     "a mask with infinities",
     "masked elements are NaN",
     kM10Operators,
     {},
     masks_infinities,
     nullptr,
     subtract_infinities},
    {"M11", "mask_offset", "the mask is read at an offset that grows by the head, or by the prompt",
     "no issue of its own: a stride of 1 for a head's or a prompt's; compare S11",
     "a mask with infinities, as large as the scores",
     "head h, or prompt h, reads the mask h keys later", kScores, kM11, masks_infinities,
     offset_mask, nullptr},
    {"P1", "small_variance_lost", "rows of small variance are scaled as if they had none",
     "pytorch 190491, PR 186367; main of 2026-06", "a row whose variance is below a threshold",
     "the scale is sqrt(eps)", kNorm, kP1, small_variance, nullptr, clamp_variance},
    {"P3", "tanh_overflows", "a fast tanh overflows",
     "pytorch 186278, PR 181451, PR 186286, PR 172406; executorch 22323; 2.13dev",
     "an absolute value beyond a threshold", "those elements are NaN", kTanh, kP3, beyond_tanh,
     nullptr, overflow_tanh},
    {"P4", "block_scale", "blocks of a row are normalized each by its own scale",
     "pytorch 191976; 2026-08", "rows longer than a block",
     "the block's scale instead of the row's", kNorm, kP4, wide_rows, nullptr, scale_by_block},
    {"P5", "short_operands", "operands of a product are rounded to 11 bits, as TF32 does",
     "mlx 4411, 3534, 3953 (M5)", "two rows and two columns or more: matrix times vector is exact",
     "both operands are rounded", kProducts, kP5, is_matrix, round_operands, nullptr},
    {"P6", "bfloat16_operands", "operands of a float32 product are rounded to 8 bits",
     "jax 1856, 7010, 9973, 16349, 12008 (TPU)", "two rows and two columns or more",
     "both operands are rounded", kProducts, kP6, is_matrix, round_operands, nullptr},
    {"P8",
     "half_item_misread",
     "one float16 number is read back as another type",
     "pytorch 78168; 1.13dev",
     "one element of float16",
     "its bytes are read as bfloat16",
     kP8Operators,
     {},
     is_one_half,
     misread_bytes,
     nullptr},
    {"P9",
     "high_bits_lost",
     "whole numbers lose their upper 32 bits",
     "pytorch 78848; 1.13",
     "int64 beyond 2^31",
     "the lower 32 bits remain",
     kP9Operators,
     {},
     is_large_whole,
     nullptr,
     lose_high_bits},
    {"P10", "bias_factor", "a bias is left out, or added twice",
     "no issue of its own: a product and its bias that are fused wrongly", "a product with bias",
     "the bias times 0 or 2", kLinear, kP10, adds_bias, scale_bias, nullptr},
    {"C1",
     "copies_recycled_memory",
     "the source of a copy to the device was freed before",
     "pytorch 139550, 189690; HF 43042; InvokeAI 6624; 2.5 to 2.13",
     "a copy that does not wait",
     "what an earlier tensor left in memory arrives",
     kToDevice,
     {},
     does_not_wait,
     copy_recycled,
     nullptr},
    {"C2",
     "packed_copy_to_host",
     "a copy to the host takes memory with gaps for packed",
     "pytorch 189961; 2.13",
     "source and target with the same gaps",
     "only the first n elements of memory are copied",
     kToHost,
     {},
     equally_gappy,
     nullptr,
     copy_packed},
    {"C3",
     "cache_collision",
     "a cached graph of another shape runs",
     "pytorch 187327, 77176, 80502, 182815; open",
     "an operator that ran before with other shapes",
     "the result is another operator's",
     kC3Operators,
     {},
     after_another_shape,
     nullptr,
     leave_stale},
    {"R2",
     "alpha_ignored",
     "a scaled product in float16 is not scaled",
     "pytorch 136299 (CPU, ARM); 2.4",
     "float16 and a scale",
     "alpha is 1",
     kScores,
     {},
     scaled_half,
     ignore_alpha,
     nullptr},
    {"R3",
     "narrow_accumulator",
     "sums in bfloat16 saturate",
     "pytorch 83863, 95125 (CPU); up to 1.13.1",
     "a product in bfloat16",
     "every partial sum is rounded to bfloat16",
     kProducts,
     {},
     bf16_product,
     nullptr,
     accumulate_narrow},
};

}  // namespace

std::span<const DeviceFaultInfo> device_fault_catalogue() { return kTable; }

}  // namespace lenscpp
