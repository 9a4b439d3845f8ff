// What a training step does beside its matrix products, in one pass over memory each. For CPUs; library.py compiles it.
// A value is computed in float, whatever type it is kept in.
//
// Legend: R rows, D width. Sums are made of parts, one a block of rows or values: so they are the same for any number
// of threads.
#include "numbers.h"
#include <numeric>
#include <vector>

namespace {

constexpr long block_rows = 32, block_values = 16384;

inline long blocks_of(long n, long size) { return (n + size - 1) / size; }
inline long end_of(long block, long n, long size) { return n < (block + 1) * size ? n : (block + 1) * size; }

// All rows, block after block of them.
template <typename Body> inline void for_rows(long rows, Body body) {
#pragma omp parallel for schedule(static)
  for (long block = 0; block < blocks_of(rows, block_rows); ++block)
    for (long row = block * block_rows; row < end_of(block, rows, block_rows); ++row)
      body(row, block);
}

// Sums over rows while they are made: a block of rows adds to `part(block)`, and `sum` adds up what all blocks have.
class RowSums {
public:
  RowSums(long rows, long width) : width_(width), parts_(size_t(blocks_of(rows, block_rows) * width)) {}
  float *part(long block) { return parts_.data() + block * width_; }
  void sum(float *to) const {
    std::memset(to, 0, size_t(width_) * sizeof(float));
    for (const float *part = parts_.data(), *end = part + parts_.size(); part < end; part += width_)
#pragma omp simd
      for (long i = 0; i < width_; ++i)
        to[i] += part[i];
  }

private:
  long width_;
  std::vector<float> parts_;
};

template <typename T> void gated_gelu(const T *inner, T *out, long rows, long width) {
#pragma omp parallel for schedule(static)
  for (long row = 0; row < rows; ++row) {
    const T *values = inner + 2 * row * width, *gates = values + width;
    T *to = out + row * width;
#pragma omp simd
    for (long i = 0; i < width; ++i) {
      const float gate = load(gates[i]);
      store(to[i], load(values[i]) * gate * distribution(gate, bell(gate)));
    }
  }
}

template <typename T> void gated_gelu_gradient(const T *inner, const T *gradient, T *of_inner, long rows, long width) {
  constexpr float density_of_0 = 0.398942280f;
#pragma omp parallel for schedule(static)
  for (long row = 0; row < rows; ++row) {
    const T *values = inner + 2 * row * width, *gates = values + width, *of_out = gradient + row * width;
    T *of_values = of_inner + 2 * row * width, *of_gates = of_values + width;
#pragma omp simd
    for (long i = 0; i < width; ++i) {
      const float gate = load(gates[i]), height = bell(gate), share = distribution(gate, height);
      const float of = load(of_out[i]);
      store(of_values[i], of * gate * share);
      store(of_gates[i], of * load(values[i]) * (share + gate * density_of_0 * height));
    }
  }
}

// Beside the normalised rows, each one's mean and the inverse of its deviation: (R, 2).
template <typename T>
void layer_norm(const float *x, const float *weight, const float *bias, T *out, float *moments, long rows, long width,
                float epsilon) {
#pragma omp parallel for schedule(static)
  for (long row = 0; row < rows; ++row) {
    const float *from = x + row * width;
    T *to = out + row * width;
    float sum = 0.f, squares = 0.f;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < width; ++i)
      sum += from[i];
    const float mean = sum / float(width);
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < width; ++i)
      squares += (from[i] - mean) * (from[i] - mean);
    const float scale = 1.f / std::sqrt(squares / float(width) + epsilon);
#pragma omp simd
    for (long i = 0; i < width; ++i)
      store(to[i], (from[i] - mean) * scale * weight[i] + bias[i]);
    moments[2 * row] = mean;
    moments[2 * row + 1] = scale;
  }
}

template <typename T>
void layer_norm_gradient(const T *gradient, const float *x, const float *weight, const float *moments, float *of_x,
                         float *of_weight, float *of_bias, long rows, long width) {
  RowSums of_weights(rows, width), of_biases(rows, width);
  for_rows(rows, [&](long row, long block) {
    float *weight_sums = of_weights.part(block), *bias_sums = of_biases.part(block);
    const T *of_out = gradient + row * width;
    const float *from = x + row * width;
    float *to = of_x + row * width;
    const float mean = moments[2 * row], scale = moments[2 * row + 1];
    float sum = 0.f, along = 0.f;
#pragma omp simd reduction(+ : sum, along)
    for (long i = 0; i < width; ++i) {
      const float of = load(of_out[i]), normal = (from[i] - mean) * scale;
      weight_sums[i] += of * normal;
      bias_sums[i] += of;
      sum += of * weight[i];
      along += of * weight[i] * normal;
    }
    const float shift = sum / float(width), slope = along / float(width);
#pragma omp simd
    for (long i = 0; i < width; ++i)
      to[i] = scale * (load(of_out[i]) * weight[i] - shift - (from[i] - mean) * scale * slope);
  });
  of_weights.sum(of_weight);
  of_biases.sum(of_bias);
}

