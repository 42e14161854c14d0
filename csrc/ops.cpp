// The operators: schemas, and their entry points on CPU and CUDA. Everything here goes through the LibTorch
// stable ABI, so that one binary serves every torch from 2.10 on. Arguments have been validated in Python
// (l0sign_cuda/_checks.py); what is checked again here is what memory safety rests on, since compiled graphs
// call the operators directly.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "core/pair.h"
#include "cpu/rooms.h"
#include "cpu/rows.h"
#include "cpu/run.h"
#include "problem.h"
#include "row_sums.h"
#include "tensors.h"
#ifdef L0SIGN_HAVE_CUDA
#include "cuda/registration.h"
#include "cuda/run.h"
#endif

namespace l0sign {
namespace {

// ---- Checks ----

Aggregation aggregation_of(int64_t aggr) {
  L0SIGN_EXPECT(aggr >= 0 && aggr <= 2, "aggr: expected 0, 1 or 2, got " + std::to_string(aggr));
  return static_cast<Aggregation>(aggr);
}

// Without gates every neighbour is open.
Aggregation ungated_aggregation(int64_t aggr) {
  return aggregation_of(aggr) == Aggregation::sum ? Aggregation::sum : Aggregation::mean;
}

// ---- Tensors to problems ----

// Rows of nodes: [N, d], or [B, n, d] of graphs of one size.
bool are_rows(const Tensor& t) { return t.dim() == 2 || t.dim() == 3; }
int64_t width(const Tensor& rows) { return rows.sizes()[rows.dim() - 1]; }
int64_t num_rows(const Tensor& rows) {
  return rows.dim() == 3 ? rows.sizes()[0] * rows.sizes()[1] : rows.sizes()[0];
}

// Tensors in the type of computation, alive as long as a problem points to them.
template <class A>
class Inputs {
 public:
  const A* operator()(const Tensor& t) { return static_cast<const A*>(keep(in_type(t, kType<A>))); }
  const A* operator()(const OptionalTensor& t) { return t ? (*this)(*t) : nullptr; }

  const int64_t* index(const Tensor& t, const char* name) {
    expect_type(t, name, ScalarType::Long);
    return static_cast<const int64_t*>(keep(t));
  }

  // Rows of a table of `rows` rows: checked, since they address memory. On CUDA kernels check them.
  const int64_t* ids(const Tensor& t, int64_t rows) {
    L0SIGN_EXPECT(t.dim() == 1, "ids: expected [N], got " + shape_of(t));
    const int64_t *begin = index(t, "ids"), *end = begin + t.sizes()[0];
    L0SIGN_EXPECT(begin == end || rows > 0, "ids: expected none for tables without rows, got " + shape_of(t));
    if (!t.is_cpu()) return begin;
    const bool valid = std::all_of(
        begin, end, [&](int64_t id) { return static_cast<uint64_t>(id) < static_cast<uint64_t>(rows); });
    if (!valid) throw std::runtime_error(cpu::out_of_range(begin, t.sizes()[0], rows));
    return begin;
  }

  // The backward only reads it.
  int32_t* degree(const Tensor& t) {
    expect_type(t, "degree", ScalarType::Int);
    return static_cast<int32_t*>(const_cast<void*>(keep(t)));
  }

  Graphs graphs(int64_t num_nodes, const OptionalTensor& offsets, int64_t graph_size) {
    Graphs graphs = {nullptr, graph_size, 0, num_nodes};
    if (offsets) {
      L0SIGN_EXPECT(offsets->dim() == 1 && offsets->sizes()[0] >= 1,
                    "offsets: expected shape [B + 1], got " + shape_of(*offsets));
      graphs.offsets = index(*offsets, "offsets");
      graphs.count = offsets->sizes()[0] - 1;
      bool valid = graphs.count > 0 || graphs.num_nodes == 0;
      if (offsets->is_cpu()) {  // nobody waits for a GPU: kernels stay in bounds by themselves
        valid = valid && graphs.offsets[0] == 0 && graphs.offsets[graphs.count] == graphs.num_nodes;
        for (int64_t g = 0; g < graphs.count; ++g)
          valid = valid && graphs.offsets[g] <= graphs.offsets[g + 1];
      }
      L0SIGN_EXPECT(valid, "offsets: expected non-decreasing values from 0 to the number of rows, " +
                               std::to_string(graphs.num_nodes));
    } else {
      L0SIGN_EXPECT(graph_size >= 1 && graphs.num_nodes % graph_size == 0,
                    "graph_size: expected a divisor of the number of rows, " +
                        std::to_string(graphs.num_nodes) + ", got " + std::to_string(graph_size));
      graphs.count = graphs.num_nodes / graph_size;
    }
    return graphs;
  }

  // Index of the first pair of each graph; `pairs` receives the number of all pairs. On CUDA kernels find the
  // indices, and a number that depends on the offsets stays as it is given.
  const int64_t* first_pairs(const Graphs& graphs, bool on_cpu, int64_t& pairs) {
    if (!on_cpu) {
      if (!graphs.offsets) pairs = graphs.count * pair_count(graphs.graph_size);
      return nullptr;
    }
    first_pairs_.resize(graphs.count);
    pairs = 0;
    for (int64_t g = 0; g < graphs.count; ++g) {
      const int64_t n = graphs.offsets ? graphs.offsets[g + 1] - graphs.offsets[g] : graphs.graph_size;
      first_pairs_[g] = pairs;
      L0SIGN_EXPECT(n >= 0 && n < (int64_t{1} << 31) && !__builtin_add_overflow(pairs, pair_count(n), &pairs),
                    "offsets: expected graphs whose pairs can be counted in 64 bits");
    }
    return first_pairs_.data();
  }

