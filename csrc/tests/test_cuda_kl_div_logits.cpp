// The CUDA kernels of kl_div_logits, run by the emulator, against the formula in double.
#include "emulator.h"

#include "../cuda/kl_div_logits.cu"
#include "row_cases.h"

using namespace cases;
using plantops::LogitPair;

namespace {

constexpr Scalar kTypes[] = {Scalar::f64, Scalar::f32, Scalar::bf16, Scalar::f16};
constexpr double kTemperature = 2.5;

struct Case {
  int64_t rows, classes;
  Scalar student, teacher;
  int64_t offset = 0, gap = 0, column_stride = 1;
  double shift = 0, temperature = kTemperature;
};

class Pair {
 public:
  Pair(const Case& c, unsigned seed = 1)
      : c_(c), compute(c.student == Scalar::f64 ? Scalar::f64 : Scalar::f32),
        student(c.rows, c.classes, c.student, c.offset, c.gap, c.column_stride),
        teacher(c.rows, c.classes, c.teacher, c.offset + 1, 0, 1), lse_s(c.rows, 1, compute), lse_t(c.rows, 1, compute),
        grad(c.rows, c.classes, c.student), loss(1, 1, compute), partial(c.rows, NAN) {
    std::mt19937 random(seed);
    student.fill(random, 2, c.shift);
    teacher.fill(random, 2, -c.shift);
  }
  LogitPair logits() { return {student.view(), teacher.view(), c_.classes, c_.temperature}; }

  void forward(double factor) {
    const plantops::cuda::KlForward arguments{logits(), c_.rows, sum(factor), nullptr, lse_s.data(), lse_t.data()};
    expect(launch(arguments, nullptr) == cudaSuccess, "launch", 0, 0, 1, 0);
  }
  void backward(double factor, Matrix& upstream) {
    const plantops::cuda::KlBackward arguments{
        logits(), c_.rows, lse_s.data(), lse_t.data(), factor, upstream.data(), {}, grad.data()};
    expect(launch(arguments, nullptr) == cudaSuccess, "launch", 0, 0, 1, 0);
  }
  void value_and_grad(double factor) {
    const plantops::cuda::KlValueAndGrad arguments{
        logits(), c_.rows, factor / c_.temperature, sum(factor), nullptr, grad.data()};
    expect(launch(arguments, nullptr) == cudaSuccess, "launch", 0, 0, 1, 0);
  }
  plantops::cuda::LossSum sum(double factor) { return {factor, partial.data(), loss.data(), ticket}; }
  double expected_loss(double factor) {
    double total = 0;
    for (int64_t r = 0; r < c_.rows; ++r)
      total += cases::sum(kl_terms(softmax(student.row(r), c_.temperature), softmax(teacher.row(r), c_.temperature)));
    return total * factor;
  }
  void check_loss(double factor) {
    const double exact = expected_loss(factor);
    expect_close("loss", 0, 0, loss.at(0), exact, 0, rounding(compute) * (1 + std::abs(exact)));
  }
  void check_sums() {
    for (int64_t r = 0; r < c_.rows; ++r) {
      const double s = softmax(student.row(r), c_.temperature).log_sum_exp;
      const double t = softmax(teacher.row(r), c_.temperature).log_sum_exp;
      expect_close("lse_student", r, 0, lse_s.at(r), s, rounding(compute), rounding(compute));
      expect_close("lse_teacher", r, 0, lse_t.at(r), t, rounding(compute), rounding(compute));
    }
  }
  void check_grad(double factor) {
    for (int64_t r = 0; r < c_.rows; ++r) {
      const Softmax s = softmax(student.row(r), c_.temperature), t = softmax(teacher.row(r), c_.temperature);
      for (int64_t k = 0; k < c_.classes; ++k) {
        const double exact = factor / c_.temperature * (s.p[k] - t.p[k]), size = factor * (s.p[k] + t.p[k]);
        expect_close("grad", r, k, grad.at(r, k), exact, rounding(c_.student),
                     4 * rounding(compute) * size + 1e-7 * (c_.student == Scalar::f16));
      }
    }
    for (Matrix* m : {&student, &teacher, &lse_s, &lse_t, &grad, &loss}) m->check_surroundings();
  }

 private:
  Case c_;

