// The quadratic through the slopes at several points: see ops.fit_quadratic. One system.
//
// As in subspace.h the span of m displacements is whitened; points and the gradients at them follow
// by summing up along the ring, and the basis turns to where points spread independently. Touches
// about 16 m^3 entries in cache.
#pragma once

#include "records.h"
#include "subspace.h"

namespace aadl {

constexpr double kLeastSpread = 1e-10;  // of points along a direction, squared

// Workspace of one problem; matrices are [m, m].
struct FitWork {
  double *inverse, *middle, *mean, *spread, *slope, *variance;  // [m]
  double *a, *b, *basis, *rows, *points, *turn;

  static AADL_INLINE int64_t size(int64_t m) { return 6 * m * m + 6 * m; }

  AADL_INLINE FitWork(double* work, int64_t m)
      : inverse(work), middle(work + m), mean(work + 2 * m), spread(work + 3 * m),
        slope(work + 4 * m), variance(work + 5 * m), a(work + 6 * m), b(a + m * m),
        basis(b + m * m), rows(basis + m * m), points(rows + m * m), turn(points + m * m) {}
};

// out [m, columns] = left^T right, left [m, m].
template <class Team>
AADL_INLINE void multiply_transposed(const Team& team, const double* left, const double* right,
                                     int64_t m, int64_t columns, double* out) {
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = 0; c < columns; ++c) {
      double dot = 0;
      for (int64_t k = 0; k < m; ++k) dot += left[k * m + i] * right[k * columns + c];
      out[i * columns + c] = dot;
    }
  }
  team.sync();
}

// Rows of `sums`: those of `steps` summed up against time along the ring, from zero at the newest
// point, which is left out; `mean` is that over all points.
template <class Team>
AADL_INLINE void walk_back(const Team& team, const double* steps, int64_t m, int64_t newest,
                           int64_t count, double* sums, double* mean) {
  for (int64_t i = team.rank; i < m; i += team.size) {
    double place = 0, total = 0;
    for (int64_t j = 0; j < count; ++j) {
      place -= steps[i * m + (newest - j + m) % m];
      sums[i * m + j] = place;
      total += place;
    }
    mean[i] = total / static_cast<double>(count + 1);
  }
  team.sync();
}

// out = sum over all points of (x - x_mean) (z - z_mean)^T; x and z are 0 at the newest.
template <class Team>
AADL_INLINE void covariance(const Team& team, const double* x, const double* x_mean,
                            const double* z, const double* z_mean, int64_t m, int64_t count,
                            double* out) {
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = 0; c < m; ++c) {
      double sum = x_mean[i] * z_mean[c];
      for (int64_t j = 0; j < count; ++j) {
        sum += (x[i * m + j] - x_mean[i]) * (z[c * m + j] - z_mean[c]);
      }
      out[i * m + c] = sum;
    }
  }
  team.sync();
}

// `turn` and `spread`, 0 for directions that are left out; returns how many are not. Spoils `a`.
template <class Team>
AADL_INLINE int64_t spread_of_points(const Team& team, int64_t m, int64_t count,
                                     const FitWork& at) {
  covariance(team, at.points, at.middle, at.points, at.middle, m, count, at.a);
  const double largest = scale_to_one(team, at.a, m * m);
  diagonalize(team, at.a, at.turn, m, kUnit * kUnit);  // rows of turn: eigenvectors
  double most = 0;
  for (int64_t i = 0; i < m; ++i) most = std::fmax(most, at.a[i * m + i]);
  int64_t counted = 0;
  for (int64_t i = 0; i < m; ++i) {
    const double value = at.a[i * m + i];
    const bool counts = value > kLeastSpread * most;
    counted += counts;
    if (i % team.size == team.rank) at.spread[i] = counts ? value * largest : 0;
  }
  team.sync();
  return counted;
}

// Mean square of the samples [m, samples] of noise along the directions of `basis`; 0 for none.
template <class Team>
AADL_INLINE double mean_error(const Team& team, const double* noise, int64_t m, int64_t samples,
                              int64_t rank, const FitWork& at) {
  for (int64_t i = team.rank; i < m; i += team.size) {
    at.slope[i] = 0;
    for (int64_t j = 0; j < samples; ++j) {
      double error = 0;
      for (int64_t k = 0; k < m; ++k) error += at.basis[i * m + k] * noise[k * samples + j];
      at.slope[i] += error * error;
    }
  }
  team.sync();
  double sum = 0;
  for (int64_t i = 0; i < m; ++i) sum += at.slope[i];
  team.sync();
  return sum > 0 ? sum / static_cast<double>(rank * samples) : 0;
}

