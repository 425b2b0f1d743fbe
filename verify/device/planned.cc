// What a run allocates, link by link.
#include "verify/device/planned.h"

#include <algorithm>
#include <limits>
#include <map>
#include <stdexcept>

#include "verify/reference/wiring.h"

namespace lenscpp {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

// The tensors and products of one link, as hooks/transformer/ makes them.
class Sizes {
 public:
  Sizes(const Weights& w, const Request& request)
      : w_(w),
        c_(w.config),
        request_(request),
        extents_(request.rows.extents()),
        tokens_(product_of(extents_.batch, extents_.pos)),
        model_(element_type(w.dtype)),
        wide_(element_type(accumulate_type(w.dtype))),
        narrow_(accumulate_type(w.dtype) != w.dtype) {}

  PlannedLink of(Link link) {
    PlannedLink planned{.link = std::move(link), .output = {}};
    const Link& l = planned.link;
    id_ = l.output;
    shape_ = shape_of(id_.site, c_, extents_);
    ElementType stored = element_type(stored_dtype(id_.site, w_.dtype));
    planned.output = {Role::recorded, id_, {}, shape_, stored};
    planned_ = &planned;
    parts_of(l);
    return planned;
  }

 private:
  void add(std::string_view part, Shape shape, ElementType type, Role role = Role::intermediate) {
    planned_->parts.push_back({role, id_, part, std::move(shape), type});
  }
  void multiply(std::int64_t batch, std::int64_t rows, std::int64_t terms, std::int64_t columns) {
    planned_->products.push_back({id_, batch, rows, terms, columns});
  }
  std::int64_t heads_of(const TensorId& id) const {
    return id.site == Site::k || id.site == Site::v ? c_.n_kv_heads : c_.n_heads;
  }

  void parts_of(const Link& l) {
    switch (l.op) {
      case Op::gather:
        return add("token ids", {tokens_}, element_type(DType::i64));
      case Op::copy:
        planned_->same_memory =
            product_of(shape_) == product_of(shape_of(l.inputs[0].site, c_, extents_));
        return;
      case Op::concat:
        return add("uploaded base", {extents_.batch, request_.rows.first_pos, shape_[2], shape_[3]},
                   model_);
      case Op::norm_scale:
        return norm(shape_of(l.inputs[0].site, c_, extents_));
      case Op::normalize:
        if (request_.touches(l.inputs[1].site, l.inputs[1].layer)) {
          add("centred", shape_, wide_);
          add("over the changed scale", shape_, wide_);
        }
        return;
      case Op::turn:
        return turn();
      case Op::softcap:
        if (narrow_) add("input in float32", shape_, wide_);
        add("input over its cap", shape_, wide_);
        add("hyperbolic tangent", shape_, wide_);
        add("the cap as a tensor, twice", {2}, element_type(DType::f64));
        if (narrow_) add("times its cap", shape_, wide_);
        return;
      case Op::linear:
        return linear(l);
      case Op::head_linear:
        return head_linear();
      case Op::scores:
        by_head("queries by head", extents_.pos, c_.n_heads);
        by_head("keys by head", extents_.key, c_.n_kv_heads);
        if (!l.spans.empty()) add("mask by head", shape_, model_);
        return multiply(heads(), extents_.pos, c_.d_head, extents_.key);
      case Op::mix:
        by_head("values by head", extents_.key, c_.n_kv_heads);
        add("product by head", {heads(), extents_.pos, c_.d_head}, model_);
        return multiply(heads(), extents_.pos, extents_.key, c_.d_head);
      case Op::head_result:
        add("z by head", {c_.n_heads, tokens_, c_.d_head}, model_);
        add("results by head", {c_.n_heads, tokens_, c_.d_model}, model_);
        return multiply(c_.n_heads, tokens_, c_.d_head, c_.d_model);
      case Op::sum_heads:
        add("sum over heads", shape_, wide_);
        if (narrow_) add("with its bias", shape_, wide_);
        return;
      case Op::edit:
        return edit(*l.edit);
      case Op::add:
        if (l.inputs.size() == 3) {
          add("first sum", shape_, wide_);
          if (!narrow_) return;
          add("input in float32", shape_, wide_);
          add("summand in float32", shape_, wide_);  // on the CPU: operands get one dtype
          add("both sums", shape_, wide_);
        }
        return;
      case Op::enter:
        return add("uploaded residual", l.given.shape(), model_);
      case Op::softmax:
        // Of a router; scores are in the model's dtype, as their patterns are.
        if (narrow_ && planned_->output.type.name == wide_.name)
          add("logits in float32", shape_, wide_);
        if (id_.site == Site::pattern &&
            (!request_.rows.spans.empty() || request_.touches(Site::attn_scores, id_.layer)))
          add("before what sees nothing", shape_, model_);
        return;
      case Op::choose:
        add("sorted", shape_of(l.inputs[0].site, c_, extents_), wide_);
        return add("order", shape_of(l.inputs[0].site, c_, extents_), element_type(DType::i64));
      case Op::multiply:
        if (id_.site != Site::expert_mixed || w_.dtype != DType::f16) return;
        add("neurons with their shares", shape_, model_);
        add("neurons without a share", shape_, {"bool", 1});
        return add("experts without a share", shape_of(Site::expert_shares, c_, extents_),
                   {"bool", 1});
      case Op::share: {
        Shape chosen = shape_of(Site::expert_indices, c_, extents_);
        add("likeliest", chosen, wide_);
        add("shares of the likeliest", chosen, wide_);
        add("zeros", shape_, wide_);
        if (narrow_) add("shares in float32", shape_, wide_);
        return;
      }
      case Op::select:
      case Op::callback:
      case Op::given:
      case Op::table:
      case Op::distances:
      case Op::affine:
      case Op::activation:
        return;
    }
    throw std::logic_error("[preflight] not an Op");
  }

