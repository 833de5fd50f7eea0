// Lists of contiguous pieces: copied to and from a flat vector, or reduced to their squared norm.
//
// Pieces are cut into blocks, so that one long tensor is shared among the threads as many short
// ones are. Reads and writes every entry once, past the caches where all of it is large.
#include "blocks.h"

namespace aadl::cpu {
namespace {

#define AADL_CONVERT(From, To)                                              \
  AADL_TARGETS void convert(const From* from, To* to, int64_t count) {      \
    for (int64_t i = 0; i < count; ++i) to[i] = narrow<To>(widen(from[i])); \
  }
AADL_CONVERT(float, double)
AADL_CONVERT(float, BFloat16)
AADL_CONVERT(float, Half)
AADL_CONVERT(double, float)
AADL_CONVERT(BFloat16, float)
AADL_CONVERT(Half, float)

template <class From, class To>
void convert_part(const Piece& piece, int64_t begin, int64_t count) {
  convert(static_cast<const From*>(piece.from) + begin, static_cast<To*>(piece.to) + begin, count);
}

using Convert = void (*)(const Piece&, int64_t begin, int64_t count);

Convert conversion(Type from, Type to) {
  if (from == Type::kFloat && to == Type::kDouble) return convert_part<float, double>;
  if (from == Type::kFloat && to == Type::kBFloat16) return convert_part<float, BFloat16>;
  if (from == Type::kFloat && to == Type::kHalf) return convert_part<float, Half>;
  if (from == Type::kDouble && to == Type::kFloat) return convert_part<double, float>;
  if (from == Type::kBFloat16 && to == Type::kFloat) return convert_part<BFloat16, float>;
  return convert_part<Half, float>;
}

void copy_part(const Piece& piece, int64_t begin, int64_t count, bool stream) {
  if (piece.from_type != piece.to_type) {
    return conversion(piece.from_type, piece.to_type)(piece, begin, count);
  }
  const int64_t size = size_of(piece.from_type);
  store(static_cast<char*>(piece.to) + begin * size,
        static_cast<const char*>(piece.from) + begin * size, count * size, stream);
  finish_stores(stream);
}

#define AADL_SQUARES(T)                                                          \
  AADL_TARGETS double squares(const T* entries, int64_t count) {                 \
    double sum = 0;                                                              \
    _Pragma("omp simd reduction(+ : sum)") for (int64_t i = 0; i < count; ++i) { \
      const double x = widen(entries[i]);                                        \
      sum += x * x;                                                              \
    }                                                                            \
    return sum;                                                                  \
  }
AADL_SQUARES(float)
AADL_SQUARES(double)
AADL_SQUARES(BFloat16)
AADL_SQUARES(Half)

double squares_of(const Entries& piece, int64_t begin, int64_t count) {
  switch (piece.type) {
    case Type::kFloat:
      return squares(static_cast<const float*>(piece.begin) + begin, count);
    case Type::kDouble:
      return squares(static_cast<const double*>(piece.begin) + begin, count);
    case Type::kBFloat16:
      return squares(static_cast<const BFloat16*>(piece.begin) + begin, count);
    default:
      return squares(static_cast<const Half*>(piece.begin) + begin, count);
  }
}

}  // namespace

void copy(const std::vector<Piece>& pieces, const bool* when, const Threads& threads) {
  if (when && !*when) return;
  int64_t bytes = 0;
  for (const Piece& piece : pieces) {
    bytes += piece.count * (size_of(piece.from_type) + size_of(piece.to_type));
  }
  const bool stream = exceeds_cache(bytes);
  const std::vector<int64_t> offsets = positions(pieces);
  const std::vector<Block> blocks = make_blocks(offsets.data(), pieces.size());
  run_blocks(blocks, threads, [&](int64_t i) {
    const Block& block = blocks[i];
    copy_part(pieces[block.segment], block.begin - offsets[block.segment], block.end - block.begin,
              stream);
  });
}

void squared_norm(const std::vector<Entries>& pieces, double* out, const Threads& threads) {
  const std::vector<int64_t> offsets = positions(pieces);
  const std::vector<Block> blocks = make_blocks(offsets.data(), pieces.size());
  std::vector<double> sums(blocks.size());
  run_blocks(blocks, threads, [&](int64_t i) {
    const Block& block = blocks[i];
    sums[i] = squares_of(pieces[block.segment], block.begin - offsets[block.segment],
                         block.end - block.begin);
  });
  *out = 0;
  for (const double one : sums) *out += one;
}

}  // namespace aadl::cpu