  // Of the type and on the device of the rows.
  Perceptron<A> perceptron(const char* name, const Tensor& hidden_weight, const Tensor& hidden_bias,
                           const Tensor& out_weight, const Tensor& out_bias, const Tensor& rows, int64_t in,
                           int64_t out) {
    const auto expect_part = [&](const Tensor& t, const char* part, std::initializer_list<int64_t> shape) {
      L0SIGN_EXPECT(t.scalar_type() == rows.scalar_type(),
                    std::string(name) + part + ": expected the dtype of the rows");
      if (!same_device(t, rows)) expect_device(t, (std::string(name) + part).c_str(), rows, "the rows");
      if (!has_shape(t, shape)) expect_shape(t, (std::string(name) + part).c_str(), shape);
    };
    L0SIGN_EXPECT(
        hidden_weight.dim() == 2 && hidden_weight.sizes()[0] >= 1,
        std::string(name) + " hidden weight: expected [H, in] with H >= 1, got " + shape_of(hidden_weight));
    const int64_t hidden = hidden_weight.sizes()[0];
    expect_part(hidden_weight, " hidden weight", {hidden, in});
    expect_part(hidden_bias, " hidden bias", {hidden});
    expect_part(out_weight, " out weight", {out, hidden});
    expect_part(out_bias, " out bias", {out});
    return {(*this)(hidden_weight),
            (*this)(hidden_bias),
            (*this)(out_weight),
            (*this)(out_bias),
            in,
            hidden,
            out};
  }

  HardConcrete gate(const OptionalTensor& seed, double temperature, double gamma, double zeta) {
    L0SIGN_EXPECT(!seed || seed->numel() == 1, "seed: expected one element");
    return {temperature, gamma, zeta, seed ? index(*seed, "seed") : nullptr};
  }

 private:
  const void* keep(const Tensor& t) {
    // torch's contiguous goes through its dispatcher, which takes longer than a small kernel.
    tensors_.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    const void* const data = tensors_.back().const_data_ptr();
    return data ? data : this;  // without elements it is there all the same: problem.h tells what null means
  }

  std::vector<Tensor> tensors_;
  std::vector<int64_t> first_pairs_;
};

template <class A>
struct PerceptronGradTensors {
  Tensor hidden_weight, hidden_bias, out_weight, out_bias;
  explicit PerceptronGradTensors(const Tensor& like, const Perceptron<A>& m)
      : hidden_weight(empty<A>(like, {m.hidden, m.in})),
        hidden_bias(empty<A>(like, {m.hidden})),
        out_weight(empty<A>(like, {m.out, m.hidden})),
        out_bias(empty<A>(like, {m.out})) {}
  PerceptronGrad<A> pointers() const {
    return {data<A>(hidden_weight), data<A>(hidden_bias), data<A>(out_weight), data<A>(out_bias)};
  }
};

HalfType half_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::BFloat16 ? HalfType::bfloat16
         : t.scalar_type() == ScalarType::Half   ? HalfType::float16
                                                 : HalfType::none;
}

// What the forward keeps goes to a room, and the backward finds it there; 0: there is none.
template <class A>
void set_room(CompleteGraph<A>& p, int64_t room) {
  if (room == 0) return;
  p.kept = cpu::Room::memory(room);
  p.kept_bytes = cpu::Room::kBytes;
}

// Runs a problem where its tensors are.
template <class Problem>
void forward(const Problem& problem, const Tensor& like) {
#ifdef L0SIGN_HAVE_CUDA
  if (like.is_cuda()) return cuda::forward(problem, like);
#endif
  L0SIGN_EXPECT(like.is_cpu(), "expected tensors on the CPU or a CUDA device");
  cpu::forward(problem);
}

template <class Problem>
void backward(const Problem& problem, const Tensor& like) {
#ifdef L0SIGN_HAVE_CUDA
  if (like.is_cuda()) return cuda::backward(problem, like);
#endif
  L0SIGN_EXPECT(like.is_cpu(), "expected tensors on the CPU or a CUDA device");
  cpu::backward(problem);
}

template <class A>
void risk(const CompleteGraph<A>& problem, const Risk<A>& head, const Tensor& like) {
#ifdef L0SIGN_HAVE_CUDA
  if (like.is_cuda()) return cuda::risk(problem, head, like);
#endif
  L0SIGN_EXPECT(like.is_cpu(), "expected tensors on the CPU or a CUDA device");
  cpu::risk(problem, head);
}

// ---- Results and gradients of the operators on all pairs ----

using Results2 = std::tuple<Tensor, Tensor>;
using Results5 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Results6 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Results11 =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Results10 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The shape of as many rows as a problem has nodes: of a bag [N, width], else like those that came in.
template <class A>
std::vector<int64_t> rows_shape(const CompleteGraph<A>& p, const Tensor& like, int64_t width) {
  if (p.pools) return {p.graphs.num_nodes, width};
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end());
  shape.back() = width;
  return shape;
}

// Makes the results that all of them have: of the nodes [N, d] or pooled [G, d], and the L2 penalties.
template <class A>
Results2 out_and_l2(CompleteGraph<A>& p, const Tensor& like, bool l2) {
  const int64_t G = p.graphs.count, d = p.message.in;
  const Tensor out = empty<A>(like, p.pools ? std::vector<int64_t>{G, d} : rows_shape(p, like, d));
  const Tensor l2_sum = empty<A>(like, {l2 ? G : 0});
  (p.pools ? p.pooled : p.out) = data<A>(out);
  p.l2 = l2 ? data<A>(l2_sum) : nullptr;
  return {out, l2_sum};
}

template <class A>
Results2 forward_ungated(CompleteGraph<A>& p, const Tensor& like, bool l2) {
  const auto [out, l2_sum] = out_and_l2(p, like, l2);
  forward(p, like);
  return {as(out, like), l2_sum};
}

// What gates tell of the graphs [G], and, where it is needed, of the nodes [N].
struct GateResults {
  Tensor l0, num_edges, degree;
};

template <class A>
GateResults gate_results(CompleteGraph<A>& p, const Tensor& like) {
  const int64_t G = p.graphs.count, N = p.graphs.num_nodes;
  const bool keeps_degree = p.aggregation == Aggregation::neighbor_mean;
  const GateResults results = {empty<A>(like, {G}), empty_of(like, {G}, ScalarType::Long),
                               empty_of(like, {keeps_degree ? N : 0}, ScalarType::Int)};
  p.l0 = data<A>(results.l0);
  p.num_edges = data<int64_t>(results.num_edges);
  p.degree = keeps_degree ? data<int32_t>(results.degree) : nullptr;
  return results;
}

