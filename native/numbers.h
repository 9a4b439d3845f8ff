// Numbers of either type that kernels keep, and the functions of them that several kernels compute.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct BFloat16 {
  uint16_t bits;
};

template <typename To, typename From> inline To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float load(float value) { return value; }
inline float load(BFloat16 value) { return reinterpret<float>(uint32_t(value.bits) << 16); }
inline void store(float &to, float value) { to = value; }
inline void store(BFloat16 &to, float value) { // to the nearest, or the even one of two
  const uint32_t bits = reinterpret<uint32_t>(value);
  to.bits = value == value ? uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16) : uint16_t(0x7fc0u);
}

constexpr long lanes = 16; // floats of the widest vectors

// exp(x) for x <= 0, by Cephes' polynomial for |rest| <= log(2) / 2.
inline float exp_of_negative(float x) {
  constexpr float round_up = 12582912.f; // 1.5 * 2^23: a sum with it has no fraction
  x = x < -87.f ? -87.f : x;
  const float sum = x * 1.44269504f + round_up;
  const float powers = sum - round_up;
  const float rest = x - powers * 0.693359375f + powers * 2.12194440e-4f;
  float series = 1.9875691500e-4f;
  series = series * rest + 1.3981999507e-3f;
  series = series * rest + 8.3334519073e-3f;
  series = series * rest + 4.1665795894e-2f;
  series = series * rest + 1.6666665459e-1f;
  series = series * rest + 5.0000001201e-1f;
  return (series * rest * rest + rest + 1.f) * reinterpret<float>((reinterpret<uint32_t>(sum) + 127u) << 23);
}

// Scores become exp(scale * (score - highest)), which a softmax divides by their sum.
inline float exponentiate(float *scores, long n, float scale) {
  float highest = -INFINITY, sum = 0.f;
#pragma omp simd reduction(max : highest)
  for (long i = 0; i < n; ++i)
    highest = scores[i] > highest ? scores[i] : highest;
#pragma omp simd reduction(+ : sum)
  for (long i = 0; i < n; ++i) {
    scores[i] = exp_of_negative((scores[i] - highest) * scale);
    sum += scores[i];
  }
  return sum;
}

// exp(-x * x / 2), from which both the normal distribution and its density are made.
inline float bell(float x) { return exp_of_negative(-0.5f * x * x); }

// The normal distribution at x (Abramowitz and Stegun, 7.1.26; off by 8e-8 at most).
inline float distribution(float x, float bell_of_x) {
  const float t = 1.f / (1.f + 0.3275911f * 0.707106781f * std::fabs(x));
  float series = 1.061405429f;
  series = series * t - 1.453152027f;
  series = series * t + 1.421413741f;
  series = series * t - 0.284496736f;
  series = series * t + 0.254829592f;
  const float tail = 0.5f * series * t * bell_of_x;
  return x < 0.f ? tail : 1.f - tail;
}
