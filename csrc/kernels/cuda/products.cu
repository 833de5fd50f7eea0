#include <algorithm>

#include "products.cuh"

namespace aadl::cuda {
namespace {

int64_t tile_of_all(const Products& args) {
  return tile_size(args.offsets[args.segments], 8 * kProductChunk, args.most_tiles);
}

int64_t tiles_of_all(const Products& args) {
  return count_tiles(args.offsets, args.segments, tile_of_all(args));
}

bool same_vectors(const Products& args) {
  return args.rows.size() == args.vectors.size() &&
         std::equal(args.rows.begin(), args.rows.end(), args.vectors.begin(),
                    [](const Entries& row, const Entries& vector) {
                      return row.begin == vector.begin && row.type == vector.type;
                    });
}

Side side_of(const std::vector<Entries>& all, int64_t first) {
  Side side = {};
  side.first = first;
  side.count = static_cast<int>(std::min<int64_t>(all.size() - first, kVectorsAtOnce));
  for (int i = 0; i < side.count; ++i) {
    const Entries& one = all[first + i];
    side.begin[i] = one.begin;
    side.type[i] = static_cast<unsigned char>(one.type);
    side.aligned[i] = aligned(one.begin);
  }
  return side;
}

bool all_float(const std::vector<Entries>& all) {
  return std::none_of(all.begin(), all.end(),
                      [](const Entries& one) { return one.type == Type::kDouble; });
}

int count_pairs(const ProductTiles& own) {
  int pairs = 0;
  for (int r = 0; r < groups_of(own.rows.count); ++r) {
    for (int c = 0; c < groups_of(own.vectors.count); ++c) pairs += wanted(own, r, c);
  }
  return pairs;
}

void launch_tiles(const ProductTiles& own, const Tiles& tiles, bool compensated, Stream stream) {
  const int pairs = count_pairs(own);
  const int64_t warps = int64_t{pairs} * tiles.first[tiles.segments];
  if (warps == 0) return;
  const unsigned blocks = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
  if (compensated) {
    AADL_LAUNCH(product_tiles<Compensated>, blocks, kThreads, 0, stream, own, tiles, pairs, warps);
  } else {
    AADL_LAUNCH(product_tiles<Wide>, blocks, kThreads, 0, stream, own, tiles, pairs, warps);
  }
  check_launch("cross_products");
}

}  // namespace

int64_t products_workspace(const Products& args) {
  return args.rows.size() * args.vectors.size() * tiles_of_all(args) * sizeof(double);
}

void products(const Products& args, void* workspace, Stream stream) {
  const int64_t rows = args.rows.size(), vectors = args.vectors.size();
  if (rows == 0 || vectors == 0) return;
  const bool compensated = args.compensated && all_float(args.rows) && all_float(args.vectors);
  const int64_t total = tiles_of_all(args);
  double* const partials = static_cast<double*>(workspace);
  ProductTiles own = {{}, {}, vectors, same_vectors(args), partials, total, 0};
  for_tiles(args.offsets, args.segments, tile_of_all(args),
            [&](const Tiles& tiles, int64_t first_segment, int64_t first_tile) {
              own.first_tile = first_tile;
              for (int64_t r = 0; r < rows; r += kVectorsAtOnce) {
                own.rows = side_of(args.rows, r);
                for (int64_t c = 0; c < vectors; c += kVectorsAtOnce) {
                  own.vectors = side_of(args.vectors, c);
                  launch_tiles(own, tiles, compensated, stream);
                }
              }
              AADL_LAUNCH(finish_products, dim3(rows * vectors, tiles.segments), kThreads, 0,
                          stream, partials, total, first_tile, tiles, vectors, own.symmetric,
                          args.out + first_segment * rows * vectors);
              check_launch("cross_products");
            });
}

}  // namespace aadl::cuda
