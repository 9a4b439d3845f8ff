/// IEEE 754 binary16, carried in float: values of its grid.
#ifndef HOST_HALF_HPP
#define HOST_HALF_HPP

#include <cmath>
#include <cstdint>
#include <cstring>

namespace host {

constexpr float largestHalf = 65504.0F;

/// The value of the binary16 grid nearest to `x`, ties to even; infinity beyond its largest one; NaN stays.
inline float roundToHalf(float x) {
  constexpr float smallestNormal = 1.0F / (1 << 14), firstBeyond = 65520.0F;
  const float magnitude = std::fabs(x);
  if (std::isnan(x))
    return x;
  if (magnitude >= firstBeyond)
    return std::copysign(INFINITY, x);
  if (magnitude < smallestNormal) {
    // One distance for all of them: that of floats beginning at this shift, which rounds in their place.
    constexpr float shift = 0.5F;
    return std::copysign((magnitude + shift) - shift, x);
  }
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  constexpr std::uint32_t dropped = 13; // of float's 23 bits of mantissa binary16 keeps 10
  constexpr std::uint32_t belowHalf = (1U << (dropped - 1)) - 1;
  bits += belowHalf + ((bits >> dropped) & 1U);
  bits &= ~((1U << dropped) - 1);
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

} // namespace host

#endif
