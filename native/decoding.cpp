// What a decoder computes at one position: products of a few rows with weights, each of which is read once, and
// attention from one query. For CPUs; library.py compiles it.
//
// Weights lie in panels: of 16 outputs each, input after input, so that a thread reads its share of memory from end to
// end. What is computed is the same for any number of threads and of rows.
//
// Legend: R rows, M inputs, N outputs, P panels (N / 16, rounded up), H heads, K head width.
#include "numbers.h"
#include <vector>

namespace {

constexpr long most_rows = 4; // whose sums registers hold

#if defined(__AVX512F__)
constexpr long vector_width = 16;
#elif defined(__AVX__)
constexpr long vector_width = 8;
#else
constexpr long vector_width = 4;
#endif
typedef float Vector __attribute__((vector_size(vector_width * sizeof(float))));

template <typename T> inline Vector load_vector(const T *from) {
  Vector values;
  for (long i = 0; i < vector_width; ++i)
    values[i] = load(from[i]);
  return values;
}

// Products of a panel with some rows: (rows, 16).
template <long rows, typename T> inline void multiply_panel(const T *panel, const float *x, long inputs, float *out) {
  constexpr long vectors = lanes / vector_width;
  constexpr long steps = vectors == 1 ? 2 : 1; // inputs at a time: a sum alone would wait for its last addition
  Vector sums[rows][steps][vectors] = {};
  long i = 0;
  for (; i + steps <= inputs; i += steps)
#pragma GCC unroll 2
    for (long step = 0; step < steps; ++step)
#pragma GCC unroll 4
      for (long vector = 0; vector < vectors; ++vector) {
        const Vector weights = load_vector(panel + (i + step) * lanes + vector * vector_width);
#pragma GCC unroll 4
        for (long row = 0; row < rows; ++row)
          sums[row][step][vector] += weights * x[row * inputs + i + step];
      }
  for (; i < inputs; ++i)
    for (long vector = 0; vector < vectors; ++vector)
      for (long row = 0; row < rows; ++row)
        sums[row][0][vector] += load_vector(panel + i * lanes + vector * vector_width) * x[row * inputs + i];
  for (long row = 0; row < rows; ++row)
    for (long vector = 0; vector < vectors; ++vector) {
      const Vector sum = steps == 1 ? sums[row][0][vector] : sums[row][0][vector] + sums[row][steps - 1][vector];
      std::memcpy(out + row * lanes + vector * vector_width, &sum, sizeof(sum));
    }
}

template <typename T> inline void multiply_panel(const T *panel, const float *x, long inputs, float *out, long rows) {
  switch (rows) {
  case 1:
    return multiply_panel<1>(panel, x, inputs, out);
  case 2:
    return multiply_panel<2>(panel, x, inputs, out);
  case 3:
    return multiply_panel<3>(panel, x, inputs, out);
  default:
    return multiply_panel<most_rows>(panel, x, inputs, out);
  }
}

// All products, panel after panel and a few rows at a time: `use(row, output, product)`, where `product(set)` is that
// with the weights of a set (sets, P, M, 16).
template <long sets, typename T, typename Use>
inline void multiply_panels(const T *weights, const float *x, long rows, long inputs, long outputs, Use use) {
  const long panels = (outputs + lanes - 1) / lanes;
#pragma omp parallel for schedule(static)
  for (long panel = 0; panel < panels; ++panel)
    for (long start = 0; start < rows; start += most_rows) {
      const long count = rows - start < most_rows ? rows - start : most_rows;
      float products[sets][most_rows * lanes];
      for (long set = 0; set < sets; ++set)
        multiply_panel(weights + (set * panels + panel) * inputs * lanes, x + start * inputs, inputs, products[set],
                       count);
      const long first = panel * lanes, end = first + lanes < outputs ? first + lanes : outputs;
      for (long row = 0; row < count; ++row)
        for (long i = first; i < end; ++i)
          use(start + row, i, [&](long set) { return products[set][row * lanes + i - first]; });
    }
}

inline float at(const float *bias, long i) { return bias ? bias[i] : 0.f; }

// x (R, M) times weights in panels (P, M, 16), and a bias (N,) if there is one: (R, N).
template <typename T>
void multiply(const T *weights, const float *bias, long rows, long inputs, long outputs, const float *x, float *out) {
  multiply_panels<1>(weights, x, rows, inputs, outputs,
                     [&](long row, long i, auto product) { out[row * outputs + i] = product(0) + at(bias, i); });
}

// Half of such products times the GELU of the other half: weights (2, P, M, 16), bias (2 N,), result (R, N).
template <typename T>
void multiply_gated(const T *weights, const float *bias, long rows, long inputs, long outputs, const float *x,
                    float *out) {
  multiply_panels<2>(weights, x, rows, inputs, outputs, [&](long row, long i, auto product) {
    const float value = product(0) + at(bias, i), gate = product(1) + at(bias ? bias + outputs : bias, i);
    out[row * outputs + i] = value * gate * distribution(gate, bell(gate));
  });
}

// `before` (R, N) and such products times `scale` (N,): (R, N).
template <typename T>
void multiply_added(const T *weights, const float *bias, long rows, long inputs, long outputs, const float *scale,
                    const float *before, const float *x, float *out) {
  multiply_panels<1>(weights, x, rows, inputs, outputs, [&](long row, long i, auto product) {
    out[row * outputs + i] = before[row * outputs + i] + (product(0) + at(bias, i)) * scale[i];
  });
}

// The first channels of a head (K,) turned, neighbours by an angle of theirs.
inline void turn(float *head, const float *cosines, const float *sines, long turning) {
  for (long i = 0; i + 1 < turning; i += 2) {
    const float even = head[i], odd = head[i + 1];
    head[i] = even * cosines[i] - odd * sines[i];
    head[i + 1] = odd * cosines[i + 1] + even * sines[i + 1];
  }
}

template <typename T> inline float dot(const float *x, const T *y, long n) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (long i = 0; i < n; ++i)
    sum += x[i] * load(y[i]);
  return sum;
}