template <class A>
Results5 forward_gated(CompleteGraph<A>& p, const Tensor& like, bool l2) {
  const auto [out, l2_sum] = out_and_l2(p, like, l2);
  const auto [l0, num_edges, degree] = gate_results(p, like);
  forward(p, like);
  return {as(out, like), l0, l2_sum, num_edges, degree};
}

// The gradients of a network: of its weights, and of the rows whose products go in.
template <class A>
struct NetworkGradients {
  Tensor nodes;
  PerceptronGradTensors<A> weights;
  NetworkGradients(const CompleteGraph<A>& p, const Tensor& like, const Perceptron<A>& m)
      : nodes(empty<A>(like, rows_shape(p, like, m.in))), weights(like, m) {}
};

template <class A>
NetworkGradients<A> message_gradients(CompleteGraph<A>& p, const Tensor& like) {
  const NetworkGradients<A> gradients(p, like, p.message);
  p.grad_nodes = data<A>(gradients.nodes);
  p.grad_message = gradients.weights.pointers();
  return gradients;
}

template <class A>
NetworkGradients<A> edge_gradients(CompleteGraph<A>& p, const Tensor& like) {
  const NetworkGradients<A> gradients(p, like, p.edge);
  p.grad_edge_nodes = data<A>(gradients.nodes);
  p.grad_edge = gradients.weights.pointers();
  return gradients;
}

// The same for the gradients that come in.
template <class A>
NetworkGradients<A> message_gradients(Inputs<A>& in, CompleteGraph<A>& p, const Tensor& like,
                                      const OptionalTensor& grad_out, const OptionalTensor& grad_l2) {
  const int64_t G = p.graphs.count;
  if (grad_out && p.pools) expect_shape(*grad_out, "grad_pooled", {G, p.message.in});
  if (grad_out && !p.pools) expect_same_shape(*grad_out, "grad_out", like);
  if (grad_l2) expect_shape(*grad_l2, "grad_l2", {G});
  (p.pools ? p.grad_pooled : p.grad_out) = in(grad_out);
  p.grad_l2 = in(grad_l2);
  NetworkGradients<A> gradients = message_gradients(p, like);
  // Then no message is computed.
  if (!grad_out && !grad_l2) torch::stable::zero_(gradients.nodes);
  return gradients;
}

template <class A>
NetworkGradients<A> edge_gradients(Inputs<A>& in, CompleteGraph<A>& p, const Tensor& like,
                                   const OptionalTensor& grad_l0, const Tensor& degree) {
  if (grad_l0) expect_shape(*grad_l0, "grad_l0", {p.graphs.count});
  p.grad_l0 = in(grad_l0);
  if (p.aggregation == Aggregation::neighbor_mean) {
    expect_shape(degree, "degree", {p.graphs.num_nodes});
    p.degree = in.degree(degree);
  }
  return edge_gradients(p, like);
}

// ---- l0_sign: all pairs, gated ----

template <class A>
CompleteGraph<A> gated_problem(Inputs<A>& in, const Tensor& nodes, const Tensor& edge_nodes,
                               const Tensor& mw1, const Tensor& mb1, const Tensor& mw2, const Tensor& mb2,
                               const Tensor& ew1, const Tensor& eb1, const Tensor& ew2, const Tensor& eb2,
                               const OptionalTensor& offsets, int64_t graph_size, const OptionalTensor& seed,
                               int64_t aggr, double temperature, double gamma, double zeta) {
  L0SIGN_EXPECT(are_rows(nodes) && nodes.dim() == edge_nodes.dim() &&
                    std::equal(nodes.sizes().begin(), nodes.sizes().end() - 1, edge_nodes.sizes().begin()),
                "nodes and edge_nodes: expected [N, d] and [N, b], or [B, n, d] and [B, n, b], got " +
                    shape_of(nodes) + " and " + shape_of(edge_nodes));
  L0SIGN_EXPECT(edge_nodes.scalar_type() == nodes.scalar_type(), "edge_nodes: expected the dtype of nodes");
  L0SIGN_EXPECT(width(edge_nodes) >= 1,
                "edge_nodes: expected [N, b] with b >= 1, got " + shape_of(edge_nodes));
  expect_device(edge_nodes, "edge_nodes", nodes, "nodes");
  CompleteGraph<A> p = {};
  p.graphs = in.graphs(num_rows(nodes), offsets, graph_size);
  p.aggregation = aggregation_of(aggr);
  p.gate = in.gate(seed, temperature, gamma, zeta);
  const int64_t d = width(nodes);
  p.message = in.perceptron("message", mw1, mb1, mw2, mb2, nodes, d, d);
  p.edge = in.perceptron("edge", ew1, eb1, ew2, eb2, nodes, width(edge_nodes), 1);
  p.nodes = in(nodes);
  p.edge_nodes = in(edge_nodes);
  p.half = half_type(nodes);
  return p;
}

Results5 l0_sign(const Tensor& nodes, const Tensor& edge_nodes, const Tensor& mw1, const Tensor& mb1,
                 const Tensor& mw2, const Tensor& mb2, const Tensor& ew1, const Tensor& eb1,
                 const Tensor& ew2, const Tensor& eb2, const OptionalTensor& offsets, int64_t graph_size,
                 const OptionalTensor& seed, int64_t aggr, double temperature, double gamma, double zeta,
                 bool l2, int64_t room) {
  return by_type(nodes, [&](auto type) -> Results5 {
    using A = decltype(type);
    Inputs<A> in;
    CompleteGraph<A> p = gated_problem(in, nodes, edge_nodes, mw1, mb1, mw2, mb2, ew1, eb1, ew2, eb2, offsets,
                                       graph_size, seed, aggr, temperature, gamma, zeta);
    set_room(p, room);
    return forward_gated(p, nodes, l2);
  });
}

