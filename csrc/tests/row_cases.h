// Pairs of rows of logits in memory of the emulated GPU, and their losses and gradients in double.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "../ops/numbers.h"
#include "../ops/rows.h"

namespace cases {

using plantops::Rows;
using plantops::Scalar;
using Row = std::vector<double>;

inline int failures = 0;
inline const char* running = "";

inline void expect(bool holds, const char* what, int64_t row, int64_t column, double got, double expected) {
  if (holds) return;
  if (++failures < 20)
    std::fprintf(stderr, "%s: %s[%ld, %ld]: expected %.9g, got %.9g\n", running, what, long(row), long(column),
                 expected, got);
}

inline void expect_close(
    const char* what, int64_t row, int64_t column, double got, double expected, double relative, double absolute) {
  const bool same = (std::isnan(got) && std::isnan(expected)) || got == expected;
  const bool close = std::abs(got - expected) <= relative * std::abs(expected) + absolute;
  expect(same || close, what, row, column, got, expected);
}

inline size_t size_of(Scalar type) { return type == Scalar::f64 ? 8 : type == Scalar::f32 ? 4 : 2; }

inline double read(const void* data, Scalar type, int64_t i) {
  using namespace plantops;
  switch (type) {
    case Scalar::f64: return static_cast<const double*>(data)[i];
    case Scalar::f32: return static_cast<const float*>(data)[i];
    case Scalar::bf16: return widen(static_cast<const Bfloat16*>(data)[i]);
    default: return widen(static_cast<const Float16*>(data)[i]);
  }
}

inline void write(void* data, Scalar type, int64_t i, double value) {
  using namespace plantops;
  switch (type) {
    case Scalar::f64: static_cast<double*>(data)[i] = value; break;
    case Scalar::f32: static_cast<float*>(data)[i] = float(value); break;
    case Scalar::bf16: narrow(float(value), static_cast<Bfloat16*>(data)[i]); break;
    default: narrow(float(value), static_cast<Float16*>(data)[i]);
  }
}

// A matrix whose first value lies `offset` values behind a 16-byte boundary, with a pattern before and behind it that
// a kernel must leave alone.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, Scalar type, int64_t offset = 0, int64_t row_gap = 0, int64_t column_stride = 1)
      : rows_(rows), columns_(columns), type_(type), row_stride_(columns * column_stride + row_gap),
        column_stride_(column_stride), offset_(offset),
        memory_((bytes() + size_t(offset) * size_of(type) + 15) / 16 + 2, {{kFill, kFill, kFill, kFill}}) {}

  void* data() { return reinterpret_cast<char*>(memory_.data() + 1) + offset_ * int64_t(size_of(type_)); }
  double at(int64_t row, int64_t column = 0) {
    return read(data(), type_, row * row_stride_ + column * column_stride_);
  }
  void set(int64_t row, int64_t column, double value) {
    write(data(), type_, row * row_stride_ + column * column_stride_, value);
  }
  void fill(std::mt19937& random, double spread, double shift) {
    std::normal_distribution<double> normal(shift, spread);
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < columns_; ++c) set(r, c, normal(random));
  }
  Row row(int64_t r) {
    Row values;
    for (int64_t c = 0; c < columns_; ++c) values.push_back(at(r, c));
    return values;
  }
  Rows view() { return {data(), row_stride_, column_stride_, type_}; }
  Scalar type() const { return type_; }

  void check_surroundings() {
    const auto* first = reinterpret_cast<const uint32_t*>(memory_.data());
    const char* begin = static_cast<const char*>(data());
    const char* end = begin + bytes();
    for (const uint32_t* word = first; word < first + 4 * memory_.size(); ++word) {
      const char* at = reinterpret_cast<const char*>(word);
      if (at + 4 <= begin || at >= end)
        expect(*word == kFill, "memory outside", 0, at - begin, *word, kFill);
    }
  }

 private:
  static constexpr uint32_t kFill = 0x7fc17fc1;  // NaN in every type
  size_t bytes() const { return size_t(rows_ * row_stride_) * size_of(type_); }
  int64_t rows_, columns_;
  Scalar type_;
  int64_t row_stride_, column_stride_, offset_;
  std::vector<plantops::Pack> memory_;
};

struct Softmax {
  Row p, log_p;
  double log_sum_exp;
};

inline Softmax softmax(const Row& x, double temperature) {
  double max = -INFINITY, sum = 0;
  for (double v : x) max = std::max(max, v / temperature);
  for (double v : x) sum += std::exp(v / temperature - max);
  Softmax result{{}, {}, max + std::log(sum)};
  for (double v : x) {
    result.log_p.push_back(v / temperature - result.log_sum_exp);
    result.p.push_back(std::exp(result.log_p.back()));
  }
  return result;
}

// p_T (log p_T - log p_S) for each class.
inline Row kl_terms(const Softmax& s, const Softmax& t) {
  Row terms;
  for (size_t c = 0; c < s.p.size(); ++c) terms.push_back(t.p[c] == 0 ? 0 : t.p[c] * (t.log_p[c] - s.log_p[c]));
  return terms;
}

inline double sum(const Row& values) {
  double total = 0;
  for (double v : values) total += v;
  return total;
}

// The rounding of what is stored in a type.
inline double rounding(Scalar type) {
  return type == Scalar::f64 ? 1e-13 : type == Scalar::f32 ? 2e-6 : type == Scalar::bf16 ? 0x1p-8 : 0x1p-10;
}

}  // namespace cases
