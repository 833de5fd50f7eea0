// Count sketch of a list of pieces. The columns of the sketch, not the pieces, are shared out: each
// is summed up by one thread in the order of its entries, in sums that stay in L1.
#include "../common/sketch.h"

#include "blocks.h"

namespace aadl::cpu {
namespace {

constexpr int64_t kColumns = 1 << 10;

// Adds entries first .. first + n - 1 of the flat vector.
template <class S>
AADL_INLINE void add_run(const S* entries, int64_t first, int64_t n, double weight, double* sums) {
  const double signed_weight[2] = {weight, -weight};
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t turn = turned(static_cast<uint64_t>(first + j));
    sums[j] += (turn ? signed_weight[1] : signed_weight[0]) * static_cast<double>(widen(entries[j]));
  }
}

// Adds what a piece has in columns begin .. end - 1.
template <class S>
AADL_INLINE void add_piece(const Weighted& piece, int64_t size, int64_t begin, int64_t end,
                           double* sums) {
  const S* const entries = static_cast<const S*>(piece.begin);
  const int64_t last = piece.first + piece.count;
  for (int64_t row = piece.first / size * size; row < last; row += size) {
    const int64_t from = std::max(row + begin, piece.first), to = std::min(row + end, last);
    if (from >= to) continue;
    const S* const run = entries + (from - piece.first);
    __builtin_prefetch(run + size);
    add_run(run, from, to - from, piece.weight, sums + (from - row - begin));
  }
}

AADL_TARGETS void sketch_columns(const std::vector<Weighted>& pieces, int64_t size, int64_t begin,
                                 int64_t end, double* out) {
  alignas(64) double sums[kColumns] = {};
  for (const Weighted& piece : pieces) {
    switch (piece.type) {
      case Type::kFloat:
        add_piece<float>(piece, size, begin, end, sums);
        break;
      case Type::kDouble:
        add_piece<double>(piece, size, begin, end, sums);
        break;
      case Type::kBFloat16:
        add_piece<BFloat16>(piece, size, begin, end, sums);
        break;
      default:
        add_piece<Half>(piece, size, begin, end, sums);
    }
  }
  std::copy_n(sums, end - begin, out + begin);
}

}  // namespace

void sketch(const std::vector<Weighted>& pieces, int64_t size, double* out, const Threads& threads) {
  const int64_t parts = (size + kColumns - 1) / kColumns;
  const auto body = [&](int64_t i) {
    sketch_columns(pieces, size, i * kColumns, std::min((i + 1) * kColumns, size), out);
  };
  const int64_t entries = pieces.empty() ? 0 : pieces.back().first + pieces.back().count;
  if (entries > kBlock) return threads.run(parts, body);
  for (int64_t i = 0; i < parts; ++i) body(i);
}

}  // namespace aadl::cpu