Results10 l0_sign_backward(const OptionalTensor& grad_out, const OptionalTensor& grad_l0,
                           const OptionalTensor& grad_l2, const Tensor& nodes, const Tensor& edge_nodes,
                           const Tensor& mw1, const Tensor& mb1, const Tensor& mw2, const Tensor& mb2,
                           const Tensor& ew1, const Tensor& eb1, const Tensor& ew2, const Tensor& eb2,
                           const OptionalTensor& offsets, int64_t graph_size, const OptionalTensor& seed,
                           int64_t aggr, double temperature, double gamma, double zeta, const Tensor& degree,
                           int64_t room) {
  return by_type(nodes, [&](auto type) -> Results10 {
    using A = decltype(type);
    Inputs<A> in;
    CompleteGraph<A> p = gated_problem(in, nodes, edge_nodes, mw1, mb1, mw2, mb2, ew1, eb1, ew2, eb2, offsets,
                                       graph_size, seed, aggr, temperature, gamma, zeta);
    set_room(p, room);
    const auto [grad_nodes, message] = message_gradients(in, p, nodes, grad_out, grad_l2);
    const auto [grad_edge_nodes, edge] = edge_gradients(in, p, nodes, grad_l0, degree);
    backward(p, nodes);
    return {as(grad_nodes, nodes),          as(grad_edge_nodes, nodes),    as(message.hidden_weight, nodes),
            as(message.hidden_bias, nodes), as(message.out_weight, nodes), as(message.out_bias, nodes),
            as(edge.hidden_weight, nodes),  as(edge.hidden_bias, nodes),   as(edge.out_weight, nodes),
            as(edge.out_bias, nodes)};
  });
}

// ---- l0_sign_bag: rows of tables in, one sum a graph out ----

template <class A>
void look_up(Inputs<A>& in, CompleteGraph<A>& p, const Tensor& ids, const OptionalTensor& values,
             const Tensor& node_table) {
  L0SIGN_EXPECT(node_table.dim() == 2 && node_table.sizes()[1] >= 1,
                "node_table: expected [J, d], got " + shape_of(node_table));
  expect_type(node_table, "node_table", kType<A>);  // another type would be a copy of the table
  p.nodes = in(node_table);
  p.pools = true;
  p.num_rows = node_table.sizes()[0];
  p.ids = in.ids(ids, p.num_rows);
  if (values) expect_shape(*values, "values", {ids.sizes()[0]});
  p.values = in(values);
}

template <class A>
CompleteGraph<A> gated_bag_problem(Inputs<A>& in, const Tensor& ids, const OptionalTensor& values,
                                   const Tensor& node_table, const Tensor& edge_table, const Tensor& mw1,
                                   const Tensor& mb1, const Tensor& mw2, const Tensor& mb2, const Tensor& ew1,
                                   const Tensor& eb1, const Tensor& ew2, const Tensor& eb2,
                                   const OptionalTensor& offsets, int64_t graph_size,
                                   const OptionalTensor& seed, int64_t aggr, double temperature, double gamma,
                                   double zeta) {
  CompleteGraph<A> p = {};
  look_up(in, p, ids, values, node_table);
  L0SIGN_EXPECT(
      edge_table.dim() == 2 && edge_table.sizes()[0] == node_table.sizes()[0] && edge_table.sizes()[1] >= 1,
      "edge_table: expected [J, b] with the rows of node_table, got " + shape_of(edge_table));
  expect_type(edge_table, "edge_table", kType<A>);
  p.graphs = in.graphs(ids.sizes()[0], offsets, graph_size);
  p.aggregation = aggregation_of(aggr);
  p.gate = in.gate(seed, temperature, gamma, zeta);
  const int64_t d = node_table.sizes()[1];
  p.message = in.perceptron("message", mw1, mb1, mw2, mb2, node_table, d, d);
  p.edge = in.perceptron("edge", ew1, eb1, ew2, eb2, node_table, edge_table.sizes()[1], 1);
  p.edge_nodes = in(edge_table);
  return p;
}

Results5 l0_sign_bag(const Tensor& ids, const OptionalTensor& values, const Tensor& node_table,
                     const Tensor& edge_table, const Tensor& mw1, const Tensor& mb1, const Tensor& mw2,
                     const Tensor& mb2, const Tensor& ew1, const Tensor& eb1, const Tensor& ew2,
                     const Tensor& eb2, const OptionalTensor& offsets, int64_t graph_size,
                     const OptionalTensor& seed, int64_t aggr, double temperature, double gamma, double zeta,
                     bool, bool l2, int64_t room) {
  return by_type(node_table, [&](auto type) -> Results5 {
    using A = decltype(type);
    Inputs<A> in;
    CompleteGraph<A> p =
        gated_bag_problem(in, ids, values, node_table, edge_table, mw1, mb1, mw2, mb2, ew1, eb1, ew2, eb2,
                          offsets, graph_size, seed, aggr, temperature, gamma, zeta);
    set_room(p, room);
    return forward_gated(p, node_table, l2);
  });
}

Results11 l0_sign_bag_backward(const OptionalTensor& grad_pooled, const OptionalTensor& grad_l0,
                               const OptionalTensor& grad_l2, const Tensor& ids, const OptionalTensor& values,
                               const Tensor& node_table, const Tensor& edge_table, const Tensor& mw1,
                               const Tensor& mb1, const Tensor& mw2, const Tensor& mb2, const Tensor& ew1,
                               const Tensor& eb1, const Tensor& ew2, const Tensor& eb2,
                               const OptionalTensor& offsets, int64_t graph_size, const OptionalTensor& seed,
                               int64_t aggr, double temperature, double gamma, double zeta, bool sparse,
                               const Tensor& degree, int64_t room) {
  return by_type(node_table, [&](auto type) -> Results11 {
    using A = decltype(type);
    Inputs<A> in;
    CompleteGraph<A> p =
        gated_bag_problem(in, ids, values, node_table, edge_table, mw1, mb1, mw2, mb2, ew1, eb1, ew2, eb2,
                          offsets, graph_size, seed, aggr, temperature, gamma, zeta);
    set_room(p, room);
    const auto [grad_nodes, message] = message_gradients(in, p, node_table, grad_pooled, grad_l2);
    const auto [grad_edge_nodes, edge] = edge_gradients(in, p, node_table, grad_l0, degree);
    backward(p, node_table);
    const RowSums tables(torch::stable::contiguous(ids), p.num_rows, sparse);
    return {tables.rows,
            tables.of<A>(grad_nodes),
            tables.of<A>(grad_edge_nodes),
            message.hidden_weight,
            message.hidden_bias,
            message.out_weight,
            message.out_bias,
            edge.hidden_weight,
            edge.hidden_bias,
            edge.out_weight,
            edge.out_bias};
  });
}

