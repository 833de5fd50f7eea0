#include <algorithm>

#include "finish.h"
#include "flat.cuh"

namespace aadl::cuda {
namespace {

int tiles_of(int64_t count) { return static_cast<int>((count + kPieceTile - 1) / kPieceTile); }

// Calls use(tiles) after filling `own` with as many pieces at a time as an argument holds.
template <class Own, class AnyPiece, class Use>
void for_pieces(const std::vector<AnyPiece>& pieces, Own& own, const Use& use) {
  for (size_t begin = 0; begin < pieces.size(); begin += kPiecesAtOnce) {
    own.tiles.pieces = static_cast<int>(std::min<size_t>(pieces.size() - begin, kPiecesAtOnce));
    for (int p = 0; p < own.tiles.pieces; ++p) {
      own.pieces[p] = pieces[begin + p];
      own.tiles.first[p + 1] = own.tiles.first[p] + tiles_of(own.pieces[p].count);
    }
    if (const int tiles = own.tiles.first[own.tiles.pieces]; tiles > 0) use(tiles);
  }
}

}  // namespace

bool copies(Type from, Type to) {
  return with_types(from, to, [](auto, auto) {});
}

void copy(const std::vector<Piece>& pieces, const bool* when, Stream stream) {
  CopyTiles own = {};
  own.when = when;
  for_pieces(pieces, own, [&](int tiles) {
    AADL_LAUNCH(copy_tiles, tiles, kThreads, 0, stream, own);
    check_launch("a copy");
  });
}

int64_t squared_norm_workspace(const std::vector<Entries>& pieces) {
  int64_t tiles = 0;
  for (const Entries& piece : pieces) tiles += tiles_of(piece.count);
  return tiles * sizeof(double);
}

void squared_norm(const std::vector<Entries>& pieces, bool compensated, void* workspace,
                  double* out, Stream stream) {
  double* const partials = static_cast<double*>(workspace);
  SquareTiles own = {};
  own.partials = partials;
  for_pieces(pieces, own, [&](int tiles) {
    if (compensated) {
      AADL_LAUNCH(square_tiles<Compensated>, tiles, kThreads, 0, stream, own);
    } else {
      AADL_LAUNCH(square_tiles<Wide>, tiles, kThreads, 0, stream, own);
    }
    check_launch("squared_norm");
    own.partials += tiles;
  });
  finish_sums(partials, own.partials - partials, 1, out, stream);
}

}  // namespace aadl::cuda
