// The small least-squares problem on the CPU: see solve.h. Work in cache only, microseconds for
// the usual ten columns, so one thread a problem, and no allocation up to 33.
//
// Many Gram matrices, one a sample, are solved side by side first, a lane each, by Cholesky factors.
// That is enough where all directions count, which the factor proves: with trace m the scaled matrix
// has no eigenvalue above m, and none below 1 / |L^-1|_F^2. Others are diagonalised, side by side too.
#include "../common/solve.h"

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace aadl::cpu {
namespace {

constexpr int64_t kSide = 8;   // problems side by side
constexpr int64_t kMost = 32;  // columns

AADL_TARGETS Directions solve(const Secants& args, int64_t i, double* work) {
  return solve_system(Alone(), args.systems + i * args.k * args.k, args.k, args.factored,
                      args.ridge, args.tolerance,
                      args.noise ? args.noise + i * (args.k - 1) : nullptr, work, args.gamma + i * (args.k - 1));
}

using Side = double[kSide];

// Problems first .. first + count - 1, count <= kSide; solved[l] tells which ones are.
AADL_TARGETS void solve_side_by_side(const Secants& args, int64_t first, int64_t count,
                                     bool* solved) {
  const int64_t k = args.k, m = k - 1;
  Side lower[kMost * kMost], scale[kMost], inverse[kMost], right[kMost], column[kMost];
  Side length, check, error, norm, left, rank, certain;
  for (int64_t l = 0; l < kSide; ++l) {
    length[l] = check[l] = error[l] = norm[l] = rank[l] = 0;
    certain[l] = left[l] = 1;
  }
  for (int64_t l = 0; l < kSide; ++l) {  // lanes that are left over repeat the last problem
    const int64_t problem = first + std::min(l, count - 1);
    const double* system = args.systems + problem * k * k;
    for (int64_t i = 0; i < k * k; ++i) check[l] += 0 * system[i];
    for (int64_t i = 0; i < m; ++i) {
      const double square = system[i * k + i];
      const double noise = args.noise ? args.noise[problem * m + i] : 0;
      const bool counts = square > 0 && square > kFew * kFew * noise;
      scale[i][l] = counts ? 1 / std::sqrt(square) : 0;
      rank[l] += counts;
      if (counts) error[l] = std::max(error[l], noise / square);
      for (int64_t j = 0; j < i; ++j) lower[i * m + j][l] = system[i * k + j];
      right[i][l] = system[i * k + m];
    }
    length[l] = system[m * k + m] > 0 ? std::sqrt(system[m * k + m]) : 0;
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < i; ++j) {
#pragma omp simd
      for (int64_t l = 0; l < kSide; ++l) lower[i * m + j][l] *= scale[i][l] * scale[j][l];
    }
#pragma omp simd
    for (int64_t l = 0; l < kSide; ++l) {
      right[i][l] = length[l] > 0 ? right[i][l] * scale[i][l] / length[l] : 0;
    }
  }
  // L L' = matrix of unit diagonal, also where a column does not count; right becomes L^-1 right.
  for (int64_t j = 0; j < m; ++j) {
    Side sum;
    for (int64_t l = 0; l < kSide; ++l) sum[l] = 1;
    for (int64_t p = 0; p < j; ++p) {
#pragma omp simd
      for (int64_t l = 0; l < kSide; ++l) sum[l] -= lower[j * m + p][l] * lower[j * m + p][l];
    }
#pragma omp simd
    for (int64_t l = 0; l < kSide; ++l) {
      const bool positive = sum[l] > kUnit;
      certain[l] = positive ? certain[l] : 0;
      inverse[j][l] = 1 / std::sqrt(positive ? sum[l] : 1);
      right[j][l] *= inverse[j][l];
      left[l] -= right[j][l] * right[j][l];
    }
    for (int64_t i = j + 1; i < m; ++i) {
      for (int64_t p = 0; p < j; ++p) {
#pragma omp simd
        for (int64_t l = 0; l < kSide; ++l) {
          lower[i * m + j][l] -= lower[i * m + p][l] * lower[j * m + p][l];
        }
      }
#pragma omp simd
      for (int64_t l = 0; l < kSide; ++l) {
        lower[i * m + j][l] *= inverse[j][l];
        right[i][l] -= lower[i * m + j][l] * right[j][l];
      }
    }
  }
  for (int64_t j = 0; j < m; ++j) {  // |L^-1|_F^2, a column at a time
    for (int64_t i = j; i < m; ++i) {
      Side sum;
      for (int64_t l = 0; l < kSide; ++l) sum[l] = i == j;
      for (int64_t p = j; p < i; ++p) {
#pragma omp simd
        for (int64_t l = 0; l < kSide; ++l) sum[l] -= lower[i * m + p][l] * column[p][l];
      }
#pragma omp simd
      for (int64_t l = 0; l < kSide; ++l) {
        column[i][l] = sum[l] * inverse[i][l];
        norm[l] += column[i][l] * column[i][l];
      }
    }
  }
  for (int64_t j = m - 1; j >= 0; --j) {  // right becomes L^-T right
#pragma omp simd
    for (int64_t l = 0; l < kSide; ++l) right[j][l] *= inverse[j][l];
    for (int64_t i = 0; i < j; ++i) {
#pragma omp simd
      for (int64_t l = 0; l < kSide; ++l) right[i][l] -= lower[j * m + i][l] * right[j][l];
    }
  }
  const double floor = std::max(args.tolerance * args.tolerance, 256 * kUnit) * m;
  for (int64_t l = 0; l < count; ++l) {
    const double least = std::max(floor, kFew * kFew * error[l]);
    solved[l] = check[l] == 0 && certain[l] != 0 && norm[l] * least < 1;
    if (!solved[l]) continue;
    const int64_t problem = first + l;
    for (int64_t i = 0; i < m; ++i) {
      args.gamma[problem * m + i] = right[i][l] * scale[i][l] * length[l];
    }
    args.rank[problem] = static_cast<int64_t>(rank[l]);
    args.condition[problem] = kNan;
    args.reduction[problem] = length[l] > 0 && left[l] > 0 ? std::sqrt(left[l]) : 0;
  }
}

// solve.h's, for a problem a lane. Lanes that need a rotation no more are turned by nothing.
AADL_TARGETS void diagonalize_side_by_side(Side* a, Side* v, int64_t size, double least) {
  for (int64_t i = 0; i < size * size; ++i) {
    for (int64_t l = 0; l < kSide; ++l) v[i][l] = i % (size + 1) == 0;
  }
  const auto rotate_rows = [&](Side* x, Side* y, const Side& cosine, const Side& sine) {
    for (int64_t i = 0; i < size; ++i) {
#pragma omp simd
      for (int64_t l = 0; l < kSide; ++l) {
        const double first = x[i][l], second = y[i][l];
        x[i][l] = cosine[l] * first - sine[l] * second;
        y[i][l] = sine[l] * first + cosine[l] * second;
      }
    }
  };
  bool done = false;
  for (int sweep = 0; sweep < kSweeps && !done; ++sweep) {
    done = true;
    for (int64_t p = 0; p + 1 < size; ++p) {
      for (int64_t q = p + 1; q < size; ++q) {
        Side *const x = a + p * size, *const y = a + q * size;
        Side cosine, sine, first, second;
        int turning = 0;
        for (int64_t l = 0; l < kSide; ++l) {
          const bool turns = !counts_as_zero(x[p][l], x[q][l], y[q][l], least);
          const double product = turns ? x[q][l] : 1;
          const Rotation by = rotation(x[p][l], product, y[q][l]);
          cosine[l] = turns ? by.cosine : 1;
          sine[l] = turns ? by.sine : 0;
          first[l] = turns ? x[p][l] - by.tangent * product : x[p][l];
          second[l] = turns ? y[q][l] + by.tangent * product : y[q][l];
          turning += turns;
        }
        if (!turning) continue;
        done = false;
        Side kept;
        std::copy_n(x[q], kSide, kept);
        rotate_rows(x, y, cosine, sine);
        for (int64_t l = 0; l < kSide; ++l) {
          x[p][l] = first[l];
          y[q][l] = second[l];
          x[q][l] = y[p][l] = sine[l] == 0 ? kept[l] : 0;
        }
        for (int64_t i = 0; i < size; ++i) {
          if (i == p || i == q) continue;
          std::copy_n(x[i], kSide, a[i * size + p]);
          std::copy_n(y[i], kSide, a[i * size + q]);
        }
        rotate_rows(v + p * size, v + q * size, cosine, sine);
      }
    }
  }
}

// Those of problems first .. first + count - 1 that are not solved yet.
AADL_TARGETS void solve_rest(const Secants& args, int64_t first, int64_t count, bool* solved,
                             double* work) {
  const int64_t k = args.k, m = k - 1;
  const Work at(work, k);
  std::vector<double> memory(2 * m * m * kSide);
  Side* const a = reinterpret_cast<Side*>(memory.data());
  Side* const v = a + m * m;
  bool finite[kSide];
  const auto noise = [&](int64_t l) {
    return args.noise ? args.noise + (first + l) * m : nullptr;
  };
  for (int64_t l = 0; l < count; ++l) {
    const double* const system = args.systems + (first + l) * k * k;
    finite[l] = !solved[l] && known_lengths(Alone(), system, k, false, noise(l), at.lengths);
    if (!finite[l]) continue;
    scale_gram(Alone(), system, k, at.lengths, at.a);
    for (int64_t i = 0; i < m * m; ++i) a[i][l] = at.a[i];
  }
  diagonalize_side_by_side(a, v, m, kUnit * kUnit);
  for (int64_t l = 0; l < count; ++l) {
    if (!finite[l]) continue;
    const double* const system = args.systems + (first + l) * k * k;
    known_lengths(Alone(), system, k, false, noise(l), at.lengths);
    for (int64_t i = 0; i < m * m; ++i) at.a[i] = a[i][l], at.v[i] = v[i][l];
    const Directions found =
        combine_directions(Alone(), system, k, false, args.ridge, args.tolerance, noise(l), at,
                           args.gamma + (first + l) * m);
    args.rank[first + l] = found.rank;
    args.condition[first + l] = kNan;
    args.reduction[first + l] = found.reduction;
    solved[l] = true;
  }
}

}  // namespace

void solve_secants(const Secants& args, const Threads& threads) {
  const bool quick = !args.conditioned && !args.factored && args.ridge == 0 && args.k <= kMost;
  threads.run((args.problems + kSide - 1) / kSide, [&](int64_t group) {
    constexpr int64_t kSmall = 33;
    double small[2 * kSmall * kSmall + 3 * kSmall];
    std::vector<double> large(args.k > kSmall ? solve_workspace(args.k) : 0);
    const int64_t first = group * kSide, count = std::min(kSide, args.problems - first);
    bool solved[kSide] = {};
    double* const work = args.k > kSmall ? large.data() : small;
    if (quick) solve_side_by_side(args, first, count, solved);
    if (quick && std::count(solved, solved + count, false) > 1) {
      solve_rest(args, first, count, solved, work);
    }
    for (int64_t i = first; i < first + count; ++i) {
      if (solved[i - first]) continue;
      const Directions found = solve(args, i, work);
      args.rank[i] = found.rank;
      args.condition[i] = args.conditioned ? found.condition : kNan;
      args.reduction[i] = found.reduction;
    }
  });
}

}  // namespace aadl::cpu
