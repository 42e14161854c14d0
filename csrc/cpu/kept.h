// What a forward leaves for the backward of a block, so that this computes no gate and no hidden unit again:
// of each panel what EdgeGates and ScalarNetwork make of its pairs, and which hidden units of the message
// network are on; of the block the sums of messages. Included inside an anonymous namespace by each
// instruction-set file.

// The portable kernels have no instructions to pack and unpack bits.
constexpr bool kKeeps = kVectorBytes >= 32;

template <class A>
class EdgeGates;

template <class A>
class Kept {
  using V = typename Simd<A>::V;
  using Packed = Units<A, PackedBits<A>>;

 public:
  explicit Kept(const CompleteGraph<A>& problem) {
    if (problem.edge_nodes) {
      edge_hidden_ = problem.edge.hidden;
      units_at_ = EdgeGates<A>::kSavedVectors;
      on_at_ = units_at_ + Packed::vectors(edge_hidden_);
    }
    panel_vectors_ = on_at_;
    if (problem.nodes) panel_vectors_ += bits_vectors<A, PackedBits<A>>(problem.message.hidden);
  }

  // Of a block that has so many sums.
  int64_t vectors(const Block& block, int64_t sums) const {
    return sums + GraphBlock<A>::count_panels(block) * panel_vectors_;
  }

  void begin(const Block& block, int64_t sums) {
    sums_ = static_cast<V*>(block.kept);
    if (sums_) panel_ = sums_ + sums;
  }
  void next_panel() {
    if (sums_) panel_ += panel_vectors_;
  }

  // Whether there is a place for this block. Without, the rest is meaningless.
  explicit operator bool() const { return kKeeps && sums_; }
  V* sums() const { return sums_; }
  V* gates() const { return panel_; }
  Packed edge_units() const { return Packed::at(panel_ + units_at_, edge_hidden_); }
  PackedBits<A>* units_on() const { return reinterpret_cast<PackedBits<A>*>(panel_ + on_at_); }

 private:
  int64_t edge_hidden_ = 0, units_at_ = 0, on_at_ = 0, panel_vectors_ = 0;
  V *sums_ = nullptr, *panel_ = nullptr;
};
