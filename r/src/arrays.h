// R's arrays, which lie by columns and are double, and the engine's, whose features lie side by
// side.
#pragma once

#include <algorithm>

#include "engine/engine.h"

namespace elman {

// An R array (first, second, features), and by how many rows of features its first two axes step in
// the engine's memory.
struct Layout {
  index first, second, features;
  index first_step, second_step;

  index size() const { return first * second * features; }

  // Calls visit(place in R's array, place in the engine's) for every value, in blocks that the
  // cache holds, whichever of the two it walks along.
  template <class Visit>
  void for_each(const Visit& visit) const {
    if (first == 1) return for_each_of(second, second_step, 1, 0, visit);
    for_each_of(first, first_step, second, second_step, visit);
  }

 private:
  template <class Visit>
  void for_each_of(index rows, index row_step, index groups, index group_step,
                   const Visit& visit) const {
    constexpr index kRows = 8, kFeatures = 16;
    const index plane = rows * groups;
    for (index g = 0; g < groups; ++g) {
      for (index r0 = 0; r0 < rows; r0 += kRows) {
        const index r1 = std::min(r0 + kRows, rows);
        for (index f0 = 0; f0 < features; f0 += kFeatures) {
          const index f1 = std::min(f0 + kFeatures, features);
          for (index r = r0; r < r1; ++r) {
            const index row = (r * row_step + g * group_step) * features;
            for (index f = f0; f < f1; ++f) visit(r + rows * g + plane * f, row + f);
          }
        }
      }
    }
  }
};

template <class T>
void from_r(const Layout& layout, const double* from, T* to) {
  layout.for_each([=](index r, index ours) { to[ours] = static_cast<T>(from[r]); });
}

template <class T>
void to_r(const Layout& layout, const T* from, double* to) {
  layout.for_each([=](index r, index ours) { to[r] = from[ours]; });
}

}  // namespace elman
