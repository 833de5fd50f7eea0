// Who works on one small problem: a single thread on the CPU, a block of them on a GPU.
//
// Code for a team is run by all members. Member `rank` of `size` does its share of a loop,
//   for (int64_t i = team.rank; i < n; i += team.size),
// and sync() comes before anybody reads what another has written. What all members compute for
// themselves, from the same numbers, is the same for all.
#pragma once

#include <cstdint>

#include "cpu/target.h"

namespace aadl {

struct Alone {
  static constexpr int64_t rank = 0, size = 1;
  AADL_INLINE void sync() const {}
  AADL_INLINE bool all(bool mine) const { return mine; }  // a sync() as well
};

}  // namespace aadl
