// The verdict over a sample of a batch of fixed points: ops/judge_fixed_points.py has the words.
#pragma once

#include <cstdint>

#include "target.h"

namespace aadl {

struct FixedPoints {
  enum Status : uint8_t { kRunning, kConverged, kDiverged, kStagnated };

  // [count] each, but for those of several rows.
  const double* norm;
  const double* size;
  const bool* sound;
  double* residuals;  // [3, count] least, stored, mark
  int64_t* counts;    // [2, count] since, steps
  uint8_t* status;
  bool* flags;  // [2, count] held, extrapolated
  bool* moves;  // [3, count] lost, back, ended
  int64_t count;
  double tol, abs_tol, progress;
  int64_t patience;
  bool compares, stores;

  AADL_INLINE void judge(int64_t i) const {
    double &least = residuals[i], &stored = residuals[count + i], &mark = residuals[2 * count + i];
    int64_t &since = counts[i], &steps = counts[count + i];
    bool &held = flags[i], extrapolated = flags[count + i];
    const double r = norm[i];
    const bool is = sound[i], running = status[i] == kRunning;
    const bool done = running && is && r <= abs_tol + tol * size[i];
    const bool nearer = is && (!compares || r < stored);
    const bool back = running && extrapolated && !nearer && !done;
    const bool better = running && is && r < least;
    const bool keeps = held && (!running || back) && !better;
    moves[i] = stores ? held && !keeps && !better : better;
    held = stores ? better || keeps : held && !better;
    if (better) least = r;
    const bool progressed = is && r < progress * mark;
    if (progressed) mark = r;
    since = progressed ? 0 : since + 1;
    steps += running;
    if (running) {
      if (since >= patience) status[i] = kStagnated;
      if (done) status[i] = kConverged;
      if (!is && !back) status[i] = kDiverged;
    }
    moves[count + i] = back;
    moves[2 * count + i] = running && status[i] != kRunning;
    if (stores && status[i] == kRunning && !back) stored = r;
  }
};

}  // namespace aadl
