#include "../products.h"

namespace aadl::cpu {
namespace {

constexpr int64_t kMostBlocks = 512;  // bounds the memory of their sums

// As many vectors in a tile as the registers hold sums.
#define AADL_PRODUCTS(version, Columns, Width)                                        \
  version void products_one(const Products& args, const Block& block, bool symmetric, \
                            double* out) {                                            \
    products_block<Columns, Width>(args, block, symmetric, out);                      \
  }
#ifdef AADL_V4
AADL_PRODUCTS(AADL_V4, 4, 8)
AADL_PRODUCTS(AADL_V3, 2, 4)
AADL_PRODUCTS(AADL_BASE, 2, 2)
#else
AADL_PRODUCTS(, 2, 4)
#endif

bool same_vectors(const Products& args) {
  bool same = args.rows.size() == args.vectors.size();
  for (size_t i = 0; same && i < args.rows.size(); ++i) {
    const Entries &row = args.rows[i], &vector = args.vectors[i];
    same = row.begin == vector.begin && row.type == vector.type;
  }
  return same;
}

}  // namespace

void products(const Products& args, const Parallel& parallel) {
  const int64_t rows = args.rows.size(), vectors = args.vectors.size(), size = rows * vectors;
  const int64_t total = args.offsets.back();
  const int64_t longer = (total + kBlock * kMostBlocks - 1) / (kBlock * kMostBlocks);
  const std::vector<Block> blocks =
      make_blocks(args.offsets, kBlock * std::max<int64_t>(1, longer));
  const bool symmetric = same_vectors(args);
  std::vector<double> sums(blocks.size() * size);
  run_blocks(blocks, parallel,
             [&](int64_t i) { products_one(args, blocks[i], symmetric, sums.data() + i * size); });
  std::fill_n(args.out, (args.offsets.size() - 1) * size, 0.0);
  for (size_t b = 0; b < blocks.size(); ++b) {
    double* const out = args.out + blocks[b].segment * size;
    for (int64_t i = 0; i < size; ++i) out[i] += sums[b * size + i];
  }
  for (size_t s = 0; symmetric && s + 1 < args.offsets.size(); ++s) {
    double* const out = args.out + s * size;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < i; ++j) out[i * rows + j] = out[j * rows + i];
    }
  }
}

}  // namespace aadl::cpu
