// A warp takes a piece: kPieceRows rows of the pair matrix of one graph, of which it meets the pairs i <= j
// in canonical order, a lane a pair. Of a piece its sums are kept, and a warp a graph adds those up in order.
#include "cuda/pooled.h"

namespace l0sign::cuda {
namespace {

constexpr int kPieceRows = 16;

// Pairs that a warp takes through a network.
template <class A>
struct PairList {
  int64_t left[kWarp], right[kWarp];  // nodes
  A scale[kWarp];                     // x_i x_j
  A gate[kWarp];
  A factor[kWarp];    // w_ij, or what the logit receives
  A received[kWarp];  // what w_ij receives
};

template <class A>
struct Launch {
  CompleteGraph<A> problem;
  GateFunction<A> gate;
  Network<A> message, edge;
  // Of a piece: R and r, and what it adds to its graph's penalties and edges.
  A* sums;              // [slots, H + 1]
  A *l0, *l2;           // [slots]
  int64_t* edges;       // [slots]
  A *product, *hidden;  // of each warp: products [d, kChunk]; for l2 units [kChunk, H]
  int64_t slots, blocks, bytes;
};

__host__ __device__ inline int64_t piece_count(int64_t nodes) {
  return (nodes + kPieceRows - 1) / kPieceRows;
}

// How many slots there are for pieces. Ragged graphs are not known on the host: each has its first slot at
// graph + begin / kPieceRows, which leaves room for its pieces, and one slot for a graph without nodes.
int64_t slot_count(const Graphs& graphs) {
  if (!graphs.offsets) return graphs.count * piece_count(graphs.graph_size);
  return graphs.count + graphs.num_nodes / kPieceRows;
}

template <class A>
Launch<A> plan(const CompleteGraph<A>& p, void* memory) {
  Arena arena(memory);
  Launch<A> l = {};
  l.problem = p;
  l.gate = GateFunction<A>(p.gate);
  l.message = network(p.message, arena);
  if (p.edge_nodes) l.edge = network(p.edge, arena);
  l.slots = slot_count(p.graphs);
  l.sums = arena.take<A>(l.slots * (p.message.hidden + 1));
  l.l0 = p.l0 ? arena.take<A>(l.slots) : nullptr;
  l.l2 = p.l2 ? arena.take<A>(l.slots) : nullptr;
  l.edges = p.num_edges ? arena.take<int64_t>(l.slots) : nullptr;
  const int64_t hidden = p.l2 ? kChunk * p.message.hidden : 0, product = kChunk * p.message.in;
  l.blocks = blocks_for((l.slots + kRowWarps - 1) / kRowWarps, kRowWarps * (hidden + product) * sizeof(A));
  l.product = arena.take<A>(l.blocks * kRowWarps * product);
  l.hidden = arena.take<A>(l.blocks * kRowWarps * hidden);
  l.bytes = arena.used();
  return l;
}

// ---- Pieces ----

struct Piece {
  GraphOfRow graph;
  int64_t first, last;  // rows, local to the graph
};

__device__ __forceinline__ int64_t first_slot(const Graphs& graphs, int64_t graph) {
  if (!graphs.offsets) return graph * piece_count(graphs.graph_size);
  return graph + graph_at(graphs, graph).begin / kPieceRows;
}

// The piece of a slot; one without rows where there is none.
__device__ __forceinline__ Piece piece_of(const Graphs& graphs, int64_t slot) {
  int64_t graph = 0;
  if (!graphs.offsets) {
    graph = slot / piece_count(graphs.graph_size);
  } else {
    for (int64_t high = graphs.count; high - graph > 1;) {
      const int64_t middle = graph + (high - graph) / 2;
      if (first_slot(graphs, middle) <= slot) {
        graph = middle;
      } else {
        high = middle;
      }
    }
  }
  Piece piece = {graph_at(graphs, graph), (slot - first_slot(graphs, graph)) * kPieceRows, 0};
  const int64_t n = piece.graph.end - piece.graph.begin, last = piece.first + kPieceRows;
  piece.last = piece.first < 0 ? piece.first : last < n ? last : n;
  return piece;
}

// ---- Lists of pairs ----

// The pairs i <= j of a graph in canonical order from row `first` on, as one lane meets them.
struct LanePairs {
  int64_t nodes, row, next_row;  // the next row's first pair