// ---- l0_sign_risk: the empirical risk of a head on such a bag, with its gradients ----

using Results17 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                             Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Results17 l0_sign_risk(const Tensor& ids, const OptionalTensor& values, const Tensor& node_table,
                       const Tensor& edge_table, const Tensor& mw1, const Tensor& mb1, const Tensor& mw2,
                       const Tensor& mb2, const Tensor& ew1, const Tensor& eb1, const Tensor& ew2,
                       const Tensor& eb2, const Tensor& head_weight, const OptionalTensor& head_bias,
                       const Tensor& target, const Tensor& l0_weight, const OptionalTensor& offsets,
                       int64_t graph_size, const OptionalTensor& seed, int64_t aggr, double temperature,
                       double gamma, double zeta, bool sparse, int64_t loss) {
  return by_type(node_table, [&](auto type) -> Results17 {
    using A = decltype(type);
    Inputs<A> in;
    CompleteGraph<A> p =
        gated_bag_problem(in, ids, values, node_table, edge_table, mw1, mb1, mw2, mb2, ew1, eb1, ew2, eb2,
                          offsets, graph_size, seed, aggr, temperature, gamma, zeta);
    const int64_t G = p.graphs.count, d = p.message.in;
    expect_device(head_weight, "head_weight", node_table, "node_table");
    if (head_bias) expect_device(*head_bias, "head_bias", node_table, "node_table");
    expect_device(target, "target", node_table, "node_table");
    expect_device(l0_weight, "l0_weight", node_table, "node_table");
    expect_shape(head_weight, "head_weight", {1, d});
    if (head_bias) expect_shape(*head_bias, "head_bias", {1});
    expect_shape(target, "target", {G});
    expect_shape(l0_weight, "l0_weight", {G});
    L0SIGN_EXPECT(loss == 0 || loss == 1, "loss: expected 0 or 1, got " + std::to_string(loss));
    if (target.is_cpu() && loss == static_cast<int64_t>(Loss::bce)) {
      const A *begin = in(target), *end = begin + G;
      L0SIGN_EXPECT(std::all_of(begin, end, [](A y) { return y >= 0 && y <= 1; }),
                    "target: expected values in 0..1 for binary cross-entropy");
    }
    const Tensor mean_risk = empty<A>(node_table, {}), logits = empty<A>(node_table, {G}),
                 grad_logits = empty<A>(node_table, {G}), grad_head_weight = empty<A>(node_table, {1, d}),
                 grad_head_bias = empty<A>(node_table, {head_bias ? 1 : 0});
    const auto [l0, num_edges, degree] = gate_results(p, node_table);
    const NetworkGradients<A> message = message_gradients(p, node_table),
                              edge = edge_gradients(p, node_table);
    const Risk<A> head = {static_cast<Loss>(loss),
                          in(head_weight),
                          in(head_bias),
                          in(target),
                          in(l0_weight),
                          data<A>(mean_risk),
                          data<A>(logits),
                          data<A>(grad_logits),
                          data<A>(grad_head_weight),
                          head_bias ? data<A>(grad_head_bias) : nullptr};
    risk(p, head, node_table);
    const RowSums tables(torch::stable::contiguous(ids), p.num_rows, sparse);
    return {mean_risk,
            logits,
            l0,
            num_edges,
            tables.rows,
            tables.of<A>(message.nodes),
            tables.of<A>(edge.nodes),
            message.weights.hidden_weight,
            message.weights.hidden_bias,
            message.weights.out_weight,
            message.weights.out_bias,
            edge.weights.hidden_weight,
            edge.weights.hidden_bias,
            edge.weights.out_weight,
            edge.weights.out_bias,
            grad_head_weight,
            grad_head_bias};
  });
}

// ---- sign_bag: the same without gates ----

template <class A>
CompleteGraph<A> ungated_bag_problem(Inputs<A>& in, const Tensor& ids, const OptionalTensor& values,
                                     const Tensor& node_table, const Tensor& w1, const Tensor& b1,
                                     const Tensor& w2, const Tensor& b2, const OptionalTensor& offsets,
                                     int64_t graph_size, int64_t aggr) {
  CompleteGraph<A> p = {};
  look_up(in, p, ids, values, node_table);
  p.graphs = in.graphs(ids.sizes()[0], offsets, graph_size);
  p.aggregation = ungated_aggregation(aggr);
  const int64_t d = node_table.sizes()[1];
  p.message = in.perceptron("message", w1, b1, w2, b2, node_table, d, d);
  return p;
}

Results2 sign_bag(const Tensor& ids, const OptionalTensor& values, const Tensor& node_table, const Tensor& w1,
                  const Tensor& b1, const Tensor& w2, const Tensor& b2, const OptionalTensor& offsets,
                  int64_t graph_size, int64_t aggr, bool, bool l2, int64_t room) {
  return by_type(node_table, [&](auto type) -> Results2 {
    using A = decltype(type);
    Inputs<A> in;
    CompleteGraph<A> p =
        ungated_bag_problem(in, ids, values, node_table, w1, b1, w2, b2, offsets, graph_size, aggr);
    set_room(p, room);
    return forward_ungated(p, node_table, l2);
  });
}

Results6 sign_bag_backward(const OptionalTensor& grad_pooled, const OptionalTensor& grad_l2,
                           const Tensor& ids, const OptionalTensor& values, const Tensor& node_table,
                           const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                           const OptionalTensor& offsets, int64_t graph_size, int64_t aggr, bool sparse,
                           int64_t room) {
  return by_type(node_table, [&](auto type) -> Results6 {
    using A = decltype(type);
    Inputs<A> in;
    CompleteGraph<A> p =
        ungated_bag_problem(in, ids, values, node_table, w1, b1, w2, b2, offsets, graph_size, aggr);
    set_room(p, room);
    const auto [grad_nodes, message] = message_gradients(in, p, node_table, grad_pooled, grad_l2);
    backward(p, node_table);
    const RowSums tables(torch::stable::contiguous(ids), p.num_rows, sparse);
    return {tables.rows,         tables.of<A>(grad_nodes), message.hidden_weight,
            message.hidden_bias, message.out_weight,       message.out_bias};
  });
}