  // Of each pair the first and the second, what they become, and two products at a time.
  std::int64_t heads() const { return product_of(extents_.batch, c_.n_heads); }

  void norm(const Shape& in) {
    if (narrow_) add("input in float32", in, wide_);
    add("normalized, as accumulated", in, wide_);
    add("mean", shape_, wide_);
    add("inverse scale", shape_, wide_);
  }

  // What is turned of a head, its pairs apart: a tensor of first and one of second elements.
  void turn() {
    Shape turned = shape_, apart = shape_;
    turned.back() = c_.rotary->dimensions;
    apart.back() = c_.rotary->dimensions / 2;
    if (narrow_ || turned != shape_) add("dimensions that are turned", turned, wide_);
    for (const char* part : {"first of each pair", "second of each pair"}) add(part, apart, wide_);
    for (const char* part : {"products with cosines", "products with sines"})
      add(part, apart, wide_);
    if (!narrow_) return;
    for (const char* part : {"first turned", "second turned"}) add(part, apart, wide_);
  }

  // Queries, keys and values are one product, made before the queries.
  void linear(const Link& l) {
    std::int64_t columns = l.weight->out;
    if (id_.site == Site::q) {
      columns = (c_.n_heads + 2 * c_.n_kv_heads) * c_.d_head;
      add("queries, keys and values", {tokens_, columns}, model_);
    }
    std::int64_t rows = product_of(shape_) / l.weight->out;
    if (id_.site != Site::k && id_.site != Site::v) multiply(1, rows, l.weight->in, columns);
  }

  void head_linear() {
    std::int64_t heads = heads_of(id_);
    add("columns of W_QKV", {c_.d_model, heads * c_.d_head}, model_);
    add("W_QKV by head", {heads, c_.d_model, c_.d_head}, model_);
    add("inputs by head", {heads, tokens_, c_.d_model}, model_);
    add("product by head", {heads, tokens_, c_.d_head}, model_);
    multiply(heads, tokens_, c_.d_model, c_.d_head);
  }