  __device__ __forceinline__ LanePairs(int64_t n, int64_t first)
      : nodes(n), row(first), next_row(pair_row(first + 1, n)) {}
  // Moves on to a pair; returns its j, and i is `row`.
  __device__ __forceinline__ int64_t move_to(int64_t pair) {
    while (pair >= next_row) ++row, next_row += nodes - row;
    return nodes - (next_row - pair);
  }
};

// Lists the pairs of the lanes whose factor is not 0 (a NaN has to be seen in the result) in their order;
// returns their number, and where this lane's is. The list has been read when all lanes are back here.
template <class A>
__device__ __forceinline__ int list_pairs(PairList<A>& list, bool listed, int64_t left, int64_t right,
                                          A scale, A gate, A factor, int lane, int& place) {
  const unsigned lanes = __ballot_sync(kAllLanes, listed);
  place = __popc(lanes & ((1u << lane) - 1));
  if (listed) {
    list.left[place] = left, list.right[place] = right;
    list.scale[place] = scale, list.gate[place] = gate, list.factor[place] = factor;
  }
  __syncwarp();
  return __popc(lanes);
}

// What up to kChunk listed pairs, from `at` on, put into a network: x_i o x_j, [in, kChunk].
template <class A>
__device__ __forceinline__ void write_products(const TableRows<A>& rows, const PairList<A>& list, int at,
                                               int count, A* product, int lane) {
  __syncwarp();  // those before have been read
  for (int e = lane; e < rows.width * kChunk; e += kWarp) {
    const int c = e % kChunk, k = e / kChunk, pair = at + c;
    product[e] =
        c < count ? list.scale[pair] * (rows.row(list.left[pair])[k] * rows.row(list.right[pair])[k]) : A(0);
  }
  __syncwarp();
}

// Unit h of the hidden layer, before the relu, of each.
template <class A>
__device__ __forceinline__ void hidden_of_products(const Network<A>& n, int h, const A* product,
                                                   A (&y)[kChunk]) {
#pragma unroll
  for (int c = 0; c < kChunk; ++c) y[c] = n.hidden_bias[h];
  for (int k = 0; k < n.in_size; ++k) {
    const A weight = n.hidden_transposed[static_cast<int64_t>(k) * n.hidden_size + h];
#pragma unroll
    for (int c = 0; c < kChunk; ++c) y[c] = std::fma(weight, product[k * kChunk + c], y[c]);
  }
}

// ---- Forward ----

// Adds a chunk of listed pairs to R; returns this lane's part of their |z|^2.
template <class A>
__device__ __forceinline__ A add_chunk(const Launch<A>& l, const TableRows<A>& nodes, const PairList<A>& list,
                                       int at, int count, A* product, A* hidden, A* hidden_sum, int lane) {
  const int H = l.message.hidden_size;
  write_products(nodes, list, at, count, product, lane);
  for (int h = lane; h < H; h += kWarp) {
    A y[kChunk], sum = 0;
    hidden_of_products(l.message, h, product, y);
#pragma unroll
    for (int c = 0; c < kChunk; ++c) {
      if (c < count) sum = std::fma(list.factor[at + c], relu(y[c]), sum);
      if (hidden) hidden[c * H + h] = relu(y[c]);
    }
    hidden_sum[h] += sum;
  }
  A l2 = 0;
  if (!hidden) return l2;
  __syncwarp();
  for (int c = 0; c < count; ++c)
    if (list.gate[at + c] > 0) l2 += squared_norm(l.message, hidden + c * H, lane);
  return l2;
}

template <class A>
__global__ void __launch_bounds__(kRowThreads) pool_pieces(Launch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const TableRows<A> nodes = TableRows<A>::nodes(p), edge_nodes = TableRows<A>::edges(p);
  const int lane = threadIdx.x % kWarp, H = l.message.hidden_size;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  const bool gated = p.edge_nodes;
  PairList<A>& list = dynamic_shared<PairList<A>>()[threadIdx.x / kWarp];
  A* const product = l.product + warp * kChunk * l.message.in_size;
  A* const hidden = p.l2 ? l.hidden + warp * kChunk * H : nullptr;
  for (int64_t slot = warp; slot < l.slots; slot += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const Piece piece = piece_of(p.graphs, slot);
    const GraphOfRow& graph = piece.graph;
    const int64_t n = graph.end - graph.begin;
    A* const hidden_sum = l.sums + slot * (H + 1);
    clear(hidden_sum, H, lane);
    A weight_sum = 0, l0 = 0, l2 = 0;
    int64_t edges = 0;
    if (piece.first < piece.last) {
      const int64_t end = pair_row(piece.last, n);
      LanePairs pairs(n, piece.first);
      for (int64_t first = pair_row(piece.first, n); first < end; first += kWarp) {
        const int64_t pair = first + lane;
        int64_t left = graph.begin, right = graph.begin;
        A gate = 0, weight = 0, scale = 1;
        if (pair < end) {
          right += pairs.move_to(pair), left += pairs.row;
          gate = 1;
          if (gated) {
            const Gate<A> g = l.gate(edge_logit(l.edge, edge_nodes, left, right), graph.graph, pair);
            gate = g.value;
            l0 += g.open;
          }
        }
        if (gate != 0) {
          weight = gate * (pooled_share(p, nodes, graph, left) +
                           (left == right ? A(0) : pooled_share(p, nodes, graph, right)));
          scale = nodes.scale(left) * nodes.scale(right);
        }
        edges += gate > 0;
        weight_sum += weight;
        int place = 0;
        const int count = list_pairs(list, gate != 0, left, right, scale, gate, weight, lane, place);
        for (int at = 0; at < count; at += kChunk)
          l2 += add_chunk(l, nodes, list, at, count - at < kChunk ? count - at : kChunk, product, hidden,
                          hidden_sum, lane);
        __syncwarp();  // the list has been read
      }
    }
    weight_sum = warp_sum(weight_sum), l0 = warp_sum(l0), l2 = warp_sum(l2), edges = warp_sum(edges);
    if (lane != 0) continue;
    hidden_sum[H] = weight_sum;
    if (l.l0) l.l0[slot] = l0;
    if (l.l2) l.l2[slot] = l2;
    if (l.edges) l.edges[slot] = edges;
  }
}

// A warp a graph adds up what its pieces left, and applies the second layer.
template <class A>
__global__ void __launch_bounds__(kRowThreads) pool_graphs(Launch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const int lane = threadIdx.x % kWarp, H = l.message.hidden_size;
  for (int64_t graph = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
       graph < p.graphs.count; graph += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const GraphOfRow rows = graph_at(p.graphs, graph);
    const int64_t begin = first_slot(p.graphs, graph), pieces = piece_count(rows.end - rows.begin);
    const int64_t end = begin + pieces < l.slots ? begin + pieces : l.slots;
    A* const sum = l.sums + begin * (H + 1);
    for (int h = lane; h <= H; h += kWarp) {
      A total = 0;
      for (int64_t slot = begin; slot < end; ++slot) total += l.sums[slot * (H + 1) + h];
      sum[h] = total;
    }
    __syncwarp();
    write_out(l.message, sum, sum[H], A(1), p.pooled + graph * l.message.out_size, lane);
    const auto store = [&](auto* of_graphs, const auto* of_pieces, auto total) {
      if (!of_graphs) return;
      for (int64_t slot = begin + lane; slot < end; slot += kWarp) total += of_pieces[slot];
      total = warp_sum(total);
      if (lane == 0) of_graphs[graph] = total;
    };
    store(p.l0, l.l0, A(0));
    store(p.l2, l.l2, A(0));
    store(p.num_edges, l.edges, int64_t{0});
  }
}

// ---- Backward, small graphs ----

// Adds what a chunk of listed pairs gives to a network's first layer, each pair met once: to the sums of its
// weight gradients (where finish_gradients expects every pair twice), and to the gradients of the rows at
// both ends. unit [H, kChunk]: what the hidden units receive; unit_weight: what of that was left out for the
// rows.
template <class A>
__device__ __forceinline__ void add_first_layer(const Network<A>& n, const A* unit_weight,
                                                const TableRows<A>& rows, const PairList<A>& list, int at,
                                                int count, A* product, const A* unit, A* sums, A* bias_sums,
                                                A* grad_rows, int lane) {
  const int64_t H = n.hidden_size;
  for (int64_t h = lane; h < H; h += kWarp) {
    A bias = 0;
#pragma unroll
    for (int c = 0; c < kChunk; ++c) bias += unit[h * kChunk + c];
    bias_sums[h] += 2 * bias;
    for (int k = 0; k < n.in_size; ++k) {
      A sum = 0;
#pragma unroll
      for (int c = 0; c < kChunk; ++c) sum = std::fma(unit[h * kChunk + c], product[k * kChunk + c], sum);
      sums[k * H + h] += 2 * sum;
    }
  }
  __syncwarp();
  for (int e = lane; e < n.in_size * kChunk; e += kWarp) {
    const int c = e % kChunk, k = e / kChunk;
    A sum = 0;
    for (int64_t h = 0; h < H; ++h)
      sum = std::fma((unit_weight ? unit_weight[h] : A(1)) * n.hidden[h * n.in_size + k],
                     unit[h * kChunk + c], sum);
    product[e] = c < count ? list.scale[at + c] * sum : A(0);
  }
  __syncwarp();
  for (int c = 0; c < count; ++c) {
    const int64_t left = list.left[at + c], right = list.right[at + c];
    const A *left_row = rows.row(left), *right_row = rows.row(right);
    for (int k = lane; k < n.in_size; k += kWarp) {
      grad_rows[left * n.in_size + k] += product[k * kChunk + c] * right_row[k];
      grad_rows[right * n.in_size + k] += product[k * kChunk + c] * left_row[k];
    }
  }
}

template <class A>
__global__ void __launch_bounds__(kRowThreads) backward_small_graphs(PairLaunch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const TableRows<A> nodes = TableRows<A>::nodes(p), edge_nodes = TableRows<A>::edges(p);
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  const bool gated = p.edge_nodes, message = l.grad_hidden;
  const int H = l.message.hidden_size, d = l.message.in_size, He = l.edge.hidden_size, b = l.edge.in_size;
  PairList<A>& list = dynamic_shared<PairList<A>>()[threadIdx.x / kWarp];
  A* const gradients = l.partials + warp * l.edge_gradients.end;
  A* const hidden_sum = l.scratch + warp * l.scratch_size;  // [H]
  A* const product = hidden_sum + H;                        // [max(d, b), kChunk]
  A* const unit = product + kChunk * (d > b ? d : b);       // [max(H, He), kChunk]
  for (int64_t g = warp; g < p.graphs.count; g += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const GraphOfRow graph = graph_at(p.graphs, g);
    const int64_t n = graph.end - graph.begin, end = pair_count(n);
    if (n < 1 || n > kSmallBag) continue;
    if (message) clear(p.grad_nodes + graph.begin * d, n * d, lane);
    if (gated) clear(p.grad_edge_nodes + graph.begin * b, n * b, lane);
    clear(hidden_sum, H, lane);
    __syncwarp();
    const A* grad_hidden = message ? l.grad_hidden + g * H : nullptr;  // W2^T D
    A weight_sum = 0, logit_sum = 0;
    LanePairs pairs(n, 0);
    for (int64_t first = 0; first < end; first += kWarp) {
      const int64_t pair = first + lane;
      int64_t left = graph.begin, right = graph.begin;
      Gate<A> gate = {0, 0, 0, 0};
      A grad_logit = 0, share = 0, scale = 1;
      if (pair < end) {
        right += pairs.move_to(pair), left += pairs.row;
        gate.value = 1;
        if (gated) gate = l.gate(edge_logit(l.edge, edge_nodes, left, right), g, pair);
        if (p.grad_l0) grad_logit = p.grad_l0[g] * gate.open_slope;
      }
      if (message) {
        const bool open = gate.value != 0;
        if (open) {
          share = l.scale[left] + (left == right ? A(0) : l.scale[right]);
          scale = nodes.scale(left) * nodes.scale(right);
        }
        const A weight = open ? gate.value * share : A(0);
        weight_sum += weight;
        int place = 0;
        const int count = list_pairs(list, open, left, right, scale, gate.value, weight, lane, place);
        for (int at = 0; at < count; at += kChunk) {
          const int chunk = count - at < kChunk ? count - at : kChunk;
          write_products(nodes, list, at, chunk, product, lane);
          A received[kChunk] = {};
          for (int h = lane; h < H; h += kWarp) {
            A y[kChunk], sum = 0;
            hidden_of_products(l.message, h, product, y);
#pragma unroll
            for (int c = 0; c < kChunk; ++c) {
              const bool counts = c < chunk;
              const A factor = counts ? list.factor[at + c] : A(0), on = relu(y[c]);
              if (counts)
                sum = std::fma(factor, on, sum), received[c] = std::fma(grad_hidden[h], on, received[c]);
              unit[h * kChunk + c] = counts && y[c] > 0 ? factor * grad_hidden[h] : A(0);
            }
            hidden_sum[h] += sum;
          }
#pragma unroll
          for (int c = 0; c < kChunk; ++c) {
            received[c] = warp_sum(received[c]);
            if (lane == 0 && c < chunk) list.received[at + c] = received[c] + l.grad_gate[g];
          }
          add_first_layer(l.message, static_cast<const A*>(nullptr), nodes, list, at, chunk, product, unit,
                          gradients + l.message_gradients.hidden, gradients + l.message_gradients.hidden_bias,
                          p.grad_nodes, lane);
        }
        __syncwarp();
        if (open) grad_logit += share * list.received[place] * gate.slope;
        __syncwarp();  // the list has been read
      }
      if (!gated) continue;
      logit_sum += grad_logit;
      int place = 0;
      const int count =
          list_pairs(list, grad_logit != 0, left, right, A(1), gate.value, grad_logit, lane, place);
      for (int at = 0; at < count; at += kChunk) {
        const int chunk = count - at < kChunk ? count - at : kChunk;
        write_products(edge_nodes, list, at, chunk, product, lane);
        for (int h = lane; h < He; h += kWarp) {
          A y[kChunk];
          hidden_of_products(l.edge, h, product, y);
#pragma unroll
          for (int c = 0; c < kChunk; ++c)
            unit[h * kChunk + c] = c < chunk && y[c] > 0 ? list.factor[at + c] : A(0);
        }
        add_first_layer(l.edge, l.edge.out, edge_nodes, list, at, chunk, product, unit,
                        gradients + l.edge_gradients.hidden, gradients + l.edge_gradients.hidden_bias,
                        p.grad_edge_nodes, lane);
      }
      __syncwarp();  // the list has been read
    }
    if (message) {
      const MessageScratch<A> sums = {hidden_sum, nullptr, nullptr, nullptr, nullptr, gradients};
      finish_out_gradients(l.message, l.message_gradients, sums, p.grad_pooled + g * d, A(1),
                           warp_sum(weight_sum), lane);
    }
    logit_sum = warp_sum(logit_sum);
    if (gated && lane == 0) gradients[l.edge_gradients.out_bias] += 2 * logit_sum;
  }
}

}  // namespace

template <class A>
int64_t pooled_workspace(const CompleteGraph<A>& problem) {
  return plan(problem, nullptr).bytes;
}

template <class A>
cudaError_t pooled_forward(const CompleteGraph<A>& problem, void* workspace, cudaStream_t stream) {
  const Launch<A> l = plan(problem, workspace);
  if (problem.graphs.count == 0) return cudaSuccess;
  L0SIGN_TRY(write_transposed(l.message, stream));
  if (problem.edge_nodes) L0SIGN_TRY(write_transposed(l.edge, stream));
  L0SIGN_TRY(launch(pool_pieces<A>, l.blocks, kRowThreads, kRowWarps * sizeof(PairList<A>), stream, l));
  return launch(pool_graphs<A>, blocks_for((problem.graphs.count + kRowWarps - 1) / kRowWarps, 0),
                kRowThreads, 0, stream, l);
}

template <class A>
int64_t pooled_scratch(const CompleteGraph<A>& p) {
  const int64_t in = p.message.in > p.edge.in ? p.message.in : p.edge.in;
  const int64_t hidden = p.message.hidden > p.edge.hidden ? p.message.hidden : p.edge.hidden;
  return p.message.hidden + kChunk * (in + hidden);
}

template <class A>
cudaError_t pooled_backward(const PairLaunch<A>& l, cudaStream_t stream) {
  return launch(backward_small_graphs<A>, l.blocks, kRowThreads, kRowWarps * sizeof(PairList<A>), stream, l);
}

#define INSTANTIATE(A)                                                               \
  template int64_t pooled_workspace(const CompleteGraph<A>&);                        \
  template cudaError_t pooled_forward(const CompleteGraph<A>&, void*, cudaStream_t); \
  template int64_t pooled_scratch(const CompleteGraph<A>&);                          \
  template cudaError_t pooled_backward(const PairLaunch<A>&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace l0sign::cuda