// ---- sign: all pairs, ungated ----

template <class A>
CompleteGraph<A> ungated_problem(Inputs<A>& in, const Tensor& nodes, const Tensor& w1, const Tensor& b1,
                                 const Tensor& w2, const Tensor& b2, const OptionalTensor& offsets,
                                 int64_t graph_size, int64_t aggr) {
  L0SIGN_EXPECT(are_rows(nodes), "nodes: expected [N, d] or [B, n, d], got " + shape_of(nodes));
  CompleteGraph<A> p = {};
  p.graphs = in.graphs(num_rows(nodes), offsets, graph_size);
  p.aggregation = ungated_aggregation(aggr);
  const int64_t d = width(nodes);
  p.message = in.perceptron("message", w1, b1, w2, b2, nodes, d, d);
  p.nodes = in(nodes);
  p.half = half_type(nodes);
  return p;
}

Results2 sign(const Tensor& nodes, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
              const OptionalTensor& offsets, int64_t graph_size, int64_t aggr, bool l2, int64_t room) {
  return by_type(nodes, [&](auto type) -> Results2 {
    using A = decltype(type);
    Inputs<A> in;
    CompleteGraph<A> p = ungated_problem(in, nodes, w1, b1, w2, b2, offsets, graph_size, aggr);
    set_room(p, room);
    return forward_ungated(p, nodes, l2);
  });
}

Results5 sign_backward(const OptionalTensor& grad_out, const OptionalTensor& grad_l2, const Tensor& nodes,
                       const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                       const OptionalTensor& offsets, int64_t graph_size, int64_t aggr, int64_t room) {
  return by_type(nodes, [&](auto type) -> Results5 {
    using A = decltype(type);
    Inputs<A> in;
    CompleteGraph<A> p = ungated_problem(in, nodes, w1, b1, w2, b2, offsets, graph_size, aggr);
    set_room(p, room);
    const auto [grad_nodes, message] = message_gradients(in, p, nodes, grad_out, grad_l2);
    backward(p, nodes);
    return {as(grad_nodes, nodes), as(message.hidden_weight, nodes), as(message.hidden_bias, nodes),
            as(message.out_weight, nodes), as(message.out_bias, nodes)};
  });
}

// ---- sign_edges: the pairs of a given list ----

template <class A>
EdgeList<A> edges_problem(Inputs<A>& in, const Tensor& nodes, const Tensor& w1, const Tensor& b1,
                          const Tensor& w2, const Tensor& b2, const OptionalTensor& offsets,
                          int64_t graph_size, const Tensor& edge_index, const OptionalTensor& edge_weight,
                          int64_t aggr) {
  L0SIGN_EXPECT(nodes.dim() == 2, "nodes: expected [N, d], got " + shape_of(nodes));
  L0SIGN_EXPECT(edge_index.dim() == 2 && edge_index.sizes()[0] == 2,
                "edge_index: expected [2, E], got " + shape_of(edge_index));
  EdgeList<A> p = {};
  p.graphs = in.graphs(num_rows(nodes), offsets, graph_size);
  p.aggregation = aggregation_of(aggr);
  const int64_t d = nodes.sizes()[1];
  p.message = in.perceptron("message", w1, b1, w2, b2, nodes, d, d);
  p.nodes = in(nodes);
  p.num_edges = edge_index.sizes()[1];
  p.source = in.index(edge_index, "edge_index");
  p.target = p.source + p.num_edges;
  if (edge_weight) expect_shape(*edge_weight, "edge_weight", {p.num_edges});
  p.weight = in(edge_weight);
  p.half = half_type(nodes);
  return p;
}

Tensor sign_edges(const Tensor& nodes, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                  const OptionalTensor& offsets, int64_t graph_size, const Tensor& edge_index,
                  const OptionalTensor& edge_weight, int64_t aggr) {
  return by_type(nodes, [&](auto type) -> Tensor {
    using A = decltype(type);
    Inputs<A> in;
    EdgeList<A> p =
        edges_problem(in, nodes, w1, b1, w2, b2, offsets, graph_size, edge_index, edge_weight, aggr);
    const Tensor out = empty<A>(nodes, {p.graphs.num_nodes, p.message.in});
    p.out = data<A>(out);
    forward(p, edge_index);
    return as(out, nodes);
  });
}

Results6 sign_edges_backward(const Tensor& grad_out, const Tensor& nodes, const Tensor& w1, const Tensor& b1,
                             const Tensor& w2, const Tensor& b2, const OptionalTensor& offsets,
                             int64_t graph_size, const Tensor& edge_index, const OptionalTensor& edge_weight,
                             int64_t aggr) {
  return by_type(nodes, [&](auto type) -> Results6 {
    using A = decltype(type);
    Inputs<A> in;
    EdgeList<A> p =
        edges_problem(in, nodes, w1, b1, w2, b2, offsets, graph_size, edge_index, edge_weight, aggr);
    expect_shape(grad_out, "grad_out", {p.graphs.num_nodes, p.message.in});
    p.grad_out = in(grad_out);
    const Tensor grad_nodes = empty<A>(nodes, {p.graphs.num_nodes, p.message.in});
    const Tensor grad_weight = empty<A>(nodes, {edge_weight ? p.num_edges : 0});
    const PerceptronGradTensors<A> message(nodes, p.message);
    p.grad_nodes = data<A>(grad_nodes);
    p.grad_weight = edge_weight ? data<A>(grad_weight) : nullptr;
    p.grad_message = message.pointers();
    backward(p, edge_index);
    return {as(grad_nodes, nodes),         as(message.hidden_weight, nodes), as(message.hidden_bias, nodes),
            as(message.out_weight, nodes), as(message.out_bias, nodes),      as(grad_weight, nodes)};
  });
}

// ---- edge_gates: the gates themselves ----