// The keys and values of a head, as rows of two buffers: the first `begun` of one, and those of the other that `chosen`
// names.
template <typename T> struct Seen {
  const T *first, *second;
  const int64_t *chosen;
  long begun, count, width;
  const T *row(long i) const { return i < begun ? first + i * width : second + chosen[i - begun] * width; }
};

// Attention from a position to those before it and itself.
//
// Keys and values lie in a window (R, 2, H, places, K) and, if `chosen` is given, in pixels (R, 2, H, pixels, K). The
// position's own, of qkv (R, 3, H, K), are stored at `place` of the latter, or else the former, when all three have
// been turned by angles of which cosines and sines are given. It looks at the first `begun` places of the window and at
// the pixels that `chosen` names. The result is (R, H, K).
template <typename T>
void attend(T *window, T *pixels, long rows, long heads, long places, long image_len, long width, long turning,
            const float *cosines, const float *sines, const float *qkv, long place, long begun, const int64_t *chosen,
            long chosen_count, float *out) {
  const long count = begun + chosen_count;
  const float scale = 1.f / std::sqrt(float(width));
#pragma omp parallel
  {
    std::vector<float> scratch(size_t(3 * width + count));
    float *query = scratch.data(), *key = query + width, *value = key + width, *weights = value + width;
#pragma omp for schedule(static)
    for (long task = 0; task < rows * heads; ++task) {
      const long row = task / heads, head = task % heads;
      for (long part = 0; part < 3; ++part) {
        std::memcpy(query + part * width, qkv + ((3 * row + part) * heads + head) * width,
                    size_t(width) * sizeof(float));
        turn(query + part * width, cosines, sines, turning);
      }
      T *in_window[2], *in_pixels[2];
      for (long part = 0; part < 2; ++part) {
        in_window[part] = window + ((2 * row + part) * heads + head) * places * width;
        in_pixels[part] = pixels + ((2 * row + part) * heads + head) * image_len * width;
        T *own = (chosen ? in_pixels[part] : in_window[part]) + place * width;
        for (long i = 0; i < width; ++i)
          store(own[i], key[part * width + i]);
      }
      const Seen<T> keys{in_window[0], in_pixels[0], chosen, begun, count, width};
      const Seen<T> values{in_window[1], in_pixels[1], chosen, begun, count, width};
      for (long i = 0; i < count; ++i)
        weights[i] = dot(query, keys.row(i), width);
      const float sum = exponentiate(weights, count, scale);
      float *to = out + task * width;
      std::memset(to, 0, size_t(width) * sizeof(float));
      for (long i = 0; i < count; ++i) {
        const T *from = values.row(i);
#pragma omp simd
        for (long channel = 0; channel < width; ++channel)
          to[channel] += weights[i] / sum * load(from[channel]);
      }
    }
  }
}

} // namespace

// The kernels by name and type, for ctypes.
#define FOR_TYPE(T, name)                                                                                              \
  void multiply_##name(const T *weights, const float *bias, long rows, long inputs, long outputs, const float *x,      \
                       float *out) {                                                                                   \
    multiply(weights, bias, rows, inputs, outputs, x, out);                                                            \
  }                                                                                                                    \
  void multiply_gated_##name(const T *weights, const float *bias, long rows, long inputs, long outputs,                \
                             const float *x, float *out) {                                                             \
    multiply_gated(weights, bias, rows, inputs, outputs, x, out);                                                      \
  }                                                                                                                    \
  void multiply_added_##name(const T *weights, const float *bias, long rows, long inputs, long outputs,                \
                             const float *scale, const float *before, const float *x, float *out) {                    \
    multiply_added(weights, bias, rows, inputs, outputs, scale, before, x, out);                                       \
  }                                                                                                                    \
  void attend_##name(T *window, T *pixels, long rows, long heads, long places, long image_len, long width,             \
                     long turning, const float *cosines, const float *sines, const float *qkv, long place, long begun, \
                     const int64_t *chosen, long chosen_count, float *out) {                                           \
    attend(window, pixels, rows, heads, places, image_len, width, turning, cosines, sines, qkv, place, begun, chosen,  \
           chosen_count, out);                                                                                         \
  }

extern "C" {
FOR_TYPE(float, float32)
FOR_TYPE(BFloat16, bfloat16)
}
