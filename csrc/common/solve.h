// min |r - R gamma| from the Gram matrix or the triangular factor of [R | r], k x k row-major.
//
// Columns are scaled to unit length; gamma is taken over the singular directions above a floor,
//   gamma = sum_i v_i (u_i . r) / sigma_i * gain_i,  gain_i = sigma_i^2 / (sigma_i^2 + ridge).
// Both forms are diagonalised by Jacobi rotations, which need no other machinery, find small
// singular values of scaled matrices to high relative accuracy, and end with
//   sigma_i, u_i . r (in units of |r|) and the direction v_i (or sigma_i v_i) as row i:
// the Gram matrix by two-sided rotations with a matrix that collects v; the factor by rotations
// of its rows, r in the last column turning along, until they are orthogonal: U^T [R | r] has
// the rows sigma_i v_i and u_i . r. Rotating rows of R is rotating columns of R^T: it converges
// in fewer sweeps than rotating columns of R. Plain functions over a workspace: nothing is
// allocated. Touches about 6 k^3 entries in cache. Work on a row is a member's of the team;
// the rotations, which order the pairs as it suits the machine, are here for one alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "target.h"

namespace aadl {

// Who works on one small problem: a single thread on the CPU, a block of them on a GPU.
//
// Code for a team is run by all members. Member `rank` of `size` does its share of a loop,
//   for (int64_t i = team.rank; i < n; i += team.size),
// and sync() comes before anybody reads what another has written. What all members compute for
// themselves, from the same numbers, is the same for all.
struct Alone {
  static constexpr int64_t rank = 0, size = 1;
  AADL_INLINE void sync() const {}
  AADL_INLINE bool all(bool mine) const { return mine; }  // a sync() as well
};

constexpr double kUnit = std::numeric_limits<double>::epsilon();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kFew = 2;  // errors that a column must be longer than
constexpr double kSmall = 1e-250;  // below this squares lose digits
constexpr double kUp = 1e200;      // and so much larger they do not
constexpr int kSweeps = 60;  // six to ten do; what is not finite never gets here

struct Rotation {
  double cosine, sine, tangent;
};

// 1 / sqrt(x): on a GPU a chain of its own, shorter than a root and a division.
AADL_INLINE double inverse_root(double x) {
#ifdef __CUDA_ARCH__
  return rsqrt(x);
#else
  return 1 / std::sqrt(x);
#endif
}

// The rotation of least angle that takes `product` out of [[first, product], [product, second]]:
// one root, one division and one inverse root. Columns are scaled, so that squares are no infinity.
AADL_INLINE Rotation rotation(double first, double product, double second) {
  double gap = second - first, twice = 2 * product;
  double square = gap * gap + twice * twice;
  if (!(square > kSmall)) {  // it depends on their ratio only
    gap *= kUp, twice *= kUp;
    square = gap * gap + twice * twice;
  }
  const double root = std::sqrt(square);
  const double tangent = (gap < 0 ? -twice : twice) / (std::fabs(gap) + root);
  const double cosine = inverse_root(1 + tangent * tangent);
  return {cosine, tangent * cosine, tangent};
}

AADL_INLINE void rotate(const Rotation& by, double* x, double* y, int64_t size) {
  const double c = by.cosine, s = by.sine;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const double first = x[i], second = y[i];
    x[i] = c * first - s * second;
    y[i] = s * first + c * second;
  }
}

// Whether |product| <= bound sqrt(first second), without roots where squares keep their digits.
AADL_INLINE bool is_small(double first, double product, double second, double bound) {
  const double both = std::fabs(first * second);
  if (both > kSmall) return product * product <= bound * bound * both;
  return std::fabs(product) <= bound * std::sqrt(std::fabs(first)) * std::sqrt(std::fabs(second));
}

// Of a product of two vectors, relative to their lengths.
AADL_INLINE double product_error(int64_t size) {
  return kUnit * std::sqrt(static_cast<double>(size));
}

// Rows [size + 1] of `a`, [matrix | vector], become U^T [matrix | vector] with orthogonal rows.
AADL_INLINE void orthogonalize_rows(const Alone&, double* a, int64_t size) {
  const int64_t width = size + 1;
  const double bound = product_error(size);
  bool done = false;
  for (int sweep = 0; sweep < kSweeps && !done; ++sweep) {
    done = true;
    for (int64_t p = 0; p + 1 < size; ++p) {
      for (int64_t q = p + 1; q < size; ++q) {
        double *const x = a + p * width, *const y = a + q * width;
        double first = 0, product = 0, second = 0;
#pragma omp simd reduction(+ : first, product, second)
        for (int64_t i = 0; i < size; ++i) {
          first += x[i] * x[i];
          product += x[i] * y[i];
          second += y[i] * y[i];
        }
        if (is_small(first, product, second, bound)) continue;
        done = false;
        rotate(rotation(first, product, second), x, y, width);
      }
    }
  }
}