  void by_head(std::string_view part, std::int64_t positions, std::int64_t heads_there) {
    if (heads_there != c_.n_heads)
      add("repeated over heads", {extents_.batch, positions, c_.n_heads, c_.d_head}, model_);
    add(part, {heads(), positions, c_.d_head}, model_);
  }

  void edit(const Edit& e) {
    ElementType stored = planned_->output.type;
    add("mask of the edit", shape_, {"bool", 1});
    add("indices of the edit", {selected(e), 2}, element_type(DType::i64), Role::host);
    switch (e.kind) {
      case EditKind::zero:
        return add("zeros", shape_, stored);
      case EditKind::patch:
        return add("values of the edit", shape_, stored);
      case EditKind::add:
        add("values of the edit", shape_, stored);
        return add("sum", shape_, stored);
      case EditKind::scale:
        return add("scaled", shape_, stored);
      case EditKind::mean:
        if (e.source.rank() == 0 && narrow_) add("input in float32", shape_, wide_);
        if (e.source.rank() > 0)
          add("source in float64", e.source.shape(), element_type(DType::f64), Role::host);
        return add("mean", shape_, stored);
    }
    throw std::logic_error("[preflight] not an EditKind");
  }

  // Elements that an edit touches.
  std::int64_t selected(const Edit& e) const {
    std::int64_t count = 1;
    auto axes = info(e.site).axes;
    for (std::size_t d = 0; d < axes.size(); ++d) {
      bool one = (axes[d] == Axis::batch && e.where.batch) ||
                 (axes[d] == Axis::key && e.where.key) ||
                 ((axes[d] == Axis::head || axes[d] == Axis::kv_head) && e.where.head);
      bool listed = (axes[d] == Axis::pos || axes[d] == Axis::query) && e.where.pos;
      std::int64_t extent = one      ? 1
                            : listed ? static_cast<std::int64_t>(e.where.pos->size())
                                     : shape_[d];
      count = product_of(count, extent);
    }
    return count;
  }

  const Weights& w_;
  const Config& c_;
  const Request& request_;
  Extents extents_;
  std::int64_t tokens_;
  ElementType model_, wide_;
  bool narrow_;
  TensorId id_;
  Shape shape_;
  PlannedLink* planned_ = nullptr;
};

bool is_norm_of_heads(Site site) { return site >= Site::q_norm_scale && site <= Site::k_norm_out; }

// The site at whose tap the device pass leaves the function that holds this one in a variable:
// attention up to z, attention and MLP are a function each, as are queries, keys and values with
// their norms.
Site end_of_scope(Site site) {
  if (site >= Site::attn_in && site <= Site::v_ln_out) return Site::v;
  if (is_norm_of_heads(site) || site == Site::raw_scores) return site;
  if (site >= Site::q && site < Site::z) return Site::z;
  if (site >= Site::z && site < Site::attn_out) return Site::attn_out;
  if (site >= Site::mlp_pre && site < Site::mlp_post) return Site::mlp_post;
  if (site >= Site::mlp_in && site < Site::mlp_out) return Site::mlp_out;
  return site;
}

bool holds_more_than_its_norm(const std::vector<PlannedLink>& links, std::size_t normalize) {
  const PlannedLink& scale = links[normalize - 1];
  return scale.link.op == Op::norm_scale &&
         scale.output.type.name != links[normalize].output.type.name;
}

// The device holds a tensor while a function holds it, and as long as something reads it.
void find_ends(std::vector<PlannedLink>& links) {
  std::map<TensorId, std::size_t> made;
  std::map<std::pair<Site, std::int64_t>, std::size_t> ends;
  for (std::size_t i = 0; i < links.size(); ++i)
    ends[{links[i].output.id.site, links[i].output.id.layer}] = i;
  for (std::size_t i = 0; i < links.size(); ++i) {
    const TensorId& id = links[i].output.id;
    made[id] = i;
    auto end = ends.find({end_of_scope(id.site), id.layer});
    links[i].last_reader = i;
    links[i].last_use = end == ends.end() ? i : std::max(i, end->second);
    // What an edit or a callback replaces is let go of at the tap.
    std::size_t last_stage = ends.at({id.site, id.layer});
    if (last_stage != i) links[i].last_use = last_stage;
    for (const TensorId& input : links[i].link.inputs) links[made.at(input)].last_reader = i;
    // Of a norm with weights only their output leaves it.
    if (links[i].link.op == Op::affine) links[made.at(links[i].link.inputs[0])].last_use = i;
    // Queries and keys that are normed or turned are not held behind that.
    if (links[i].link.op == Op::turn || is_norm_of_heads(id.site))
      links[made.at(links[i].link.inputs[0])].last_use = i;
  }
  for (std::size_t i = 0; i < links.size(); ++i) {
    links[i].parts_until = i;
    const TensorId& id = links[i].output.id;
    if (id.site == Site::q && links[i].link.op == Op::linear)
      links[i].parts_until = ends.at({Site::v, id.layer});
    // Where nothing is rounded or changed, the normalized tensor is the one that was accumulated.
    if (i > 0 && links[i].link.op == Op::normalize && holds_more_than_its_norm(links, i))
      links[i - 1].parts_until =
          links[links[i].last_reader].link.op == Op::affine ? links[i].last_reader : i;
  }
  // What shares memory keeps it for as long as its last name lives.
  for (std::size_t i = links.size(); i-- > 0;) {
    links[i].last_use = std::max(links[i].last_use, links[i].last_reader);
    if (!links[i].same_memory) continue;
    PlannedLink& source = links[made.at(links[i].link.inputs[0])];
    source.last_use = std::max(source.last_use, links[i].last_use);
  }
}

}  // namespace