 public:
  Scalar compute;
  Matrix student, teacher, lse_s, lse_t, grad, loss;
  std::vector<double> partial;
  int ticket = 7;
};

void all_reduced(const char* name, const Case& c) {
  running = name;
  const double factor = 1.0 / double(c.rows);
  Pair pair(c);
  pair.forward(factor);
  pair.check_loss(factor);
  pair.check_sums();
  Matrix upstream(1, 1, pair.compute);
  upstream.set(0, 0, 3.0);
  pair.backward(factor / c.temperature, upstream);
  pair.check_grad(3 * factor);
  Pair fused(c);
  fused.value_and_grad(factor);
  fused.check_loss(factor);
  fused.check_grad(factor);
}

// Every width at which another kernel begins, and neighbours of them; rows that begin anywhere between two boundaries.
void narrow_rows() {
  for (int64_t classes : {2, 10, 31, 33, 100, 257, 1000, 1024})
    for (int64_t offset : {0, 3})
      all_reduced("lanes float", {classes < 100 ? 67 : 9, classes, Scalar::f32, Scalar::f32, offset});
  for (Scalar type : {Scalar::bf16, Scalar::f16})
    for (int64_t classes : {2, 10, 63, 250, 1000})
      all_reduced("lanes half", {classes < 100 ? 35 : 9, classes, type, type, classes % 8, classes % 3});
}

void wide_rows() {
  for (int major : {8, 9}) {
    emulator::device.major = major;
    all_reduced("blocks float", {3, 5001, Scalar::f32, Scalar::f32, 1});
    all_reduced("blocks half", {2, 9000, Scalar::bf16, Scalar::bf16, 0, 3});
    // Little shared memory: a cluster where there are clusters, else the rows are read again.
    emulator::device.shared_memory = 8 * 1024;
    const int before = emulator::device.clusters;
    all_reduced("clusters float", {2, 3003, Scalar::f32, Scalar::f32, 2});
    all_reduced("clusters half", {2, 5000, Scalar::f16, Scalar::f16, 5});
    expect((emulator::device.clusters > before) == (major >= 9), "clusters", 0, 0, emulator::device.clusters, before);
    emulator::device.shared_memory = 227 * 1024;
  }
}

void any_rows() {
  for (Scalar student : kTypes)
    for (Scalar teacher : kTypes)
      if (student != teacher || student == Scalar::f64) all_reduced("any types", {3, 300, student, teacher, 1});
  all_reduced("any strides", {5, 77, Scalar::f32, Scalar::f32, 0, 3, 2});
}

// Logits far from 0 lose nothing: sums are relative to the row's maximum, and the backward normalises again.
void far_from_zero() {
  all_reduced("shift", {5, 1000, Scalar::f32, Scalar::f32, 0, 0, 1, 3000});
  all_reduced("shift", {2, 3000, Scalar::f32, Scalar::f32, 0, 0, 1, 3000});
  all_reduced("one", {5, 100, Scalar::f32, Scalar::f32, 0, 0, 1, 0, 1.0});
}

void pointwise() {
  running = "pointwise";
  for (Scalar type : kTypes) {
    const Case c{3, 300, type, Scalar::f32};
    Pair pair(c);
    Matrix terms(c.rows, c.classes, pair.compute), upstream(c.rows, c.classes, pair.compute, 0, 5);
    std::mt19937 random(3);
    upstream.fill(random, 1, 0);
    const plantops::cuda::KlForward forward{
        pair.logits(), c.rows, {1.0, nullptr, nullptr}, terms.data(), pair.lse_s.data(), pair.lse_t.data()};
    launch(forward, nullptr);
    pair.check_sums();
    const plantops::cuda::KlBackward backward{
        pair.logits(), c.rows, pair.lse_s.data(), pair.lse_t.data(), NAN, nullptr, upstream.view(), pair.grad.data()};
    launch(backward, nullptr);
    for (int64_t r = 0; r < c.rows; ++r) {
      const Softmax s = softmax(pair.student.row(r), c.temperature), t = softmax(pair.teacher.row(r), c.temperature);
      const Row exact = kl_terms(s, t);
      double dot = 0;
      for (int64_t k = 0; k < c.classes; ++k) dot += upstream.at(r, k) * t.p[size_t(k)];
      for (int64_t k = 0; k < c.classes; ++k) {
        const size_t i = size_t(k);
        const double digits = 10 * rounding(pair.compute);
        expect_close("term", r, k, terms.at(r, k), exact[i], digits, digits * t.p[i]);
        const double g = (s.p[i] * dot - upstream.at(r, k) * t.p[i]) / c.temperature;
        expect_close("pointwise grad", r, k, pair.grad.at(r, k), g, rounding(type), 1e-7);
      }
    }
    terms.check_surroundings();
    pair.grad.check_surroundings();
  }
}

void special_values() {
  running = "special values";
  for (int64_t classes : {10, 3000}) {
    const Case c{4, classes, Scalar::f32, Scalar::f32};
    Pair pair(c);
    pair.student.set(0, 3, -INFINITY), pair.teacher.set(0, 3, -INFINITY);  // adds 0
    pair.student.set(1, 4, -INFINITY);                                     // infinite
    pair.student.set(2, 5, NAN);
    pair.teacher.set(3, classes - 1, NAN);
    std::vector<double> rows(4);
    for (int64_t r = 0; r < 4; ++r) {
      Pair one({1, classes, Scalar::f32, Scalar::f32});
      for (int64_t k = 0; k < classes; ++k) {
        one.student.set(0, k, pair.student.at(r, k));
        one.teacher.set(0, k, pair.teacher.at(r, k));
      }
      one.forward(1.0);
      rows[size_t(r)] = one.loss.at(0);
      if (r == 0) one.check_loss(1.0);
    }
    expect(rows[1] == INFINITY, "loss", 1, 0, rows[1], INFINITY);
    expect(std::isnan(rows[2]), "loss", 2, 0, rows[2], NAN);
    expect(std::isnan(rows[3]), "loss", 3, 0, rows[3], NAN);
    // A teacher whose one class stands far above all, met after an infinite share of another: that one counts as 0.
    Pair sharp({1, classes, Scalar::f32, Scalar::f32, 0, 0, 1, 0, 1.0});
    sharp.student.set(0, 0, -INFINITY);
    sharp.teacher.set(0, classes - 1, 2000);
    sharp.forward(1.0);
    sharp.check_loss(1.0);
  }
}

// The same bits for any order in which threads run.
void repeats() {
  running = "repeats";
  emulator::device.shared_memory = 8 * 1024;
  for (int64_t classes : {10, 1000, 3000}) {
    double first = 0;
    for (unsigned seed = 0; seed < 4; ++seed) {
      emulator::device.seed = seed;
      Pair pair({5, classes, Scalar::f32, Scalar::f32});
      pair.value_and_grad(1.0);
      if (seed == 0) first = pair.loss.at(0);
      expect(pair.loss.at(0) == first, "loss", 0, int64_t(seed), pair.loss.at(0), first);
    }
  }
  emulator::device = {};
}

// The last block adds up the others' sums and leaves its ticket as it was; without a ticket a second launch adds up.
void launches() {
  running = "launches";
  for (int64_t classes : {10, 1000, 1500}) {
    const Case c{40, classes, Scalar::f32, Scalar::f32};
    double first = 0;
    for (int ticket : {7, 7, -1}) {
      emulator::device.launches = 0;
      Pair pair(c);
      pair.ticket = ticket;
      pair.value_and_grad(1.0);
      pair.check_loss(1.0);
      expect(emulator::device.launches == (ticket < 0 ? 2 : 1), "launches", 0, ticket, emulator::device.launches, 1);
      if (first == 0) first = pair.loss.at(0);
      if (ticket >= 0) expect(pair.loss.at(0) == first, "loss again", 0, ticket, pair.loss.at(0), first);
      expect(plantops::cuda::tickets[7] == 0, "ticket", 0, ticket, plantops::cuda::tickets[7], 0);
    }
  }
}

void no_rows() {
  running = "no rows";
  Pair pair({0, 10, Scalar::f32, Scalar::f32});
  pair.forward(NAN);
  expect(std::isnan(pair.loss.at(0)), "loss", 0, 0, pair.loss.at(0), NAN);
}

}  // namespace

int main() {
  narrow_rows();
  wide_rows();
  any_rows();
  far_from_zero();
  pointwise();
  special_values();
  repeats();
  launches();
  no_rows();
  return failures == 0 ? 0 : 1;
}