// Relative to both directions, so that the small one is found as well as the large one.
AADL_INLINE bool counts_as_zero(double first, double product, double second, double least) {
  return std::fabs(product) <= least || is_small(first, product, second, kUnit);
}

// Symmetric `a` [size, size] becomes diagonal; the rows of `v` [size, size] its eigenvectors.
// Products of directions up to `least` count as zero.
AADL_INLINE void diagonalize(const Alone&, double* a, double* v, int64_t size, double least) {
  for (int64_t i = 0; i < size * size; ++i) v[i] = i % (size + 1) == 0;
  bool done = false;
  for (int sweep = 0; sweep < kSweeps && !done; ++sweep) {
    done = true;
    for (int64_t p = 0; p + 1 < size; ++p) {
      for (int64_t q = p + 1; q < size; ++q) {
        double *const x = a + p * size, *const y = a + q * size;
        const double first = x[p], product = x[q], second = y[q];
        if (counts_as_zero(first, product, second, least)) continue;
        done = false;
        const Rotation by = rotation(first, product, second);
        rotate(by, x, y, size);
        x[p] = first - by.tangent * product;
        y[q] = second + by.tangent * product;
        x[q] = y[p] = 0;
        for (int64_t i = 0; i < size; ++i) {
          if (i != p && i != q) a[i * size + p] = x[i], a[i * size + q] = y[i];
        }
        rotate(by, v + p * size, v + q * size, size);
      }
    }
  }
}

// The lengths of the k columns of [R | r]; false if anything is not finite.
template <class Team>
AADL_INLINE bool column_lengths(const Team& team, const double* system, int64_t k, bool factored,
                                double* lengths) {
  double check = 0;
  for (int64_t i = team.rank; i < k * k; i += team.size) check += 0 * system[i];
  for (int64_t c = team.rank; c < k; c += team.size) {
    const double square = system[c * k + c];
    lengths[c] = square > 0 ? std::sqrt(square) : 0;
    if (!factored) continue;
    double largest = 0, sum = 0;  // squares of what is at most one do not overflow
    for (int64_t i = 0; i <= c; ++i) largest = std::fmax(largest, std::fabs(system[i * k + c]));
    for (int64_t i = 0; i <= c && largest > 0; ++i) {
      sum += (system[i * k + c] / largest) * (system[i * k + c] / largest);
    }
    lengths[c] = largest * std::sqrt(sum);
  }
  return team.all(check == 0);
}

// Columns of length zero stay zero.
AADL_INLINE double shrink(double entry, double length) { return length > 0 ? entry / length : 0; }

// What is read off sigma [m] and projected [m] = u . r / |r|.
struct Directions {
  double condition, reduction;
  int64_t rank;
};

// Turns `projected` into the weights of the rows `direction`, whose lengths are `unit`: 1 or sigma.
template <class Team>
AADL_INLINE Directions weigh_directions(const Team& team, const double* sigma, bool unit,
                                        double* projected, int64_t size, double ridge, double floor,
                                        bool used) {
  double largest = 0, smallest = kInfinity, explained = 0;
  int64_t rank = 0;
  for (int64_t i = 0; i < size; ++i) largest = std::fmax(largest, sigma[i]);
  for (int64_t i = 0; i < size; ++i) {
    if (!(sigma[i] > floor * largest)) continue;
    ++rank;
    smallest = std::fmin(smallest, sigma[i]);
    const double gain = 1 / (1 + ridge / sigma[i] / sigma[i]);
    explained += projected[i] * projected[i] * gain * (2 - gain);
  }
  team.sync();
  for (int64_t i = team.rank; i < size; i += team.size) {
    const bool kept = sigma[i] > floor * largest;
    const double gain = 1 / (1 + ridge / sigma[i] / sigma[i]);
    projected[i] = kept ? projected[i] * gain / sigma[i] / (unit ? 1 : sigma[i]) : 0;
  }
  team.sync();
  const double left = (used ? 1 : 0) - explained;
  return {std::fmax(1.0, largest / smallest), left > 0 ? std::sqrt(left) : 0, rank};
}

// Numbers of the workspace of solve_system.
AADL_INLINE int64_t solve_workspace(int64_t k) { return 2 * k * k + 3 * k; }

// The lengths of the columns that count; false if anything is not finite.
template <class Team>
AADL_INLINE bool known_lengths(const Team& team, const double* system, int64_t k, bool factored,
                               const double* noise, double* lengths) {
  if (!column_lengths(team, system, k, factored, lengths)) return false;
  for (int64_t c = team.rank; noise && c < k - 1; c += team.size) {  // hardly more than an error
    if (!(lengths[c] * lengths[c] > kFew * kFew * noise[c])) lengths[c] = 0;
  }
  team.sync();
  return true;
}

