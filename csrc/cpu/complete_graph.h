// The kernel over all pairs of each graph: gated in training and evaluation, ungated, or gates only.
// `Messages` is NodeMessages or PooledMessages. Included inside an anonymous namespace by each
// instruction-set file.

template <class A, template <class> class Messages>
class CompleteGraphKernel {
  using V = typename Simd<A>::V;

 public:
  // For blocks of up to `slots`. Without memory, `scratch_vectors` tells how much is needed.
  CompleteGraphKernel(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, void* memory,
                      int64_t slots, bool backward)
      : problem_(problem),
        arena_{static_cast<V*>(memory)},
        block_(problem.graphs),
        kept_(problem),
        gates_(problem, weights, block_, arena_, slots + GraphBlock<A>::kExtra, backward),
        messages_(problem, weights, block_, gates_, kept_, arena_, slots + GraphBlock<A>::kExtra, backward) {}

  int64_t scratch_vectors() const { return arena_.used; }

  void forward(const Block& block) {
    begin(block);
    gates_.begin_forward();
    messages_.begin_forward();
    block_.for_panels([&] { gates_.begin_band(), messages_.begin_band_forward(); },
                      [&] { gates_.forward(kept_), messages_.forward(), kept_.next_panel(); },
                      [&] { gates_.end_band_forward(), messages_.end_band_forward(); });
    gates_.end_forward();
    messages_.end_forward();
  }

  // The rows of nodes that the next block will read, while this one is at work.
  void prefetch(const Block& next) const {
    const CompleteGraph<A>& p = problem_;
    if (p.nodes) block_.prefetch(next, p.nodes, p.ids, p.message.in);
    if (p.edge_nodes) block_.prefetch(next, p.edge_nodes, p.ids, p.edge.in);
    if (p.grad_out) block_.prefetch(next, p.grad_out, nullptr, p.message.out);
  }

  void begin_gradients() { gates_.begin_gradients(), messages_.begin_gradients(); }

  void backward(const Block& block) {
    begin(block);
    gates_.begin_backward();
    messages_.begin_backward();
    block_.for_panels([&] { gates_.begin_band(), messages_.begin_band_backward(); },
                      [&] {
                        gates_.find_again(kept_);
                        messages_.backward();
                        gates_.backward();
                        kept_.next_panel();
                      },
                      [&] { gates_.end_band_backward(), messages_.end_band_backward(); });
    gates_.end_backward();
    messages_.end_backward();
  }

  // Adds this call's weight gradients to `gradients`: the message perceptron, then the edge perceptron.
  void add_gradients(A* gradients) {
    const Perceptron<A>& m = problem_.message;
    messages_.add_gradients(gradients);
    gates_.add_gradients(gradients + gradient_layout(0, m.in, m.hidden, m.out).end);
  }

 private:
  void begin(const Block& block) {
    block_.begin(block);
    kept_.begin(block, Messages<A>::kept_sums(problem_, block));
  }

  const CompleteGraph<A>& problem_;
  Arena<A> arena_;
  GraphBlock<A> block_;
  Kept<A> kept_;
  EdgeGates<A> gates_;
  Messages<A> messages_;
};