template <class A>
CompleteGraph<A> gates_problem(Inputs<A>& in, const Tensor& edge_nodes, const Tensor& w1, const Tensor& b1,
                               const Tensor& w2, const Tensor& b2, const OptionalTensor& offsets,
                               int64_t graph_size, const OptionalTensor& seed, double temperature,
                               double gamma, double zeta, int64_t& pairs) {
  L0SIGN_EXPECT(edge_nodes.dim() == 2, "edge_nodes: expected [N, b], got " + shape_of(edge_nodes));
  CompleteGraph<A> p = {};
  p.graphs = in.graphs(num_rows(edge_nodes), offsets, graph_size);
  p.gate = in.gate(seed, temperature, gamma, zeta);
  p.edge = in.perceptron("edge", w1, b1, w2, b2, edge_nodes, edge_nodes.sizes()[1], 1);
  p.edge_nodes = in(edge_nodes);
  p.pair_offsets = in.first_pairs(p.graphs, edge_nodes.is_cpu(), pairs);
  p.num_pairs = pairs;
  p.half = half_type(edge_nodes);
  return p;
}

void expect_pairs(int64_t given, int64_t pairs) {
  L0SIGN_EXPECT(given == pairs, "num_pairs: expected " + std::to_string(pairs) + " for these graphs, got " +
                                    std::to_string(given));
}

Results2 edge_gates(const Tensor& edge_nodes, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                    const Tensor& b2, const OptionalTensor& offsets, int64_t graph_size,
                    const OptionalTensor& seed, double temperature, double gamma, double zeta,
                    int64_t num_pairs) {
  return by_type(edge_nodes, [&](auto type) -> Results2 {
    using A = decltype(type);
    Inputs<A> in;
    int64_t pairs = num_pairs;
    CompleteGraph<A> p = gates_problem(in, edge_nodes, w1, b1, w2, b2, offsets, graph_size, seed, temperature,
                                       gamma, zeta, pairs);
    expect_pairs(num_pairs, pairs);
    const Tensor gates = empty<A>(edge_nodes, {pairs}), logits = empty<A>(edge_nodes, {pairs});
    p.gates = data<A>(gates);
    p.logits = data<A>(logits);
    forward(p, edge_nodes);
    return {as(gates, edge_nodes), as(logits, edge_nodes)};
  });
}

Results5 edge_gates_backward(const OptionalTensor& grad_gates, const OptionalTensor& grad_logits,
                             const Tensor& edge_nodes, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                             const Tensor& b2, const OptionalTensor& offsets, int64_t graph_size,
                             const OptionalTensor& seed, double temperature, double gamma, double zeta) {
  return by_type(edge_nodes, [&](auto type) -> Results5 {
    using A = decltype(type);
    Inputs<A> in;
    int64_t pairs = grad_gates ? grad_gates->numel() : grad_logits ? grad_logits->numel() : 0;
    CompleteGraph<A> p = gates_problem(in, edge_nodes, w1, b1, w2, b2, offsets, graph_size, seed, temperature,
                                       gamma, zeta, pairs);
    if (grad_gates) expect_shape(*grad_gates, "grad_gates", {pairs});
    if (grad_logits) expect_shape(*grad_logits, "grad_logits", {pairs});
    p.grad_gates = in(grad_gates);
    p.grad_logits = in(grad_logits);
    const Tensor grad_edge_nodes = empty<A>(edge_nodes, {p.graphs.num_nodes, p.edge.in});
    const PerceptronGradTensors<A> edge(edge_nodes, p.edge);
    p.grad_edge_nodes = data<A>(grad_edge_nodes);
    p.grad_edge = edge.pointers();
    backward(p, edge_nodes);
    return {as(grad_edge_nodes, edge_nodes), as(edge.hidden_weight, edge_nodes),
            as(edge.hidden_bias, edge_nodes), as(edge.out_weight, edge_nodes), as(edge.out_bias, edge_nodes)};
  });
}

Tensor gate_noise(const Tensor& seed, const OptionalTensor& offsets, int64_t graph_size, int64_t num_graphs,
                  int64_t num_pairs) {
  Inputs<float> in;
  L0SIGN_EXPECT(seed.numel() == 1, "seed: expected one element");
  const int64_t* key = in.index(seed, "seed");
  L0SIGN_EXPECT(num_graphs >= 0, "num_graphs: expected at least 0, got " + std::to_string(num_graphs));
  Graphs graphs = {nullptr, graph_size, num_graphs, 0};
  if (offsets) {
    L0SIGN_EXPECT(
        offsets->dim() == 1 && offsets->sizes()[0] == num_graphs + 1,
        "offsets: expected shape [" + std::to_string(num_graphs + 1) + "], got " + shape_of(*offsets));
    graphs.offsets = in.index(*offsets, "offsets");
    for (int64_t g = 0; g < num_graphs && seed.is_cpu(); ++g)
      L0SIGN_EXPECT(graphs.offsets[g] <= graphs.offsets[g + 1], "offsets: expected non-decreasing values");
  }
  int64_t pairs = num_pairs;
  const int64_t* first_pair = in.first_pairs(graphs, seed.is_cpu(), pairs);
  expect_pairs(num_pairs, pairs);
  const Tensor noise = empty<float>(seed, {pairs});
#ifdef L0SIGN_HAVE_CUDA
  if (seed.is_cuda()) {
    cuda::gate_noise(graphs, key, pairs, data<float>(noise), seed);
    return noise;
  }
#endif
  cpu::gate_noise(graphs, *key, first_pair, data<float>(noise));
  return noise;
}

}  // namespace
}  // namespace l0sign

#define MESSAGE                                                                                  \
  "Tensor message_hidden_weight, Tensor message_hidden_bias, Tensor message_out_weight, Tensor " \
  "message_out_bias"
#define EDGE \
  "Tensor edge_hidden_weight, Tensor edge_hidden_bias, Tensor edge_out_weight, Tensor edge_out_bias"
#define GRAPHS "Tensor? offsets, SymInt graph_size"
#define GATE "float temperature, float gamma, float zeta"