// Workspace of one problem.
struct Work {
  double *lengths, *sigma, *projected, *a, *v;
  AADL_INLINE Work(double* work, int64_t k)
      : lengths(work), sigma(work + k), projected(work + 2 * k), a(work + 3 * k),
        v(work + 3 * k + k * k) {}
};

// Of a Gram matrix; eigenvalues are squares.
AADL_INLINE double gram_tolerance(double tolerance) {
  return std::fmax(tolerance, std::sqrt(256 * kUnit));
}

// `a` [m, m] becomes the Gram matrix of columns of unit length, or zero.
template <class Team>
AADL_INLINE void scale_gram(const Team& team, const double* system, int64_t k,
                            const double* lengths, double* a) {
  const int64_t m = k - 1;
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = i; c < m; ++c) {
      const double entry = shrink(shrink(system[i * k + c], lengths[c]), lengths[i]);
      a[i * m + c] = a[c * m + i] = entry;
    }
  }
  team.sync();
}

// From the directions, in `a` for a factor and in `v` with the eigenvalues in `a` for a Gram matrix.
// The same is returned to every member of the team.
template <class Team>
AADL_INLINE Directions combine_directions(const Team& team, const double* system, int64_t k,
                                          bool factored, double ridge, double tolerance,
                                          const double* noise, const Work& at, double* gamma) {
  const int64_t m = k - 1;
  double *const lengths = at.lengths, *const sigma = at.sigma, *const projected = at.projected;
  double *const a = at.a, *const v = at.v;
  const double* const direction = factored ? a : v;  // rows `stride` apart
  const int64_t stride = factored ? k : m;
  for (int64_t i = team.rank; factored && i < m; i += team.size) {
    double square = 0;
    for (int64_t c = 0; c < m; ++c) square += a[i * k + c] * a[i * k + c];
    sigma[i] = std::sqrt(square);
    projected[i] = a[i * k + m];
  }
  if (!factored) tolerance = gram_tolerance(tolerance);
  for (int64_t i = team.rank; !factored && i < m; i += team.size) {
    sigma[i] = std::sqrt(std::fmax(0.0, a[i * m + i]));
    double dot = 0;
    for (int64_t c = 0; c < m; ++c) {
      dot += v[i * m + c] * shrink(shrink(system[c * k + m], lengths[m]), lengths[c]);
    }
    projected[i] = dot / std::fmax(sigma[i], tolerance);
  }
  for (int64_t i = team.rank; noise && i < m; i += team.size) {  // hardly more than an error
    double error = 0;
    for (int64_t c = 0; c < m; ++c) {
      const double share = shrink(direction[i * stride + c], lengths[c]);
      error += share * share * noise[c];
    }
    const double length = factored ? sigma[i] * sigma[i] : sigma[i];  // rows are sigma_i v_i there
    if (!(length * length > kFew * kFew * error)) sigma[i] = 0;
  }
  team.sync();
  const Directions out =
      weigh_directions(team, sigma, !factored, projected, m, ridge, tolerance, lengths[m] > 0);
  for (int64_t c = team.rank; c < m; c += team.size) {
    double weight = 0;
    for (int64_t i = 0; i < m; ++i) weight += direction[i * stride + c] * projected[i];
    gamma[c] = lengths[c] > 0 ? weight * (lengths[m] / lengths[c]) : 0;
  }
  return out;
}

// The same is returned to every member of the team.
template <class Team>
AADL_INLINE Directions solve_system(const Team& team, const double* system, int64_t k,
                                    bool factored, double ridge, double tolerance,
                                    const double* noise, double* work, double* gamma) {
  const int64_t m = k - 1;
  const Work at(work, k);
  if (!known_lengths(team, system, k, factored, noise, at.lengths)) {
    for (int64_t c = team.rank; c < m; c += team.size) gamma[c] = kNan;
    return {kNan, kNan, 0};
  }
  if (factored) {
    for (int64_t i = team.rank; i < m; i += team.size) {
      for (int64_t c = 0; c < k; ++c)
        at.a[i * k + c] = c < i ? 0 : shrink(system[i * k + c], at.lengths[c]);
    }
    team.sync();
    orthogonalize_rows(team, at.a, m);
  } else {
    scale_gram(team, system, k, at.lengths, at.a);
    diagonalize(team, at.a, at.v, m, kUnit * kUnit);  // of unit diagonal and positive
  }
  return combine_directions(team, system, k, factored, ridge, tolerance, noise, at, gamma);
}

}  // namespace aadl