template <typename T>
void add_scaled(const float *x, const T *branch, const float *scale, float *out, long rows, long width) {
#pragma omp parallel for schedule(static)
  for (long row = 0; row < rows; ++row)
#pragma omp simd
    for (long i = 0; i < width; ++i)
      out[row * width + i] = x[row * width + i] + load(branch[row * width + i]) * scale[i];
}

template <typename T>
void add_scaled_gradient(const float *gradient, const T *branch, const float *scale, T *of_branch, float *of_scale,
                         long rows, long width) {
  RowSums of_scales(rows, width);
  for_rows(rows, [&](long row, long block) {
    float *sums = of_scales.part(block);
#pragma omp simd
    for (long i = 0; i < width; ++i) {
      const float of = gradient[row * width + i];
      sums[i] += of * load(branch[row * width + i]);
      store(of_branch[row * width + i], of * scale[i]);
    }
  });
  of_scales.sum(of_scale);
}

template <typename T> void sum_over_rows(const T *values, float *sum, long rows, long width) {
  RowSums sums(rows, width);
  for_rows(rows, [&](long row, long block) {
    float *to = sums.part(block);
#pragma omp simd
    for (long i = 0; i < width; ++i)
      to[i] += load(values[row * width + i]);
  });
  sums.sum(sum);
}

// Values (n,) as float, filled up to whole vectors.
template <typename T> inline long load_padded(const T *from, float *to, long n, float filling) {
  const long whole = n / lanes * lanes, end = whole == n ? n : whole + lanes;
  for (long start = 0; start < whole; start += lanes)
    for (long i = 0; i < lanes; ++i)
      to[start + i] = load(from[start + i]);
  for (long i = whole; i < end; ++i)
    to[i] = i < n ? load(from[i]) : filling;
  return end;
}

template <typename T> inline void store_scaled(T *to, const float *from, float factor, long n) {
  const long whole = n / lanes * lanes;
  for (long start = 0; start < whole; start += lanes)
    for (long i = 0; i < lanes; ++i)
      store(to[start + i], from[start + i] * factor);
  for (long i = whole; i < n; ++i)
    store(to[i], from[i] * factor);
}

// Scores become weights: row r of `scores` sees its first r % width + 1 columns, and all of row r of `before`, (R, S).
template <typename T> void causal_softmax(T *before, T *scores, long rows, long before_width, long width, float scale) {
#pragma omp parallel
  {
    std::vector<float> all(size_t(before_width + width + 2 * lanes));
    float *powers = all.data();
#pragma omp for schedule(static)
    for (long row = 0; row < rows; ++row) {
      T *first = before + row * before_width, *second = scores + row * width;
      const long seen = row % width + 1;
      const long split = load_padded(first, powers, before_width, -INFINITY);
      const long end = split + load_padded(second, powers + split, seen, -INFINITY);
      const float sum = exponentiate(powers, end, scale);
      store_scaled(first, powers, 1.f / sum, before_width);
      store_scaled(second, powers + split, 1.f / sum, seen);
      std::memset(second + seen, 0, size_t(width - seen) * sizeof(T));
    }
  }
}

// Gradients of the weights become those of the scores.
template <typename T>
void causal_softmax_gradient(const T *before, const T *weights, T *of_before, T *of_weights, long rows,
                             long before_width, long width, float scale) {
#pragma omp parallel
  {
    std::vector<float> all(size_t(2 * (before_width + width + 2 * lanes)));
    float *given = all.data(), *of_given = given + before_width + width + 2 * lanes;
#pragma omp for schedule(static)
    for (long row = 0; row < rows; ++row) {
      T *of_first = of_before + row * before_width, *of_second = of_weights + row * width;
      const long seen = row % width + 1;
      const long split = load_padded(before + row * before_width, given, before_width, 0.f);
      const long end = split + load_padded(weights + row * width, given + split, seen, 0.f);
      load_padded(of_first, of_given, before_width, 0.f);
      load_padded(of_second, of_given + split, seen, 0.f);
      float sum = 0.f;
#pragma omp simd reduction(+ : sum)
      for (long i = 0; i < end; ++i)
        sum += given[i] * of_given[i];
#pragma omp simd
      for (long i = 0; i < end; ++i)
        of_given[i] = given[i] * (of_given[i] - sum);
      store_scaled(of_first, of_given, scale, before_width);
      store_scaled(of_second, of_given + split, scale, seen);
      std::memset(of_second + seen, 0, size_t(width - seen) * sizeof(T));
    }
  }
}