std::string_view name_of(Role role) {
  switch (role) {
    case Role::weight:
      return "weight";
    case Role::recorded:
      return "recorded";
    case Role::intermediate:
      return "intermediate";
    case Role::host:
      return "host";
  }
  throw std::logic_error("[preflight] not a Role");
}

ElementType element_type(DType dtype) {
  return {name_of(dtype), static_cast<std::int64_t>(size_of(dtype))};
}

std::int64_t product_of(std::int64_t a, std::int64_t b) {
  std::int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kMost : product;
}
std::int64_t product_of(const Shape& shape) {
  std::int64_t product = 1;
  for (std::int64_t extent : shape) product = product_of(product, extent);
  return product;
}
std::int64_t sum_of(std::int64_t a, std::int64_t b) { return a > kMost - b ? kMost : a + b; }

std::int64_t PlannedTensor::elements() const { return product_of(shape); }
std::int64_t PlannedTensor::bytes() const { return product_of(elements(), type.bytes); }

std::vector<PlannedLink> plan_links(const Weights& weights, const Request& request) {
  Sizes sizes(weights, request);
  std::vector<PlannedLink> planned;
  for (Link& link : wire(weights, request)) planned.push_back(sizes.of(std::move(link)));
  find_ends(planned);
  return planned;
}

PlannedTensor planned_mask(const Weights& weights, const Request& request) {
  Extents e = request.rows.extents();
  std::int64_t masks = weights.config.window ? 2 : 1;
  return {Role::intermediate,
          {Site::attn_scores},
          "mask",
          !request.rows.spans.empty() ? Shape{masks, e.batch, e.pos, e.key}
          : masks == 1                ? Shape{e.pos, e.key}
                                      : Shape{masks, e.pos, e.key},
          element_type(weights.dtype)};
}

std::vector<PlannedTensor> planned_weights(const Weights& weights) {
  std::vector<PlannedTensor> planned;
  weights.for_each([&](const std::string& name, const Array& array) {
    planned.push_back({Role::weight, {}, {}, array.shape(), element_type(array.dtype()), name});
  });
  return planned;
}

std::string name_of(const PlannedTensor& tensor, const Request& request) {
  if (tensor.role == Role::weight) return tensor.weight;
  std::string name = request.name_of(tensor.id);
  return tensor.part.empty() ? name : name + " (" + std::string(tensor.part) + ")";
}

}  // namespace lenscpp