STABLE_TORCH_LIBRARY(l0sign_cuda, m) {
  m.def("l0_sign(Tensor nodes, Tensor edge_nodes, " MESSAGE ", " EDGE ", " GRAPHS
        ", Tensor? seed, int aggr, " GATE
        ", bool l2, int room=0) -> (Tensor out, Tensor l0, Tensor l2, Tensor num_edges, Tensor degree)");
  m.def(
      "l0_sign_backward(Tensor? grad_out, Tensor? grad_l0, Tensor? grad_l2, Tensor nodes, Tensor "
      "edge_nodes, " MESSAGE ", " EDGE ", " GRAPHS ", Tensor? seed, int aggr, " GATE
      ", Tensor degree, int room=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor)");
  m.def("l0_sign_bag(Tensor ids, Tensor? values, Tensor node_table, Tensor edge_table, " MESSAGE ", " EDGE
        ", " GRAPHS ", Tensor? seed, int aggr, " GATE
        ", bool sparse, bool l2, int room=0) -> (Tensor pooled, Tensor l0, Tensor l2, Tensor num_edges, "
        "Tensor degree)");
  m.def(
      "l0_sign_bag_backward(Tensor? grad_pooled, Tensor? grad_l0, Tensor? grad_l2, Tensor ids, Tensor? "
      "values, Tensor node_table, Tensor edge_table, " MESSAGE ", " EDGE ", " GRAPHS
      ", Tensor? seed, int aggr, " GATE
      ", bool sparse, Tensor degree, int room=0) -> (Tensor rows, Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("l0_sign_risk(Tensor ids, Tensor? values, Tensor node_table, Tensor edge_table, " MESSAGE ", " EDGE
        ", Tensor head_weight, Tensor? head_bias, Tensor target, Tensor l0_weight, " GRAPHS
        ", Tensor? seed, int aggr, " GATE
        ", bool sparse, int loss) -> (Tensor risk, Tensor logits, Tensor l0, Tensor num_edges, Tensor rows, "
        "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("sign_bag(Tensor ids, Tensor? values, Tensor node_table, " MESSAGE ", " GRAPHS
        ", int aggr, bool sparse, bool l2, int room=0) -> (Tensor pooled, Tensor l2)");
  m.def(
      "sign_bag_backward(Tensor? grad_pooled, Tensor? grad_l2, Tensor ids, Tensor? values, Tensor "
      "node_table, " MESSAGE ", " GRAPHS
      ", int aggr, bool sparse, int room=0) -> (Tensor rows, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("sign(Tensor nodes, " MESSAGE ", " GRAPHS
        ", int aggr, bool l2, int room=0) -> (Tensor out, Tensor l2)");
  m.def("sign_backward(Tensor? grad_out, Tensor? grad_l2, Tensor nodes, " MESSAGE ", " GRAPHS
        ", int aggr, int room=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("sign_edges(Tensor nodes, " MESSAGE ", " GRAPHS
        ", Tensor edge_index, Tensor? edge_weight, int aggr) -> Tensor");
  m.def("sign_edges_backward(Tensor grad_out, Tensor nodes, " MESSAGE ", " GRAPHS
        ", Tensor edge_index, Tensor? edge_weight, int aggr) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
        "Tensor)");
  m.def("edge_gates(Tensor edge_nodes, " EDGE ", " GRAPHS ", Tensor? seed, " GATE
        ", SymInt num_pairs) -> (Tensor gates, Tensor logits)");
  m.def("edge_gates_backward(Tensor? grad_gates, Tensor? grad_logits, Tensor edge_nodes, " EDGE ", " GRAPHS
        ", Tensor? seed, " GATE ") -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gate_noise(Tensor seed, " GRAPHS ", SymInt num_graphs, SymInt num_pairs) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(l0sign_cuda, CPU, m) {
  m.impl("l0_sign", TORCH_BOX(&l0sign::l0_sign));
  m.impl("l0_sign_backward", TORCH_BOX(&l0sign::l0_sign_backward));
  m.impl("l0_sign_bag", TORCH_BOX(&l0sign::l0_sign_bag));
  m.impl("l0_sign_bag_backward", TORCH_BOX(&l0sign::l0_sign_bag_backward));
  m.impl("l0_sign_risk", TORCH_BOX(&l0sign::l0_sign_risk));
  m.impl("sign_bag", TORCH_BOX(&l0sign::sign_bag));
  m.impl("sign_bag_backward", TORCH_BOX(&l0sign::sign_bag_backward));
  m.impl("sign", TORCH_BOX(&l0sign::sign));
  m.impl("sign_backward", TORCH_BOX(&l0sign::sign_backward));
  m.impl("sign_edges", TORCH_BOX(&l0sign::sign_edges));
  m.impl("sign_edges_backward", TORCH_BOX(&l0sign::sign_edges_backward));
  m.impl("edge_gates", TORCH_BOX(&l0sign::edge_gates));
  m.impl("edge_gates_backward", TORCH_BOX(&l0sign::edge_gates_backward));
  m.impl("gate_noise", TORCH_BOX(&l0sign::gate_noise));
}

#ifdef L0SIGN_HAVE_CUDA
namespace {

const l0sign::OperatorOnCuda kOnCuda[] = {
    {"l0_sign", TORCH_BOX(&l0sign::l0_sign)},
    {"l0_sign_backward", TORCH_BOX(&l0sign::l0_sign_backward)},
    {"l0_sign_bag", TORCH_BOX(&l0sign::l0_sign_bag)},
    {"l0_sign_bag_backward", TORCH_BOX(&l0sign::l0_sign_bag_backward)},
    {"l0_sign_risk", TORCH_BOX(&l0sign::l0_sign_risk)},
    {"sign_bag", TORCH_BOX(&l0sign::sign_bag)},
    {"sign_bag_backward", TORCH_BOX(&l0sign::sign_bag_backward)},
    {"sign", TORCH_BOX(&l0sign::sign)},
    {"sign_backward", TORCH_BOX(&l0sign::sign_backward)},
    {"sign_edges", TORCH_BOX(&l0sign::sign_edges)},
    {"sign_edges_backward", TORCH_BOX(&l0sign::sign_edges_backward)},
    {"edge_gates", TORCH_BOX(&l0sign::edge_gates)},
    {"edge_gates_backward", TORCH_BOX(&l0sign::edge_gates_backward)},
    {"gate_noise", TORCH_BOX(&l0sign::gate_noise)},
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(l0sign_cuda, CUDA, m) {
  for (const l0sign::OperatorOnCuda& op : kOnCuda) l0sign::register_on_cuda(m, op);
}
#endif