// From `points` and the gradients there in `b`: the Hessian in `a`, `slope` and `variance`, along
// the directions of `turn`; entries whose square is not above `error` times their variance carry no
// gradient. Spoils `b` and `points`.
template <class Team>
AADL_INLINE void least_squares(const Team& team, const double* right_side, int64_t m,
                               int64_t count, double error, const FitWork& at) {
  covariance(team, at.b, at.mean, at.points, at.middle, m, count, at.a);
  multiply(team, at.turn, at.a, m, at.points);
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = 0; c < m; ++c) {
      double dot = 0;
      for (int64_t k = 0; k < m; ++k) dot += at.points[i * m + k] * at.turn[c * m + k];
      at.b[i * m + c] = dot;
    }
    for (int64_t k = 0; k < m; ++k) at.mean[i] += at.basis[i * m + k] * right_side[k];
  }
  team.sync();
  for (int64_t i = team.rank; i < m; i += team.size) {
    double slope = 0, variance = 1 / static_cast<double>(count + 1);
    for (int64_t k = 0; k < m; ++k) {
      const bool used = at.spread[i] > 0 && at.spread[k] > 0;
      const double both = used ? at.spread[i] + at.spread[k] : kInfinity;
      const double stiffness = (at.b[i * m + k] + at.b[k * m + i]) / both;
      const double weight = (i == k ? 2 : 1) / both, square = stiffness * stiffness;
      const double carried = square > error * weight ? 1 - error * weight / square : 0;
      double along = 0;
      for (int64_t c = 0; c < m; ++c) along += at.turn[k * m + c] * at.middle[c];
      slope += at.turn[i * m + k] * at.mean[k] - carried * stiffness * along;
      variance += carried * carried * weight * along * along;
      at.a[i * m + k] = stiffness;
    }
    at.slope[i] = slope;
    at.variance[i] = variance;
  }
  team.sync();
}

// One `problem`; results of one that cannot be fitted are what was given.
template <class Team>
AADL_INLINE void fit_quadratic(const Team& team, const Quadratic& args, int64_t problem,
                               double* work) {
  const int64_t m = args.m, samples = args.samples, count = args.count;
  const double* const metric = args.metric + problem * m * m;
  const double* const curvature = args.curvature + problem * m * m;
  const double* const right_side = args.right_side + problem * m;
  const double* const noise = args.noise + problem * m * samples;
  double* const fitted = args.fitted + problem * m * m;
  double* const slopes = args.slopes + problem * m;
  double* const left = args.left + problem * m * samples;
  const FitWork at(work, m);
  double check = 0;
  const auto take = [&](const double* from, int64_t size, double* to) {
    for (int64_t i = team.rank; i < size; i += team.size) {
      check += 0 * from[i];
      to[i] = from[i];
    }
  };
  take(metric, m * m, at.a), take(curvature, m * m, fitted);
  take(right_side, m, slopes), take(noise, m * samples, left);
  inverse_lengths(team, metric, m, at.inverse);
  for (int64_t i = team.rank; i < m; i += team.size) {
    if ((args.newest - i + m) % m < count && at.inverse[i] == 0) check = kNan;
  }
  if (!team.all(check == 0) || count == 0) return;
  const int64_t rank = whiten_span(team, metric, at.inverse, m, args.ridge, at.a, at.basis);
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = 0; c < m; ++c) at.basis[i * m + c] *= at.inverse[c];
  }
  team.sync();
  multiply(team, at.basis, metric, m, at.rows);
  multiply(team, at.basis, curvature, m, at.a);
  walk_back(team, at.rows, m, args.newest, count, at.points, at.middle);
  walk_back(team, at.a, m, args.newest, count, at.b, at.mean);
  if (spread_of_points(team, m, count, at) != rank) return;
  const double error = args.shrinkage * mean_error(team, noise, m, samples, rank, at);
  least_squares(team, right_side, m, count, error, at);

  double* const back = at.points;  // to products with W: W in the basis, turned
  multiply(team, at.turn, at.rows, m, back);
  multiply(team, at.a, back, m, at.rows);
  multiply_transposed(team, back, at.rows, m, m, fitted);
  multiply_transposed(team, back, at.slope, m, 1, slopes);
  multiply(team, at.turn, at.basis, m, at.rows);
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t c = 0; c < m; ++c) at.rows[i * m + c] *= std::sqrt(at.variance[i]);
  }
  team.sync();
  multiply_transposed(team, back, at.rows, m, m, at.a);
  for (int64_t i = team.rank; i < m; i += team.size) {
    for (int64_t j = 0; j < samples; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < m; ++k) sum += at.a[i * m + k] * noise[k * samples + j];
      left[i * samples + j] = sum;
    }
  }
}

}  // namespace aadl