template <typename T> void sum_of_squares(const T *values, double *sum, long n) {
  std::vector<float> parts(size_t(blocks_of(n, block_values)));
#pragma omp parallel for schedule(static)
  for (long block = 0; block < blocks_of(n, block_values); ++block) {
    float part = 0.f;
#pragma omp simd reduction(+ : part)
    for (long i = block * block_values; i < end_of(block, n, block_values); ++i)
      part += load(values[i]) * load(values[i]);
    parts[size_t(block)] = part;
  }
  *sum = std::accumulate(parts.begin(), parts.end(), 0.0);
}

// Adam's update of n weights, and of their copy if there is one. The gradient is multiplied by `factor`, and `decay`
// times the weight added to it; the weight is shrunk by `shrink`; `deviation` corrects the root of the second moment.
template <typename T>
void adam(float *weights, const T *gradient, float *first, float *second, BFloat16 *copy, long n, float factor,
          float decay, float shrink, float beta1, float beta2, float step, float deviation, float epsilon) {
#pragma omp parallel for schedule(static)
  for (long block = 0; block < blocks_of(n, block_values); ++block) {
    const long start = block * block_values, end = end_of(block, n, block_values);
#pragma omp simd
    for (long i = start; i < end; ++i) {
      const float of = load(gradient[i]) * factor + decay * weights[i];
      first[i] += (of - first[i]) * (1.f - beta1);
      second[i] = second[i] * beta2 + of * of * (1.f - beta2);
      weights[i] = weights[i] * shrink - step * first[i] / (std::sqrt(second[i]) * deviation + epsilon);
    }
    if (copy)
#pragma omp simd
      for (long i = start; i < end; ++i)
        store(copy[i], weights[i]);
  }
}

} // namespace

// The kernels by name and type, for ctypes.
#define FOR_TYPE(T, name)                                                                                              \
  void gated_gelu_##name(const T *inner, T *out, long rows, long width) { gated_gelu(inner, out, rows, width); }       \
  void gated_gelu_gradient_##name(const T *inner, const T *gradient, T *of_inner, long rows, long width) {             \
    gated_gelu_gradient(inner, gradient, of_inner, rows, width);                                                       \
  }                                                                                                                    \
  void layer_norm_##name(const float *x, const float *weight, const float *bias, T *out, float *moments, long rows,    \
                         long width, float epsilon) {                                                                  \
    layer_norm(x, weight, bias, out, moments, rows, width, epsilon);                                                   \
  }                                                                                                                    \
  void layer_norm_gradient_##name(const T *gradient, const float *x, const float *weight, const float *moments,        \
                                  float *of_x, float *of_weight, float *of_bias, long rows, long width) {              \
    layer_norm_gradient(gradient, x, weight, moments, of_x, of_weight, of_bias, rows, width);                          \
  }                                                                                                                    \
  void add_scaled_##name(const float *x, const T *branch, const float *scale, float *out, long rows, long width) {     \
    add_scaled(x, branch, scale, out, rows, width);                                                                    \
  }                                                                                                                    \
  void add_scaled_gradient_##name(const float *gradient, const T *branch, const float *scale, T *of_branch,            \
                                  float *of_scale, long rows, long width) {                                            \
    add_scaled_gradient(gradient, branch, scale, of_branch, of_scale, rows, width);                                    \
  }                                                                                                                    \
  void sum_over_rows_##name(const T *values, float *sum, long rows, long width) {                                      \
    sum_over_rows(values, sum, rows, width);                                                                           \
  }                                                                                                                    \
  void causal_softmax_##name(T *before, T *scores, long rows, long before_width, long width, float scale) {            \
    causal_softmax(before, scores, rows, before_width, width, scale);                                                  \
  }                                                                                                                    \
  void causal_softmax_gradient_##name(const T *before, const T *weights, T *of_before, T *of_weights, long rows,       \
                                      long before_width, long width, float scale) {                                    \
    causal_softmax_gradient(before, weights, of_before, of_weights, rows, before_width, width, scale);                 \
  }                                                                                                                    \
  void sum_of_squares_##name(const T *values, double *sum, long n) { sum_of_squares(values, sum, n); }                 \
  void adam_##name(float *weights, const T *gradient, float *first, float *second, BFloat16 *copy, long n,             \
                   float factor, float decay, float shrink, float beta1, float beta2, float step, float deviation,     \
                   float epsilon) {                                                                                    \
    adam(weights, gradient, first, second, copy, n, factor, decay, shrink, beta1, beta2, step, deviation, epsilon);    \
  }

extern "C" {
FOR_TYPE(float, float32)
FOR_TYPE(BFloat16, bfloat16)
}
